"""Synthetic volumes with known instances: a cell as electron microscopy sees it, and trees of touching branches.

Objects are implicit functions: `f` is the signed distance to the surface in voxels, negative inside, evaluated in the
object's own box. Where two objects of one class overlap, a voxel goes to the one that it lies deeper in, so they meet
in a smooth face, as touching organelles do; objects of different classes keep a gap of cytoplasm. The truth is what
was drawn, never what a labelling found.

The cell is made in four steps: (1) the nucleus and the edge of the cell; (2) droplets, mitochondria and stacks of
vesicles, each tried at random places until it fits; (3) the endoplasmic reticulum in the space that is left: sheets
and tubes along the zero level of smooth noise; (4) an image: a grey level for each class, dark membranes, texture,
blur, noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .errors import InputError

__all__ = ["CLASS_NAMES", "Cell", "cell", "trees"]

Floats = npt.NDArray[np.float32]
Points = npt.NDArray[Any]
Box = tuple[slice, slice, slice]

NUCLEUS, MITOCHONDRION, RETICULUM, VESICLE, DROPLET = 1, 2, 3, 4, 5
CLASS_NAMES = {
    NUCLEUS: "nucleus",
    MITOCHONDRION: "mitochondrion",
    RETICULUM: "endoplasmic reticulum",
    VESICLE: "fusiform vesicle",
    DROPLET: "lipid droplet",
}
OUTSIDE = 6
"""Marks the space outside the cell while it is made; no class of the result."""

GAP = 2.5
"""Voxels of cytoplasm between objects of different classes."""

PAD = 6
"""Voxels around an object in which its distance is known, so that others keep away."""

SUNK = 1.25
"""Two objects of a class may overlap by this much from either side: a face of contact, no more."""

FAR = 1e3
SMALLEST_SHAPE = (32, 64, 64)


@dataclass(frozen=True)
class Cell:
    """A synthetic cell: what an annotator would draw, and the image that they would see.

    Attributes
    ----------
    classes : (Z, Y, X) uint8
        Class of each voxel, 0 = background; `class_names` names them.
    instances : (Z, Y, X) uint32
        Instance of each voxel, numbered 1..n class by class, 0 = background. Each is connected by faces and lies in
        one class.
    image : (Z, Y, X) uint8
        Electron micrograph: dark membranes on a grey cytoplasm.
    spacing : tuple of float
        Voxel size (z, y, x) in nanometres.
    class_names : dict of int to str
        Name of each class.
    """

    classes: npt.NDArray[np.uint8]
    instances: npt.NDArray[np.uint32]
    image: npt.NDArray[np.uint8]
    spacing: tuple[float, float, float]
    class_names: dict[int, str]


def cell(shape: tuple[int, int, int] = (192, 320, 320), seed: int = 0) -> Cell:
    """Make a synthetic cell of five organelle classes with known instances.

    A nucleus with its envelope, mitochondria (curved tubes, about half of them in touching pairs), stacks of flattened
    vesicles that touch and drift together from slice to slice, a branching endoplasmic reticulum (one instance) and
    lipid droplets, some touching. Sizes are in voxels of 16 nm whatever the shape; a larger volume holds more.

    Parameters
    ----------
    shape : tuple of int, optional
        ``(Z, Y, X)``, at least (32, 64, 64). The default takes about ten seconds and 1 GB.
    seed : int, optional
        Seed of the random generator; the same seed gives the same cell (on another machine but for the
        rounding of floats).

    Returns
    -------
    Cell
        Classes, instances, image, spacing and class names.

    Raises
    ------
    InputError
        If `shape` is too small to hold all five classes.

    See Also
    --------
    trees : two ids that touch along their branches.

    Examples
    --------
    >>> from lpa3d import phantom
    >>> small = phantom.cell((32, 64, 64), seed=1)
    >>> small.classes.shape, small.instances.dtype.name, small.image.dtype.name
    ((32, 64, 64), 'uint32', 'uint8')
    >>> bool(((small.classes > 0) == (small.instances > 0)).all())
    True
    """
    shape = _checked_shape(shape, SMALLEST_SHAPE)
    scene = _Scene(shape, np.random.default_rng(seed))
    _add_nucleus_and_edge(scene)
    _add_droplets(scene)
    _add_mitochondria(scene)
    _add_vesicles(scene)
    _add_reticulum(scene)
    classes, instances = _finish(scene)
    image = _render(scene, classes, instances)
    return Cell(classes, instances, image, (16.0, 16.0, 16.0), dict(CLASS_NAMES))


def trees(
    shape: tuple[int, int, int] = (96, 128, 128), seed: int = 0, *, radius: tuple[float, float] = (5.0, 8.0)
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint32]]:
    """Make two trees whose branches touch along their length.

    The second tree follows the first at the distance where their surfaces meet and winds around it, so neighbouring
    sections move in different ways, and one connected mask holds both.

    Parameters
    ----------
    shape : tuple of int, optional
        ``(Z, Y, X)``, at least (32, 64, 64).
    seed : int, optional
        Seed of the random generator; the same seed gives the same trees.
    radius : tuple of float, optional
        Smallest and largest radius of a branch, in voxels.

    Returns
    -------
    mask : (Z, Y, X) uint8
        1 in both trees.
    instances : (Z, Y, X) uint32
        1 in the first tree, 2 in the second, each connected by faces.

    Raises
    ------
    InputError
        If `shape` or `radius` is out of range.

    See Also
    --------
    cell : organelles of five classes.

    Examples
    --------
    >>> from lpa3d import phantom
    >>> mask, instances = phantom.trees((32, 64, 64), seed=3)
    >>> int(instances.max()), bool(((instances > 0) == (mask > 0)).all())
    (2, True)
    """
    shape = _checked_shape(shape, SMALLEST_SHAPE)
    low, high = radius
    if not 1 <= low <= high <= 16:
        raise InputError(f"radius is {radius!r}; 1 <= smallest <= largest <= 16 voxels is needed, e.g. (5, 8)")
    rng = np.random.default_rng(seed)
    surfaces = [np.full(shape, FAR, np.float32) for _ in range(2)]
    for path, shadow, radii in _tree_branches(shape, rng, low, high):
        for surface, points in zip(surfaces, (path, shadow), strict=True):
            tube = _tube(shape, points, radii)
            if tube is not None:
                np.minimum(surface[tube.box], tube.f, out=surface[tube.box])
    owner = np.where(surfaces[0] <= surfaces[1], np.uint32(1), np.uint32(2))
    owner[np.minimum(*surfaces) >= 0] = 0
    _keep_largest_pieces(owner)
    return (owner > 0).astype(np.uint8), owner


# --------------------------------------------------------------------------------------------------------- the scene


class _Shape(NamedTuple):
    """An object in its box: signed distance, and the place along it (for texture)."""

    box: Box
    f: Floats
    phase: Floats | None = None


class _Scene:
    """What has been placed so far."""

    def __init__(self, shape: tuple[int, int, int], rng: np.random.Generator) -> None:
        self.shape = shape
        self.rng = rng
        self.owner = np.zeros(shape, np.uint32)
        self.surface = np.full(shape, FAR, np.float32)  # distance to the nearest object, where it is known
        self.near = np.zeros(shape, np.uint8)  # class of that object
        self.phase = np.zeros(shape, np.float32)
        self.kinds = [0]  # class of each id
        self.noise = _Noise((128, 128, 128), 14.0, rng).field()  # dents of small objects are cut out of it

    def new_id(self, kind: int) -> int:
        self.kinds.append(kind)
        return len(self.kinds) - 1

    def per_volume(self, count: float) -> int:
        """Return how many objects a volume of this size holds if the default one holds `count`; at least 2."""
        return max(2, round(count * np.prod(self.shape) / (192 * 320 * 320)))

    def dents(self, box: Box) -> Floats:
        """Return smooth noise for a box of at most 128 voxels a side."""
        size = [part.stop - part.start for part in box]
        z, y, x = (int(self.rng.integers(0, 129 - length)) for length in size)
        return self.noise[z : z + size[0], y : y + size[1], x : x + size[2]]

    def random_point(self) -> Points:
        return self.rng.uniform(0, self.shape)

    def taken(self, point: Points, kind: int) -> bool:
        """Return whether an object of another class is at `point`."""
        place = tuple(np.clip(np.rint(point).astype(int), 0, np.array(self.shape) - 1))
        return bool(self.surface[place] < GAP and self.near[place] != kind)

    def place(self, thing: _Shape | None, kind: int, smallest: int = 400) -> bool:
        """Place an object unless it is small, cut by another class or sunk into its own; return whether it was."""
        if thing is None:
            return False
        surface, near = self.surface[thing.box], self.near[thing.box]
        inside = thing.f < 0
        volume = np.count_nonzero(inside)
        blocked = (near != kind) & (surface < GAP)
        if volume < smallest or np.count_nonzero(blocked & inside) > 0.02 * volume:
            return False
        if np.count_nonzero((thing.f < -SUNK) & (surface < -SUNK)) > 0.005 * volume:
            return False
        self.draw(thing, kind, ~blocked)
        return True

    def draw(self, thing: _Shape, kind: int, allowed: npt.NDArray[np.bool_] | None = None) -> None:
        """Give the object every voxel that it holds deeper than any before it."""
        surface = self.surface[thing.box]
        closer = thing.f < surface
        if allowed is not None:
            closer &= allowed
        inside = closer & (thing.f < 0)
        self.owner[thing.box][inside] = self.new_id(kind)
        if thing.phase is not None:
            self.phase[thing.box][inside] = thing.phase[inside]
        self.near[thing.box][closer] = kind
        surface[closer] = thing.f[closer]


def _checked_shape(shape: Any, smallest: tuple[int, int, int]) -> tuple[int, int, int]:
    sizes = tuple(int(size) for size in shape)
    if len(sizes) != 3 or any(size < least for size, least in zip(sizes, smallest, strict=True)):
        raise InputError(f"shape is {shape!r}; three sizes (Z, Y, X) of at least {smallest} are needed")
    return sizes[0], sizes[1], sizes[2]


def _box(shape: tuple[int, int, int], low: Points, high: Points) -> Box | None:
    """Return the part of ``low..high`` inside the volume, None where there is none."""
    lows = np.maximum(np.floor(low).astype(int), 0)
    highs = np.minimum(np.ceil(high).astype(int) + 1, shape)
    if (highs <= lows).any():
        return None
    return slice(lows[0], highs[0]), slice(lows[1], highs[1]), slice(lows[2], highs[2])


def _axes(box: Box, centre: Points) -> tuple[Floats, Floats, Floats]:
    """Return open coordinates (z, y, x) of a box, relative to `centre`."""
    z, y, x = (
        np.arange(part.start, part.stop, dtype=np.float32) - np.float32(c) for part, c in zip(box, centre, strict=True)
    )
    return z[:, None, None], y[None, :, None], x[None, None, :]


def _direction(rng: np.random.Generator) -> Points:
    vector = rng.normal(size=3)
    unit: Points = vector / np.linalg.norm(vector)
    return unit


def _perpendicular(vector: Points, rng: np.random.Generator) -> Points:
    side: Points = np.cross(vector, _direction(rng))
    side /= np.linalg.norm(side)
    return side


# ------------------------------------------------------------------------------------------------------- smooth noise


def _spline_basis(length: int, step: float, derivative: bool = False) -> Floats:
    """Return the cubic B-splines with knots every `step` voxels, one column each (or their derivative)."""
    knots = int(np.ceil((length - 1) / step)) + 4
    place = np.arange(length)[:, None] / step - (np.arange(knots)[None, :] - 1)
    t = np.abs(place)
    if derivative:
        inner, outer = 1.5 * t * t - 2 * t, -0.5 * (2 - t) ** 2
        values = np.where(t < 1, inner, np.where(t < 2, outer, 0.0)) * np.sign(place) / step
    else:
        values = np.where(t < 1, 2 / 3 - t * t + t**3 / 2, np.where(t < 2, (2 - t) ** 3 / 6, 0.0))
    return values.astype(np.float32)


class _Noise:
    """Smooth random field of standard deviation near 1: cubic B-splines of white noise on a coarse grid."""

    def __init__(self, shape: tuple[int, ...], step: float, rng: np.random.Generator) -> None:
        self.shape, self.step = shape, step
        grid = tuple(_spline_basis(length, step).shape[1] for length in shape)
        # A cubic B-spline of white noise has a mean square of 0.479 along each axis.
        self.grid = (rng.standard_normal(grid) / 0.479 ** (len(shape) / 2)).astype(np.float32)

    def field(self, derivative_axis: int | None = None) -> Floats:
        """Return the field, or its derivative along one axis."""
        values: Floats = self.grid
        for axis, length in enumerate(self.shape):
            basis = _spline_basis(length, self.step, axis == derivative_axis)
            values = np.moveaxis(np.tensordot(basis, values, (1, axis)), 0, axis)
        return np.ascontiguousarray(values)

    def at(self, point: Points) -> float:
        """Return the field at one point."""
        values: Any = self.grid
        for length, place in zip(self.shape, point, strict=True):
            values = np.tensordot(_spline_basis(length, self.step)[int(place)], values, (0, 0))
        return float(values)

    def distance(self) -> Floats:
        """Return the distance in voxels to where the field is zero, to first order."""
        steepness = np.zeros(self.shape, np.float32)
        for axis in range(len(self.shape)):
            steepness += self.field(axis) ** 2
        np.sqrt(steepness, out=steepness)
        # Near its extrema the field is flat; without a floor the quotient would call all of that near.
        np.maximum(steepness, 0.6 * float(steepness.mean()), out=steepness)
        np.divide(np.abs(self.field()), steepness, out=steepness)
        return steepness


# -------------------------------------------------------------------------------------------------- tubes and walks


def _walk(rng: np.random.Generator, start: Points, heading: Points, steps: int, bend: float, step: float) -> Points:
    """Return a smooth random walk: the heading turns, and the turning itself changes slowly."""
    turn = rng.normal(size=3) * bend
    points = [start]
    for _ in range(steps):
        turn = 0.92 * turn + 0.08 * rng.normal(size=3) * 3 * bend
        heading = heading + turn * step
        heading = heading / np.linalg.norm(heading)
        points.append(points[-1] + heading * step)
    return np.array(points)


def _tube(shape: tuple[int, int, int], path: Points, radii: Points) -> _Shape | None:
    """Return the tube of spheres along a path; the phase is the number of the nearest point."""
    box = _box(shape, (path - radii[:, None] - PAD).min(axis=0), (path + radii[:, None] + PAD).max(axis=0))
    if box is None:
        return None
    size = tuple(part.stop - part.start for part in box)
    origin = np.array([part.start for part in box])
    f, phase = np.full(size, FAR, np.float32), np.zeros(size, np.float32)
    for i, (point, radius) in enumerate(zip(path - origin, radii, strict=True)):
        local = _box((size[0], size[1], size[2]), point - radius - PAD, point + radius + PAD)
        if local is None:
            continue
        z, y, x = _axes(local, point)
        ball = np.sqrt(z * z + y * y + x * x) - np.float32(radius)
        nearer = ball < f[local]
        f[local][nearer] = ball[nearer]
        phase[local][nearer] = i
    return _Shape(box, f, phase)


def _tree_branches(
    shape: tuple[int, int, int], rng: np.random.Generator, low: float, high: float
) -> list[tuple[Points, Points, Points]]:
    """Return (path, path of the other tree, radii) of a stem and its branches."""
    size = np.array(shape, dtype=float)
    start = size * rng.uniform(0.35, 0.65, 3)
    start[0] = 0
    stems = [(start, np.array([1.0, *rng.normal(size=2) * 0.25]), _direction(rng), int(1.3 * size[0]))]
    branches: list[tuple[Points, Points, Points]] = []
    for _ in range(3 + round(9 * float(np.prod(size)) / (96 * 128 * 128))):
        start, heading, towards, steps = stems.pop(int(rng.integers(len(stems))))
        path = _walk(rng, start, heading / np.linalg.norm(heading), steps, 0.02, 1.0)
        radii = _radii(rng, len(path), low, high)
        # The other tree winds slowly around this one; both have the same radius at the same place.
        tangent, first, second = _frame(path)
        angle = np.arctan2(towards @ second[0], towards @ first[0])
        turned = angle + np.linspace(0, rng.uniform(-1, 1) * len(path) / 40, len(path))
        side = np.cos(turned)[:, None] * first + np.sin(turned)[:, None] * second
        branches.append((path, path + side * (2 * radii - 1)[:, None], radii))
        # A branch leaves at right angles to the line between the trees, so neither has to cross the other.
        inside = np.flatnonzero(((path > 0) & (path < size)).all(axis=1))
        for at in rng.choice(inside, 3) if len(inside) else ():
            away = np.cross(side[at], tangent[at]) * rng.choice([-1.0, 1.0])
            stems.append((path[at], away + tangent[at] * 0.4, side[at], int(rng.integers(50, 110))))
    return branches


def _frame(path: Points) -> tuple[Points, Points, Points]:
    """Return the unit tangent of a path at each point, and two unit vectors at right angles to it and each other."""
    tangent = np.gradient(path, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    first = np.empty_like(path)
    # Carry the first vector along: it must not spin by itself.
    carried = np.cross(tangent[0], np.eye(3)[np.argmin(np.abs(tangent[0]))])
    for i, along in enumerate(tangent):
        carried = carried - (carried @ along) * along
        carried = carried / np.linalg.norm(carried)
        first[i] = carried
    return tangent, first, np.cross(tangent, first)


def _radii(rng: np.random.Generator, count: int, low: float, high: float) -> Points:
    """Return a radius for each point of a path, changing slowly between `low` and `high`."""
    noise: Points = np.tanh(_Noise((count,), 18.0, rng).field().astype(float))
    return (low + high) / 2 + (high - low) / 2 * noise


# ------------------------------------------------------------------------------------------------------- the organelles


def _add_nucleus_and_edge(scene: _Scene) -> None:
    shape, rng = scene.shape, scene.rng
    whole = (slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2]))
    size = np.array(shape, dtype=float)
    lobes = _Noise(shape, 44.0, rng).field()
    radius = 0.31 * min(size[1:])
    z, y, x = _axes(whole, size * [0.46, 0.14, 0.16])
    f = np.sqrt((0.8 * z) ** 2 + y * y + (0.9 * x) ** 2) - np.float32(radius) + lobes * np.float32(0.05 * radius)
    scene.draw(_Shape(whole, f), NUCLEUS)
    z, y, x = _axes(whole, size * [0.5, 0.97, 0.8])
    f = -(0.25 * z + 0.9 * y + 0.35 * x) + lobes * np.float32(0.03 * radius)
    scene.draw(_Shape(whole, f), OUTSIDE)


def _add_droplets(scene: _Scene) -> None:
    rng = scene.rng
    clusters, tries = scene.per_volume(8), 0
    while clusters and tries < 400:
        tries += 1
        centre, radius = scene.random_point(), rng.uniform(9, 19)
        if not scene.place(_ball(scene, centre, radius), DROPLET):
            continue
        clusters -= 1
        for _ in range(rng.integers(0, 4)):
            partner = rng.uniform(7, 16)
            # The surfaces sink into each other by a voxel or two: a flat face of contact.
            next_to = centre + _direction(rng) * (radius + partner - rng.uniform(1, 2.2))
            if scene.place(_ball(scene, next_to, partner), DROPLET) and rng.random() < 0.5:
                centre, radius = next_to, partner


def _ball(scene: _Scene, centre: Points, radius: float) -> _Shape | None:
    box = _box(scene.shape, centre - radius - PAD, centre + radius + PAD)
    if box is None:
        return None
    z, y, x = _axes(box, centre)
    dents = scene.dents(box)
    return _Shape(box, np.sqrt(z * z + y * y + x * x) - np.float32(radius) + np.float32(0.025 * radius) * dents)


def _add_mitochondria(scene: _Scene) -> None:
    rng = scene.rng
    left, tries = scene.per_volume(60), 0
    while left > 0 and tries < 600:
        tries += 1
        path = _walk(rng, scene.random_point(), _direction(rng), int(rng.integers(30, 95)), 0.016, 1.5)
        radii = _mitochondrion_radii(rng, len(path))
        if not scene.place(_tube(scene.shape, path, radii), MITOCHONDRION, 1500):
            continue
        left -= 1
        # A neighbour runs along a part of it, then leaves.
        for _ in range(6):
            if rng.random() < 0.25:
                break
            beside, partner = _beside(rng, path, radii)
            if scene.place(_tube(scene.shape, beside, partner), MITOCHONDRION, 1500):
                left -= 1
                break


def _mitochondrion_radii(rng: np.random.Generator, count: int) -> Points:
    return rng.uniform(8, 12.5) * (1 + 0.09 * _Noise((count,), 14.0, rng).field().astype(float))


def _beside(rng: np.random.Generator, path: Points, radii: Points) -> tuple[Points, Points]:
    """Return a path and radii that touch a given tube along a part of it."""
    tangent, first, second = _frame(path)
    start = int(rng.integers(0, max(1, len(path) // 2)))
    part = slice(start, start + int(rng.integers(12, 40)))
    count = len(path[part])
    turned = rng.uniform(0, 2 * np.pi) + np.linspace(0, rng.uniform(-0.6, 0.6), count)
    side = np.cos(turned)[:, None] * first[part] + np.sin(turned)[:, None] * second[part]
    own = _mitochondrion_radii(rng, count)
    along = path[part] + side * (radii[part] + own - 1.0)[:, None]
    leaving = tangent[part][-1] * 0.8 + side[-1] * 0.6
    rest = _walk(rng, along[-1], leaving / np.linalg.norm(leaving), int(rng.integers(8, 40)), 0.016, 1.5)[1:]
    return np.concatenate([along, rest]), np.concatenate([own, np.full(len(rest), own[-1])])


def _add_vesicles(scene: _Scene) -> None:
    rng = scene.rng
    # As in umbrella cells of the bladder, stacks near each other lie alike, and few lie in the plane of the slices.
    lie = [_Noise(scene.shape, 55.0, rng) for _ in range(3)]
    stacks, tries = scene.per_volume(72), 0
    while stacks and tries < 2500:
        tries += 1
        centre = scene.random_point()
        normal = (np.array([field.at(centre) for field in lie]) + 0.4 * rng.normal(size=3)) * [0.4, 1, 1]
        normal /= np.linalg.norm(normal)
        # One bend for a whole stack, so that its vesicles nest.
        across, bend = _perpendicular(normal, rng), (rng.normal(size=3) * 2.2).astype(np.float32)
        height, placed = 0.0, 0
        for _ in range(rng.integers(1, 10)):
            thickness = rng.uniform(2.5, 3.7)
            shift = rng.normal(size=3) * 4.5
            tilted = normal + rng.normal(size=3) * 0.03
            tilted /= np.linalg.norm(tilted)
            outline = rng.uniform(15, 30), rng.uniform(0.5, 0.95)
            # Press it against the one before: back off by half a voxel until it fits.
            for back_off in range(5):
                at = centre + normal * (height + thickness + back_off / 2) + shift - normal * (shift @ normal)
                if scene.taken(at, VESICLE):
                    continue
                if scene.place(_disc(scene, at, (tilted, across), thickness, outline, bend), VESICLE):
                    placed += 1
                    height += 2 * thickness + back_off / 2 - 1.2
                    break
            else:
                height += 2 * thickness
        stacks -= placed > 0


def _disc(
    scene: _Scene,
    centre: Points,
    frame: tuple[Points, Points],
    thickness: float,
    outline: tuple[float, float],
    bend: Floats,
) -> _Shape | None:
    """Return a flattened vesicle: an elliptic sheet, bent, thickened and rounded."""
    normal, across = frame
    long, ratio = outline
    wide = long * ratio
    box = _box(scene.shape, centre - (long + 2 * thickness + PAD), centre + (long + 2 * thickness + PAD))
    if box is None:
        return None
    z, y, x = _axes(box, centre)
    u, v, w = (
        np.float32(axis[0]) * z + np.float32(axis[1]) * y + np.float32(axis[2]) * x
        for axis in (across, np.cross(normal, across), normal)
    )
    w = w - (bend[0] * (u / 24) ** 2 + bend[1] * (v / 24) ** 2 + bend[2] * u * v / 576)
    dents = scene.dents(box)
    reach = np.sqrt((u / np.float32(long)) ** 2 + (v / np.float32(wide)) ** 2)
    beyond = np.maximum((reach - 1) * np.float32(wide) + 2.0 * dents, 0)
    return _Shape(box, np.sqrt(beyond * beyond + w * w) - np.float32(thickness) + np.float32(0.35) * dents)


def _add_reticulum(scene: _Scene) -> None:
    shape, rng = scene.shape, scene.rng
    sheets = _Noise(shape, 30.0, rng).distance()
    tubes = _Noise(shape, 24.0, rng).distance()
    extent = _Noise(shape, 38.0, rng)
    # Sheets in some regions, where they leave off tubes go on along the same surface.
    edge = (-0.5 - extent.field()) * np.float32(18.0)
    f = np.minimum(np.maximum(sheets - np.float32(2.4), edge), np.sqrt(sheets**2 + tubes**2) - np.float32(3.3))
    np.maximum(f, np.float32(GAP) - scene.surface, out=f)
    _largest_piece(f < 0, f)
    whole = (slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2]))
    scene.draw(_Shape(whole, f), RETICULUM)


def _largest_piece(inside: npt.NDArray[np.bool_], f: Floats) -> None:
    """Push every piece of an object but the largest out of it."""
    from scipy import ndimage

    pieces, count = ndimage.label(inside)
    if count > 1:
        sizes = np.bincount(pieces.ravel())
        sizes[0] = 0
        f[inside & (pieces != sizes.argmax())] = PAD


def _keep_largest_pieces(owner: npt.NDArray[np.uint32], smallest: int = 1) -> None:
    """Clear all but the largest face-connected piece of each id, and ids of fewer than `smallest` voxels."""
    from scipy import ndimage

    for number, box in enumerate(ndimage.find_objects(owner.view(np.int32)), start=1):
        if box is None:
            continue
        mine = owner[box] == number
        pieces, count = ndimage.label(mine)
        sizes = np.bincount(pieces.ravel())
        sizes[0] = 0
        kept = int(sizes.argmax())
        if count > 1 or sizes[kept] < smallest:
            owner[box][mine & ((pieces != kept) | (sizes[kept] < smallest))] = 0


def _finish(scene: _Scene) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint32]]:
    """Return classes and instances: every instance in one piece, numbered class by class."""
    kinds = np.array(scene.kinds, np.uint8)
    scene.owner[kinds[scene.owner] == OUTSIDE] = 0
    _keep_largest_pieces(scene.owner, smallest=200)
    present = np.flatnonzero(np.bincount(scene.owner.ravel(), minlength=len(kinds)))
    present = present[present > 0]
    present = present[np.argsort(kinds[present], kind="stable")]
    number = np.zeros(len(kinds), np.uint32)
    number[present] = np.arange(1, len(present) + 1)
    return kinds[scene.owner], number[scene.owner]


# ------------------------------------------------------------------------------------------------------------ the image

GREY = {0: 168, NUCLEUS: 170, MITOCHONDRION: 118, RETICULUM: 186, VESICLE: 206, DROPLET: 84, OUTSIDE: 226}
MEMBRANE = {NUCLEUS: 95, MITOCHONDRION: 80, RETICULUM: 110, VESICLE: 150, DROPLET: 30, OUTSIDE: 110}


def _render(scene: _Scene, classes: npt.NDArray[np.uint8], instances: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint8]:
    """Return the micrograph."""
    from scipy import ndimage

    rng, shape, depth = scene.rng, scene.shape, scene.surface
    kinds = np.where((classes == 0) & (scene.near == OUTSIDE) & (depth < 0), np.uint8(OUTSIDE), classes)
    image = _table(GREY)[kinds]

    # Texture, class by class.
    grain = ndimage.gaussian_filter(rng.standard_normal(shape, np.float32), 1.1, truncate=2.0)
    grain *= np.float32(1 / grain.std())
    image += (
        grain * _table({0: 9, NUCLEUS: 8, MITOCHONDRION: 6, RETICULUM: 4, VESICLE: 4, DROPLET: 2, OUTSIDE: 1})[kinds]
    )
    patches = _Noise(shape, 13.0, rng).field()
    image += patches * _table({0: 7, NUCLEUS: 5})[kinds]
    # Ribosomes, in clouds.
    image -= np.float32(60) * ((kinds == 0) & (grain - 0.5 * patches > 2.2))
    mitochondria = np.flatnonzero((kinds == MITOCHONDRION) & (depth < -2.2))
    image.ravel()[mitochondria] -= _cristae(scene, mitochondria)
    nucleus = np.flatnonzero(kinds == NUCLEUS)
    image.ravel()[nucleus] -= _chromatin(scene, nucleus)

    # Membranes: the outermost voxels of each instance, so two that touch show a double line.
    border = np.zeros(shape, np.bool_)
    marks = instances + np.uint32(len(scene.kinds)) * (kinds == OUTSIDE)
    for axis in range(3):
        here, there = [slice(None)] * 3, [slice(None)] * 3
        here[axis], there[axis] = slice(1, None), slice(None, -1)
        differs = marks[tuple(here)] != marks[tuple(there)]
        border[tuple(here)] |= differs
        border[tuple(there)] |= differs
    image -= _table(MEMBRANE)[kinds] * border

    # The microscope: blur, shot noise, and a little drift of contrast from slice to slice.
    ndimage.gaussian_filter(image, 0.65, truncate=2.0, output=image)
    gain = 1 + 0.02 * rng.standard_normal((shape[0], 1, 1), np.float32)
    offset = 2.5 * rng.standard_normal((shape[0], 1, 1), np.float32)
    image = image * gain + offset + 8.0 * rng.standard_normal(shape, np.float32)
    micrograph: npt.NDArray[np.uint8] = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return micrograph


def _table(values: Mapping[int, float]) -> Floats:
    """Return a lookup table from class to value."""
    return np.array([values.get(kind, 0) for kind in range(OUTSIDE + 1)], np.float32)


def _cristae(scene: _Scene, where: npt.NDArray[np.intp]) -> Floats:
    """Return how much darker cristae make each voxel: lamellae across the axis of a mitochondrion, not all complete."""
    wave = _Noise(scene.shape, 9.0, scene.rng).field().ravel()[where]
    present = _Noise(scene.shape, 6.0, scene.rng).field().ravel()[where]
    turn = (scene.phase.ravel()[where] * 1.5 + 2.2 * wave) * np.float32(2 * np.pi / 8.5)
    darker: Floats = np.clip(3 * np.cos(turn) - 0.6, 0, 1) * np.clip(1.5 * present + 1.2, 0, 1) * np.float32(48)
    return darker


def _chromatin(scene: _Scene, where: npt.NDArray[np.intp]) -> Floats:
    """Return how much darker chromatin and the inner membrane of the envelope make each voxel of the nucleus."""
    depth = -scene.surface.ravel()[where]
    clumps = _Noise(scene.shape, 11.0, scene.rng).field().ravel()[where]
    pores = _Noise(scene.shape, 5.0, scene.rng).field().ravel()[where]
    dense = np.clip(4 * (clumps + 1.6 * np.exp(-np.maximum(depth - 6, 0) / 9) - 1.25), 0, 1) * (depth > 5.5)
    inner = np.clip(1.5 - np.abs(depth - 4.6), 0, 1) * (pores < 1.1)
    darker: Floats = np.float32(42) * dense + np.float32(80) * inner - np.float32(30) * (depth < 3.6)
    return darker
