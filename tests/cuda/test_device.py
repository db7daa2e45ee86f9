"""Opening a CUDA device says what is missing; launching a kernel checks what it is given."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from lpa3d.arrays import backend as _backend
from lpa3d.arrays.checks import check_array
from lpa3d.cuda import device as cuda_device
from lpa3d.errors import DeviceError, InputError, InputTypeError
from tests import emulator as cuda_emulator

SOURCE = """
extern "C" __global__ void __launch_bounds__(256) add_to(
    const VALUE* __restrict__ a, float factor, unsigned char shift, long long n, volatile long long* sums
) {
    long long i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) sums[i] += (long long)(factor * a[i]) << shift;
}
"""


class CUDARuntimeError(Exception):
    pass


def make_cupy(count=1, capability="90", nvrtc=(13, 0), driver=True, limit=0):
    """Return what `open_device` sees of CuPy, on some machine."""

    def get_device_count():
        if not driver:
            raise CUDARuntimeError("cudaErrorInsufficientDriver")
        return count

    def get_version():
        if nvrtc is None:
            raise RuntimeError("libnvrtc.so.13: cannot open shared object file")
        return nvrtc

    runtime = SimpleNamespace(
        getDeviceCount=get_device_count, CUDARuntimeError=CUDARuntimeError, memGetInfo=lambda: (5 << 30, 8 << 30)
    )
    return SimpleNamespace(
        ndarray=np.ndarray,
        asnumpy=np.asarray,
        get_default_memory_pool=lambda: SimpleNamespace(
            free_bytes=lambda: 1 << 30, used_bytes=lambda: 2 << 30, get_limit=lambda: limit
        ),
        RawModule=lambda code, options: SimpleNamespace(get_function=lambda name: (code, options, name)),
        cuda=SimpleNamespace(
            runtime=runtime,
            nvrtc=SimpleNamespace(getVersion=get_version),
            Device=lambda: SimpleNamespace(compute_capability=capability, id=1),
        ),
    )


@pytest.mark.parametrize(
    ("cupy", "message"),
    [
        (None, r"needs CuPy.*pip install 'lpa3d\[cuda13\]'"),
        (make_cupy(driver=False), r"an NVIDIA GPU and its driver.*cudaErrorInsufficientDriver.*nvidia-smi"),
        (make_cupy(count=0), r"there is none: CUDA_VISIBLE_DEVICES"),
        (make_cupy(capability="70"), r"compute capability 7\.0; 7\.5 or newer"),
        (make_cupy(nvrtc=None), r"NVRTC.*libnvrtc.*pip install"),
    ],
    ids=["no CuPy", "no driver", "no GPU", "old GPU", "no compiler"],
)
def test_what_is_missing_is_said(monkeypatch, cupy, message):
    """Without a device that can be used there is an error, not the CPU."""
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    with pytest.raises(DeviceError, match=message):
        cuda_device.open_device.__wrapped__()


@pytest.mark.parametrize("capability", ["75", "90", "120"])
def test_open_device(monkeypatch, capability):
    """A device is CuPy's: its compiler, and its memory with what its pool holds unused."""
    monkeypatch.setitem(sys.modules, "cupy", make_cupy(capability=capability))
    monkeypatch.setattr(cuda_device, "read_source", lambda _: SOURCE)
    device = cuda_device.open_device.__wrapped__()
    assert device.free_bytes() == 6 << 30
    kernel = device.kernel("test", "add_to", VALUE=np.dtype(np.uint16), STEPS=4)
    options = ("-std=c++17", "--fmad=false", "-DSTEPS=4", "-DVALUE=unsigned short")
    assert kernel.function == (SOURCE, options, "add_to")


def test_arrays_of_another_gpu_are_refused(monkeypatch):
    """Kernels run on CuPy's current GPU, and reach its arrays alone."""

    class Array:
        __cuda_array_interface__ = None

        def __init__(self, gpu):
            self.device = SimpleNamespace(id=gpu)

    cupy = make_cupy()
    cupy.ndarray = Array
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    device = cuda_device.open_device.__wrapped__()
    monkeypatch.setattr(_backend, "open_device", lambda: device)
    assert _backend.find_device(Array(1)) is device
    with pytest.raises(InputError, match=r"on GPU 2, but the current one is 1: .*`with cupy.cuda.Device\(2\):`"):
        _backend.find_device(Array(2))


def test_no_driver_here():
    """Where CuPy is but no driver, the error is CuPy's own."""
    runtime = pytest.importorskip("cupy", reason="no CuPy").cuda.runtime
    try:
        runtime.getDeviceCount()
    except runtime.CUDARuntimeError:
        with pytest.raises(DeviceError, match="needs an NVIDIA GPU and its driver, and CuPy finds none"):
            cuda_device.open_device()
    else:
        pytest.skip("there is a driver; the tests marked gpu use it")


@pytest.fixture
def launch(device, monkeypatch):
    """Return a function that launches a kernel on some values and returns its sums."""
    monkeypatch.setattr(cuda_device, "read_source", lambda _: SOURCE)
    kernel = device.kernel("test", "add_to", VALUE=np.dtype(np.uint8))

    def launch(a=None, factor=2, shift=1, n=300, *, grid=2, **others):
        a = device.bring(np.arange(300, dtype=np.uint8)) if a is None else a
        sums = device.xp.zeros(300, dtype=np.int64)
        kernel(grid, 256, a, factor, shift, n, others.get("sums", sums))
        return device.fetch(sums)

    return launch


@cuda_emulator.any_order
def test_launch(launch):
    """Numbers become what the kernel declares."""
    expected = np.arange(300, dtype=np.uint8).astype(np.int64) * 4
    assert np.array_equal(launch(), expected)
    assert np.array_equal(launch(factor=2.0, shift=np.int64(1), n=np.uint64(300)), expected)
    assert np.array_equal(launch(factor=0.5, shift=1), expected // 8 * 2)
    assert not launch(grid=0).any()


@cuda_emulator.any_order
def test_arrays_must_fit(device, launch):
    """A kernel takes contiguous arrays that are on the device and of the dtype that it declares."""
    xp = device.xp
    with pytest.raises(TypeError, match=r"add_to: a is a ndarray; a device array is needed"):
        launch(np.arange(300, dtype=np.uint8))
    with pytest.raises(TypeError, match=r"add_to: a is int8; contiguous uint8 is needed"):
        launch(xp.zeros(300, dtype=np.int8))
    with pytest.raises(TypeError, match=r"add_to: a is uint8; contiguous uint8 is needed"):
        launch(xp.zeros(600, dtype=np.uint8)[::2])
    with pytest.raises(TypeError, match=r"add_to: sums is uint64; contiguous int64 is needed"):
        launch(sums=xp.zeros(300, dtype=np.uint64))


@cuda_emulator.any_order
@pytest.mark.parametrize("shift", [-1, 256, 2**70])
def test_numbers_must_fit(launch, shift):
    """A number that the declared type cannot hold is refused."""
    with pytest.raises(OverflowError, match=f"add_to: shift is {shift}, which uint8 cannot hold"):
        launch(shift=shift)


@cuda_emulator.any_order
def test_number_of_arguments(device, monkeypatch):
    """A kernel takes as many arguments as it declares."""
    monkeypatch.setattr(cuda_device, "read_source", lambda _: SOURCE)
    with pytest.raises(TypeError, match="takes 5 arguments, not 1"):
        device.kernel("test", "add_to", VALUE=np.dtype(np.uint8))(1, 256, device.xp.zeros(3, dtype=np.uint8))


@cuda_emulator.any_order
def test_kernel_that_is_not_there(device, monkeypatch):
    """The name of a kernel must be in its source."""
    monkeypatch.setattr(cuda_device, "read_source", lambda _: SOURCE)
    with pytest.raises(KeyError, match="no kernel subtract_from"):
        device.kernel("test", "subtract_from", VALUE=np.dtype(np.uint8))


def test_includes_are_read_once(tmp_path, monkeypatch):
    """A source holds the files that it includes, each once, and knows their lines."""
    (tmp_path / "a.cu").write_text('#include "b.cuh"\n#include "c.cuh"\nint a;\n')
    (tmp_path / "b.cuh").write_text('#include "c.cuh"\nint b;\n')
    (tmp_path / "c.cuh").write_text("int c;\n")
    monkeypatch.setattr(cuda_device, "FOLDER", tmp_path)
    source = cuda_device.read_source.__wrapped__("a")
    assert [line for line in source.splitlines() if line.startswith("int")] == ["int c;", "int b;", "int a;"]
    before = source[: source.index("int a;")].rstrip("\n").splitlines()[-1]
    assert before == '#line 3 "a.cu"'


@cuda_emulator.any_order
def test_back_and_forth(device):
    """Arrays come back to where they were."""
    host = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    brought = device.bring(host.T)
    assert device.holds(brought)
    assert brought.flags.c_contiguous
    assert device.bring(brought) is brought
    assert device.give(brought, like=brought) is brought
    given = device.give(brought, like=host)
    assert type(given) is np.ndarray
    assert np.array_equal(given, host.T)
    device.give_back(device.bring(host) + 1, host)
    assert host[0, 0, 0] == 1
    target = brought.T
    device.give_back(device.bring(host), target)
    assert np.array_equal(device.fetch(target), host)


@pytest.mark.parametrize(("limit", "room"), [(0, 6 << 30), (9 << 30, 6 << 30), (3 << 30, 1 << 30), (1 << 30, 0)])
def test_no_more_than_the_limit_of_the_pool_is_free(monkeypatch, limit, room):
    """The pool of CuPy, which has 2 GiB in use here, can have a limit."""
    monkeypatch.setitem(sys.modules, "cupy", make_cupy(limit=limit))
    assert cuda_device.open_device.__wrapped__().free_bytes() == room


@cuda_emulator.any_order
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (2, 3)])
def test_bring_any_shape(device, shape):
    """Arrays of no voxels are brought, too; one of no dimension gets one."""
    host = np.full(shape, 5, dtype=np.uint16)
    brought = device.bring(host)
    assert brought.dtype == host.dtype
    assert np.array_equal(device.fetch(brought), np.ascontiguousarray(host))


def test_arrays_of_other_libraries_that_are_in_memory():
    """What could be on a device, but is not, is an array of the wrong kind rather than a reason to look for one."""

    class Tensor:
        @property
        def __cuda_array_interface__(self):
            raise AttributeError("not on a CUDA device")

    with pytest.raises(InputTypeError, match="a NumPy array is needed"):
        check_array(Tensor(), "volume")
