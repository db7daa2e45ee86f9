"""The house: its floors are kept and guarded, signatures say all, types hold for users, `import lpa3d` stays light."""

from __future__ import annotations

import inspect
import operator
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lpa3d
from lpa3d import errors, io, phantom, plot
from lpa3d.verbs.dispatch import OPTIONS

ROOT = Path(__file__).resolve().parents[1]
SOURCE = Path(lpa3d.__file__).parent
VERBS = ("label", "propagate", "merge", "contacts", "stitch", "fuse", "evaluate")

# --------------------------------------------------------------------------------------------------------------- floors


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Hold the package in `folder` against the contracts of pyproject.toml."""
    return subprocess.run(
        [shutil.which("lint-imports", path=str(Path(sys.executable).parent)), "--no-cache"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package, to plant wrong imports in, beside the contracts."""
    pytest.importorskip("importlinter", reason="no import-linter, which holds imports against the floors")
    folder = tmp_path_factory.mktemp("house")
    shutil.copytree(SOURCE, folder / "lpa3d", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def test_imports_keep_to_the_floors(house: Path) -> None:
    found = lint_imports(house)
    assert found.returncode == 0, found.stdout
    assert re.search(r"Contracts: [1-9]\d* kept, 0 broken", found.stdout)


PLANTED = {
    ("kernels/label.py", "from ..arrays import checks"): "Floors",
    ("arrays/checks.py", "from ..propagation import rules"): "Floors",
    ("propagation/rules.py", "from ..linking import merge"): "Floors",
    ("evaluation/report.py", "from ..tiled.driver import run"): "Floors",
    ("tiled/label.py", "from ..verbs import dispatch"): "Floors",
    ("verbs/label.py", "from ..commands import job"): "Floors",
    ("attic/__init__.py", ""): "Floors",  # a new folder needs a floor
    ("tiled/driver/run.py", "from .. import label"): "The driver of tiled runs knows no verb",
    ("linking/merge.py", "import zarr"): "Nothing below tiled knows dask, and only files knows zarr",
    ("files/readers.py", "import dask"): "Files do not know dask",
    ("kernels/label.py", "import scipy"): "Kernels know NumPy and Numba alone",
    ("propagation/rules.py", "from . import whole"): "No circles",
}
"""Wrong imports, and the contract that each breaks."""


def test_wrong_imports_are_found(house: Path) -> None:
    (house / "lpa3d" / "attic").mkdir()
    for file, line in PLANTED:
        with open(house / "lpa3d" / file, "a", encoding="utf-8") as module:
            module.write(f"\n{line}\n")
    found = lint_imports(house)
    assert found.returncode == 1
    for contract in set(PLANTED.values()):
        assert f"{contract} BROKEN" in found.stdout
    assert "attic" in found.stdout
    for file, line in PLANTED:
        module = "lpa3d." + file.removesuffix(".py").replace("/", ".")
        assert not line or re.search(rf"{re.escape(module)}\b.* -> \S+ \(l\.\d+", found.stdout), (file, line)


def test_no_package_bears_a_verbs_name() -> None:
    assert not {path.name for path in SOURCE.iterdir() if path.is_dir()} & {*VERBS, "estimate"}
    for verb in (*VERBS, "estimate"):
        assert inspect.isfunction(getattr(lpa3d, verb))


LIGHT = """
import sys
before = set(sys.modules)
import lpa3d
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)))
print(*sorted(name for name in set(sys.modules) - before if name.startswith("lpa3d.")))
"""


def test_the_import_loads_nothing_but_itself() -> None:
    said = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True).stdout
    assert said == "lpa3d\nlpa3d._version\n"


# ----------------------------------------------------------------------------------------------------------- signatures


def public_functions() -> list[str]:
    """Return the full names of all public functions, classes and their public methods."""
    names = []
    for module in (lpa3d, io, plot, phantom, errors):
        for name in getattr(module, "__all__", ()):
            thing = getattr(module, name)
            if getattr(thing, "__module__", "").partition(".")[0] != "lpa3d":
                continue
            full = f"{module.__name__}.{name}"
            names.append(full)
            if inspect.isclass(thing):
                names += [
                    f"{full}.{method}"
                    for method, value in vars(thing).items()
                    if inspect.isfunction(value) and not method.startswith("_") and value.__name__ == method
                ]
    return names


CHECKS = {
    "PR01",  # a parameter without a description
    "PR02",  # a description of no parameter
    "PR03",  # another order than that of the signature
    "PR04",  # no type
    "PR07",  # an empty description
    "PR10",  # no space before the colon
    "GL08",  # no docstring
    "SS03",  # a summary without a full stop
    "RT01",  # nothing on what is returned
}


@pytest.mark.parametrize("name", public_functions())
def test_docstrings_are_of_their_signatures(name: str) -> None:
    validate = pytest.importorskip("numpydoc.validate", reason="no numpydoc, which checks docstrings").validate
    thing = operator.attrgetter(name.removeprefix("lpa3d."))(lpa3d)
    # Results, and methods without parameters, say all in a sentence; a section that is there must be whole.
    takes = inspect.isfunction(thing) and set(inspect.signature(thing).parameters) - {"self"}
    checks = CHECKS if takes or "Parameters\n" in thing.__doc__ else CHECKS & {"GL08", "SS03"}
    assert not [error for error in validate(name)["errors"] if error[0] in checks]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_names_and_describes_every_option(verb: str) -> None:
    function = getattr(lpa3d, verb)
    assert not hasattr(function, "__wrapped__")
    signature = inspect.signature(function)
    assert list(signature.parameters)[-len(OPTIONS) :] == list(OPTIONS)
    assert all(signature.parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in OPTIONS)
    code = function.__code__
    assert set(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]) == set(signature.parameters)
    for name in OPTIONS:
        assert re.search(rf"^    {name} : ", function.__doc__, re.MULTILINE), name


# ---------------------------------------------------------------------------------------------------------------- types

SCRIPT = """
from pathlib import Path

import numpy as np
import numpy.typing as npt

import lpa3d
from lpa3d import io, phantom, plot


def say(stage: str, fraction: float) -> None:
    print(stage, fraction)


def work(folder: Path) -> float:
    cell = phantom.cell((16, 32, 32))
    seeds: npt.NDArray[np.int64] = np.zeros((16, 32, 32), np.int64)
    lpa3d.label("volume.zarr", tile=8, memory="1GB", scratch=folder, out=folder / "labels.zarr", progress=say)
    lpa3d.label(cell.classes, connectivity=26, device="cuda")
    labels = lpa3d.propagate(cell.classes, seeds, spacing=(40, 8, 8), unseeded="label", progress=say)
    lpa3d.propagate("v.zarr", "s.zarr", out="o.zarr", tile=(8, 64, 64), storage={"chunks": 32}, resume="force")
    table: lpa3d.Contacts = lpa3d.contacts(labels, image=cell.classes)
    labels = lpa3d.merge(labels, must_link=[(1, 2)], min_contact=0.3, overwrite=True)
    labels = lpa3d.stitch(labels, bad_slices=[3])
    fused: lpa3d.Fused = lpa3d.fuse(classes=cell.classes, instances=labels)
    e: lpa3d.Evaluation = lpa3d.evaluate(cell.instances, fused.seeds, convention=lpa3d.Convention(strict=False))
    estimate: lpa3d.Estimate = lpa3d.estimate("label", "volume.zarr", memory=10**9)
    print(estimate, table.to_pandas(), e.splits, lpa3d.__version__)
    io.write(folder / "labels.npy", io.read("labels.tif"))
    plot.heatmap(e)
    return e["pq"]
"""

WRONG = {
    "label(x, memry='1GB')": "call-arg",
    "label(x, tile='8')": "arg-type",
    "label(x, device='gpu')": "arg-type",
    "label(x, resume='yes')": "arg-type",
    "propagate(x)": "call-arg",
    "propagate(x, x, progress=3)": "arg-type",
    "merge(x, storage=3)": "arg-type",
    "evaluate(x, x, warping='4d')": "arg-type",
    "stitch(x, axes=0)": "call-arg",
    "fuse(x)": "call-arg",
    "contacts(x, tile=0.5)": "arg-type",
}
"""Wrong calls, and the code of the error that each is."""


def test_types_hold_for_users(tmp_path: Path) -> None:
    api = pytest.importorskip("mypy.api", reason="no mypy, which checks types")
    assert (SOURCE / "py.typed").is_file()
    wrong = "import lpa3d\nx: object = None\n" + "".join(f"lpa3d.{call}\n" for call in WRONG)
    for name, text in {"right": SCRIPT, "wrong": wrong}.items():
        (tmp_path / f"{name}.py").write_text(text)
    words = ["--strict", f"--cache-dir={tmp_path / 'cache'}", "--config-file=", "--follow-imports=silent"]
    output, problems, code = api.run([*words, str(tmp_path / "right.py"), str(tmp_path / "wrong.py")])
    assert (code, problems) == (1, "")
    assert "right.py" not in output, output
    found = dict(re.findall(r"wrong\.py:(\d+): error: .*\[([\w-]+)\]", output))
    assert found == {str(3 + k): code for k, code in enumerate(WRONG.values())}, output
