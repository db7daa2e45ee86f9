"""Reading and writing volumes: files told apart by their suffix, folders of images, and URLs of zarr arrays.

Arrays are ``(Z, Y, X)`` in memory whatever the file's own order is. Each file library is imported when a file of its
kind is opened, never before. What a file says of its voxel size travels with it as a `Geometry`. docs/files.md says
for each format where axes, voxel size and place come from, and what is refused.

==============================  ===================================================================================
suffix                          what is read and written
==============================  ===================================================================================
``.zarr`` folder                an array; ``name.zarr/inner/array`` names one in a group; also by its URL
``.npy``, ``.npz``              memory-mapped on reading; ``name.npz:key``; no spacing
``.nii``, ``.nii.gz``           axes (x, y, z) in the file; the header with the affine is kept
``.tif``, ``.tiff``             a stack of pages; spacing from OME or ImageJ metadata
``.h5``, ``.hdf5``              ``name.h5:/dataset``; the only dataset of a file need not be named
``.mrc``, ``.nrrd``, ``.mha``   as IMOD, 3D Slicer and ITK have them; ``.nhdr`` and ``.mhd`` are only read
``.n5``, ``.precomputed``       ``name.n5/inner/array``; a scale of a precomputed volume is ``name/KEY``
``.json``                       read only: COCO's masks as instances, ``name.json:classes`` as classes
folder                          read only: one PNG or TIFF image for each slice, in the order of the numbers in their
                                names; ``folder/*.png`` chooses among them, ``folder:0-255`` gives the first and the
                                last number
==============================  ===================================================================================
"""

from __future__ import annotations

from .errors import LibraryError
from .files.geometry import Geometry
from .files.places import FileError
from .files.readers import open_volume, read
from .files.volume import Volume
from .files.writers import Target, plan, write

__all__ = ["FileError", "Geometry", "LibraryError", "Target", "Volume", "open_volume", "plan", "read", "write"]
