"""Every CUDA kernel compiles for every GPU that is served, without warnings; this needs no GPU."""

import re

import numpy as np
import pytest

from lpa3d.cuda import device as cuda_device

nvrtc = pytest.importorskip("cupy", reason="no CuPy, whose NVRTC compiles the kernels").cuda.nvrtc

ARCHITECTURES = ("sm_75", "sm_80", "sm_90", "sm_120")

DEFINES = {
    "census": [
        {"VOLUME": "uint8", "ID": "uint64", "LINKS": "uint8"},
        {"VOLUME": "uint64", "ID": "uint8", "LINKS": "uint32"},
    ],
    "components": [
        {"LABEL": "uint32", "VALUE": "uint8", "SEED": "int64"},
        {"LABEL": "uint64", "VALUE": "uint64", "SEED": "uint8"},
    ],
    "contacts": [
        {"LABEL": labels, "IMAGE": image, "IMAGED": imaged, "TILE_Z": 16, "TILE_Y": 8, "TILE_X": 32}
        for labels, image, imaged in [("uint8", "uint8", 0), ("uint32", "int16", 1), ("int64", "float64", 1)]
    ],
    "diffuse": [
        {"CONNECTIVITY": 6, "LINKS": "uint8", "SEED": "int32", "INDEX": "uint32", "COST": 0},
        {"CONNECTIVITY": 26, "LINKS": "uint32", "SEED": "int64", "INDEX": "int64", "COST": 1},
    ],
    "geodesic": [
        {"CONNECTIVITY": connectivity, "LINKS": links, "COST": cost, "SIDE": 8}
        for connectivity, links, cost in [(6, "uint8", 0), (6, "uint8", 1), (18, "uint32", 0), (26, "uint32", 1)]
    ],
    "label": [
        {
            "VOLUME": volume,
            "LABEL": labels,
            "CONNECTIVITY": connectivity,
            "TILE_Z": 8,
            "TILE_Y": 16,
            "TILE_THREADS": 128,
        }
        for volume, labels, connectivity in [("uint8", "uint32", 6), ("uint32", "uint32", 18), ("uint64", "uint64", 26)]
    ],
    "links": [
        {"CONNECTIVITY": connectivity, "LINKS": links, "VOLUME": volume, "INDEX": index}
        for connectivity, links, volume, index in [
            (6, "uint8", "uint8", "uint32"),
            (18, "uint32", "uint16", "uint32"),
            (26, "uint32", "uint64", "int64"),
        ]
    ],
    "overlap": [
        {"REFERENCE": reference, "PREDICTION": prediction, "IGNORE": ignore, "ROWS": 32, "LENGTH": 1024}
        for reference, prediction, ignore in [("uint8", "int64", 0), ("uint32", "uint32", 1), ("int64", "uint16", 1)]
    ],
    "relabel": [{"LABEL": "uint8"}, {"LABEL": "int64"}],
    "sections": [{"CLASS": "uint8"}, {"CLASS": "uint64"}],
}
"""For each source the sets of defines that it is compiled with."""


def compile_kernels(file, defines, architecture):
    """Return the machine code of a source's kernels; they are all there, and their parameters can be read."""
    codes = []

    def build(source, options):
        program = nvrtc.createProgram(source, f"{file}.cu", (), ())
        try:
            nvrtc.compileProgram(program, (*options, f"--gpu-architecture={architecture}"))
            codes.append(nvrtc.getCUBIN(program))
        except nvrtc.NVRTCError:
            pytest.fail(f"{file}.cu {architecture} {defines}\n{nvrtc.getProgramLog(program)}")
        else:
            log = nvrtc.getProgramLog(program)
            assert not log, f"{file}.cu {architecture} {defines}\n{log}"
        finally:
            nvrtc.destroyProgram(program)
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
def test_kernels_compile(file):
    """Each source compiles with all its defines."""
    for defines in DEFINES[file]:
        for architecture in ARCHITECTURES:
            assert compile_kernels(file, defines, architecture)


def test_too_much_shared_memory_is_an_error(monkeypatch):
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
        compile_kernels("test", {}, "sm_90")


def test_warnings_are_errors(monkeypatch):
    """A kernel with a variable that is not used is refused."""
    source = 'extern "C" __global__ void nothing(int* a) { int unused; }'
    monkeypatch.setattr(cuda_device, "read_source", lambda _: source)
    with pytest.raises(AssertionError, match="never referenced"):
        compile_kernels("test", {}, "sm_90")
