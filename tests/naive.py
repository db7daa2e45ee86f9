"""Plain restatements of every verb and stage, one function each: slow, obvious, with exact fractions."""

import functools
import heapq
import itertools
import math
from collections import defaultdict
from fractions import Fraction

import numpy as np


def neighbors(at, shape, connectivity):
    """Yield the voxels of a 3D `shape` that share a face, an edge or a corner with `at`, as `connectivity` says."""
    reach = {6: 1, 18: 2, 26: 3}[connectivity]
    for step in itertools.product((-1, 0, 1), repeat=3):
        there = tuple(p + d for p, d in zip(at, step, strict=True))
        if 0 < sum(map(abs, step)) <= reach and all(0 <= p < n for p, n in zip(there, shape, strict=True)):
            yield there


def label(volume, connectivity=6):
    """Flood each component of equal class from its first voxel in raster order."""
    labels = np.zeros(volume.shape, dtype=np.uint32)
    count = 0
    for first in np.ndindex(volume.shape):
        if volume[first] and not labels[first]:
            count += 1
            labels[first] = count
            front = [first]
            while front:
                here = front.pop()
                for there in neighbors(here, volume.shape, connectivity):
                    if volume[there] == volume[here] and not labels[there]:
                        labels[there] = count
                        front.append(there)
    return labels


def contacts(labels, image=None, spacing=(1, 1, 1), connectivity=6):
    """Return {(id_a, id_b): (faces_z, faces_y, faces_x, edges, corners, area, share, mean)}, with exact fractions."""
    scale = 2**32 if image is not None and image.dtype.kind == "f" else 1
    sides = [Fraction(spacing[a]) * Fraction(spacing[b]) for a, b in ((1, 2), (0, 2), (0, 1))]
    surface = defaultdict(Fraction)
    counts = defaultdict(lambda: [0, 0, 0, 0, 0])
    sums = defaultdict(int)
    reach = {6: 1, 18: 2, 26: 3}[connectivity]
    steps = [step for step in itertools.product((-1, 0, 1), repeat=3) if 0 < sum(map(abs, step)) <= reach]
    for here in np.ndindex(labels.shape):
        for step in steps:
            there = tuple(p + d for p, d in zip(here, step, strict=True))
            if not all(0 <= p < n for p, n in zip(there, labels.shape, strict=True)):
                continue
            a, b = int(labels[here]), int(labels[there])
            if a == b:
                continue
            if sum(map(abs, step)) == 1:
                surface[a] += sides[step.index(1 if 1 in step else -1)]
            # Every voxel pair is met from both ends; it counts where the smaller id is met first.
            if 0 < a < b:
                kind = sum(map(abs, step)) + 1
                if kind == 2:
                    kind = step.index(1 if 1 in step else -1)
                counts[a, b][kind] += 1
                if image is not None:
                    sums[a, b] += sum(round(Fraction(image[at].item()) * scale) for at in (here, there))
    table = {}
    for (a, b), found in sorted(counts.items()):
        area = sum(n * side for n, side in zip(found[:3], sides, strict=True))
        mean = None if image is None else Fraction(sums[a, b], 2 * sum(found) * scale)
        table[a, b] = (*found, area, area / min(surface[a], surface[b]), mean)
    return table


def merge(labels, evidence, min_contact, classes=None, must_link=(), cannot_link=()):
    """Unite labels over {(id_a, id_b): evidence}; None where the constraints contradict each other.

    `classes` is {id: class}. Groups are sets, and every constraint is looked at before every union.
    """
    group = {i: {i} for i in map(int, np.unique(labels)) if i}

    def unite(a, b):
        group[a] |= group[b]
        for i in group[a]:
            group[i] = group[a]

    def may_join(a, b):
        joined = group[a] | group[b]
        if classes is not None and len({classes[i] for i in joined}) > 1:
            return False
        return not any(x in joined and y in joined for x, y in cannot_link)

    for a, b in must_link:
        unite(a, b)
    if not all(may_join(i, i) for i in group):
        return None
    pairs = [(tuple(sorted(pair)), value) for pair, value in evidence.items()]
    for (a, b), value in sorted(pairs, key=lambda item: (-item[1], item[0])):
        if value >= min_contact and may_join(a, b):
            unite(a, b)
    result = labels.copy()
    for i, ids in group.items():
        result[labels == i] = min(ids)
    return result


# Sections 4 to 16 of docs/algorithm.md, whose words are used. Arrays are (Z, Y, X); ids are int64.


def rint(a, b=1):
    """Return a / b rounded to the nearest integer, ties to even."""
    return round(Fraction(int(a), int(b)))


def ahead(array, offset):
    """Return the array whose value at v is ``array[v + offset]``, 0 where that is outside."""
    result = np.zeros_like(array)
    here = tuple(slice(max(0, -d), n - max(0, d)) for d, n in zip(offset, array.shape, strict=True))
    there = tuple(slice(max(0, d), n - max(0, -d)) for d, n in zip(offset, array.shape, strict=True))
    result[here] = array[there]
    return result


def links(volume, connectivity, spacing=(1, 1, 1), q=None):
    """Return ``(offset, path weights, conductances)`` for each offset; both are 0 where no link leads from a voxel."""
    reach = {6: 1, 18: 2, 26: 3}[connectivity]
    found = []
    for offset in itertools.product((-1, 0, 1), repeat=3):
        if not 0 < sum(map(abs, offset)) <= reach:
            continue
        w = round(64 * math.sqrt(sum((d * (s / min(spacing))) ** 2 for d, s in zip(offset, spacing, strict=True))))
        g = max(1, round(65536 * (64 / w) ** 2))
        linked = (volume != 0) & (volume == ahead(volume, offset))
        if q is None:
            found.append((offset, np.where(linked, w, 0), np.where(linked, g, 0)))
        else:
            both = q + ahead(q, offset)
            weights = np.maximum(1, (w * both + 16) >> 5)
            conductances = np.maximum(1, 32 * g // np.maximum(both, 1))
            found.append((offset, np.where(linked, weights, 0), np.where(linked, conductances, 0)))
    return found


def geodesic(labels, links, limit=2**32 - 2):
    """Return labels by the smallest (path weight, label), by Dijkstra's algorithm."""
    result = np.zeros_like(labels)
    heap = [(0, int(labels[v]), v) for v in zip(*map(np.ndarray.tolist, np.nonzero(labels)), strict=True)]
    heapq.heapify(heap)
    while heap:
        distance, label, v = heapq.heappop(heap)
        if result[v]:
            continue
        result[v] = label
        for offset, weights, _ in links:
            there = tuple(p + d for p, d in zip(v, offset, strict=True))
            if weights[v] and not result[there] and not labels[there] and distance + weights[v] <= limit:
                heapq.heappush(heap, (distance + int(weights[v]), label, there))
    return result


def clear(labels, seeds, connectivity):
    """Return labels without the components of equal label that hold no seed of it."""
    parts = label(labels, connectivity)
    kept = np.unique(parts[(seeds > 0) & (seeds == labels)])
    return np.where(np.isin(parts, kept), labels, 0)


def diffuse(labels, seeds, links, sweeps):
    """Return (labels, confidence) after averaging; `sweeps` holds a number for each voxel."""
    names = np.unique(labels[labels > 0])
    p = np.array([np.where(labels == name, 65535, 0) for name in names]).reshape(len(names), *labels.shape)
    total = np.maximum(1, sum(conductances for _, _, conductances in links))
    for sweep in range(int(sweeps.max(initial=0))):
        mean = np.array([sum(g * ahead(one, offset) for offset, _, g in links) // total for one in p])
        mean = mean.reshape(p.shape)
        # Place 0 is the largest; stable, so that of equal ones the smaller label comes first.
        place = np.argsort(np.argsort(-mean, axis=0, kind="stable"), axis=0)
        mean[place > 1] = 0
        changes = mean.any(axis=0) & (seeds == 0) & (sweeps > sweep)
        p = np.where(changes, mean, p)
    if not len(names):
        return labels, np.zeros(labels.shape, dtype=np.int64)
    ordered = np.sort(p, axis=0)
    first = ordered[-1]
    second = ordered[-2] if len(names) > 1 else np.zeros_like(first)
    confidence = np.where(second > 0, first - second, 65535)
    return np.where(labels > 0, names[p.argmax(axis=0)], 0), np.where(labels > 0, confidence, 0)


def annotated(volume, seeds, axes):
    """Return (axis, its annotated slices), or None where seeds are not planar."""
    planar = []
    for axis in axes:
        across = np.moveaxis((volume != 0).astype(np.int64), axis, 0)
        m = across.sum(axis=(1, 2)).tolist()
        s = (across * (np.moveaxis(seeds, axis, 0) != 0)).sum(axis=(1, 2)).tolist()
        shares = {z: s[z] / m[z] for z in range(len(s)) if s[z]}
        if not shares:
            continue
        reached = 0
        for z in sorted(shares, key=shares.get):
            reached += s[z]
            if 2 * reached >= sum(s):
                usual = shares[z]
                break
        slices = [z for z in shares if shares[z] >= usual / 4]
        seeded, masked = sum(s[z] for z in slices), sum(m[z] for z in slices)
        if usual >= 1 / 16 and len(slices) >= 2 and 16 * seeded >= 15 * sum(s) and 4 * masked <= 3 * sum(m):
            planar.append((usual, axis, slices))
    best = [found for found in planar if found[0] == max(planar)[0]]
    return best[0][1:] if len(best) == 1 else None


class Piece:
    """A piece of one label on an annotated slice; `u` is the length of a voxel in 1/64 pixel."""

    def __init__(self, mask, label, plane, value, u):
        self.label = label
        self.value = value
        self.mask = mask
        self.plane = plane
        ys, xs = np.nonzero(mask)
        self.centre = (rint(16 * ys.sum(), len(ys)), rint(16 * xs.sum(), len(xs)))
        margins = [-(-512 // side) for side in u]
        self.corner = (ys.min() - margins[0], xs.min() - margins[1])
        height, width = ys.max() + margins[0] + 1 - self.corner[0], xs.max() + margins[1] + 1 - self.corner[1]
        self.window = np.empty((height, width), dtype=np.int64)
        self.template = np.full((height, width), 2)
        others = np.nonzero(~mask)
        for y, x in np.ndindex(height, width):
            at = (y + self.corner[0], x + self.corner[1])
            inplane = all(0 <= p < n for p, n in zip(at, mask.shape, strict=True))
            inside = inplane and mask[at]
            to_y, to_x = others if inside else (ys, xs)
            d2 = ((to_y - at[0]) * u[0]) ** 2 + ((to_x - at[1]) * u[1]) ** 2
            length = min(128, round(math.sqrt(d2.min()) / 4)) if len(d2) else 128
            self.window[y, x] = length if inside else -length
            if inplane and length < 128:
                self.template[y, x] = plane[at] == value

    def potential(self, y, x):
        """Return the potential at places in 1/16 voxel, in 1/4096 pixel."""
        total = np.zeros(np.broadcast_shapes(y.shape, x.shape), dtype=np.int64)
        for step_y, step_x in itertools.product((0, 1), repeat=2):
            at_y, at_x = (y >> 4) + step_y - self.corner[0], (x >> 4) + step_x - self.corner[1]
            weight = np.where(step_y, y & 15, 16 - (y & 15)) * np.where(step_x, x & 15, 16 - (x & 15))
            inside = (at_y >= 0) & (at_y < self.window.shape[0]) & (at_x >= 0) & (at_x < self.window.shape[1])
            value = self.window[at_y.clip(0, self.window.shape[0] - 1), at_x.clip(0, self.window.shape[1] - 1)]
            total += weight * np.where(inside, value, -128)
        return total


class Interval:
    """Slices between two annotated ones (lists of pieces), or beside one: `ends` holds None for the other."""

    def __init__(self, ends, origin, n, slices):
        self.ends = ends
        self.origin = origin
        self.n = n
        self.slices = slices
        self.pairs = []

    def motions(self, piece, side):
        """Return the motions of a piece's pairs."""
        return [motion(a, b) for a, b in self.pairs if (a, b)[side] is piece]


def motion(a, b):
    return tuple(q - p for p, q in zip(a.centre, b.centre, strict=True))


def length2(d, u):
    return sum((p * side) ** 2 for p, side in zip(d, u, strict=True))


def partners(piece, others, u):
    """Return the pieces on the other end that a piece names."""
    own = [other for other in others if other.label == piece.label]
    overlap = {other: int((piece.mask & other.mask).sum()) for other in own}
    far = {other: length2(motion(piece, other), u) for other in own}
    most = max(overlap.values(), default=0)
    candidates = [other for other in own if overlap[other] == most]
    nearest = min((far[other] for other in candidates), default=0)
    return [other for other in candidates if far[other] == nearest and (most or nearest <= 65536**2)]


def neighbors_motion(interval, side, piece, u, without=None):
    """Return the neighbours' motion where a piece lies on one end of an interval, without one pair."""
    pairs = [pair for pair in interval.pairs if pair is not without and pair[0].value == piece.value]
    if len(pairs) < 3:
        return (0, 0)
    near = []
    for pair in pairs:
        d = [p - q for p, q in zip(pair[side].centre, piece.centre, strict=True)]
        r2 = length2(d, u) >> 12
        if r2 <= 960**2:
            near.append((r2, motion(*pair)))
    near.sort()
    near = [(r2, d) for r2, d in near if r2 <= near[min(3, len(near) - 1)][0]]
    weights = [(2**30 // (204800 + r2)) ** 3 for r2, _ in near]
    total = max(sum(weights), (2**30 // 204800) ** 3)
    return tuple(rint(sum(w * d[k] for w, (_, d) in zip(weights, near, strict=True)), total) for k in (0, 1))


def match(piece, planes, n, expected, trust, stretch, u):
    """Return the motion that the class map follows best; `planes` go away from the piece, and so do motions."""
    ys, xs = np.nonzero(piece.template < 2)
    says = piece.template[ys, xs] == 1
    ys, xs = ys + piece.corner[0], xs + piece.corner[1]

    def rate(d):
        r = [abs(p - q) * side // n for p, q, side in zip(d, expected, u, strict=True)]
        miss = sum(p * p for p in r) >> 12
        score = 0
        for k, plane in enumerate(planes, 1):
            y, x = ys + rint(k * d[0], 16 * n), xs + rint(k * d[1], 16 * n)
            inside = (y >= 0) & (y < plane.shape[0]) & (x >= 0) & (x < plane.shape[1])
            agree = 2 * int(((plane[y[inside], x[inside]] == piece.value) == says[inside]).sum()) + int((~inside).sum())
            score += round(256 * 0.8 ** (k - 1)) * (agree - (len(ys) * trust * miss >> 20))
        return score, -miss

    best = expected
    step, reach = 8 * stretch, 5
    while True:
        candidates = [
            tuple(
                min(max(p + i * step * n, -(65536 // side)), 65536 // side)
                for p, i, side in zip(best, (i, j), u, strict=True)
            )
            for i in range(-reach, reach + 1)
            for j in range(-reach, reach + 1)
        ]
        ratings = {d: rate(d) for d in set(candidates)}
        tied = [d for d in candidates if ratings[d] == max(ratings.values())]
        best = tuple(rint(sum(d[k] for d in tied), len(tied)) for k in (0, 1))
        if step <= 2:
            return best
        step, reach = step // 2, 1


def sections(volume, seeds, axis, slices, spacing, class_of):
    """Return (labels, the classes that took part); the labels are the seeds where no class did."""
    volume, labels = np.moveaxis(volume, axis, 0), np.moveaxis(seeds.copy(), axis, 0)
    across, *inplane = [spacing[axis], *(side for k, side in enumerate(spacing) if k != axis)]
    u = [round(64 * side / min(inplane)) for side in inplane]
    stretch = max(1, round(across / min(inplane)))
    pieces = []
    for z in slices:
        parts = label(labels[z][np.newaxis], 26)[0]
        masks = [parts == number for number in range(1, parts.max() + 1)]
        ids = [int(labels[z][mask][0]) for mask in masks]
        pieces.append([Piece(mask, i, volume[z], class_of[i], u) for mask, i in zip(masks, ids, strict=True)])

    intervals = []
    for j in range(len(slices) - 1):
        lo, hi = slices[j], slices[j + 1]
        interval = Interval((pieces[j], pieces[j + 1]), lo, hi - lo, range(lo + 1, hi))
        named = [(a, b) for a in pieces[j] for b in partners(a, pieces[j + 1], u)]
        named += [(a, b) for b in pieces[j + 1] for a in partners(b, pieces[j], u)]
        interval.pairs = [(a, b) for a, b in dict.fromkeys(named) if length2(motion(a, b), u) <= 65536**2]
        intervals.append(interval)
    lo, hi, n, m = slices[0], slices[-1], intervals[0].n, intervals[-1].n
    head = Interval((None, pieces[0]), lo - n, n, range(max(0, lo - n), lo))
    tail = Interval((pieces[-1], None), hi, m, range(hi + 1, min(len(volume), hi + m + 1)))
    intervals = [head, *intervals, tail]

    rest, whole = defaultdict(int), defaultdict(int)
    for interval in intervals:
        for pair in interval.pairs:
            d = motion(*pair)
            for side in (0, 1):
                p = neighbors_motion(interval, side, pair[side], u, without=pair)
                rest[pair[0].value] += length2([x - y for x, y in zip(d, p, strict=True)], u)
                whole[pair[0].value] += length2(d, u)
    took_part = {value for value in whole if 20 * rest[value] < 17 * whole[value]}

    for j, interval in enumerate(intervals):
        n = interval.n
        items = [(a, b, motion(a, b)) for a, b in interval.pairs if a.value in took_part]
        for side in (0, 1):
            behind = intervals[j - 1 + 2 * side] if interval.ends[side] is not None else None
            for piece in interval.ends[side] or ():
                if interval.motions(piece, side) or piece.value not in took_part or not interval.slices:
                    continue
                own = behind.motions(piece, 1 - side)
                trust = 41
                if own:
                    trust = 820
                    mean = [rint(sum(d[k] for d in own), len(own)) for k in (0, 1)]
                    expected = tuple(rint(p * n, behind.n) for p in mean)
                elif None in interval.ends:
                    near = neighbors_motion(behind, 1 - side, piece, u)
                    expected = tuple(rint(p * n, behind.n) for p in near)
                else:
                    expected = neighbors_motion(interval, side, piece, u)
                sign = -1 if side else 1
                planes = [volume[z] for z in list(interval.slices)[::sign][:8]]
                d = match(
                    piece, planes, n, tuple(sign * p for p in expected),
                    max(1, trust // stretch**2), stretch, u,
                )  # fmt: skip
                d = tuple(sign * p for p in d)
                items.append((None, piece, d) if side else (piece, None, d))
        for z in interval.slices:
            i = z - interval.origin
            y, x = (16 * grid for grid in np.indices(volume[z].shape))
            best = np.full(volume[z].shape, -8192 * n - 1)
            winner = np.zeros(volume[z].shape, dtype=np.int64)
            for a, b, d in sorted(items, key=lambda item: (item[0] or item[1]).label):
                piece = a or b
                score = -614 * n * (i if b is None else n - i if a is None else 0)
                if a is not None:
                    share = n if b is None else n - i
                    score = score + share * a.potential(y - rint(i * d[0], n), x - rint(i * d[1], n))
                if b is not None:
                    share = n if a is None else i
                    score = score + share * b.potential(y + rint((n - i) * d[0], n), x + rint((n - i) * d[1], n))
                takes = (volume[z] == piece.value) & (labels[z] == 0) & (score > best)
                best[takes] = score[takes]
                winner[takes] = piece.label
            labels[z] += winner
    return np.moveaxis(labels, 0, axis), took_part


def propagate(
    volume, seeds, *, connectivity=6, spacing=(1, 1, 1), cost=None, max_distance=None, sweeps=None, slice_axis="auto",
    missing_slices=(), unseeded="drop", seed_conflicts="raise",
):  # fmt: skip
    """Return (labels, confidence, the classes whose sections were drawn); 3D only, and conflicts are settled."""
    present = [z for z in range(len(volume)) if z not in missing_slices]
    shape = volume.shape
    volume, seeds, most = volume[present].astype(np.int64), seeds[present].astype(np.int64), int(seeds.max(initial=0))
    q = None if cost is None else np.clip(np.rint(16 * cost[present].astype(np.float64)), 1, 65535).astype(np.int64)

    given = np.where(volume != 0, seeds, 0)
    class_of = {}
    for i in np.unique(given[given > 0]).tolist():
        values, counts = np.unique(volume[given == i], return_counts=True)
        assert seed_conflicts == "majority" or len(values) == 1
        class_of[i] = int(values[counts.argmax()])
    lut = np.vectorize(lambda i: class_of.get(i, 0), otypes=[np.int64])
    seeds = np.where(lut(given) == volume, given, 0) if given.size else given

    whole = volume
    if max_distance is not None:
        limit = min(int(float(max_distance) / min(spacing) * 64), 2**32 - 2)
        reached = geodesic(seeds, links(volume, connectivity, spacing, q), limit)
        volume = np.where(reached > 0, volume, 0)
    steps = links(volume, connectivity, spacing, q)
    labels, drawn = seeds, set()
    axes = {"auto": (0, 1, 2), None: ()}.get(slice_axis, (slice_axis,))
    planar = annotated(volume, given, axes)
    if planar is not None:
        labels, drawn = sections(volume, seeds, *planar, spacing, class_of)
        labels = clear(labels, seeds, connectivity)
    labels = geodesic(labels, steps)
    by_voxel = np.where(np.isin(volume, list(drawn)), 8, 32) if sweeps is None else np.full(volume.shape, sweeps)
    labels, confidence = diffuse(labels, seeds, steps, by_voxel)
    confidence[seeds > 0] = 65535
    kept = clear(labels, seeds, connectivity)
    confidence[kept == 0] = 0
    labels = geodesic(kept, steps)

    if unseeded == "label":
        parts = label(whole, connectivity)
        free = sorted(set(np.unique(parts).tolist()) - {0} - set(np.unique(parts[seeds > 0]).tolist()))
        for number, part in enumerate(free, most + 1):
            labels[parts == part] = number
            confidence[parts == part] = 65535
    result, lead = np.zeros((2, *shape), dtype=np.int64)
    result[present], lead[present] = labels, confidence
    return result, lead, drawn


# Partition metrics: every pair of voxels, one by one.


def counted(reference, prediction, zeros):
    """List the pairs (reference id, predicted id) of the voxels that count; -1 is void."""
    pairs = zip(reference.ravel().tolist(), prediction.ravel().tolist(), strict=True)
    left_out = {"none": (), "reference": (0,), "both": (0,)}[zeros]
    return [(r, p) for r, p in pairs if r != -1 and r not in left_out and (zeros != "both" or p)]


def voxel_pairs(voxels, singletons, distinct):
    """Return the ordered pairs of voxels together on both sides, in the reference, in the prediction; and all pairs."""
    if singletons:
        voxels = [(r, p or f"alone {k}") for k, (r, p) in enumerate(voxels)]
    pairs = list(itertools.permutations(voxels, 2) if distinct else itertools.product(voxels, repeat=2))
    together = [(a[0] == b[0], a[1] == b[1]) for a, b in pairs]
    return sum(r and p for r, p in together), sum(r for r, _ in together), sum(p for _, p in together), len(pairs)


def entropies(voxels, singletons):
    """Return the entropies in bits of both sides together, of the reference, and of the prediction."""
    if singletons:
        voxels = [(r, p or f"alone {k}") for k, (r, p) in enumerate(voxels)]

    def entropy(items):
        shares = [items.count(item) / len(items) for item in set(items)]
        return sum(-share * math.log2(share) for share in shares)

    return entropy(voxels), entropy([r for r, _ in voxels]), entropy([p for _, p in voxels])


def snemi3d(reference, prediction):
    """Return (error, rand_split, rand_merge) as the SNEMI3D script and its ports by gala and CREMI do, from counts."""
    table = np.zeros((reference.max() + 1, prediction.max() + 1))
    np.add.at(table, (reference.ravel(), prediction.ravel()), 1)
    share = table[1:, 0].sum() / table.sum()
    of_reference = (table[1:].sum(axis=1) ** 2).sum()
    of_prediction = (table[1:, 1:].sum(axis=0) ** 2).sum() + share
    both = (table[1:, 1:] ** 2).sum() + share
    split, merge = both / of_reference, both / of_prediction
    return 1 - 2 * split * merge / (split + merge), split, merge


def isbi(reference, prediction):
    """Return (V_rand, V_info) of one section as the challenge's plugin does, from shares of the reference's pixels."""
    table = np.zeros((reference.max() + 1, prediction.max() + 1))
    np.add.at(table, (reference.ravel(), prediction.ravel()), 1)
    n = table[1:].sum()
    alone = table[1:, 0].sum() / n
    of_reference, of_prediction, both = table[1:].sum(axis=1) / n, table[1:, 1:].sum(axis=0) / n, table[1:, 1:] / n

    def information(shares):
        return sum(share * math.log(share) for share in shares.ravel() if share)

    pairs = (both**2).sum() + alone / n
    v_rand = 2 * pairs / ((of_reference**2).sum() + (of_prediction**2).sum() + alone / n)
    h_reference = -information(of_reference)
    h_prediction = -information(of_prediction) + alone * math.log(n)
    h_both = -information(both) + alone * math.log(n)
    mutual = h_reference + h_prediction - h_both
    split, merge = mutual / h_prediction, mutual / h_reference
    return v_rand, 2 * split * merge / (split + merge)


# Warping.


def topological_number(voxels, connectivity, steps):
    """Count the components of the offsets in `voxels` that a path of at most `steps` from the centre reaches."""

    def touch(a, b):
        gaps = [abs(p - q) for p, q in zip(a, b, strict=True)]
        return max(gaps) == 1 and sum(gaps) <= {6: 1, 18: 2, 26: 3}[connectivity]

    reached = {a for a in voxels if touch(a, (0, 0, 0))}
    for _ in range(steps - 1):
        reached |= {a for a in voxels if any(touch(a, b) for b in reached)}
    count = 0
    while reached:
        count += 1
        front = [reached.pop()]
        while front:
            here = front.pop()
            near = {a for a in reached if touch(a, here)}
            reached -= near
            front.extend(near)
    return count


def is_simple(around, connectivity):
    """Return whether the centre of a (3, 3, 3) or, for the plane, a (1, 3, 3) mask may change (Bertrand 1994)."""
    return is_simple_bytes(around.tobytes(), around.shape, connectivity)


@functools.cache
def is_simple_bytes(data, shape, connectivity):
    """Do what `is_simple` does, once for each neighborhood."""
    around = np.frombuffer(data, dtype=bool).reshape(shape)
    planar = len(around) == 1
    offsets = {at: tuple(np.subtract(at, [0 if planar else 1, 1, 1]).tolist()) for at in np.ndindex(around.shape)}
    inside = {d for at, d in offsets.items() if around[at] and any(d)}
    outside = {d for at, d in offsets.items() if not around[at] and any(d)}
    if connectivity == 6:
        return topological_number(inside, 6, 2) == 1 and topological_number(outside, 26, 1) == 1
    if connectivity == 18 and not planar:
        return topological_number(inside, 18, 2) == 1 and topological_number(outside, 6, 3) == 1
    return topological_number(inside, 26, 1) == 1 and topological_number(outside, 6, 2) == 1


def may_flip(mask, at, connectivity, planar):
    """Return whether the voxel of a 3D mask is simple, with background around the volume, or around the slice."""
    deep = (0, 0) if planar else (1, 1)
    framed = np.pad(mask[at[0]][None] if planar else mask, (deep, (1, 1), (1, 1)))
    corner = (0 if planar else at[0], at[1], at[2])
    return is_simple(framed[tuple(slice(p, p + 3) for p in corner)], connectivity)


def warp(reference, prediction, ignore, connectivity, per_slice):
    """Flip in the order of a queue, to which a flip adds its neighbors; ignored voxels when it is empty."""
    warped = reference.copy()
    queues = [], []

    def enqueue(at):
        queue = queues[int(ignore is not None and bool(ignore[at]))]
        if at not in queue and warped[at] != prediction[at]:
            queue.append(at)

    for at in np.ndindex(reference.shape):
        if may_flip(reference, at, connectivity, per_slice):
            enqueue(at)
    while any(queues):
        at = (queues[0] or queues[1]).pop(0)
        if not may_flip(warped, at, connectivity, per_slice):
            continue
        warped[at] = prediction[at]
        for there in neighbors(at, warped.shape, 26):
            if there[0] == at[0] or not per_slice:
                enqueue(there)
    return warped


def fewest_unwarped(reference, prediction, ignore, connectivity, per_slice):
    """Try every deformation of a tiny mask; return the fewest voxels that disagree outside `ignore`."""
    counts = np.ones(reference.shape, dtype=bool) if ignore is None else ~ignore
    seen = {reference.tobytes()}
    front = [reference]
    fewest = reference.size
    while front:
        mask = front.pop()
        fewest = min(fewest, int(((mask != prediction) & counts).sum()))
        for at in np.ndindex(mask.shape):
            if may_flip(mask, at, connectivity, per_slice):
                other = mask.copy()
                other[at] = not mask[at]
                if other.tobytes() not in seen:
                    seen.add(other.tobytes())
                    front.append(other)
    return fewest


# Instance metrics


def instances(reference, prediction, void=None):
    """Return sizes of references, sizes of predictions outside void, their void voxels, and shared voxels of pairs."""
    void = np.zeros(reference.shape, bool) if void is None else void
    references, predictions, voids, shared = defaultdict(int), defaultdict(int), defaultdict(int), defaultdict(int)
    for a, b, v in zip(reference.flat, prediction.flat, void.flat, strict=True):
        a, b = int(a), int(b)
        if b:
            predictions[b] += not v
            voids[b] += bool(v)
        if a and not v:
            references[a] += 1
            if b:
                shared[a, b] += 1
    return dict(references), dict(predictions), dict(voids), dict(shared)


def iou(references, predictions, shared):
    """Return the exact IoU of each pair that shares voxels."""
    return {(a, b): Fraction(n, references[a] + predictions[b] - n) for (a, b), n in shared.items()}


def assignments(pairs, value):
    """Return (best value, the one-to-one choices of pairs that have it); values are added as tuples."""
    found = {}

    def choose(left, taken):
        if not left:
            total = tuple(map(sum, zip((0, 0), *map(value, taken), strict=True)))
            found.setdefault(total, []).append(frozenset(taken))
            return
        (a, b), *rest = left
        choose(rest, taken)
        if all(a != c and b != d for c, d in taken):
            choose(rest, [*taken, (a, b)])

    choose(sorted(pairs), [])
    best = max(found)
    return best, found[best]


def matchings(reference, prediction, void, threshold, strict):
    """Return (largest number of matches, their largest sum of IoU), and the matchings that have both."""
    references, predictions, _, shared = instances(reference, prediction, void)
    pairs = iou(references, predictions, shared)
    # The threshold's decimal is meant; the library compares correctly rounded quotients.
    limit = Fraction(str(threshold))
    passing = {pair: x for pair, x in pairs.items() if x > limit or (x == limit and not strict)}
    return assignments(passing, lambda pair: (1, passing[pair]))


def panoptic(reference, prediction, void):
    """Return (sum of IoU, tp, fp, fn) as panopticapi counts them for one class."""
    references, predictions, voids, shared = instances(reference, prediction, void)
    matches = {pair: x for pair, x in iou(references, predictions, shared).items() if x > Fraction(1, 2)}
    free = [b for b in predictions if all(b != d for _, d in matches)]
    fp = sum(Fraction(voids[b], voids[b] + predictions[b]) <= Fraction(1, 2) for b in free)
    return sum(matches.values()), len(matches), fp, len(references) - len(matches)


def curve_area(flags, references):
    """Return COCO's 101-point AP of a ranking of hits (True) and misses (False)."""
    hits, points = 0, []
    for rank, hit in enumerate(flags, 1):
        hits += hit
        points.append((hits / references, hits / rank))
    return sum(max((p for r, p in points if r >= x), default=0) for x in np.linspace(0, 1, 101)) / 101


def rank_coco(reference, prediction, void, scores, low, high):
    """Return the AP at each of COCO's thresholds, by its loops; -1 without references. Sizes from `low` to `high`."""
    references, predictions, voids, shared = instances(reference, prediction, void)
    pairs = iou(references, predictions, shared)
    out = {a: not low <= n <= high for a, n in references.items()}
    order = sorted(predictions, key=lambda b: (-scores[b], b))
    if all(out.values()):
        return [-1.0] * 10
    result = []
    for k in range(10, 20):
        taken, flags = set(), []
        for b in order:
            best, choice = Fraction(k, 20), None
            for a in sorted(references, key=lambda a: (out[a], a)):
                if a in taken:
                    continue
                if choice is not None and not out[choice] and out[a]:
                    break
                if pairs.get((a, b), 0) >= best:
                    best, choice = pairs[a, b], a
            if choice is not None:
                taken.add(choice)
                if not out[choice]:
                    flags.append(True)
            elif low <= predictions[b] <= high and voids[b] <= predictions[b]:
                flags.append(False)
        result.append(curve_area(flags, len(references) - sum(out.values())))
    return result


def rank_mitoem(reference, prediction, scores, low, high):
    """Return the AP at each of MitoEM's thresholds; -1 without references. Sizes above `low`, up to `high`."""
    references, predictions, _, shared = instances(reference, prediction)
    inside = {a: low < n <= high for a, n in references.items()}
    if not any(inside.values()):
        return [-1.0] * 10
    result = []
    for threshold in 0.5 + 0.05 * np.arange(10):
        flags = []
        for b in sorted(predictions, key=lambda b: (-scores[b], b)):
            best = {a: n / (predictions[b] + references[a] - n) for (a, c), n in sorted(shared.items()) if c == b}
            best = {a: x for a, x in best.items() if inside[a]} or best
            # The first of equal ones, in the order of ids.
            choice = max(best, key=best.get, default=None)
            if choice is not None and best[choice] >= threshold:
                if inside[choice]:
                    flags.append(True)
            elif low < predictions[b] <= high:
                flags.append(False)
        result.append(curve_area(flags, sum(inside.values())))
    return result


def aggregated(references, predictions, voids, shared, taken):
    """Return the aggregated Jaccard index of the pairs `taken`; nothing against nothing is 1."""
    union = sum(references[a] + predictions[b] - shared[a, b] for a, b in taken)
    union += sum(n for a, n in references.items() if all(a != c for c, _ in taken))
    union += sum(n for b, n in predictions.items() if voids[b] <= n and all(b != d for _, d in taken))
    return Fraction(sum(shared[pair] for pair in taken), union) if union else Fraction(1)


def aji(reference, prediction, void):
    """Return AJI, and AJI+ of each one-to-one choice of the largest sum of IoU."""
    references, predictions, voids, shared = instances(reference, prediction, void)
    pairs = iou(references, predictions, shared)
    best = []
    for a in references:
        options = [(-x, -shared[pair], pair) for pair, x in pairs.items() if pair[0] == a]
        best += [min(options)[2]] if options else []
    _, choices = assignments(pairs, lambda pair: (0, pairs[pair]))
    table = references, predictions, voids, shared
    return aggregated(*table, best), {aggregated(*table, choice) for choice in choices}


# Which errors, and surfaces


def differences(reference, prediction, ignore=None, share=Fraction(1, 4)):
    """Return {kind: [(id, size, cost, box, parts, overlaps)]}, ranked."""
    if ignore is None:
        ignore = np.zeros(reference.shape, dtype=bool)
    where = [defaultdict(list), defaultdict(list)]
    void = defaultdict(int)
    for at in np.ndindex(reference.shape):
        if ignore[at]:
            void[int(prediction[at])] += 1
            continue
        for side, volume in zip(where, (reference, prediction), strict=True):
            side[int(volume[at])].append(at)
    found = {}
    for kind in ("splits", "merges", "missed", "spurious"):
        own, other = where if kind in ("splits", "missed") else where[::-1]
        entries = []
        for i in set(own) - {0}:
            shared = {j: len(set(own[i]) & set(other[j])) for j in set(other) - {0}}
            parts = {j: n for j, n in shared.items() if n and n >= share * min(len(own[i]), len(other[j]))}
            order = sorted(parts, key=lambda j: (-parts[j], j))
            size = len(own[i])
            if kind in ("splits", "merges"):
                wrong = len(parts) >= 2
                cost = sum(parts.values()) - max(parts.values(), default=0)
            else:
                wrong = sum(parts.values()) < share * size
                cost = size
            if kind == "spurious" and 2 * void[i] > void[i] + size:
                wrong = False
            if wrong:
                axes = list(zip(*own[i], strict=True))
                box = tuple(slice(min(axis), max(axis) + 1) for axis in axes)
                entries.append((i, size, cost, box, tuple(order), tuple(parts[j] for j in order)))
        found[kind] = sorted(entries, key=lambda entry: (-entry[2], entry[0]))
    return found


def surface(mask):
    """Return the voxels of `mask` with a face neighbour outside it; a single slice has no neighbours along z."""
    voxels = set(map(tuple, np.argwhere(mask).tolist()))
    steps = [step for step in itertools.product((-1, 0, 1), repeat=3) if sum(map(abs, step)) == 1]
    if mask.shape[0] == 1:
        steps = [step for step in steps if step[0] == 0]
    return sorted(at for at in voxels if any(tuple(np.add(at, step).tolist()) not in voxels for step in steps))


def surface_distances(first, second, spacing):
    """Return Hausdorff distance, HD95 and ASSD of two masks, from all pairs of their surface voxels."""
    surfaces = surface(first), surface(second)
    distances = []
    for own, other in (surfaces, surfaces[::-1]):
        for a in own:
            squares = [sum(((p - q) * s) ** 2 for p, q, s in zip(a, b, spacing, strict=True)) for b in other]
            distances.append(math.sqrt(min(squares)))
    distances.sort()
    below, rest = divmod(Fraction(95, 100) * (len(distances) - 1), 1)
    above = distances[min(below + 1, len(distances) - 1)]
    hd95 = distances[below] + float(rest) * (above - distances[below])
    return distances[-1], hd95, sum(distances) / len(distances)


# Fusing sources


def most(votes):
    """Return the class with most votes, the smaller of equal ones; None without votes."""
    return min(votes, key=lambda c: (-votes[c], c), default=None)


def fuse(sources, complete=(), axis=0, priority=("instances", "slices", "classes"), mappings=None):
    """Return volume, seeds and provenance, and {(kind, winner, id, class, loser, id, class): voxels}; None: no class.

    `sources` and `mappings` are by name; a mapping lists the classes of some ids.
    """
    order = [name for name in priority if name in sources]
    labels = [name for name in order if name != "classes"]
    mappings = {name: (mappings or {}).get(name, {}) for name in labels}
    shape = next(iter(sources.values())).shape
    everywhere = list(np.ndindex(shape))

    def says(name, at):
        return int(sources[name][at]) if name in sources else 0

    lead, other = (*labels, None, None)[:2]
    where = {name: defaultdict(set) for name in labels}
    for at in everywhere:
        for name in labels:
            if says(name, at):
                where[name][says(name, at)].add(at)

    def gone(at):
        return at[axis] in complete and not says(lead, at)

    # Which objects are one: a node is a source and an id; `owner` gives the node that its id and class come from.
    planes = [{at[axis] for voxels in where[name].values() for at in voxels} for name in labels]
    common = [at for at in everywhere if all(at[axis] in on for on in planes)]
    partners = defaultdict(list)
    ids = {(lead, a): a for a in where.get(lead, ())}
    fresh = max(where.get(lead, ()), default=0)
    for b, voxels in sorted(where.get(other, {}).items(), key=lambda item: min(item[1])):
        for a, others in where[lead].items():
            smaller = min(len(others & set(common)), len(voxels & set(common)))
            if voxels & others and 2 * len(voxels & others) >= smaller:
                partners[b].append(a)
        covered = sum(says(lead, at) > 0 for at in voxels)
        if not partners[b] and covered and 2 * covered >= len(voxels & set(common)):
            partners[b] = [a for a, others in where[lead].items() if voxels & others]
        if not partners[b]:
            fresh += 1
            ids[other, b] = fresh

    def owner(name, i):
        return (lead, partners[i][0]) if name == other and len(partners[i]) == 1 else (name, i)

    # Which class each has.
    known = {int(c) for name in sources if name == "classes" for c in sources[name].flat if c}
    known |= {c for mapping in mappings.values() for c in mapping.values()}
    class_of = {}
    for node in {owner(name, i) for name in labels for i in where[name]}:
        mapped, lying = defaultdict(int), defaultdict(int)
        for name in labels:
            for i, voxels in where[name].items():
                if owner(name, i) != node:
                    continue
                if name == other and i in mappings[name]:
                    mapped[mappings[name][i]] += len(voxels)
                for at in voxels:
                    if says("classes", at) and not gone(at) and (name == lead or not says(lead, at)):
                        lying[says("classes", at)] += 1
        only = (min(known, default=1)) if len(known) < 2 else None
        first = mappings[lead].get(node[1]) if node[0] == lead else None
        class_of[node] = next((c for c in (first, most(mapped), most(lying), only) if c is not None), None)

    volume, seeds = np.zeros(shape, object), np.zeros(shape, object)
    provenance = np.zeros(shape, np.uint8)
    conflicts = defaultdict(list)
    codes = {"classes": 1, "instances": 2, "slices": 3}
    for at in everywhere:
        said = {name: says(name, at) for name in order}
        if gone(at):
            for name in order:
                if said[name]:
                    mine = said[name] if name == "classes" else class_of[owner(name, said[name])]
                    row = ("unlabelled", lead, 0, 0, name, 0 if name == "classes" else said[name], mine or 0)
                    conflicts[row].append(at)
                    provenance[at] = 4
            continue
        kind = by_kind = seed = by_seed = None
        for name in order:
            i = said[name]
            if name == "classes":
                if by_kind is None:
                    kind, by_kind = i, name
                elif kind != i:
                    row = ("class" if i else "background", by_kind, said[by_kind], kind, name, 0, i)
                    conflicts[row].append(at)
                continue
            if not i:
                continue
            node = owner(name, i)
            mine = class_of[node]
            row = None
            if seed is not None and seed != node:
                word = "joins" if name == other and len(partners[i]) > 1 and said[lead] in partners[i] else "labels"
                row = (word, lead, said[lead], kind, name, i, mine or 0)
            elif seed is None and by_kind is not None and kind != mine:
                row = ("class" if kind else "background", "classes", 0, kind, name, i, mine or 0)
            else:
                if by_kind is None:
                    kind, by_kind = mine, name
                if node not in ids:
                    row = ("joins", lead, 0, kind, name, i, mine)
                else:
                    if seed is None:
                        seed, by_seed = node, name
                    asserted = mappings[name].get(i, mine)
                    if asserted != mine:
                        row = ("class", lead, said[lead], mine, name, i, asserted)
            if row:
                conflicts[row].append(at)
        volume[at], seeds[at] = (0 if by_kind is None else kind), ids.get(seed, 0)
        if any(said.values()):
            provenance[at] = codes[by_seed or by_kind]
    return volume, seeds, provenance, dict(conflicts)


# Stitching. Sections are numbered slice by slice, in raster order of their first voxels; planes are (row, column).


class Section:
    """One id on one slice; all sections of a chain share the list `chain`, all of a group the list `group`."""

    def __init__(self, at, name, first, voxels, kind):
        self.at, self.name, self.first, self.voxels, self.kind = at, name, first, voxels, kind
        self.area = len(voxels)
        self.centre = tuple(rint(16 * sum(voxel[k] for voxel in voxels), self.area) for k in (0, 1))
        self.rank = self.number = None
        self.chain, self.group = [self], [self]

    def shared(self, other, shift=(0, 0)):
        return len({(r + shift[0], c + shift[1]) for r, c in self.voxels} & other.voxels)

    def beside(self, side):
        """Return the section of the chain on the next slice before (side 0) or after that has one."""
        if side == 0:
            return max((s for s in self.chain if s.rank < self.rank), key=lambda s: s.rank, default=None)
        return min((s for s in self.chain if s.rank > self.rank), key=lambda s: s.rank, default=None)

    def own_motion(self, side, gap):
        far = self
        for step in (1, 2):
            there = far.beside(side)
            if there is None or abs(there.rank - self.rank) != step:
                break
            far = there
        if far is self:
            return None
        a, b = (far, self) if side == 0 else (self, far)
        return tuple(rint(gap * (b.centre[k] - a.centre[k]), b.at - a.at) for k in (0, 1))

    def shift(self, side, gap, others):
        motion = self.own_motion(side, gap)
        if motion is None:
            known = [(s.centre, s.own_motion(side, gap)) for s in others if s.rank == self.rank and s.kind == self.kind]
            known = [(centre, m) for centre, m in known if m is not None]
            near = sorted(((c[0] - self.centre[0]) ** 2 + (c[1] - self.centre[1]) ** 2, m) for c, m in known)
            near = [(r2, m) for r2, m in near if r2 <= 960**2]
            motion = (0, 0)
            if len(known) >= 3 and near:
                near = [(r2, m) for r2, m in near if r2 <= near[min(3, len(near) - 1)][0]]
                weights = [(2**30 // (204800 + r2)) ** 3 for r2, _ in near]
                total = max(sum(weights), (2**30 // 204800) ** 3)
                near = list(zip(weights, (m for _, m in near), strict=True))
                motion = tuple(rint(sum(w * m[k] for w, m in near), total) for k in (0, 1))
        most = 16 * 16 * gap
        return tuple((1, -1)[side] * rint(min(max(m, -most), most), 16) for m in motion)


def list_sections(slices, classes, axis, bad):
    """Return the sections; a section of classes {0, c} has class c."""
    found = defaultdict(list)
    for at in np.ndindex(slices.shape):
        if slices[at] and at[axis] not in bad:
            found[at[axis], int(slices[at])].append(at)
    sections = []
    for (z, name), voxels in found.items():
        kinds = {0} if classes is None else {int(classes[at]) for at in voxels}
        plane = {tuple(x for k, x in enumerate(at) if k != axis) for at in voxels}
        sections.append(Section(z, name, min(voxels), plane, max(kinds)))
        assert len(kinds - {0}) < 2
    sections.sort(key=lambda s: (s.at, s.first))
    present = sorted({s.at for s in sections})
    for number, s in enumerate(sections):
        s.number, s.rank = number, present.index(s.at)
    return sections, present


def stitch(slices, classes=None, axis=0, max_gap=5, branching=True, bad_slices=(), must_link=(), cannot_link=()):
    """Unite sections; None where the constraints contradict each other."""
    sections, present = list_sections(slices, classes, axis, set(bad_slices))
    named = {(s.at, s.name): s for s in sections}
    must = [(named[a], named[b]) for a, b in must_link]
    cannot = [(named[a], named[b]) for a, b in cannot_link]

    def unite(a, b):
        if a.group is not b.group:
            joined = sorted(a.group + b.group, key=lambda s: s.number)
            for s in joined:
                s.group = joined

    def kept_apart(a, b):
        return any({id(x.group), id(y.group)} == {id(a.group), id(b.group)} for x, y in cannot)

    for a, b in must:
        if a.kind != b.kind:
            return None
        unite(a, b)
    if any(a.group is b.group for a, b in cannot):
        return None

    def chain(a, b):
        """Make one chain of two, and one group of theirs, where that is possible."""
        ranks = [{s.rank for s in x.chain} for x in (a, b)]
        between = set(range(a.rank + 1, b.rank))
        if a.chain is b.chain or ranks[0] & ranks[1] or (ranks[0] | ranks[1]) & between or kept_apart(a, b):
            return
        joined = a.chain + b.chain
        for s in joined:
            s.chain = joined
        unite(a, b)

    for a, b in sorted((sorted(pair, key=lambda s: s.number) for pair in must), key=lambda p: [s.number for s in p]):
        if b.rank == a.rank + 1:
            chain(a, b)

    def count_moved(first, distance, gap):
        """Return twice what open sections share where they move to."""
        here = [s for s in sections if s.rank == first and not any(0 < t.rank - first <= distance for t in s.chain)]
        last = first + distance
        there = [s for s in sections if s.rank == last and not any(0 < last - t.rank <= distance for t in s.chain)]
        shifts = {s: s.shift(side, gap, sections) for side, some in enumerate((here, there)) for s in some}
        counts = {(a, b): a.shared(b, shifts[a]) + b.shared(a, shifts[b]) for a in here for b in there}
        return {pair: n for pair, n in counts.items() if n}

    shared = defaultdict(int)
    for distance in (1, 2):
        places = list(enumerate(zip(present, present[distance:], strict=False)))
        for gap in range(1, max_gap + 1):
            links = {}
            for first, (z, w) in places:
                if w - z != gap:
                    continue
                unmoved = {
                    (a, b): 2 * a.shared(b)
                    for a in sections
                    for b in sections
                    if (a.rank, b.rank) == (first, first + distance) and a.shared(b)
                }
                found = unmoved if gap == 1 else count_moved(first, distance, gap)
                links.update(found)
                if distance == 1:
                    for pair in {**unmoved, **found}:
                        shared[pair] = max(unmoved.get(pair, 0), found.get(pair, 0))
            order = []
            for (a, b), n in links.items():
                if a.kind == b.kind and 10 * n > 2 * 3 * min(a.area, b.area):
                    order.append((-n / (2 * (a.area + b.area) - n), a.number, b.number))
            for _, i, j in sorted(order):
                chain(sections[i], sections[j])
    if branching:
        branch(sections, shared, unite, kept_apart)
    roots = sorted({id(s.group): s.group for s in sections}.values(), key=lambda group: min(s.first for s in group))
    result = np.zeros(slices.shape, np.uint32)
    for number, group in enumerate(roots, 1):
        for s in group:
            result[(slices == s.name) & (np.indices(slices.shape)[axis] == s.at)] = number
    return result


def branch(sections, shared, unite, kept_apart):
    """Unite groups where one begins or ends in the other: first at chains of at least 3 sections, then all."""
    length = {s: len(s.chain) for s in sections}
    junction, blunt = defaultdict(int), defaultdict(int)
    for pair, n in shared.items():
        for side in (0, 1):
            tip, other = pair[side], pair[1 - side]
            # The tip of an earlier section is the group's last one.
            onward, back = tip.beside(1 - side), tip.beside(side)
            if onward is None and (other.beside(1 - side) is not None or length[tip] < 3):
                junction[pair] = n
                if back is not None and 5 * tip.area > 3 * back.area and 10 * n > 2 * 3 * tip.area:
                    blunt[pair] = n

    def rate(pairs):
        """Return {(smaller group's number, other's): evidence} of all above 1, and the groups."""
        groups = {s.group[0].number: s.group for s in sections}
        largest = {k: max(s.area for s in group) for k, group in groups.items()}
        total, most, most_blunt = (defaultdict(int) for _ in range(3))
        for pair in pairs:
            ends = [s.group[0].number for s in pair]
            if ends[0] == ends[1] or pair[0].kind != pair[1].kind:
                continue
            small = min((0, 1), key=lambda k: (largest[ends[k]], ends[k]))
            key = ends[small], ends[1 - small]
            total[key] += shared[pair]
            if 10 * junction[pair] > 2 * 3 * pair[small].area:
                most[key] = max(most[key], junction[pair])
            most_blunt[key] = max(most_blunt[key], blunt[pair])
        result = {}
        for key, whole in total.items():
            values = []
            for m, (low, high) in ((most[key], (3, 20)), (most_blunt[key], (1, 20))):
                values.append((m / whole) * (m / (2 * largest[key[0]])) * high / low)
            if max(values) > 1:
                result[key] = max(values)
        return result, groups

    def accept(rated, groups):
        for key in sorted(rated, key=lambda key: (-rated[key], sorted(key))):
            a, b = (groups[k][0] for k in key)
            if a.group is not b.group and not kept_apart(a, b):
                unite(a, b)

    accept(*rate([pair for pair in shared if min(length[s] for s in pair) >= 3]))
    while True:
        rated, groups = rate(shared)
        rated = {key: e for key, e in rated.items() if not kept_apart(*(groups[k][0] for k in key))}
        if not rated:
            return
        best = {}
        for small, other in sorted(rated, key=lambda key: (key[0], -rated[key], key[1])):
            best.setdefault(small, other)
        accept({key: rated[key] for key in best.items()}, groups)
