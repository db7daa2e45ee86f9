"""The command ``lpa3d runs``: which runs over tiles are unfinished, and how to go on with them or delete them."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arrays.text import format_bytes
from ..errors import InputError
from .inputs import format_count
from .job import Job

if TYPE_CHECKING:
    from ..tiled.driver.runs import Found

__all__ = ["add_runs_arguments", "run_runs"]


def add_runs_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", metavar="FOLDER", nargs="?", help="where to look, with all folders below (default: the current one)"
    )
    parser.add_argument(
        "--delete", metavar="RUN", help="delete this run, a folder OUT.lpa3d, and its unfinished outputs; nothing else"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run_runs(job: Job) -> None:
    from ..tiled.driver.runs import delete_run, describe_run, find_runs

    if job.args.delete is not None:
        if job.args.folder is not None:
            raise InputError("a folder is listed, or one run is deleted; leave out one of them")
        home = Path(os.path.abspath(job.args.delete))
        job.terminal.step(f"deleting {job.args.delete}", "deleted")
        delete_run(home)
        job.terminal.say(f"{job.args.delete} is deleted")
        return
    folder = Path(job.args.folder or ".")
    if not folder.is_dir():
        raise InputError(f"{folder} {'is no folder' if folder.exists() else 'does not exist'}")
    job.terminal.step(f"looking into {folder}", "looked")
    found = []
    for home in find_runs(folder):
        try:
            found.append(describe_run(home))
        except FileNotFoundError:
            continue  # it ended just now
    if job.args.json:
        job.results.append(json.dumps({"runs": [_facts(one) for one in found]}) + "\n")
        return
    job.results.extend(("\n" if number else "") + _text(one) for number, one in enumerate(found))
    if not found:
        job.terminal.say(f"no unfinished run in {folder} or below")


def _facts(found: Found) -> dict[str, Any]:
    """Return what is known of a run, for scripts."""
    about = found.about
    facts: dict[str, Any] = {
        "run": os.path.abspath(found.home),
        "started": _time(found.started),
        "last_worked": _time(found.worked),
        "bytes": found.size,
        "at_work": found.busy,
        "damage": found.damage or None,
    }
    if about:
        facts |= {
            "verb": about["verb"],
            "version": about["version"],
            "inputs": {name: one["name"] for name, one in about["inputs"].items()},
            "outputs": about["places"],
            "parameters": about["shown"],
            "tile": about["tile"],
            "stages_done": found.stages,
            "stage": found.stage or None,
            "tiles_done": found.tiles,
            "tiles": found.total,
            "all_done": found.whole,
        }
    return facts


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(seconds))


def _text(found: Found) -> str:
    """Return the same as lines for a person."""
    about = found.about
    lines = {}
    if about:
        inputs = ", ".join(one["name"] for one in about["inputs"].values())
        lines["output"] = ", ".join(about["places"].values()) or "none but what the call returns"
        lines["verb"] = f"{about['verb']} of {inputs}, lpa3d {about['version']}"
        lines["with"] = ", ".join(f"{name} {value}" for name, value in about["shown"].items()) or "nothing"
    at_work = "a process is at work on it" if found.busy else "nobody is at work on it"
    if found.busy is None:
        at_work = "whether a process is at work on it cannot be seen"
    lines["started"] = (
        f"{_time(found.started).replace('T', ' ')}, last worked on {_time(found.worked).replace('T', ' ')}; {at_work}"
    )
    if found.whole:
        lines["done"] = "everything but to put the outputs into their places"
    elif about:
        lines["done"] = format_count(len(found.stages), "stage")
        if found.stage:
            lines["done"] += f", and {found.tiles:,} of {format_count(found.total, 'tile')} of {found.stage!r}"
    if found.damage:
        lines["damage"] = found.damage
    lines["on disk"] = format_bytes(found.size)
    if not found.busy and not found.damage:
        lines["go on"] = "make the same call, or run the same command, again"
        lines["delete"] = f"lpa3d runs --delete {shlex.quote(str(found.home))}"
    return f"{found.home}\n" + "".join(f"  {key + ':':<9} {text}\n" for key, text in lines.items())
