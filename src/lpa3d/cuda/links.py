"""Links on a device: which neighbours of a voxel have its class. Nothing but the masks is allocated."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .device import BLOCK, Device, ceil_div

__all__ = ["cut_links", "link_voxels"]


def link_voxels(device: Device, volume: Any, connectivity: int) -> Any:
    """Do what `lpa3d.propagation.geodesic.link_voxels` does; the links are on the device, wherever `volume` is."""
    volume = device.bring(volume)
    links = device.xp.empty(volume.shape, dtype=np.uint8 if connectivity == 6 else np.uint32)
    index = np.uint32 if volume.size < 2**32 else np.int64
    kernel = device.kernel(
        "links", "link_voxels", CONNECTIVITY=connectivity, VOLUME=volume.dtype, LINKS=links.dtype, INDEX=index
    )
    kernel(ceil_div(volume.size, BLOCK), BLOCK, volume.size, *volume.shape, volume, links)
    return links


def cut_links(device: Device, links: Any, labels: Any, strides: npt.NDArray[np.int64]) -> None:
    """Do what `lpa3d.propagation.geodesic.cut_links` does."""
    here = device.bring(links)
    kernel = device.kernel(
        "links", "cut_links", CONNECTIVITY=len(strides), VOLUME=np.uint8, LINKS=here.dtype, INDEX=np.uint32
    )
    kernel(ceil_div(here.size, BLOCK), BLOCK, here.size, device.bring(strides), device.bring(labels), here)
    device.give_back(here, links)
