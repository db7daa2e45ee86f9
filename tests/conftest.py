"""Settings for every test: bounded hypothesis, the emulator, and where the real data is."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from lpa3d.arrays.backend import open_device
from lpa3d.errors import DeviceError
from tests import emulator as cuda_emulator

UNIT = 30
"""Examples that a test which says its own number has that number for."""

settings.register_profile(
    "lpa3d",
    deadline=None,  # the first example compiles
    max_examples=int(os.environ.get("LPA3D_MAX_EXAMPLES", 10)),
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=bool(os.environ.get("CI")),
)
settings.load_profile("lpa3d")


MEMORY = Path("/dev/shm")
"""Where Linux has files in memory."""


def pytest_configure():
    """Let temporary files be in memory, unless ``TMPDIR`` says where: on a disk tiled runs take a third longer."""
    if "TMPDIR" not in os.environ and MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 2**32:
        os.environ["TMPDIR"], tempfile.tempdir = str(MEMORY), None


@pytest.hookimpl(tryfirst=True)  # before those marked as long are left out
def pytest_collection_modifyitems(items):
    """Mark as long the parameters that the short run does without, of tests "each_value" and "each_other"."""
    tests: dict[str, list[pytest.Item]] = {}
    for item in items:
        if not item.get_closest_marker("gpu"):
            tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for combinations in tests.values():
        over = combinations[1::2] if combinations[0].get_closest_marker("each_other") else []
        if combinations[0].get_closest_marker("each_value"):
            values = {
                item: {(name, repr(value)) for name, value in item.callspec.params.items()} for item in combinations
            }
            left = set().union(*values.values())
            while left:
                best = max(values, key=lambda item: len(values[item] & left))
                left -= values.pop(best)
            over += values
        for item in over:
            item.add_marker(pytest.mark.long)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Scale a number of examples that a test has of its own as that of all others is scaled, by LPA3D_MAX_EXAMPLES.

    Where threads are preempted it is a third: an example takes some three times as long, and the values that "shuffled"
    has come here, too.
    """
    obj = getattr(item, "obj", None)
    if not getattr(obj, "is_hypothesis_test", False):
        return (yield)
    test = getattr(obj, "__func__", obj)
    # There is no other place for the settings of one run of a test.
    own = test._hypothesis_internal_use_settings
    share = 1.0 if own.max_examples == settings.default.max_examples else settings.default.max_examples / UNIT
    if getattr(item, "callspec", None) and item.callspec.params.get("device") == "preempt":
        share /= 3
    test._hypothesis_internal_use_settings = settings(own, max_examples=max(2, round(share * own.max_examples)))
    try:
        return (yield)
    finally:
        test._hypothesis_internal_use_settings = own


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_disks():
    """Let nothing wait until a disk has what it was given, which took a third of the time; tests of that look at it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder with the real volumes; skips the test, saying why, where there is none."""
    root = Path(__file__).resolve().parents[1]
    for folder in (os.environ.get("LPA3D_DATA"), root.parent / "shared" / "data", root / "shared" / "data"):
        if folder and (Path(folder) / "urocell").is_dir():
            return Path(folder)
    pytest.skip("no real data: set LPA3D_DATA to a folder that holds urocell/ and connectomics.zarr/")


@pytest.fixture(scope="session")
def emulator(request, tmp_path_factory):
    """`emulator.Emulator`, for tests that only make sense on emulated devices; skips them where there is no g++."""
    if cuda_emulator.COMPILER is None:
        pytest.skip("no g++, which builds the CUDA kernels for the CPU")
    # Kernels that were built once are kept.
    cache = getattr(request.config, "cache", None)
    cuda_emulator.cache_folder = cache.mkdir("cuda") if cache else tmp_path_factory.mktemp("cuda")
    return cuda_emulator.Emulator


@pytest.fixture(scope="module", params=["shuffled", "preempt", cuda_emulator.CUDA])
def device(request):
    """The CUDA device that lpa3d opens: emulated ones that differ in the order of threads, then the real one."""
    if request.param == "cuda":
        try:
            found = open_device()
        except DeviceError as error:
            pytest.skip(str(error).partition(" (")[0])
    else:
        found = request.getfixturevalue("emulator")(request.param)
    with cuda_emulator.opened(found):
        yield found
