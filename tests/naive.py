"""Plain restatements of every verb and stage, one function each: slow, obvious, with exact fractions."""

import itertools
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
