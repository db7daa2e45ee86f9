"""The emulator of CUDA runs kernels as a device does, and finds the errors that it is for."""

import inspect
import threading

import numpy as np
import pytest

from lpa3d.cuda import device as cuda_device
from tests.emulator import CONSTANTS, FUNCTIONS, METHODS, MODES, UFUNCS, Array, Functions, plant

ANY_MODE = pytest.mark.parametrize("mode", MODES)


@pytest.fixture
def make_kernel(emulator, monkeypatch):
    """Return a function that gives a device and a kernel `run` with some body, built for it."""

    def make_kernel(parameters, body, mode="shuffled", seed=0, **defines):
        common = (cuda_device.FOLDER / "common.cuh").read_text(encoding="utf-8")
        source = f'{common}\n#line 1 "body"\nextern "C" __global__ void run({parameters}) {{\n{body}\n}}\n'
        device = emulator(mode, seed)
        with monkeypatch.context() as patch:
            patch.setattr(cuda_device, "read_source", lambda _: source)
            return device, device.kernel("test", "run", **defines)

    return make_kernel


REVERSE = """
    __shared__ int s[64];
    s[threadIdx.x] = a[blockIdx.x * 64 + threadIdx.x];
    __syncthreads();
    b[blockIdx.x * 64 + threadIdx.x] = s[63 - threadIdx.x];
"""


@ANY_MODE
def test_blocks_have_their_own_shared_memory(make_kernel, mode):
    """Many blocks are reversed, each by itself."""
    device, kernel = make_kernel("const int* __restrict__ a, int* __restrict__ b", REVERSE, mode)
    a = np.arange(640, dtype=np.int32)
    b = device.xp.empty(640, np.int32)
    kernel(10, 64, device.bring(a), b)
    assert np.array_equal(b.get(), a.reshape(10, 64)[:, ::-1].ravel())


@ANY_MODE
def test_missing_barrier(make_kernel, mode):
    """Without its barrier the same kernel is wrong in every mode; where accesses are watched, the race is named."""
    body = REVERSE.replace("__syncthreads();", "")
    device, kernel = make_kernel("const int* __restrict__ a, int* __restrict__ b", body, mode)
    a = np.arange(640, dtype=np.int32)
    b = device.xp.empty(640, np.int32)
    if mode == "preempt":
        with pytest.raises(RuntimeError, match=r"kernel run: a race: thread \d+ of block \d+ (reads|writes) in"):
            kernel(10, 64, device.bring(a), b)
    else:
        kernel(10, 64, device.bring(a), b)
        assert not np.array_equal(b.get(), a.reshape(10, 64)[:, ::-1].ravel())


@ANY_MODE
def test_shared_memory_holds_anything(make_kernel, mode):
    """Shared memory that was not written is not zero."""
    body = "__shared__ u64 s[32]; a[blockIdx.x * 32 + threadIdx.x] = s[threadIdx.x];"
    device, kernel = make_kernel("u64* a", body, mode)
    a = device.xp.zeros(256, dtype=np.uint64)
    kernel(8, 32, a)
    assert len(np.unique(a.get())) > 250


@ANY_MODE
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("if (threadIdx.x == 5) return; __syncthreads(); a[0] = 1;", "return"),
        ("if (threadIdx.x == 5) return; __syncwarp();", "return"),
        ("if (threadIdx.x < 32) __syncthreads();", "return"),
        ("if (threadIdx.x < 32)\n__syncthreads();\nelse\n__syncthreads();", "different barriers, in the lines"),
        ("if (threadIdx.x % 2)\n__syncwarp();\nelse\n__syncwarp();", "wait for each other in different lines"),
        ("if (threadIdx.x == 5) __syncwarp(); else __syncthreads();", "deadlock"),
        ("__syncwarp(1u);", "all 32 threads"),
        ("a[0] = 100 / a[threadIdx.x];", "division by zero"),
    ],
)
def test_threads_that_do_not_meet(make_kernel, mode, body, message):
    """Where not all threads come to a barrier there is an error, and the next launch is as good as new."""
    device, kernel = make_kernel("volatile int* a", body, mode)
    with pytest.raises(RuntimeError, match=f"kernel run: .*{message}"):
        kernel(2, 64, device.xp.zeros(64, dtype=np.int32))
    test_blocks_have_their_own_shared_memory(make_kernel, mode)


@ANY_MODE
def test_kernel_that_does_not_end(make_kernel, mode, monkeypatch):
    """A kernel that waits for what never comes is stopped."""
    monkeypatch.setattr("tests.emulator.LONGEST", 1)
    device, kernel = make_kernel("volatile u32* a", "while (!a[0]);", mode)
    with pytest.raises(RuntimeError, match=r"kernel run: it takes too long, in "):
        kernel(1, 1, device.xp.zeros(1, dtype=np.uint32))


@ANY_MODE
@pytest.mark.parametrize(("place", "byte"), [(64, 256), (-1, -4)])
@pytest.mark.parametrize("access", ["a[at] = 1;", "a[0] = a[at];"], ids=["write", "read"])
def test_accesses_beyond_an_array(make_kernel, mode, access, place, byte):
    """What is written beyond an array is found, and what is read too; only before its start may it be garbage."""
    device, kernel = make_kernel("volatile u32* a, i64 at", access, mode)
    a = device.xp.zeros(64, dtype=np.uint32)
    if mode != "preempt" and byte < 0 and access != "a[at] = 1;":
        kernel(1, 1, a, place)
        assert int(a[0]) == 0xA5A5A5A5
    else:
        with pytest.raises(
            IndexError, match=rf"kernel run: byte {byte} of argument 0, which has 256, (in .*:2|was written)"
        ):
            kernel(1, 1, a, place)


@ANY_MODE
def test_arrays_of_whole_pages_and_of_nothing(make_kernel, mode):
    """There may be nothing around an array, or nothing in it."""
    device, kernel = make_kernel("u8* a, u8* b", "a[0] = 1;", mode)
    a, b = device.xp.zeros(8192, dtype=np.uint8), device.xp.empty(0, np.uint8)
    kernel(1, 1, a, b)
    assert int(a.sum()) == 1


@ANY_MODE
def test_views_share_memory(make_kernel, mode):
    """An array that is passed twice, or whose parts are, is one array."""
    device, kernel = make_kernel("u16* a, u16* b, u16* c", "a[0] = 1; b[0] = 2; c[0] = a[2] + a[3];", mode)
    a = device.xp.zeros(4, dtype=np.uint16)
    kernel(1, 1, a, a[2:], a[3:])
    assert a.get().tolist() == [1, 0, 2, 2]


def lose_updates(make_kernel, mode, seed):
    """Return what 64 threads that each add 1 make of 0, each in two steps."""
    body = "for (int i = 0; i < 4; i++) { u32 old = *(volatile u32*)a; atomicExch(a, old + 1); }"
    device, kernel = make_kernel("u32* a", body, mode, seed)
    a = device.xp.zeros(1, dtype=np.uint32)
    kernel(2, 32, a)
    return int(a[0])


def test_updates_are_lost_only_where_threads_are_preempted(make_kernel):
    """A thread may be stopped between reading and writing."""
    assert lose_updates(make_kernel, "shuffled", 0) == 256
    assert all(lose_updates(make_kernel, "preempt", seed) < 200 for seed in range(5))


@pytest.mark.parametrize(
    ("body", "right"),
    [
        ("a[0] = threadIdx.x;", False),
        ("*(volatile u32*)a = threadIdx.x;", True),
        ("atomicMax(a, threadIdx.x);", True),
        ("if (threadIdx.x) atomicMax(a, 1u); else a[1] = a[0];", False),
        ("if (threadIdx.x) atomicMax(a, 1u); else a[1] = *(volatile u32*)a;", True),
        (
            "u32 w = threadIdx.x / 32; if (threadIdx.x % 32 == 3) a[w] = 1; __syncwarp(); a[2 + threadIdx.x] = a[w];",
            True,
        ),
        ("if (threadIdx.x == 40) a[0] = 1; __syncwarp(); a[1 + threadIdx.x] = a[0];", False),
        ("if (threadIdx.x == 40) a[0] = 1; __syncthreads(); a[1 + threadIdx.x] = a[0];", True),
        ("u8* c = (u8*)a; c[threadIdx.x] = 1;", True),
        ("u8* c = (u8*)a; c[threadIdx.x] = c[(threadIdx.x + 1) % 64];", False),
    ],
)
def test_races(make_kernel, body, right):
    """Accesses that nothing orders are races, unless they are volatile or atomic."""
    device, kernel = make_kernel("u32* a", body, "preempt")
    a = device.xp.zeros(100, dtype=np.uint32)
    if right:
        kernel(1, 64, a)
    else:
        with pytest.raises(RuntimeError, match="a race"):
            kernel(1, 64, a)


def test_races_of_blocks(make_kernel):
    """A barrier orders only the threads of its block."""
    device, kernel = make_kernel("u32* a", "a[threadIdx.x] = 1; __syncthreads();", "preempt")
    kernel(1, 64, device.xp.zeros(64, dtype=np.uint32))
    with pytest.raises(RuntimeError, match=r"a race: thread (\d+) of block [01] .*, thread \1 of block [01] "):
        kernel(2, 64, device.xp.zeros(64, dtype=np.uint32))


def test_access_that_is_not_aligned(make_kernel):
    """Arrays lie as on a device, and an access to several bytes begins at a multiple of their number."""
    device, kernel = make_kernel("u8* a, int at", "*(u32*)(a + at) = 7;", "preempt")
    kernel(1, 1, device.xp.zeros(8, dtype=np.uint8), 4)
    with pytest.raises(RuntimeError, match=r"4 bytes that is not aligned, in .*:2"):
        kernel(1, 1, device.xp.zeros(8, dtype=np.uint8), 2)


@ANY_MODE
def test_warps(make_kernel, mode):
    """Shuffles and ballots give what CUDA's documentation says."""
    body = """
    u32 full = 0xffffffffu;
    u32 t = threadIdx.x, k = 0;
    u64 wide = (u64)t << 40;
    a[k++ * 64 + t] = __shfl_sync(full, t, 7);
    a[k++ * 64 + t] = __shfl_sync(full, t, (t + 1) % 32);
    a[k++ * 64 + t] = __shfl_up_sync(full, t, 3);
    a[k++ * 64 + t] = __shfl_down_sync(full, t, 3);
    a[k++ * 64 + t] = __shfl_xor_sync(full, t, 5);
    a[k++ * 64 + t] = __shfl_up_sync(full, t, 1, 8);
    a[k++ * 64 + t] = __shfl_sync(full, wide, 9) >> 40;
    a[k++ * 64 + t] = __ballot_sync(full, t % 3 == 0);
    a[k++ * 64 + t] = __any_sync(full, t == 40);
    a[k++ * 64 + t] = __all_sync(full, t >= 32);
    a[k++ * 64 + t] = __syncthreads_or(t == 63);
    a[k++ * 64 + t] = __syncthreads_and(t != 63);
    a[k++ * 64 + t] = __syncthreads_count(t % 4 == 1);
    """
    device, kernel = make_kernel("u32* a", body, mode)
    a = device.xp.empty(13 * 64, np.uint32)
    kernel(1, 64, a)
    t = np.arange(64)
    lane, first = t % 32, t // 32 * 32
    expected = [
        first + 7,
        first + (t + 1) % 32,
        np.where(lane < 3, t, t - 3),
        np.where(lane > 28, t, t + 3),
        t ^ 5,
        np.where(t % 8 == 0, t, t - 1),
        first + 9,
        [sum(1 << k for k in range(32) if (start + k) % 3 == 0) for start in first],
        first == 32,
        first == 32,
        np.ones(64),
        np.zeros(64),
        np.full(64, 16),
    ]
    assert np.array_equal(a.get().reshape(13, 64), np.asarray(expected))


@ANY_MODE
@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.int64, np.uint64])
def test_atomics(make_kernel, mode, dtype):
    """Nothing is lost, in whatever order threads come."""
    wide = dtype == np.int64
    body = """
    VALUE v = (VALUE)(threadIdx.x + 64 * blockIdx.x) * (VALUE)-7;
    atomicMin(a, v);
    atomicMax(a + 1, v);
    #if !WIDE
    atomicAdd(a + 2, v);
    atomicOr(a + 3, v);
    atomicAnd(a + 4, v);
    VALUE old, next = 0;
    do { old = next; next = atomicCAS(a + 5, old, old + 3); } while (next != old);
    atomicExch(a + 6, (VALUE)9);
    #endif
    """
    device, kernel = make_kernel("VALUE* a", body, mode, VALUE=np.dtype(dtype), WIDE=wide)
    values = (np.arange(256) * -7).astype(dtype)
    largest, least = np.iinfo(dtype).max, np.iinfo(dtype).min
    a = device.bring(np.array([largest, least, 0, 0, -1 if least else largest, 0, 0], dtype))
    kernel(4, 64, a)
    expected = [values.min(), values.max()]
    if not wide:
        expected += [values.sum(dtype=dtype), np.bitwise_or.reduce(values), np.bitwise_and.reduce(values), 768, 9]
    assert a.get()[: len(expected)].tolist() == [int(value) for value in expected]


def test_launches_are_repeated_exactly(make_kernel):
    """The order of threads follows from the seed and the arguments."""

    def orders(seed):
        device, kernel = make_kernel("u32* a", "a[1 + atomicAdd(a, 1u)] = thread_number();", "preempt", seed)
        for _ in range(3):
            a = device.xp.zeros(65, dtype=np.uint32)
            kernel(2, 32, a)
            yield a.get().tolist()

    first, second, third = orders(0)
    assert first == second == third
    assert [first] * 3 != list(orders(1))


def test_launches_of_several_threads(make_kernel):
    """Launches that come at once do not meet."""
    device, kernel = make_kernel("const int* __restrict__ a, int* __restrict__ b", REVERSE)
    arrays = [np.arange(n, n + 640, dtype=np.int32) for n in range(8)]
    results = [device.xp.empty(640, np.int32) for _ in arrays]
    threads = [
        threading.Thread(target=kernel, args=(10, 64, device.bring(a), b)) for a, b in zip(arrays, results, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for a, b in zip(arrays, results, strict=True):
        assert np.array_equal(b.get(), a.reshape(10, 64)[:, ::-1].ravel())


def test_plant(emulator):
    """A planted error is in the source that is built, and only there; a text that is not there once is refused."""
    device = emulator("shuffled")
    text = "(i64)blockIdx.x * blockDim.x + threadIdx.x"
    with plant(device, "common.cuh", text, "nonsense") as broken, pytest.raises(ValueError, match="nonsense"):
        broken.kernel("links", "find_links", **{})
    for wrong in ("not there", "typedef"):
        with pytest.raises(ValueError, match="is not once in common"), plant(device, "common.cuh", wrong, ""):
            pass


def test_arrays_are_as_strict_as_those_of_cupy():
    """What CuPy refuses is refused."""
    xp = Functions()
    a, host = xp.arange(6), np.arange(6)
    for refused in (
        lambda: np.asarray(a),
        lambda: np.sum(a),
        lambda: a + host,
        lambda: host + a,
        lambda: a[host],
        lambda: a.__setitem__(slice(None), host),
        lambda: xp.maximum(a, host),
        lambda: xp.concatenate([a, host]),
        lambda: list(a),
        lambda: range(a[3]),
        lambda: xp.cumsum(host),
        lambda: xp.ascontiguousarray(host),
        lambda: xp.sort(a, stable=True),
        lambda: xp.concatenate([a, [1]]),
        lambda: a.max(initial=0),
        lambda: np.hypot(a, a),
        lambda: np.add.reduce(a),
        lambda: np.add(a, 1, where=a > 2),
    ):
        with pytest.raises(TypeError):
            refused()
    with pytest.raises(AttributeError, match=r"see how cupy\.einsum"):
        xp.einsum("i->", a)
    with pytest.raises(ValueError, match="several values to one place"):
        a[xp.asarray([1, 1])] = a[:2]
    assert type(a.sum()) is Array
    assert int(a.sum()) == 15
    assert (a[2] + np.int64(3)).get() == 5
    assert (np.int64(3) + a).get().tolist() == [3, 4, 5, 6, 7, 8]
    last = a[5]
    a[5] = 7
    assert int(last) == 7
    assert set(xp.empty(3, np.uint8).get()) == {0xA5}


def test_cupy_has_what_the_emulator_has():
    """Every function, parameter, method and attribute is there in CuPy."""
    cupy = pytest.importorskip("cupy", reason="no CuPy to compare with")
    for name, parameters in FUNCTIONS.items():
        assert set(parameters.split()) <= set(inspect.signature(getattr(cupy, name)).parameters), name
    for name in UFUNCS.split():
        assert isinstance(getattr(cupy, name), cupy.ufunc), name
    for name in CONSTANTS.split():
        assert getattr(cupy, name) is getattr(np, name) or np.isnan(getattr(cupy, name)), name
    for name, function in vars(Functions).items():
        if inspect.isfunction(function) and not name.startswith("__"):
            theirs = inspect.signature(getattr(cupy, name)).parameters
            assert set(inspect.signature(function).parameters) - {"self"} <= set(theirs), name
    for name in {*vars(Array), *METHODS.split()} - {"_data"}:
        assert name.startswith("__") or hasattr(cupy.ndarray, name), name
    assert not hasattr(cupy.ndarray, "__index__")
