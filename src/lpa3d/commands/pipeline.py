"""The command ``lpa3d pipeline``: from slices to measured instances, as a file says, without files in between.

1. The configuration is read and checked (`_pipeline.read_config`).
2. Inputs are opened and outputs planned; what does not fit is refused before a voxel is read.
3. Inputs are read, and the steps run one after another, each on the arrays of those before.
4. Outputs are written and appear together.
"""

from __future__ import annotations

import argparse
import inspect
import json
import math
import platform
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .._version import __version__
from ..arrays.text import format_bytes
from ..errors import InputError, Keyword, Lpa3dError
from ..files.geometry import Geometry
from ..files.outputs import Beside
from ..files.volume import Volume
from ..files.writers import Target, plan
from ..verbs.dispatch import OPTIONS
from .counts import count_labels, summarize
from .evaluate import check_limited_classes, check_options, errors_to_csv, find_misses, pairs_to_csv, to_text
from .fuse import ROLES, check_mappings, count_fused, describe_conflicts, describe_fused, format_conflicts
from .inputs import check_same_place, check_same_shape, find_spacing, format_count, format_sizes
from .job import Job
from .pipeline_file import SUFFIXES, Config, read_config
from .stitch import check_slices, count_stitched, describe_stitched

__all__ = ["add_pipeline_arguments", "run_pipeline"]

Array = npt.NDArray[Any]

INPUT_ROLES = {
    **ROLES,
    "reference": "a reference",
    "reference_classes": "a class map",
    "ignore": "a mask of what is ignored",
}
"""What inputs that hold integers are; the cost is an image."""

VERBS = {
    "stitch": ("stitching", "stitched"),
    "fuse": ("fusing", "fused"),
    "propagate": ("propagating", "propagated"),
    "merge": ("merging", "merged"),
    "evaluate": ("evaluating", "evaluated"),
}

NOT_OF_VERBS = ("per_class", "show_errors", "fail_under", "fail_over", "classes")
"""Keys of steps that are about what is printed, or about which arrays a verb gets."""

ARRAYS = ("classes", "instances", "slices", "cost", "scores", "out", "progress", "ignore")
"""Keywords of verbs that are no parameters."""


def add_pipeline_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to its parser."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("config", nargs="?", metavar="CONFIG", help="TOML file that names inputs, steps and outputs")
    what.add_argument("--example", action="store_true", help="print a configuration with all keys, and stop")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check the configuration and the files, print what would be done, and stop",
    )


def run_pipeline(job: Job) -> None:
    """Check everything, run the steps, and write what is asked for."""
    if job.args.example:
        job.results.append(Path(__file__).with_name("pipeline.toml").read_text(encoding="utf-8"))
        return
    config = read_config(job.args.config)
    _check_evaluation(config)
    files = {name: job.open(file) for name, file in config.inputs.items()}
    for name, file in files.items():
        if name != "cost":
            file.check_integers(INPUT_ROLES[name])
    first, *others = files.values()
    for file in others:
        check_same_shape(first, file)
        check_same_place(job, first, file)
    _check_slices(config, first.shape)
    _check_mappings(config, files)
    _check_memory(config, files)
    job.args.spacing = config.spacing
    used = "propagate" in config.steps or "merge" in config.steps
    spacing, geometry = find_spacing(job, *files.values(), used=used)
    targets = _plan_outputs(job, config, files)
    if "slices" in files and "stitch" not in config.steps:
        job.terminal.say(f"{files['slices'].name} is taken for 3D ids, for want of [stitch]")
    chain = _Chain(job, config, spacing, geometry)
    if job.args.dry_run:
        job.results.append(chain.describe(files))
        return
    for name, file in files.items():
        chain.arrays[name] = job.read(file, INPUT_ROLES.get(name, "a cost"), floats=name == "cost")
    for step in config.steps:
        chain.run(step)
    chain.write(targets, files)
    job.finish(summarize(chain.labels))


def _check_evaluation(config: Config) -> None:
    """Refuse limits that cannot be compared, in the words of the configuration."""
    if "evaluate" in config.steps:
        args = _evaluate_options(config)
        with _in_section(config, "evaluate"):
            check_options(args)
            if args.class_names:
                check_limited_classes(args.class_names.values(), args)


def _check_mappings(config: Config, files: Mapping[str, Volume]) -> None:
    """Refuse classes that the class map cannot hold, before hours of other steps."""
    keywords = config.steps.get("fuse", {})
    with _in_section(config, "fuse"):
        check_mappings({key: keywords[key] for key in ("instance_classes", "slice_classes") if key in keywords}, files)


def _check_memory(config: Config, files: Mapping[str, Volume]) -> None:
    """Refuse volumes that memory cannot hold: the inputs, and what the greediest step needs at the least."""
    from ..tiled.driver.budget import available_memory

    # A .npy file is mapped, not read.
    held = sum(file.dtype.itemsize for file in files.values() if file.format != "npy")
    labels = max(file.dtype.itemsize for name, file in files.items() if name != "cost")
    working = {"stitch": 4, "fuse": labels + 2, "propagate": labels + 6, "merge": labels, "evaluate": 0}
    shape = next(iter(files.values())).shape
    need = (held + max(working[step] for step in config.steps)) * math.prod(shape)
    free = available_memory()
    if need > free:
        raise InputError(
            f"{config.name}: a pipeline works in memory, and volumes of {' x '.join(map(str, shape))} need at least "
            f"{format_bytes(need)}, where {format_bytes(free)} are free; run its steps one by one on zarr files, which "
            f"are worked on tile by tile: lpa3d {', lpa3d '.join(config.steps)}"
        )


def _check_slices(config: Config, shape: tuple[int, ...]) -> None:
    """Refuse slices and axes that the volumes do not have."""
    for step, keywords in config.steps.items():
        with _in_section(config, step):
            for key in ("bad_slices", "complete_slices", "missing_slices"):
                check_slices(keywords.get(key, ()), key, shape, _find_axis(config, step))
            if len(shape) == 2 and keywords.get("missing_slices"):
                raise InputError(Keyword("missing_slices"), " needs a volume (Z, Y, X); the files hold one slice")


def _find_axis(config: Config, step: str) -> int:
    """Return the axis that the slices of a step lie across; slices that are fused lie as they were stitched."""
    own = config.steps[step].get("axis") if step in ("stitch", "fuse") else 0
    return config.steps.get("stitch", {}).get("axis", 0) if own is None else own


def _plan_outputs(job: Job, config: Config, files: Mapping[str, Volume]) -> dict[str, Target | Beside]:
    """Check that every output can be written."""
    inputs = [file.path for file in files.values()] + list(config.tables)
    shape = next(iter(files.values())).shape
    return {
        key: (
            job.add_text(name, inputs)
            if key in SUFFIXES
            else plan(job.outputs, name, shape, inputs, image=key == "confidence")
        )
        for key, name in config.outputs.items()
    }


@contextmanager
def _in_section(config: Config, step: str) -> Iterator[None]:
    """Say, on an error, which section it is about."""
    try:
        yield
    except Lpa3dError as error:
        # Steps that get a class map unless the file says otherwise.
        spare = step in ("stitch", "merge") and Keyword("classes") in error.args
        advice = "; classes = false leaves the class map aside" if spare else ""
        raise type(error)(f"{_name_section(config, step)} ", *error.args, advice) from error


def _name_section(config: Config, step: str) -> str:
    return f"{config.name}: [{step}]"


def _evaluate_options(config: Config) -> argparse.Namespace:
    """Return what `lpa3d evaluate` would have been asked for."""
    keywords = config.steps["evaluate"]
    return argparse.Namespace(
        iou_thresholds=keywords.get("iou_thresholds", [0.5]),
        instances="ids",
        classes="reference_classes" in config.inputs,
        class_names=keywords.get("class_names"),
        convention=keywords.get("convention", "lpa3d"),
        scores=None,
        size_strata=keywords.get("size_strata"),
        surfaces=keywords.get("surfaces", False),
        warping=keywords.get("warping"),
        per_class=keywords.get("per_class", False),
        show_errors=keywords.get("show_errors", 5),
        fail_under=keywords.get("fail_under", []),
        fail_over=keywords.get("fail_over", []),
        output=None,
        errors=config.outputs.get("errors"),
        pairs=config.outputs.get("pairs"),
    )


class _Chain:
    """The steps, and the arrays that each leaves to the next.

    Attributes
    ----------
    arrays : dict of str to ndarray
        The inputs by their keys, each until no step needs it any more.
    results : dict of str to (ndarray or str)
        What is written, by the keys of the outputs.
    parameters : dict of str to dict
        All keywords of each step that are no arrays, defaults too.
    """

    def __init__(self, job: Job, config: Config, spacing: tuple[float, float, float], geometry: Geometry) -> None:
        self.job, self.config, self.spacing, self.geometry = job, config, spacing, geometry
        self.arrays: dict[str, Array] = {}
        self.results: dict[str, Any] = {}
        self.report: list[dict[str, Any]] = []
        self.keywords = {step: self._find_keywords(step) for step in config.steps}
        self.parameters = {step: self._list_parameters(step) for step in config.steps}

    def _find_keywords(self, step: str) -> dict[str, Any]:
        """Return the keywords of a step's verb, without arrays."""
        keywords = {key: value for key, value in self.config.steps[step].items() if key not in NOT_OF_VERBS}
        if step == "fuse":
            keywords["axis"] = _find_axis(self.config, step)
        elif step != "stitch":
            keywords["spacing"] = self.spacing
        if step == "propagate":
            keywords["return_confidence"] = "confidence" in self.config.outputs
        return keywords

    def _list_parameters(self, step: str) -> dict[str, Any]:
        """Return the keywords with the defaults of the verb; arrays are the keys of the inputs."""
        import lpa3d

        parameters = {}
        for key, parameter in inspect.signature(getattr(lpa3d, step)).parameters.items():
            if key in self.keywords[step]:
                parameters[key] = self.keywords[step][key]
            elif key not in (*ARRAYS, *OPTIONS) and parameter.kind is parameter.KEYWORD_ONLY:
                parameters[key] = parameter.default
        return parameters

    def run(self, step: str) -> None:
        """Run one step and say what it did."""
        self.job.terminal.step(*VERBS[step])
        start = time.perf_counter()
        run: Callable[..., tuple[dict[str, Any], str]] = getattr(self, f"_{step}")
        with _in_section(self.config, step):
            counts, text = run(**self.keywords[step])
        seconds = time.perf_counter() - start
        self.job.outputs.check()
        self.report.append(
            {"step": step, "seconds": round(seconds, 3), "parameters": self.parameters[step], "counts": counts}
        )
        self.job.terminal.say(f"{step}: {text}; {seconds:.1f} s")

    @property
    def labels(self) -> Array:
        """The instances so far."""
        return next(self.arrays[key] for key in ("labels", "slices", "instances") if key in self.arrays)

    @property
    def volume(self) -> Array:
        """The class map so far, where there is one."""
        return self.arrays["volume" if "volume" in self.arrays else "classes"]

    def _keep(self, key: str, result: Array | str) -> None:
        if key in self.config.outputs:
            self.results[key] = result

    def _find_classes(self, step: str) -> Array | None:
        """Return the class map, unless there is none or the step is to go without it."""
        there = "volume" in self.arrays or "classes" in self.arrays
        return self.volume if there and self.config.steps[step].get("classes", True) else None

    def _stitch(self, **keywords: Any) -> tuple[dict[str, Any], str]:
        from lpa3d import stitch

        slices = self.arrays["slices"]
        labels = stitch(slices, classes=self._find_classes("stitch"), **keywords)
        counts = count_stitched(slices, labels, keywords.get("axis", 0), keywords.get("bad_slices", ()))
        self.arrays["slices"] = labels
        self._keep("stitched", labels)
        return counts, describe_stitched(counts)

    def _fuse(self, **keywords: Any) -> tuple[dict[str, Any], str]:
        from lpa3d import fuse

        sources: dict[str, Any] = {key: self.arrays.pop(key, None) for key in ROLES}
        fused = fuse(**sources, **keywords)
        del sources
        self.arrays |= {"volume": fused.volume, "labels": fused.seeds}
        for key in ("volume", "seeds", "provenance"):
            self._keep(key, getattr(fused, key))
        self._keep("conflicts", format_conflicts(fused.conflicts))
        self.job.terminal.say(describe_conflicts(fused.conflicts))
        counts = count_fused(fused)
        return counts, describe_fused(counts)

    def _propagate(self, **keywords: Any) -> tuple[dict[str, Any], str]:
        from lpa3d import propagate

        volume, seeds, cost = self.volume, self.labels, self.arrays.pop("cost", None)
        labels = propagate(volume, seeds, cost=cost, progress=self.job.stage, **keywords)
        if keywords["return_confidence"]:
            labels, sureness = labels
            self._keep("confidence", sureness)
        before, (objects, voxels) = count_labels(seeds), count_labels(labels)
        self.arrays["labels"] = labels
        counts = {
            "seeds": before[0],
            "seed_voxels": before[1],
            "objects": objects,
            "labelled_voxels": voxels,
            "unlabelled_foreground_voxels": int(np.count_nonzero(volume)) - voxels,
        }
        text = f"{format_count(before[1], 'voxel')} of {format_count(before[0], 'object')} became {summarize(labels)}"
        return counts, text

    def _merge(self, **keywords: Any) -> tuple[dict[str, Any], str]:
        from lpa3d import merge

        fragments = self.labels
        labels = merge(fragments, classes=self._find_classes("merge"), **keywords)
        before, after = count_labels(fragments)[0], count_labels(labels)[0]
        self.arrays["labels"] = labels
        text = f"{format_count(before, 'fragment')} became {format_count(after, 'object')}"
        return {"fragments": before, "objects": after}, text

    def _evaluate(self, **keywords: Any) -> tuple[dict[str, Any], str]:
        from lpa3d import evaluate

        args = _evaluate_options(self.config)
        reference, classes = self.arrays.pop("reference"), self.arrays.pop("reference_classes", None)
        keywords.setdefault("ignore", self.arrays.pop("ignore", None))
        if classes is not None:
            keywords["classes"] = classes, self.volume
        result = evaluate(reference, self.labels, **keywords)
        self.job.results.append(to_text(result, args, self.geometry))
        self._keep("errors", errors_to_csv(result))
        self._keep("pairs", pairs_to_csv(result))
        section = _name_section(self.config, "evaluate")
        self.job.misses += [f"{section} {text}" for text in find_misses(result, args, self.job.word)]
        return result.to_dict(), f"pq {result['pq']:.4f}, {format_count(len(result.pairs), 'matched pair')}"

    def write(self, targets: Mapping[str, Target | Beside], files: Mapping[str, Volume]) -> None:
        """Write all outputs; they appear when the job finishes."""
        self._keep("labels", self.labels)
        for key, target in targets.items():
            if isinstance(target, Target):
                self.job.write(target, self.results[key], self.geometry)
            elif key != "report":
                self.job.write_text(target, self.results[key])
        report = targets.get("report")
        if isinstance(report, Beside):
            self.job.write_text(report, self._make_report(files))

    def _make_report(self, files: Mapping[str, Volume]) -> str:
        """Return all that was done as JSON."""
        facts = {
            "config": self.config.name,
            "versions": {"lpa3d": __version__, "python": platform.python_version()}
            | {name: metadata.version(name) for name in ("numpy", "numba", "scipy")},
            "inputs": {
                key: {"file": file.name, "shape": list(file.shape), "dtype": str(file.dtype)}
                for key, file in files.items()
            },
            "spacing": list(self.spacing),
            "unit": self.geometry.unit or None,
            "steps": self.report,
            "outputs": self.config.outputs,
        }
        return json.dumps(facts, allow_nan=False, indent=2) + "\n"

    def describe(self, files: Mapping[str, Volume]) -> str:
        """Return what would be done, for a person."""
        lines = ["inputs"]
        for key, file in files.items():
            lines.append(f"  {key:<18}{file.name}, {' '.join(map(str, file.shape))}, {file.dtype}")
        unit = f" {self.geometry.unit}" if self.geometry.unit else ""
        lines.append(f"  {'spacing':<18}{format_sizes(self.spacing)}{unit}")
        lines.append("steps")
        for number, (step, parameters) in enumerate(self.parameters.items(), 1):
            words = [f"{key}={value!r}" for key, value in parameters.items() if key != "spacing"]
            lines.append(textwrap.fill(f"  {number} {step:<16}{' '.join(words)}", 100, subsequent_indent=" " * 20))
        lines += ["outputs", *(f"  {key:<18}{name}" for key, name in self.config.outputs.items())]
        return "\n".join(lines) + "\n"
