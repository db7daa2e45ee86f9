"""The emulator of CUDA finds what it is for."""

import numpy as np

from lpa3d import _backend
from lpa3d.cuda import device as cuda_device


def test_kernel_in_the_modes(device, monkeypatch):
    """A kernel reverses each block through shared memory."""
    source = """
    extern "C" __global__ void reverse(const VALUE* __restrict__ a, VALUE* __restrict__ b, long long n) {
        __shared__ VALUE s[256];
        long long i = blockIdx.x * 256 + threadIdx.x;
        s[threadIdx.x] = i < n ? a[i] : 0;
        __syncthreads();
        if (i < n) b[i] = s[255 - threadIdx.x];
    }
    """
    monkeypatch.setattr(cuda_device, "read_source", lambda name: source)
    assert _backend.open_device() is device
    a = np.arange(1024, dtype=np.uint32)
    b = device.xp.empty(1024, np.uint32)
    device.kernel("test", "reverse", VALUE=a.dtype)(4, 256, device.bring(a), b, 1024)
    assert np.array_equal(device.fetch(b), a.reshape(4, 256)[:, ::-1].ravel())
