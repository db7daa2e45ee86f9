"""Where a verb's call goes: by what its arrays are."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lpa3d
from lpa3d.errors import InputError, InputTypeError
from lpa3d.verbs.dispatch import OPTIONS

zarr = pytest.importorskip("zarr")

VERBS = ["label", "propagate", "merge", "contacts", "stitch", "fuse", "evaluate"]


@pytest.fixture
def stored(tmp_path: Path) -> Any:
    array = zarr.create_array(str(tmp_path / "a.zarr"), shape=(4, 5, 6), dtype="u2", chunks=(2, 5, 3))
    array[:] = np.arange(120).reshape(4, 5, 6) % 3
    return array


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_shows_the_keywords(verb: str) -> None:
    parameters = inspect.signature(getattr(lpa3d, verb)).parameters
    assert set(OPTIONS) <= set(parameters)
    assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in OPTIONS)


def test_mixed_kinds_are_refused(stored: Any) -> None:
    memory = np.zeros((4, 5, 6), np.uint16)
    with pytest.raises(InputTypeError, match=r"volume is a zarr.*seeds is a numpy.ndarray"):
        lpa3d.propagate(stored, memory, out="x.zarr")
    with pytest.raises(InputTypeError, match=r"reference is a builtins.str.*prediction is a numpy"):
        lpa3d.evaluate("reference.zarr", memory)
    with pytest.raises(InputTypeError, match=r"classes is a zarr.*labels is a numpy"):
        lpa3d.merge(memory, classes=stored)


@pytest.mark.parametrize("keyword", [{"tile": 8}, {"memory": "1GB"}, {"resume": False}, {"overwrite": True}])
def test_keywords_of_stored_arrays_mean_nothing_in_memory(keyword: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"for zarr or dask arrays, and volume is a numpy\.ndarray"):
        lpa3d.label(np.zeros((3, 3, 3), np.uint8), **keyword)


def test_files_of_other_formats_are_read_first() -> None:
    with pytest.raises(InputTypeError, match=r"lpa3d\.io\.read"):
        lpa3d.label("volume.tif")


def test_a_place_is_needed(stored: Any) -> None:
    with pytest.raises(InputError, match=r"out='out\.zarr'"):
        lpa3d.label(stored)


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, numpy, lpa3d; lpa3d.label(numpy.ones((2, 2, 2), 'u1')); "
        "heavy = 'zarr', 'dask', 'distributed', 'fsspec', 'filelock', 'psutil', 'lpa3d.tiled'; "
        "print([m for m in heavy if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("verb", ["stitch", "fuse"])
def test_verbs_that_no_device_works_on(verb: str) -> None:
    array = np.ones((2, 2, 2), np.uint8)
    arguments = {"slices": array} if verb == "stitch" else {"classes": array}
    with pytest.raises(InputError, match=f"{verb} cannot work on a CUDA device, only label, .* evaluate can"):
        getattr(lpa3d, verb)(**arguments, device="cuda")


@pytest.mark.parametrize("device", ["gpu", "cuda:1", 0, True, np.zeros(3)])
def test_unknown_devices(device: Any) -> None:
    with pytest.raises(InputError, match=r"device is .*; 'cuda' is needed, or None"):
        lpa3d.label(np.ones((2, 2, 2), np.uint8), device=device)
