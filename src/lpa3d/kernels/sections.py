"""Sections stage: what an object's section looks like between two annotated slices.

Slices are planes ``(Y, X)`` across the section axis. Lengths in a plane are in 1/16 voxel, potentials in 1/16 pixel.
A piece is an 8-connected part of one label on an annotated plane; its window is its bounding box and a margin, and
potentials of the windows of some pieces stand one after the other in a flat array.

Planes may be parts of larger ones, and boxes are counted from the part's corner: a box may begin before it.
"""

import numpy as np

from ._bits import WORD, count_ones, leaf
from ._jit import jit

__all__ = [
    "IGNORED",
    "SUBPIXEL",
    "average_motions",
    "divide_even",
    "draw_planes",
    "list_overlaps",
    "list_templates",
    "match_motions",
    "measure_pieces",
    "pair_nearest",
    "potentials_of_pieces",
]

NO_PIECE = -1
IGNORED = 2

NONE = np.uint64(0)
ONE = np.uint64(1)

SUBPIXEL = 16
NEIGHBORS = 4


@jit
def divide_even(a, b):
    """Return a / b rounded to the nearest integer, ties to even: no direction is preferred."""
    q = a // b
    twice = 2 * (a - q * b)
    if twice > b or (twice == b and q & 1):
        q += 1
    return q


@jit
def measure_pieces(labels, pieces, boxes, measures, piece_labels):
    """Write each piece's box ``(y0, y1, x0, x1)``, ``(area, y, x)`` and label; the centre is in 1/16 voxel.

    `pieces` numbers the pieces of the plane `labels` from 1.
    """
    for p in range(piece_labels.size):
        boxes[p, 0] = pieces.shape[0]
        boxes[p, 1] = 0
        boxes[p, 2] = pieces.shape[1]
        boxes[p, 3] = 0
    for y in range(pieces.shape[0]):
        for x in range(pieces.shape[1]):
            p = np.int64(pieces[y, x]) - 1
            if p < 0:
                continue
            piece_labels[p] = labels[y, x]
            measures[p, 0] += 1
            measures[p, 1] += y
            measures[p, 2] += x
            boxes[p, 0] = min(boxes[p, 0], y)
            boxes[p, 1] = max(boxes[p, 1], y + 1)
            boxes[p, 2] = min(boxes[p, 2], x)
            boxes[p, 3] = max(boxes[p, 3], x + 1)
    for p in range(piece_labels.size):
        measures[p, 1] = divide_even(SUBPIXEL * measures[p, 1], measures[p, 0])
        measures[p, 2] = divide_even(SUBPIXEL * measures[p, 2], measures[p, 0])


@leaf
def count_rows(rows, step, first, end):
    """Lower numbers of rows to the nearest voxel of a state to one more than in the row before, counted by `step`."""
    for y in range(first, end, step):
        for x in range(rows.shape[1]):
            rows[y, x] = min(rows[y, x], np.uint8(rows[y - step, x] + np.uint8(1)))


@leaf
def lower_keys(keys, shift, key, best):
    """Lower each of `best` to the key `shift` places on, plus `key`."""
    shifted = keys[shift : shift + best.size]  # an index that may be negative is not compiled to vectors
    for x in range(best.size):
        best[x] = min(best[x], np.int32(shifted[x] + key))


@jit
def potentials_of_pieces(pieces, numbers, boxes, starts, row_keys, column_keys, table, potentials):
    """Write potentials in the windows of some pieces: the distance to the nearest voxel of the other state, + inside.

    `numbers` are the pieces' numbers in the plane `pieces`. ``row_keys[dy] + column_keys[dx]`` is the squared distance
    and, in the 8 bits below it, dy and dx: the least key names the nearest voxel. ``table[dy, dx]`` is the potential
    there, at most its last entry, the cap. The margin of a window is the table's reach. What lies outside the plane is
    of neither state.
    """
    margin_y = table.shape[0] - 2
    margin_x = table.shape[1] - 2
    far = np.uint8(margin_y + 1)
    ny, nx = pieces.shape
    for p in range(starts.size - 1):
        y0 = boxes[p, 0] - margin_y
        x0 = boxes[p, 2] - margin_x
        height = boxes[p, 1] + margin_y - y0
        width = boxes[p, 3] + margin_x - x0
        # Rows to the nearest voxel of the piece, and of anything else in the plane, along each column.
        rows_in = np.full((height, width), far, dtype=np.uint8)
        rows_out = np.full((height, width), far, dtype=np.uint8)
        for y in range(max(0, -y0), min(height, ny - y0)):
            for x in range(max(0, -x0), min(width, nx - x0)):
                if np.int64(pieces[y0 + y, x0 + x]) == numbers[p]:
                    rows_in[y, x] = 0
                else:
                    rows_out[y, x] = 0
        for rows in (rows_in, rows_out):
            count_rows(rows, 1, 1, height)
            count_rows(rows, -1, height - 2, -1)
        keys_in = np.full(width + 2 * margin_x, row_keys[far], dtype=np.int32)
        keys_out = np.full(width + 2 * margin_x, row_keys[far], dtype=np.int32)
        best_in = np.empty(width, dtype=np.int32)
        best_out = np.empty(width, dtype=np.int32)
        at = starts[p]
        for y in range(height):
            for x in range(width):
                keys_in[margin_x + x] = row_keys[rows_in[y, x]]
                keys_out[margin_x + x] = row_keys[rows_out[y, x]]
                best_in[x] = row_keys[far]
                best_out[x] = row_keys[far]
            for dx in range(-margin_x, margin_x + 1):
                lower_keys(keys_in, margin_x + dx, column_keys[abs(dx)], best_in)
                lower_keys(keys_out, margin_x + dx, column_keys[abs(dx)], best_out)
            for x in range(width):
                inside = rows_in[y, x] == 0
                key = best_out[x] if inside else best_in[x]
                value = table[key >> 4 & 15, key & 15]
                potentials[at] = value if inside else -value
                at += 1


@jit
def list_overlaps(pieces, next_pieces, labels, next_labels, out):
    """List ``(piece, next piece, voxels)``, numbered from 0, for each run of voxels of one label on both planes.

    `pieces` and `next_pieces` number the planes' pieces from 1, `labels` and `next_labels` are the pieces' labels.
    Returns how many runs there are; rows beyond `out` are counted but not written.
    """
    count = 0
    for y in range(pieces.shape[0]):
        a = np.int64(NO_PIECE)
        b = np.int64(NO_PIECE)
        same = False
        for x in range(pieces.shape[1]):
            next_a = np.int64(pieces[y, x]) - 1
            next_b = np.int64(next_pieces[y, x]) - 1
            if next_a == a and next_b == b:
                if same and count <= out.shape[0]:
                    out[count - 1, 2] += 1
                continue
            a = next_a
            b = next_b
            same = a != NO_PIECE and b != NO_PIECE and labels[a] == next_labels[b]
            if same:
                if count < out.shape[0]:
                    out[count, 0] = a
                    out[count, 1] = b
                    out[count, 2] = 1
                count += 1
    return count


@jit
def pair_nearest(wanted, labels, measures, others, other_labels, other_measures, steps, reach):
    """Pair each piece in `wanted` with the nearest one of its label on the other plane, all of them where they tie.

    `others` lists the other plane's pieces by (label, y). Distances are between centres, ``steps`` 1/64 pixels to a
    voxel; none is further than `reach`, in 1/1024 pixel. Returns rows ``(piece, other)``.
    """
    found = np.empty((wanted.size, 2), dtype=np.int64)
    count = 0
    for index in range(wanted.size):
        p = wanted[index]
        lo = 0
        hi = others.size
        while lo < hi:
            mid = (lo + hi) // 2
            q = others[mid]
            ahead = (measures[p, 1] - other_measures[q, 1]) * steps[0] > reach
            if other_labels[q] < labels[p] or (other_labels[q] == labels[p] and ahead):
                lo = mid + 1
            else:
                hi = mid
        best = reach * reach + 1
        first = count
        for i in range(lo, others.size):
            q = others[i]
            dy = (other_measures[q, 1] - measures[p, 1]) * steps[0]
            if other_labels[q] != labels[p] or dy > reach:
                break
            dx = (other_measures[q, 2] - measures[p, 2]) * steps[1]
            r2 = dy * dy + dx * dx
            if r2 > best or r2 > reach * reach:
                continue
            if r2 < best:
                count = first
                best = r2
            if count == found.shape[0]:
                more = np.empty((2 * count, 2), dtype=np.int64)
                for row in range(count):  # a slice takes a second to compile
                    more[row, 0] = found[row, 0]
                    more[row, 1] = found[row, 1]
                found = more
            found[count, 0] = p
            found[count, 1] = q
            count += 1
    return found[:count]


@jit
def average_motions(at, bounds, own, centres, motions, steps, reach, out):
    """Write the mean motion of the nearest `NEIGHBORS` pairs (more where they tie) around each place of `at`.

    For the i-th place the pairs ``bounds[i, 0] <= j < bounds[i, 1]`` count, whose `centres` are sorted by y, but not
    pair ``own[i]``. A pair at distance r weighs ``(2**30 // (204800 + r^2))^3``, r in 1/16 pixel: a Gaussian's centre
    with a fatter tail, in integers. The sum is divided by at least the weight at r = 0, so that a lone far pair moves
    little. Fewer than 3 other pairs give 0.
    """
    near = np.empty(centres.shape[0], dtype=np.int64)
    for i in range(at.shape[0]):
        out[i, 0] = 0
        out[i, 1] = 0
        lo = bounds[i, 0]
        hi = bounds[i, 1]
        end = hi
        if end - lo - (1 if own[i] >= 0 else 0) < 3:
            continue
        while lo < hi:
            mid = (lo + hi) // 2
            if (at[i, 0] - centres[mid, 0]) * steps[0] > reach:
                lo = mid + 1
            else:
                hi = mid
        count = 0
        first = lo
        for j in range(lo, end):
            dy = (centres[j, 0] - at[i, 0]) * steps[0]
            if dy > reach:
                break
            dx = (centres[j, 1] - at[i, 1]) * steps[1]
            near[j - first] = -1 if j == own[i] else (dy * dy + dx * dx) >> 12
            count += 1
        top = np.int64(-1)
        seen = 0
        while seen < NEIGHBORS:
            smallest = np.int64(2**62)
            for j in range(count):
                if top < near[j] < smallest:
                    smallest = near[j]
            if smallest > reach * reach >> 12:
                break
            top = smallest
            for j in range(count):
                if near[j] == top:
                    seen += 1
        total = np.int64(0)
        sum_y = np.int64(0)
        sum_x = np.int64(0)
        for j in range(count):
            if 0 <= near[j] <= top:
                w = (2**30 // (204800 + near[j])) ** 3
                total += w
                sum_y += w * motions[first + j, 0]
                sum_x += w * motions[first + j, 1]
        total = max(total, (2**30 // 204800) ** 3)
        out[i, 0] = divide_even(sum_y, total)
        out[i, 1] = divide_even(sum_x, total)


@jit
def list_templates(plane, kinds, boxes, starts, potentials, margins, cap, templates):
    """Write, for each voxel of each window, whether it has the piece's class (1), another (0), or is `IGNORED`.

    Ignored is what lies outside the plane or as far from the piece's outline as the potential's `cap`: it tells nothing
    about motion. `kinds` are the pieces' classes.
    """
    for p in range(kinds.size):
        at = starts[p]
        for y in range(boxes[p, 0] - margins[0], boxes[p, 1] + margins[0]):
            for x in range(boxes[p, 2] - margins[1], boxes[p, 3] + margins[1]):
                inside = 0 <= y < plane.shape[0] and 0 <= x < plane.shape[1]
                if not inside or abs(potentials[at]) >= cap:
                    templates[at] = IGNORED
                else:
                    templates[at] = plane[y, x] == kinds[p]
                at += 1


@leaf
def pack_region(plane, value, y0, x0, rows, words, same, other):
    """Write which of `rows` times ``64 * words`` voxels from (y0, x0) on have the class `value`, and which another.

    Bit k of a word is voxel k; a voxel outside the plane is in neither.
    """
    ny, nx = plane.shape
    for y in range(rows):
        for w in range(words):
            bits_same = NONE
            bits_other = NONE
            if 0 <= y0 + y < ny:
                x = x0 + w * WORD
                for k in range(max(0, -x), min(WORD, nx - x)):
                    one = np.uint64(plane[y0 + y, x + k] == value)
                    bits_same |= one << np.uint64(k)
                    bits_other |= (one ^ ONE) << np.uint64(k)
            same[y, w] = bits_same
            other[y, w] = bits_other


@leaf
def read_word(row, bit):
    """Return 64 bits of a packed row from `bit` on; the row has one word more than is asked for."""
    w = bit >> 6
    shift = np.uint64(bit & 63)
    if shift == NONE:
        return row[w]
    return (row[w] >> shift) | (row[w + 1] << (np.uint64(WORD) - shift))


@leaf
def count_agreement(template, same, other, y0, x0):
    """Return twice the template's voxels that a plane agrees with, displaced to (y0, x0), and once those outside it."""
    score = 0
    for y in range(template.shape[1]):
        for w in range(template.shape[2]):
            has_class = template[0, y, w]
            has_other = template[1, y, w]
            plane_same = read_word(same[y0 + y], x0 + w * WORD)
            plane_other = read_word(other[y0 + y], x0 + w * WORD)
            score += 2 * count_ones((has_class & plane_same) | (has_other & plane_other))
            score += count_ones((has_class | has_other) & ~(plane_same | plane_other))
    return score


@jit
def match_motions(items, planes, first, direction, n, pieces, margins, search, steps, out):
    """Find the motion of each piece that the class map itself follows best, starting from an expected one.

    Rows of `items`, parallel to the arrays of `pieces`, are ``(dy, dx, trust)``: the expected motion over `n` slices. A
    motion's score is how many voxels around the piece's outline (its template) agree with the planes next to it, at
    their displaced place, weighted by the search's weights, less ``trust`` times the squared difference from what was
    expected. The best on a coarse grid is refined by halving; ties go to the smaller difference, then to the mean of
    what ties.

    Templates and planes are compared 64 voxels at a time, and a motion is given up once it cannot win any more: that
    takes a tenth of the time of the plain sum.
    """
    boxes, starts, kinds, templates = pieces
    weights, radius, coarse, fine, clamp = search
    look = 0
    while look < weights.size and 0 <= first + direction * (look + 1) < planes.shape[0]:
        look += 1
    left = np.zeros(look + 1, dtype=np.int64)
    for s in range(look - 1, -1, -1):
        left[s] = left[s + 1] + weights[s]
    pads = np.empty(look, dtype=np.int64)
    for s in range(look):
        pads[s] = ((radius + 1) * coarse * (s + 1) >> 4) + 2
    for i in range(items.shape[0]):
        trust = items[i, 2]
        y0 = boxes[i, 0] - margins[0]
        x0 = boxes[i, 2] - margins[1]
        height = boxes[i, 1] + margins[0] - y0
        width = boxes[i, 3] + margins[1] - x0
        value = kinds[i]
        template = np.zeros((2, height, (width + WORD - 1) // WORD), dtype=np.uint64)
        counted = 0
        at = starts[i]
        for y in range(height):
            for x in range(width):
                if templates[at] != IGNORED:
                    template[1 - templates[at], y, x >> 6] |= ONE << np.uint64(x & 63)
                    counted += 1
                at += 1

        # Around where the piece is expected, each plane is packed as far as any motion to be tried may lead.
        vy = min(max(items[i, 0], -clamp[0]), clamp[0])
        vx = min(max(items[i, 1], -clamp[1]), clamp[1])
        most = 2 * pads[look - 1]
        words = (width + most + WORD - 1) // WORD + 1
        same = np.empty((look, height + most, words), dtype=np.uint64)
        other = np.empty((look, height + most, words), dtype=np.uint64)
        corner_y = np.empty(look, dtype=np.int64)
        corner_x = np.empty(look, dtype=np.int64)
        for s in range(look):
            corner_y[s] = divide_even((s + 1) * vy, SUBPIXEL * n) - pads[s]
            corner_x[s] = divide_even((s + 1) * vx, SUBPIXEL * n) - pads[s]
            pack_region(
                planes[first + direction * (s + 1)], value, y0 + corner_y[s], x0 + corner_x[s],
                height + 2 * pads[s], words, same[s], other[s],
            )  # fmt: skip

        step = coarse
        reach = radius
        while True:
            best = np.int64(-(2**62))
            best_r2 = np.int64(0)
            sum_y = np.int64(0)
            sum_x = np.int64(0)
            ties = 0
            # From the middle outwards, so that a good score is known early; the order changes nothing else.
            for turn_y in range(1, 2 * reach + 2):
                ky = (turn_y >> 1) * (1 - 2 * (turn_y & 1))
                for turn_x in range(1, 2 * reach + 2):
                    kx = (turn_x >> 1) * (1 - 2 * (turn_x & 1))
                    dy = min(max(vy + ky * step * n, -clamp[0]), clamp[0])
                    dx = min(max(vx + kx * step * n, -clamp[1]), clamp[1])
                    ry = abs(dy - items[i, 0]) * steps[0] // n
                    rx = abs(dx - items[i, 1]) * steps[1] // n
                    r2 = (ry * ry + rx * rx) >> 12
                    penalty = (counted * trust * r2) >> 20
                    score = np.int64(0)
                    for s in range(look):
                        if score + left[s] * (2 * counted - penalty) < best:
                            score = np.int64(-(2**62)) - 1
                            break
                        shift_y = divide_even((s + 1) * dy, SUBPIXEL * n)
                        shift_x = divide_even((s + 1) * dx, SUBPIXEL * n)
                        agreement = count_agreement(
                            template, same[s], other[s], shift_y - corner_y[s], shift_x - corner_x[s]
                        )
                        score += weights[s] * (agreement - penalty)
                    if score > best or (score == best and r2 < best_r2):
                        best = score
                        best_r2 = r2
                        sum_y = dy
                        sum_x = dx
                        ties = 1
                    elif score == best and r2 == best_r2:
                        sum_y += dy
                        sum_x += dx
                        ties += 1
            vy = divide_even(sum_y, ties)
            vx = divide_even(sum_x, ties)
            if step <= fine:
                break
            step //= 2
            reach = 1
        out[i, 0] = vy
        out[i, 1] = vx


@leaf
def sample(potentials, at, height, width, y, x, weights, cap):
    """Return 256 times the bilinear value at (y, x) of a window, ``-cap`` around it."""
    if 0 <= y < height - 1 and 0 <= x < width - 1:
        at += y * width + x
        return (
            weights[0] * np.int64(potentials[at])
            + weights[1] * np.int64(potentials[at + 1])
            + weights[2] * np.int64(potentials[at + width])
            + weights[3] * np.int64(potentials[at + width + 1])
        )
    value = 0
    for k in range(4):
        yy = y + (k >> 1)
        xx = x + (k & 1)
        if 0 <= yy < height and 0 <= xx < width:
            value += weights[k] * np.int64(potentials[at + yy * width + xx])
        else:
            value -= weights[k] * cap
    return value


@jit
def place_window(boxes, starts, p, margins, shift_y, shift_x, weights, place):
    """Write where piece `p`'s window lies when it is displaced, and the bilinear weights of its fraction.

    `place` receives ``(start, height, width, y, x, y end, x end)``: voxel (y, x) and its successors read the window
    at their offset from there; beyond the ends nothing of it is read.
    """
    whole_y = -((-shift_y) >> 4)
    whole_x = -((-shift_x) >> 4)
    fraction_y = (-shift_y) & 15
    fraction_x = (-shift_x) & 15
    weights[0] = (16 - fraction_y) * (16 - fraction_x)
    weights[1] = (16 - fraction_y) * fraction_x
    weights[2] = fraction_y * (16 - fraction_x)
    weights[3] = fraction_y * fraction_x
    place[0] = starts[p]
    place[1] = boxes[p, 1] - boxes[p, 0] + 2 * margins[0]
    place[2] = boxes[p, 3] - boxes[p, 2] + 2 * margins[1]
    place[3] = boxes[p, 0] - margins[0] + whole_y
    place[4] = boxes[p, 2] - margins[1] + whole_x
    place[5] = place[3] + place[1]
    place[6] = place[4] + place[2]


@jit
def draw_planes(items, kinds, n, lo, hi, planes, before, after, margins, levels, labels):
    """Label the slices ``lo <= i < hi`` between two annotated planes that are `n` slices apart.

    Rows of `items` are ``(piece before, piece after, dy, dx, label)``, -1 for none, with the motion over n slices;
    `kinds` are their classes. Slice i reads the first piece displaced by i/n of the motion and the second by what is
    left of it, mixed n - i : i; one that stands alone loses ``levels[1]`` a slice. Where the class fits, the greatest
    potential of at least ``levels[2]`` wins, ties the smaller label; labelled voxels stay. Levels are in 1/4096 pixel,
    `levels[0]` is the cap in 1/16. ``planes[i - lo]`` and ``labels[i - lo]`` are slice i.
    """
    boxes_a, starts_a, potentials_a = before
    boxes_b, starts_b, potentials_b = after
    cap = levels[0]
    ny, nx = planes.shape[1], planes.shape[2]
    best = np.empty((ny, nx), dtype=np.int64)
    winner = np.empty((ny, nx), dtype=np.uint32)
    weights_a = np.zeros(4, dtype=np.int64)
    weights_b = np.zeros(4, dtype=np.int64)
    place_a = np.zeros(7, dtype=np.int64)
    place_b = np.zeros(7, dtype=np.int64)
    for i in range(lo, hi):
        plane = planes[i - lo]
        for y in range(ny):
            for x in range(nx):
                best[y, x] = -(2**62)
                winner[y, x] = 0
        for item in range(items.shape[0]):
            a = items[item, 0]
            b = items[item, 1]
            label = np.uint32(items[item, 4])
            value = kinds[item]
            if a >= 0:
                place_window(
                    boxes_a, starts_a, a, margins,
                    divide_even(i * items[item, 2], n), divide_even(i * items[item, 3], n), weights_a, place_a,
                )  # fmt: skip
            if b >= 0:
                place_window(
                    boxes_b, starts_b, b, margins,
                    -divide_even((n - i) * items[item, 2], n), -divide_even((n - i) * items[item, 3], n),
                    weights_b, place_b,
                )  # fmt: skip
            first = place_a if a >= 0 else place_b
            last = place_b if b >= 0 else place_a
            y_lo = max(0, min(first[3], last[3]))
            y_hi = min(ny, max(first[5], last[5]))
            x_lo = max(0, min(first[4], last[4]))
            x_hi = min(nx, max(first[6], last[6]))
            # A lone piece: weight n, so that all potentials of a slice have the same scale.
            share_a = 0 if a < 0 else (n if b < 0 else n - i)
            share_b = n - share_a
            lost = n * levels[1] * (i if b < 0 else (n - i if a < 0 else 0))
            # Whatever the second potential is, it adds no more than this.
            most_b = 256 * cap * share_b
            for y in range(y_lo, y_hi):
                for x in range(x_lo, x_hi):
                    if plane[y, x] != value or labels[i - lo, y, x] != 0:
                        continue
                    score = -lost
                    needed = max(n * levels[2], best[y, x])
                    if a >= 0:
                        score += share_a * sample(
                            potentials_a, place_a[0], place_a[1], place_a[2],
                            y - place_a[3], x - place_a[4], weights_a, cap,
                        )  # fmt: skip
                        if score + most_b < needed:
                            continue
                    if b >= 0:
                        score += share_b * sample(
                            potentials_b, place_b[0], place_b[1], place_b[2],
                            y - place_b[3], x - place_b[4], weights_b, cap,
                        )  # fmt: skip
                    if score < needed:
                        continue
                    if score > best[y, x] or label < winner[y, x]:
                        best[y, x] = score
                        winner[y, x] = label
        for y in range(ny):
            for x in range(nx):
                if winner[y, x] != 0:
                    labels[i - lo, y, x] = winner[y, x]
