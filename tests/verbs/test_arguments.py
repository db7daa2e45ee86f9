"""What arguments are taken for: flags by no truth of theirs, masked arrays never without their mask."""

from __future__ import annotations

import inspect
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lpa3d
from lpa3d.errors import InputError, InputTypeError

zarr = pytest.importorskip("zarr")
da = pytest.importorskip("dask.array")

VERBS = ["label", "propagate", "merge", "contacts", "stitch", "fuse", "evaluate"]
ONES = np.ones((4, 4, 4), np.uint8)
FLAGS = [
    (verb, name)
    for verb in VERBS
    for name, one in inspect.signature(getattr(lpa3d, verb)).parameters.items()
    if isinstance(one.default, bool)
]


@pytest.fixture
def stored() -> Any:
    return zarr.array(ONES, chunks=2)


def arguments(verb: str, array: Any) -> dict[str, Any]:
    """Return the arrays that a verb does not work without."""
    parameters = inspect.signature(getattr(lpa3d, verb)).parameters.values()
    names = [one.name for one in parameters if one.default is one.empty]
    return dict.fromkeys(names or ["classes"], array)


@pytest.mark.parametrize(("verb", "name"), FLAGS)
def test_flags_are_true_or_false(verb: str, name: str, stored: Any) -> None:
    assert {("propagate", "return_confidence"), ("evaluate", "surfaces"), ("stitch", "branching")} < set(FLAGS)
    for value in ("no", "", "True", "Force", None, 0, 1, 1.0, [], np.array([True])):
        for array in (stored, ONES):
            with pytest.raises(InputTypeError, match="True") as caught:
                getattr(lpa3d, verb)(**arguments(verb, array), **{name: value})
            assert caught.value.parameter == name
        with pytest.raises(InputTypeError, match="True"):
            lpa3d.estimate(verb, **arguments(verb, stored), **{name: value})


@pytest.mark.parametrize("verb", VERBS)
def test_progress_is_a_function(verb: str, stored: Any) -> None:
    for array in (stored, ONES):
        for given in (True, "bar", 0):
            with pytest.raises(InputTypeError, match=r"progress is .*; a function \(stage, fraction\)"):
                getattr(lpa3d, verb)(**arguments(verb, array), progress=given)


def test_flags_of_numpy_are_flags(stored: Any, tmp_path: Path) -> None:
    yes, no = np.bool_(True), np.bool_(False)
    assert lpa3d.evaluate(ONES, ONES, surfaces=no)["f1"] == 1
    lpa3d.stitch(stored, out=tmp_path / "a.zarr", branching=no, resume=yes, overwrite=no)
    lpa3d.stitch(stored, out=tmp_path / "a.zarr", branching=yes, overwrite=yes)
    lpa3d.label(stored, out=tmp_path / "b.zarr", resume="force")
    for convention in ({"strict": "no"}, {"strict": 1}):
        with pytest.raises(InputTypeError, match="True or False"):
            lpa3d.Convention(**convention)  # type: ignore[arg-type]
    with pytest.raises(InputTypeError, match="overwrite is 'no'; True or False"):
        lpa3d.io.write(tmp_path / "c.npy", ONES, overwrite="no")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("verb", "keyword"),
    [
        ("propagate", {"max_distance": True}),
        ("propagate", {"connectivity": True}),
        ("propagate", {"sweeps": True}),
        ("merge", {"min_contact": True}),
        ("merge", {"min_contact": "0.5"}),
        ("stitch", {"max_gap": True}),
    ],
)
def test_flags_are_no_numbers(verb: str, keyword: dict[str, Any]) -> None:
    with pytest.raises((InputError, InputTypeError), match=r"is True|is '0\.5'"):
        getattr(lpa3d, verb)(**arguments(verb, ONES), **keyword)


MASKED = np.ma.MaskedArray(ONES, mask=np.indices(ONES.shape)[2] == 2)
LATE = da.from_array(ONES, chunks=2).map_blocks(lambda block: np.ma.masked_equal(block, 1), meta=np.empty(0, "u1"))
PLACES = [
    (verb, name)
    for verb in VERBS
    for name in inspect.signature(getattr(lpa3d, verb)).parameters
    if name in {"volume", "seeds", "cost", "labels", "image", "classes", "slices", "instances"}
    or name in {"reference", "prediction", "ignore"}
    if (verb, name) != ("evaluate", "instances")
]


@pytest.mark.parametrize(("verb", "name"), PLACES)
def test_masked_arrays_are_refused_everywhere(verb: str, name: str, tmp_path: Path) -> None:
    def call(array: Any, plain: Any, **options: Any) -> None:
        given = arguments(verb, plain)
        pair = verb == "evaluate" and name == "classes"
        getattr(lpa3d, verb)(**(given | {name: (plain, array) if pair else array}), **options)

    with pytest.raises(InputTypeError, match=r"masked array, whose mask would be lost") as caught:
        call(MASKED, ONES)
    assert str(caught.value.parameter).startswith(name)
    dask = da.from_array(ONES, chunks=2)
    out = (
        {"out": tmp_path / ("out" if verb == "fuse" else "out.zarr")}
        if "out" in inspect.signature(getattr(lpa3d, verb)).parameters
        else {}
    )
    for masked in (da.ma.masked_equal(dask, 1), da.from_array(MASKED, chunks=2, asarray=False), LATE):
        with pytest.raises(InputTypeError, match=r"mask would be lost; pass dask\.array\.ma\.filled") as caught:
            call(masked, dask, tile=2, **out)
        assert str(caught.value.parameter).startswith(name)
    assert not (tmp_path / "out.zarr").exists()


def test_masked_arrays_of_other_arguments(tmp_path: Path) -> None:
    with pytest.raises(InputTypeError, match="out is a masked array"):
        lpa3d.label(ONES, out=np.ma.zeros(ONES.shape, np.uint32))
    with pytest.raises(InputTypeError, match="missing_slices is a masked array"):
        lpa3d.propagate(ONES, ONES, missing_slices=np.ma.array([1, 2], mask=[0, 1]))
    with pytest.raises(InputTypeError, match="array is a masked array"):
        lpa3d.io.write(tmp_path / "a.npy", MASKED)
    with pytest.raises(InputTypeError, match=r"dask\.array\.ma\.filled"):
        lpa3d.estimate("label", da.from_array(MASKED, chunks=2, asarray=False))


def test_dask_arrays_that_are_not_what_they_say(tmp_path: Path) -> None:
    dask = da.from_array(ONES, chunks=2)
    cases = (
        (
            dask.map_blocks(lambda block: block.astype("i8") + 255, dtype="u1"),
            "its dtype is uint8, but a chunk has int64",
        ),
        (dask.map_blocks(lambda block: block[:1], dtype="u1", meta=np.empty(0, "u1")), "chunks of other shapes"),
    )
    for array, message in cases:
        with pytest.raises((InputError, InputTypeError), match=message):
            lpa3d.label(array, out=tmp_path / "out.zarr", tile=2, resume=False)
    # A narrower dtype loses nothing.
    narrow = dask.astype("u4").map_blocks(lambda block: block > 0, dtype="u4", meta=np.empty(0, "u4"))
    lpa3d.label(narrow, out=tmp_path / "out.zarr", tile=2, resume=False)


class Foreign:
    shape, dtype, ndim = (4, 4, 4), np.dtype(np.float32), 3


@pytest.mark.parametrize(("verb", "name"), [place for place in PLACES if place != ("evaluate", "ignore")])
def test_foreign_objects_beside_stored_arrays(verb: str, name: str, stored: Any) -> None:
    given = arguments(verb, stored)
    if set(given) == {name}:
        return  # nothing is stored then
    pair = verb == "evaluate" and name == "classes"
    for value in ([1, 2], 3, {1}, b"x", "no path", Foreign()):
        with pytest.raises((InputError, InputTypeError)) as caught:
            getattr(lpa3d, verb)(**(given | {name: (stored, value) if pair else value}), tile=2)
        assert str(caught.value.parameter).startswith(name)


def test_none_is_no_array(stored: Any) -> None:
    with pytest.raises(InputTypeError, match="seeds is None; a zarr or dask array is needed"):
        lpa3d.propagate(stored, None, out="o.zarr")
    with pytest.raises(InputTypeError, match=r"seeds is a builtins\.list"):
        lpa3d.estimate("propagate", stored, [1])


def test_an_output_mapped_from_the_file_of_an_input(tmp_path: Path) -> None:
    path = tmp_path / "a.raw"
    np.zeros(1024, np.uint8).tofile(path)

    def take(offset: int, dtype: str) -> Any:
        return np.memmap(path, dtype, "r+", offset, (4, 4, 4))

    ones = take(0, "u1")
    ones[:] = 1
    with pytest.raises(InputError, match="shares memory with an input"):
        lpa3d.label(ones, out=take(0, "u4"))
    with pytest.raises(InputError, match="shares memory with an input"):
        lpa3d.label(np.asarray(ones)[::-1], out=take(32, "u4"))
    np.testing.assert_array_equal(lpa3d.label(ones, out=take(64, "u4")), ones)
    np.testing.assert_array_equal(ones, 1)


@pytest.mark.parametrize(
    ("verb", "name"), [("propagate", "missing_slices"), ("stitch", "bad_slices"), ("fuse", "complete_slices")]
)
def test_lists_of_slices_are_read_no_further_than_the_volume(verb: str, name: str, stored: Any) -> None:
    given: Any
    for array in (ONES, stored):
        arrays = {"instances": array} if verb == "fuse" else arguments(verb, array)
        out = {} if array is ONES else {"out": "never.zarr"}
        for given, message in (
            (range(10**15), f"{name} holds 4; positions from 0 to 3 are needed"),
            (itertools.count(2), f"{name} holds 4; positions"),
            ([1, 2**70], f"{name} holds {2**70}; positions"),
            ([True, False], f"{name} holds True or False; .*flatnonzero"),
            ("1", f"{name} is '1'; positions"),
        ):
            with pytest.raises((InputError, InputTypeError), match=message):
                getattr(lpa3d, verb)(**arrays, **{name: given}, **(out if verb != "fuse" else {}))
