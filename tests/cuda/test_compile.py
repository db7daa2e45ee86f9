"""Every CUDA kernel compiles for every GPU that is served, without warnings; this needs no GPU."""

import hashlib
import itertools
import os
import re
from pathlib import Path

import numpy as np
import pytest

from lpa3d.cuda import contacts, geodesic, label, overlap
from lpa3d.cuda import device as cuda_device

cupy = pytest.importorskip("cupy", reason="no CuPy, whose NVRTC compiles the kernels")
nvrtc = cupy.cuda.nvrtc

ARCHITECTURES = ("sm_75", "sm_80", "sm_90", "sm_120")

LABEL_TILE = {"TILE_Z": label.TILE_Z, "TILE_Y": label.TILE_Y, "TILE_THREADS": label.TILE_THREADS}

DEFINES = {
    "census": [
        {"VOLUME": "uint8", "ID": "uint32", "LINKS": "uint8"},
        {"VOLUME": "uint64", "ID": "int64", "LINKS": "uint32"},
    ],
    "components": [
        {"LABEL": "uint32", "VALUE": "uint8", "SEED": "int32"},
        {"LABEL": "uint64", "VALUE": "int64", "SEED": "uint64"},
    ],
    "contacts": [
        {"LABEL": "uint16", "IMAGE": "uint8", "IMAGED": 0, **contacts.TILE},
        {"LABEL": "uint64", "IMAGE": "uint16", "IMAGED": 1, **contacts.TILE},
    ],
    "diffusion": [
        {"CONNECTIVITY": 6, "LINKS": "uint8", "SEED": "int32", "INDEX": "uint32", "COST": 0},
        {"CONNECTIVITY": 26, "LINKS": "uint32", "SEED": "int64", "INDEX": "int64", "COST": 1},
    ],
    "geodesic": [
        {"CONNECTIVITY": 6, "LINKS": "uint8", "COST": 0, "SIDE": geodesic.SIDE},
        {"CONNECTIVITY": 26, "LINKS": "uint32", "COST": 1, "SIDE": geodesic.SIDE},
    ],
    "label": [
        {"VOLUME": "uint8", "LABEL": "uint32", "CONNECTIVITY": 26, **LABEL_TILE},
        {"VOLUME": "uint16", "LABEL": "uint32", "CONNECTIVITY": 18, **LABEL_TILE},
        {"VOLUME": "uint64", "LABEL": "uint64", "CONNECTIVITY": 6, **LABEL_TILE},
    ],
    "links": [
        {"CONNECTIVITY": 6, "VOLUME": "uint8", "LINKS": "uint8", "INDEX": "uint32"},
        {"CONNECTIVITY": 18, "VOLUME": "uint16", "LINKS": "uint32", "INDEX": "uint32"},
        {"CONNECTIVITY": 26, "VOLUME": "uint64", "LINKS": "uint32", "INDEX": "int64"},
    ],
    "overlap": [
        {"REFERENCE": "uint8", "PREDICTION": "uint32", "IGNORE": 0, **overlap.TILE},
        {"REFERENCE": "uint64", "PREDICTION": "uint64", "IGNORE": 1, **overlap.TILE},
    ],
    "relabel": [{"LABEL": "uint8"}, {"LABEL": "int64"}],
    "sections": [{"CLASS": "uint8"}, {"CLASS": "uint64"}],
}
"""For each source the sets of defines that it is compiled with: the first for the oldest GPU, the last for the newest;
in ``make test-all`` all for all."""


@pytest.fixture(scope="module")
def cache(request, tmp_path_factory):
    """Folder in which code is kept that was compiled without warnings."""
    kept = getattr(request.config, "cache", None)
    return Path(kept.mkdir("nvrtc")) if kept else tmp_path_factory.mktemp("nvrtc")


def compile_source(source, options, what):
    """Return the machine code of a source; fail where NVRTC has anything to say."""
    program = nvrtc.createProgram(source, "kernels.cu", (), ())
    try:
        nvrtc.compileProgram(program, options)
        code = nvrtc.getCUBIN(program)
    except nvrtc.NVRTCError:
        pytest.fail(f"{what}\n{nvrtc.getProgramLog(program)}")
    else:
        log = nvrtc.getProgramLog(program)
        assert not log, f"{what}\n{log}"
    finally:
        nvrtc.destroyProgram(program)
    return code


def compile_kernels(cache, file, defines, architecture):
    """Return the machine code of a source's kernels; they are all there, and their parameters can be read."""
    codes = []

    def build(source, options):
        options = (*options, f"--gpu-architecture={architecture}")
        whole = repr((source, options, nvrtc.getVersion(), cupy.__version__))
        built = cache / hashlib.sha256(whole.encode()).hexdigest()[:32]
        if not built.exists():
            code = compile_source(source, options, f"{file}.cu {architecture} {defines}")
            part = built.with_name(f"{built.name}-{os.getpid()}")
            part.write_bytes(code)
            part.replace(built)
        codes.append(built.read_bytes())
        return lambda name: None

    device = cuda_device.Device(None, np.ndarray, build, np.asarray, lambda: 0)
    values = {key: value if isinstance(value, int) else np.dtype(value) for key, value in defines.items()}
    for kernel in re.findall(
        r'extern "C" __global__ void(?:\s+__launch_bounds__\([^)]*\))?\s+(\w+)', cuda_device.read_source(file)
    ):
        device.kernel(file, kernel, **values)
        assert f".text.{kernel}\0".encode() in codes[0]
    assert len(codes) == 1
    return codes[0]


def test_every_source_has_defines():
    """No source is left out."""
    assert sorted(DEFINES) == sorted(file.stem for file in cuda_device.FOLDER.glob("*.cu"))


@pytest.mark.parametrize("file", sorted(DEFINES))
def test_kernels_compile(file, cache):
    """Each source compiles for the oldest GPU and for the newest, with other defines."""
    assert compile_kernels(cache, file, DEFINES[file][0], ARCHITECTURES[0])
    assert compile_kernels(cache, file, DEFINES[file][-1], ARCHITECTURES[-1])


@pytest.mark.long
@pytest.mark.parametrize("file", sorted(DEFINES))
def test_kernels_compile_for_every_gpu(file, cache):
    """Each source compiles with all its defines for each of them."""
    for defines, architecture in itertools.product(DEFINES[file], ARCHITECTURES):
        assert compile_kernels(cache, file, defines, architecture)


def test_too_much_shared_memory_is_an_error(monkeypatch, tmp_path):
    """What no GPU can run is found here."""
    source = """
    extern "C" __global__ void reverse(int* a) {
        __shared__ int s[16384];
        s[threadIdx.x] = a[threadIdx.x];
        __syncthreads();
        a[threadIdx.x] = s[blockDim.x - 1 - threadIdx.x];
    }
    """
    monkeypatch.setattr(cuda_device, "read_source", lambda _: source)
    with pytest.raises(pytest.fail.Exception, match="too much shared data"):
        compile_kernels(tmp_path, "test", {}, "sm_90")


def test_warnings_are_errors(monkeypatch, tmp_path):
    """A kernel with a variable that is not used is refused."""
    source = 'extern "C" __global__ void nothing(int* a) { int unused; }'
    monkeypatch.setattr(cuda_device, "read_source", lambda _: source)
    with pytest.raises(AssertionError, match="never referenced"):
        compile_kernels(tmp_path, "test", {}, "sm_90")
