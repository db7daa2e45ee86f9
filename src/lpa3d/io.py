"""Reading and writing volumes: zarr, NumPy, NIfTI, TIFF and HDF5 files, told apart by their suffix, and image folders.

Arrays are ``(Z, Y, X)`` in memory whatever the file's own order is; of an axis that is none of space a place is chosen
behind the name, ``cell.zarr:c=2``, ``stack.tif:t=0,c=1``. Each file library is imported when a file of its
kind is opened, never before. What a file says of its voxel size travels with it as a `Geometry`.

======================  ===========================================================================================
suffix                  what is read and written
======================  ===========================================================================================
``.zarr`` folder        OME-Zarr, or a plain array; ``name.zarr/inner/array`` names an array in a group, an image
                        stands for its finest level; spacing from OME-NGFF metadata or from the array's attributes
``.npy``                memory-mapped on reading; no spacing
``.nii``, ``.nii.gz``   axes (x, y, z) in the file; the header with the affine is kept from the input to the output
``.tif``, ``.tiff``     a stack of pages; spacing from OME or ImageJ metadata
``.h5``, ``.hdf5``      ``name.h5:/dataset``; the only dataset of a file need not be named
folder                  read only: one PNG or TIFF image for each slice, in the order of the numbers in their names;
                        ``folder/*.png`` chooses among them, ``folder:0-255`` gives the first and the last number
======================  ===========================================================================================
"""

from __future__ import annotations

from .errors import LibraryError
from .files.geometry import Geometry
from .files.places import FileError
from .files.readers import open_volume, read
from .files.volume import Volume
from .files.writers import Target, plan, write

__all__ = ["FileError", "Geometry", "LibraryError", "Target", "Volume", "open_volume", "plan", "read", "write"]
