"""The CUDA twin of each operation: kernels in ``.cu`` files, and beside each the Python that launches them.

The twins know neither the Numba kernels nor dask nor zarr. They import no CuPy either: `lpa3d.cuda.device` does, once a
device is asked for.
"""
