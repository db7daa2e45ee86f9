"""The geodesic stage on a device: rounds over the tiles of a volume in which keys may improve.

1. Labelled voxels become sources, and the tiles in which a label can spread are queued (`start_keys`).
2. A round brings the keys of each queued tile to their fixpoint, each as if the others stood still, and queues the
   tiles beside it that get better keys from it (`relax_tiles`). The host reads once per round how many those are.
3. Where no tile is queued keys are final, and become labels (`take_labels`).

Tiles without links are never queued. The order of work changes nothing: keys only improve, and each is that of a path.

Memory above the arguments: 8 bytes per voxel, and 12 per tile.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from .device import BLOCK, Device, ceil_div

__all__ = ["Keys", "spread"]

SIDE = 8
"""Voxels along each side of a tile. Few are far from where something happens, and with its halo a tile takes so little
shared memory that many are resident at once."""

FEW = 4
"""While no more tiles than that are queued, a single block goes on alone."""

ALONE = 1024
"""Rounds that it does so at most, so that no kernel runs for long."""

NO_GAP = np.iinfo(np.int64).max


def spread(
    device: Device,
    labels: Any,
    links: Any,
    strides: npt.NDArray[np.int64],
    weights: npt.NDArray[np.int64],
    cost: Any,
    end: int,
) -> int:
    """Do what `lpa3d.propagation.geodesic.spread` does, for voxels whose distance is no more than `end`.

    `strides` are the differences of the flat index to the neighbours. Returns the first unlabelled voxel with a
    labelled linked neighbour, -1 where there is none.
    """
    here = device.bring(labels)
    field = _Field(device, links, strides, weights, cost, end)
    field.start(here)
    field.relax()
    gap = field.take_labels(here)
    device.give_back(here, labels)
    return gap


class Keys:
    """The keys (distance, label) of a tile of a stored volume: `lpa3d.propagation.geodesic.Keys`, on a device.

    `labels` and `near` are on the host; the keys and links stay on the device between calls. `beyond` says whether a
    voxel was left without a key, next to one with a key, after any call: a path that is too long, but leads to a voxel
    that has a shorter one, is not told.
    """

    def __init__(
        self,
        device: Device,
        labels: npt.NDArray[np.uint32],
        links: Any,
        strides: npt.NDArray[np.int64],
        weights: npt.NDArray[np.int64],
        cost: npt.NDArray[np.uint16] | None,
        end: int,
    ) -> None:
        self.labels, self.near = labels, np.zeros(labels.shape, dtype=np.uint32)
        self.beyond = False
        self._device, self._gap = device, -1
        self._field = _Field(device, links, strides, weights, cost, end)

    def spread(self, refill: bool) -> None:
        """Bring all keys to their fixpoint. `refill` changes nothing: tiles without a gap are left alone anyway."""
        labels = self._device.bring(self.labels)
        self._field.start(labels)
        self._finish(labels, self._device.xp.zeros(labels.shape, dtype=np.uint32))

    def spread_steps(self) -> None:
        """Bring all keys to their fixpoint where all links weigh the same."""
        self.spread(False)

    def improve(self, voxels: npt.NDArray[Any]) -> None:
        """Bring all keys to their fixpoint, where those of `voxels` (flat) alone were changed."""
        if voxels.size:
            self._field.change(voxels, self.near.reshape(-1)[voxels], self.labels.reshape(-1)[voxels])
            # What is set for a voxel without links stays as it is.
            self._finish(self._device.bring(self.labels), self._device.bring(self.near))

    def find_gap(self) -> int:
        """Return the first unlabelled voxel (flat) with a labelled linked neighbour, -1 where there is none."""
        return self._gap

    def _finish(self, labels: Any, near: Any) -> None:
        self._field.relax()
        self._gap = self._field.take_labels(labels)
        self._field.take_nearness(near)
        self.beyond |= self._gap >= 0
        self._device.give_back(labels, self.labels)
        self._device.give_back(near, self.near)


class _Field:
    """The keys of a volume on the device, and the queue of tiles in which they may improve."""

    def __init__(
        self,
        device: Device,
        links: Any,
        strides: npt.NDArray[np.int64],
        weights: npt.NDArray[np.int64],
        cost: Any,
        end: int,
    ) -> None:
        xp = device.xp
        self.device, self.end = device, end
        self.links, self.strides, self.weights = map(device.bring, (links, strides, weights))
        self.cost = xp.empty(0, dtype=np.uint16) if cost is None else device.bring(cost)
        self.shape = device.bring(np.array(links.shape, dtype=np.int64))
        self.kernel = partial(
            device.kernel, "geodesic", CONNECTIVITY=len(strides), LINKS=links.dtype, COST=cost is not None, SIDE=SIDE
        )
        self.keys = xp.empty(links.shape, dtype=np.uint64)
        tiles = 1
        for side in links.shape:
            tiles *= ceil_div(side, SIDE)
        self.queued = xp.zeros(tiles, dtype=np.uint32)
        self.lists = xp.empty((2, tiles), dtype=np.uint32)
        self.counts = xp.zeros(4, dtype=np.uint32)
        self.queue = self.queued, self.lists, self.counts
        self.round = 1

    def start(self, labels: Any) -> None:
        """Let every labelled voxel be a source."""
        size = labels.size
        self.kernel("start_keys")(
            ceil_div(size, BLOCK), BLOCK,
            self.round, size, self.shape, self.strides, self.links, labels, self.keys, *self.queue,
        )  # fmt: skip

    def change(self, voxels: npt.NDArray[Any], near: npt.NDArray[np.uint32], labels: npt.NDArray[np.uint32]) -> None:
        """Take other keys for some voxels (flat)."""
        here = (self.device.bring(array) for array in (voxels.astype(np.int64), near, labels))
        self.kernel("set_keys")(
            ceil_div(voxels.size, BLOCK), BLOCK,
            self.round, voxels.size, self.end, self.shape, self.strides, self.weights, self.links, self.cost, *here,
            self.keys, *self.queue,
        )  # fmt: skip

    def relax(self) -> None:
        """Bring all keys to their fixpoint."""
        relax = self.kernel("relax_tiles")
        counts = self.device.fetch(self.counts)
        while count := int(counts[self.round % 3]):
            relax(
                1 if count <= FEW else count, SIDE * SIDE,
                self.round, self.round + ALONE, FEW, self.end, self.shape, self.weights, self.links, self.cost,
                self.keys, *self.queue,
            )  # fmt: skip
            counts = self.device.fetch(self.counts)
            self.round = int(counts[3])

    def take_labels(self, labels: Any) -> int:
        """Write the labels of all keys; return the first voxel without one that has a neighbour with one, or -1."""
        gap = self.device.xp.full(1, NO_GAP, dtype=np.int64)
        self.kernel("take_labels")(
            ceil_div(labels.size, BLOCK), BLOCK, labels.size, self.strides, self.links, self.keys, labels, gap
        )
        first = int(self.device.fetch(gap)[0])
        return -1 if first == NO_GAP else first

    def take_nearness(self, near: Any) -> None:
        """Write the nearness of all keys to an array like `lpa3d.propagation.geodesic.Keys.near`."""
        self.kernel("take_nearness")(ceil_div(near.size, BLOCK), BLOCK, near.size, self.links, self.keys, near)
