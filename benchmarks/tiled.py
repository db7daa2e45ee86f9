"""Run the tiled verbs beside peers, and beside themselves in memory, and print the ratios as Markdown tables.

    python -m benchmarks.tiled                                  all floors of tiled runs
    python -m benchmarks.tiled --size 256 --only '^label'       a part of it, on smaller volumes
    python -m benchmarks.tiled --only '^scaling' --slices 1024  what a stack of large images costs

1. *Stores* are zarr arrays that are made once, and kept, in the folder that `--folder` names (`STORES`).
2. Each *measurement* is a fresh process of this script (`measure`): it calls the tool on a crop, then once on its
   stores, and says how long that took and how far its memory grew. What is compared takes turns (`take_turns`).
   Meanwhile this process looks at the memory of all processes and at the scratch (`run_worker`).
3. *Tables* show medians, ratios, and the floors that the project has set itself.

Inputs, outputs, chunks, codec and dtype are the same for all tools.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import hashlib
import importlib
import importlib.metadata
import itertools
import json
import math
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from .compare import (
    EVERY,
    ROOT,
    VOLUMES,
    FailedError,
    NotThereError,
    corrupt,
    count_cores,
    describe_machine,
    find_data,
    forget_peak,
    format_ratio,
    format_seconds,
    format_table,
    is_installed,
    judge,
    keep_slices,
    list_differences,
    print_notes,
    read_connectomics,
    read_peak,
    read_urocell,
    renumber,
    say,
)

CHUNK = 128
"""Side of the chunks of all inputs and outputs."""

CROP, WARM = 128, 64
"""Side of the crop on which a tool first runs, and of its chunks and tiles: kernels are loaded before time is taken."""

SMALL = 256
"""Side of the volume on which the first process works: its times are not kept, as it compiles kernels."""

ROUNDS = 3
"""Times that a tool takes its turn, each in a process of its own."""

TILES = 10**6
"""Tiles of the stub that shows what the driver itself costs."""

IMAGE = 2048
"""Side of the images in a stack."""

TIMEOUT = 3600

BACKENDS = (
    ("dask, threads", "label tilewise", "tilewise_ccl", "max_threads"),
    ("dask, processes", "label tilewise", "tilewise_ccl", "max_processes"),
    ("dyna-zarr, threads", "label dyna", "dyna_zarr", "max_threads"),
)
"""How tilewise-ccl may work: name, call, module, and what scans its tiles."""

LOOK = 0.1
"""Seconds between two looks at the memory of all processes."""

TOOLS = ("zarr", "dask", "distributed", "tilewise_ccl", "dyna_zarr")
"""What is named with its version besides the tools of `compare`."""

LARGEST_STACK = 100_000 * IMAGE**2
"""Voxels of the largest organelle benchmark."""

BUDGETS = {"label": "760MB", "propagate": "2GB", "evaluate": "600MB"}
"""The budget of each verb is what its floor allows; for `label` the process itself comes on top of that."""

GROWTH = 512
"""MB by which `label` may grow."""

Array = np.ndarray[Any, Any]
Shape = tuple[int, int, int]


# ---------------------------------------------------------------------------------------------------------- the stores


def make_eroded(data: Path | None, side: int) -> Array:
    """Return the connectomics segmentation without the voxels at which labels touch, as a mask."""
    labels = read_connectomics(data, side)
    inside = labels > 0
    for axis in range(3):
        # Copies lie side by side, so the volume goes on at its other end.
        differs = labels != np.roll(labels, 1, axis)
        inside[differs] = False
        inside[np.roll(differs, -1, axis)] = False
    return inside.view(np.uint8)


def make_mask(data: Path | None, side: int) -> Array:
    mask = read_urocell(data, "fv", "binary", VOLUMES[0]) > 0
    return mask[:side, :side, :side].astype(np.uint8)


def make_seeds(data: Path | None, side: int) -> Array:
    instances = read_urocell(data, "fv", "instance", VOLUMES[0])
    return keep_slices(instances[:side, :side, :side].astype(np.int32), EVERY)


def make_reference(data: Path | None, side: int) -> Array:
    return renumber(read_connectomics(data, side))


def make_prediction(data: Path | None, side: int) -> Array:
    return corrupt(make_reference(data, side))


def make_noise(box: Sequence[slice]) -> Array:
    """Return a part of the noise; each has a draw of its own."""
    shape = [part.stop - part.start for part in box]
    rng = np.random.default_rng([part.start for part in box])
    return (rng.random(shape, np.float32) < 0.3).astype(np.uint8)


STORES: dict[str, tuple[int, Callable[[Path | None, int], Array]]] = {
    "eroded": (512, make_eroded),
    "mask": (256, make_mask),
    "seeds": (256, make_seeds),
    "reference": (512, make_reference),
    "prediction": (512, make_prediction),
}
"""Volumes that are repeated along all axes: the side of one copy, and what makes it. Noise is not repeated."""

IDS = ("seeds", "reference", "prediction")
"""Stores of which each copy has ids of its own."""


def make_codec() -> Any:
    """Return the codec of all inputs and outputs, of every tool: the one that lpa3d chooses by itself."""
    import zarr

    return zarr.codecs.BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle")


def create_store(file: str, shape: Sequence[int], dtype: Any, chunk: int, **attributes: Any) -> Any:
    """Return a new zarr array as all inputs and outputs are."""
    import zarr

    return zarr.create_array(
        file,
        shape=tuple(shape),
        dtype=dtype,
        chunks=tuple(min(chunk, n) for n in shape),
        compressors=[make_codec()],
        fill_value=0,
        attributes=attributes,
    )


def open_store(file: str | Path) -> Any:
    import zarr

    return zarr.open_array(str(file), mode="r")


def list_strips(shape: Sequence[int], chunk: int) -> Iterator[tuple[slice, slice, slice]]:
    """Yield boxes of whole chunks, as long as the volume."""
    for z, y in itertools.product(*(range(0, n, chunk) for n in shape[:2])):
        yield slice(z, min(z + chunk, shape[0])), slice(y, min(y + chunk, shape[1])), slice(0, shape[2])


def repeat_box(base: Any, box: Sequence[slice], shape: Sequence[int], step: int) -> Array:
    """Return a strip of a volume that repeats `base`; `step` times the copy's number is added to its ids."""
    side = base.shape[0]
    z, y = (slice(part.start % side, part.start % side + part.stop - part.start) for part in box[:2])
    row = base[z, y, :]
    rows, columns = (-(-shape[axis] // side) for axis in (1, 2))
    first = (box[0].start // side * rows + box[1].start // side) * columns
    result = np.tile(row, (1, 1, columns))
    if step:
        for number in range(columns):
            part = result[:, :, number * side : (number + 1) * side]
            part[part > 0] += result.dtype.type((first + number) * step)
    return result[:, :, : shape[2]]


def make_store(task: Mapping[str, Any]) -> dict[str, Any]:
    """Make a store: a copy, or a volume of copies of the one in the store `base`."""
    name, shape = task["name"], task["shape"]
    partial = f"{task['file']}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    if name == "noise":
        array = create_store(partial, shape, np.uint8, CHUNK)
        for box in list_strips(shape, CHUNK):
            array[box] = make_noise(box)
    elif task["base"] is None:
        try:
            made = STORES[name][1](None if task["data"] is None else Path(task["data"]), shape[0])
        except NotThereError as error:
            return {"missing": str(error)}
        step = int(made.max(initial=0)) if name in IDS else 0
        create_store(partial, made.shape, made.dtype, CHUNK, step=step)[...] = made
    else:
        base = open_store(task["base"])
        array = create_store(partial, shape, base.dtype, CHUNK)
        for box in list_strips(shape, CHUNK):
            array[box] = repeat_box(base, box, shape, base.attrs["step"])
    os.rename(partial, task["file"])
    return {}


# ----------------------------------------------------------------------------------------------------------- the calls
# Each function gets the paths of its stores, that of its output and a folder for scratch, and returns what it found if
# that is no volume, and the seconds of its parts if it has any.

Found = tuple[dict[str, float], dict[str, float]]


def call_tiled(verb: str, stores: Mapping[str, str], out: str, scratch: str, **options: Any) -> Found:
    """Let lpa3d work on stores."""
    import lpa3d

    if verb == "evaluate":
        return dict(lpa3d.evaluate(**stores, scratch=scratch, **options)), {}
    # A plain array, as other tools write.
    storage = {"layout": "array", "chunks": options.pop("chunk"), "compressors": [make_codec()]}
    getattr(lpa3d, verb)(**stores, out=out, scratch=scratch, storage=storage, **options)
    return {}, {}


def call_core(
    verb: str, stores: Mapping[str, str], out: str, scratch: str, chunk: int, again: bool = True, **options: Any
) -> Found:
    """Read the stores, let lpa3d work in memory, write the result; then let it work once more."""
    import lpa3d

    started = time.perf_counter()
    arrays = {name: open_store(file)[...] for name, file in stores.items()}
    read = time.perf_counter()
    result = getattr(lpa3d, verb)(**arrays, **options)
    called = time.perf_counter()
    if verb != "evaluate":
        create_store(out, result.shape, result.dtype, chunk)[...] = result
    written = time.perf_counter()
    found = dict(result) if verb == "evaluate" else {}
    parts = {"read": read - started, "first call": called - read, "write": written - called}
    if again:
        # The first one takes fresh pages from the system, as in `compare`.
        del result
        called = time.perf_counter()
        getattr(lpa3d, verb)(**arrays, **options)
        parts["call"] = time.perf_counter() - called
    return found, parts


def label_tilewise(
    stores: Mapping[str, str], out: str, scratch: str, tile: int, workers: int, pool: str, chunk: int
) -> Found:
    """Label with tilewise-ccl, its tiles with cc3d; connectivity 3 is all 26 neighbours."""
    import dask
    import dask.array
    from tilewise_ccl import label_array

    volume = open_store(stores["volume"])
    with dask.config.set(scheduler="threads", num_workers=workers):
        labels = label_array(volume, tile_shape=(tile,) * 3, connectivity=3, labeler="cc3d", **{pool: workers})
        array = create_store(out, volume.shape, np.uint32, chunk)
        # Tiles hold whole chunks, so writers need no lock.
        dask.array.store(labels.map_blocks(np.ndarray.view, np.uint32, dtype=np.uint32), array, lock=False)
    return {}, {}


def label_dyna(
    stores: Mapping[str, str], out: str, scratch: str, tile: int, workers: int, pool: str, chunk: int
) -> Found:
    """Label with tilewise-ccl without dask; dyna-zarr's codec is the same."""
    from dyna_zarr import io
    from tilewise_ccl import label_array

    volume = io.read(stores["volume"]) > 0
    with contextlib.redirect_stdout(None):
        labels = label_array(volume, tile_shape=(tile,) * 3, connectivity=3, labeler="cc3d", **{pool: workers})
        chunks = tuple(min(chunk, n) for n in volume.shape)
        io.write(labels, out, chunks=chunks, max_threads=workers, overwrite=True)
    return {}, {}


def label_cc3d(stores: Mapping[str, str], out: str, scratch: str, chunk: int) -> Found:
    """Read the volume, label it with cc3d in memory, write the labels."""
    import cc3d

    started = time.perf_counter()
    volume = open_store(stores["volume"])[...]
    read = time.perf_counter()
    labels = cc3d.connected_components(volume, connectivity=26, binary_image=True, out_dtype=np.uint32)
    called = time.perf_counter()
    create_store(out, labels.shape, np.uint32, chunk)[...] = labels
    parts = {"read": read - started, "first call": called - read, "write": time.perf_counter() - called}
    return {}, parts


CALLS: dict[str, Callable[..., Found]] = {
    **{f"{verb} tiled": functools.partial(call_tiled, verb) for verb in BUDGETS},
    **{f"{verb} in core": functools.partial(call_core, verb) for verb in BUDGETS},
    "label tilewise": label_tilewise,
    "label dyna": label_dyna,
    "label cc3d": label_cc3d,
}


# ------------------------------------------------------------------------------------------------- inside a process


@contextlib.contextmanager
def start_cluster(workers: int) -> Iterator[None]:
    """Have a client of as many processes, of one thread each, be the active one."""
    import dask
    from distributed import Client, LocalCluster

    with (
        dask.config.set({"distributed.worker.memory.terminate": False, "distributed.worker.memory.pause": False}),
        LocalCluster(n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster),
    ):
        yield


def crop_stores(stores: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Copy a crop at the centre of each store, in smaller chunks; it starts on an annotated slice."""
    crops = {}
    for name, file in stores.items():
        array = open_store(file)
        starts = [max(0, n - CROP) // 2 // EVERY * EVERY for n in array.shape]
        part = array[tuple(slice(start, start + CROP) for start in starts)]
        crops[name] = str(folder / f"{name}.zarr")
        create_store(crops[name], part.shape, part.dtype, WARM)[...] = part
    return crops


def clock_cpu() -> float:
    """Return the seconds of all threads, and of the child processes that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def size_files(folder: str | Path) -> int:
    """Return the bytes of all files in a folder; files may come and go meanwhile."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(path, name)).st_size
    return total


def summarise(file: str) -> tuple[dict[str, float], str]:
    """Return the largest label and the number of labelled voxels, and a digest of all."""
    array, largest, labelled, digest = open_store(file), 0, 0, hashlib.sha256()
    for box in list_strips(array.shape, CHUNK):
        part = np.ascontiguousarray(array[box])
        largest = max(largest, int(part.max(initial=0)))
        labelled += int(np.count_nonzero(part))
        digest.update(part)
    return {"largest label": largest, "labelled voxels": labelled}, digest.hexdigest()


def guess_cost(task: Mapping[str, Any]) -> dict[str, float]:
    """Return what lpa3d says beforehand, if it is a tiled call."""
    verb, _, kind = task["call"].partition(" ")
    if kind != "tiled":
        return {}
    import lpa3d

    options = {key: value for key, value in task["options"].items() if key in ("memory", "connectivity")}
    said = lpa3d.estimate(verb, **task["stores"], **options)
    return {"core seconds": said.core_seconds, "memory": said.memory / 1e6, "scratch": said.scratch}


def measure(task: Mapping[str, Any]) -> dict[str, Any]:
    """Warm a tool up on a crop, then call it once; watch its time and its memory."""
    with start_cluster(task["processes"]) if task["processes"] else contextlib.nullcontext():
        return clock_tool(task)


def clock_tool(task: Mapping[str, Any]) -> dict[str, Any]:
    call, folder, options = CALLS[task["call"]], Path(task["folder"]), dict(task["options"])
    warm = folder / "warm"
    smaller = {"chunk": WARM, "tile": WARM, "again": False}
    fewer = {key: smaller.get(key, value) for key, value in options.items()}
    warm.mkdir(parents=True)
    call(crop_stores(task["stores"], warm), str(warm / "out.zarr"), str(warm / "scratch"), **fewer)
    shutil.rmtree(warm)
    for file in task["stores"].values():
        # From here on the system has the inputs in memory, for every tool.
        for path in Path(file).rglob("*"):
            if path.is_file():
                path.read_bytes()
    guess = guess_cost(task)
    gc.collect()
    before = forget_peak()
    out, cpu, started = str(folder / "out.zarr"), clock_cpu(), time.perf_counter()
    answer, parts = call(task["stores"], out, str(folder / "scratch"), **options)
    # Without the second call.
    seconds, cpu = time.perf_counter() - started - parts.get("call", 0.0), clock_cpu() - cpu
    peak = None if before is None else read_peak()
    done = {"seconds": seconds, "parts": parts, "cpu": cpu, "before": before, "peak": peak, "answer": answer}
    done["estimate"] = guess
    if Path(out).exists():
        done["output"] = size_files(out)
        done["answer"], done["digest"] = summarise(out)
    return done


def pass_by(context: None, item: int) -> None:
    """Do nothing for a tile."""


def drive(task: Mapping[str, Any]) -> dict[str, Any]:
    """Map a stub over many tiles."""
    from lpa3d.tiled.driver.run import Options, open_run
    from lpa3d.tiled.driver.stages import Stage
    from lpa3d.tiled.driver.stored import open_source

    # A worker in another process finds it by this name, whatever this module is called here.
    stub = importlib.import_module("benchmarks.tiled").pass_by
    side, folder = round(task["tiles"] ** (1 / 3)), Path(task["folder"])
    folder.mkdir(parents=True)
    volume = str(folder / "volume.zarr")
    create_store(volume, (side,) * 3, np.uint8, side)
    options = Options(tile=1, scratch=str(folder / "scratch"))
    with start_cluster(task["workers"]) if task["processes"] else contextlib.nullcontext():
        gc.collect()
        before, started, cpu = forget_peak(), time.perf_counter(), clock_cpu()
        source = open_source(volume, "volume")
        how: dict[str, Any] = {"stages": [Stage("stub")], "bytes_per_voxel": 1}
        with open_run("stub", {"volume": source}, {}, {}, options, **how) as run:
            tiles = len(run.grid)
            run.map("stub", stub, None)
        seconds, cpu = time.perf_counter() - started, clock_cpu() - cpu
        peak = None if before is None else read_peak()
    return {"seconds": seconds, "tiles": tiles, "cpu": cpu, "before": before, "peak": peak}


JOBS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "make": make_store,
    "measure": measure,
    "drive": drive,
}


# ------------------------------------------------------------------------------------------------- the processes


def watch(process: subprocess.Popen[str], folder: Path | None, seen: dict[str, int]) -> None:
    """Keep the largest memory of a process and its children, and the largest scratch, until it ends."""
    import psutil

    rest = 0.0
    with contextlib.suppress(psutil.NoSuchProcess):
        top = psutil.Process(process.pid)
        while process.poll() is None:
            total = 0
            for one in [top, *top.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    total += one.memory_info().rss
            seen["memory"] = max(seen.get("memory", 0), total)
            now = time.perf_counter()
            if folder is not None and now > rest:
                # The unfinished outputs lie beside the scratch.
                size = sum(size_files(path) for path in folder.glob("*/*") if path.name != "result")
                seen["scratch"] = max(seen.get("scratch", 0), size)
                # A fiftieth of the time, so that the run is not held up.
                rest = now + max(0.5, 50 * (time.perf_counter() - now))
            time.sleep(LOOK)


def run_worker(job: str, task: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """Do one job in a fresh process of this script and look at it from outside."""
    words = [sys.executable, "-W", "ignore", "-m", "benchmarks.tiled", "--worker", job, json.dumps(task)]
    folder = Path(task["folder"]) / "scratch" if "folder" in task else None
    seen: dict[str, int] = {}
    with subprocess.Popen(
        words, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        watcher = threading.Thread(target=watch, args=(process, folder, seen))
        watcher.start()
        try:
            printed, told = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            raise FailedError(f"no result after {TIMEOUT} s") from None
        finally:
            watcher.join()
    if process.returncode:
        lines = told.strip().splitlines()
        raise FailedError(lines[-1] if lines else f"exit code {process.returncode}")
    result: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return {"seen": seen} | result


@dataclass
class Session:
    """What all measurements share."""

    data: Path | None
    folder: Path
    environment: dict[str, str]
    rounds: int
    threads: int
    work: Callable[[str, Mapping[str, Any], Mapping[str, str]], dict[str, Any]] = run_worker
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    costs: list[dict[str, Any]] = field(default_factory=list)
    compiled: set[str] = field(default_factory=set)

    def compile(self, entry: Entry) -> None:
        """Let a process work on a small volume first: all kernels of a call are in the cache then."""
        if entry.call in self.compiled or not entry.tool.startswith("lpa3d"):
            return
        self.compiled.add(entry.call)
        side = min(SMALL, max(entry.shape))
        stores = {role: self.store(name, (side,) * 3) for role, name in entry.stores.items()}
        self.do("measure", {"call": entry.call, "stores": stores, "options": entry.options, "processes": 0})

    def store(self, name: str, shape: Shape) -> str:
        """Return the folder of a store; it is made when it is first asked for."""
        file = self.folder / f"{name}-{'x'.join(map(str, shape))}.zarr"
        if not file.exists():
            base = None
            if name in STORES:
                side = min(STORES[name][0], max(shape))
                if shape != (side,) * 3:
                    base = self.store(name, (side,) * 3)
            say(f"making {file.name}")
            data = None if self.data is None else str(self.data)
            task = {"name": name, "shape": shape, "file": str(file), "data": data, "base": base}
            made = self.work("make", task, self.environment)
            if "missing" in made:
                raise NotThereError(made["missing"])
        return str(file)

    def do(self, job: str, task: Mapping[str, Any]) -> dict[str, Any]:
        """Do a job that has a folder of its own."""
        with tempfile.TemporaryDirectory(prefix="run-", dir=self.folder) as folder:
            return self.work(job, {**task, "folder": str(Path(folder) / "work")}, self.environment)

    def note(self, text: str) -> None:
        """Keep something that is told once, under the table."""
        if text not in self.notes:
            self.notes.append(text)


@dataclass
class Entry:
    """One call that is measured, and what its processes have said."""

    tool: str
    call: str
    stores: Mapping[str, str]
    shape: Shape
    options: Mapping[str, Any]
    module: str = "lpa3d"
    rounds: int = ROUNDS
    processes: int = 0
    samples: list[dict[str, Any]] = field(default_factory=list)

    @property
    def voxels(self) -> int:
        return math.prod(self.shape)

    def median(self, part: str | None = None) -> float:
        """Return the seconds of the call, or of a part of it."""
        return statistics.median(one["seconds"] if part is None else one["parts"][part] for one in self.samples)

    @property
    def growth(self) -> float | None:
        """Return by how many MB memory grew in the last turn; workers that were there before are not told apart."""
        last = self.samples[-1]
        return None if last["before"] is None or self.processes else (self.bytes_in_all - last["before"]) / 1e6

    @property
    def memory(self) -> float | None:
        """Return the MB of all processes together."""
        return None if self.samples[-1]["before"] is None else self.bytes_in_all / 1e6

    @property
    def bytes_in_all(self) -> int:
        """Return the peak: that of the process is exact, the one of all processes is looked at now and then."""
        last = self.samples[-1]
        seen: int = last.get("seen", {}).get("memory", 0)
        return max(int(last["peak"]), seen)


def take_turns(title: str, entries: Sequence[Entry], session: Session) -> list[Entry]:
    """Measure calls in turns; return those that gave a result."""
    for number, entry in itertools.product(range(session.rounds), entries):
        if number >= entry.rounds:
            continue
        if not is_installed(entry.module):
            session.note(f"{entry.tool}: not installed.")
            continue
        try:
            stores = {role: session.store(name, entry.shape) for role, name in entry.stores.items()}
            session.compile(entry)
            task = {"call": entry.call, "stores": stores, "options": entry.options, "processes": entry.processes}
            done = session.do("measure", task)
        except NotThereError as error:
            session.note(f"{title}: {error}.")
        except FailedError as error:
            session.failures.append(f"{title}, {entry.tool}: {error}")
            say(session.failures[-1])
        else:
            entry.samples.append(done)
            say(f"{title}: {entry.tool}: {format_seconds(done['seconds'])} s")
    measured = [entry for entry in entries if entry.samples]
    for entry in measured:
        if entry.call.endswith(" tiled") and not entry.processes:
            session.costs.append(describe_cost(entry))
    return measured


def note_differences(what: str, mine: Entry, theirs: Entry, session: Session) -> None:
    """Tell under the table where answers differ; within lpa3d they are the same to the last bit."""
    first, second = mine.samples[-1], theirs.samples[-1]
    for difference in list_differences(first["answer"], second["answer"], theirs.tool):
        session.note(f"{what}: {difference}.")
    if theirs.tool.startswith("lpa3d") and first.get("digest") != second.get("digest"):
        session.note(f"{what}: the volumes of {mine.tool} and {theirs.tool} differ.")


# ---------------------------------------------------------------------------------------------------------- the tables


def name_size(shape: Shape) -> str:
    return f"{shape[0]} cubed" if len(set(shape)) == 1 else f"{shape[0]} slices of {shape[1]} x {shape[2]}"


def format_memory(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def speed_table(rows: Iterable[tuple[str, Entry, Entry, float | None, float | None]]) -> str:
    """Compare seconds: what, ours, theirs, floor, aim."""
    columns = ("what", "ours s", "peer", "peer s", "ratio", "floor", "met?")
    lines = []
    for what, mine, theirs, floor, aim in rows:
        seconds = mine.median(), theirs.median()
        ratio = seconds[0] / seconds[1]
        times = [format_seconds(value) for value in seconds]
        lines.append((what, times[0], theirs.tool, times[1], format_ratio(ratio), *judge(ratio, floor, aim)))
    return format_table(columns, lines)


def memory_table(rows: Iterable[tuple[str, Entry, str, float | None]]) -> str:
    """Show memory: what, the call, and a floor for its growth or for all of it."""
    columns = ("what", "tool", "grows by MB", "in all MB", "floor", "met?")
    lines = []
    for what, entry, kind, floor in rows:
        value = entry.growth if kind == "growth" else entry.memory
        limit, met = judge(value, floor)
        shown = f"{limit} MB, {kind}" if limit else ""
        lines.append((what, entry.tool, format_memory(entry.growth), format_memory(entry.memory), shown, met))
    return format_table(columns, lines)


def describe_cost(entry: Entry) -> dict[str, Any]:
    """Return what a billion voxels cost."""
    last = entry.samples[-1]
    scale = 1e9 / entry.voxels
    return {
        "verb": entry.call.partition(" ")[0],
        "connectivity": entry.options.get("connectivity", 6),
        "input": ", ".join(entry.stores.values()),
        "shape": entry.shape,
        "voxels": entry.voxels,
        "seconds": entry.median() * scale,
        "core seconds": statistics.median(one["cpu"] for one in entry.samples) * scale,
        "memory": entry.memory,
        "scratch": last.get("seen", {}).get("scratch", 0) / entry.voxels,
        "output": last.get("output", 0) / entry.voxels,
        "estimate": last["estimate"],
    }


def cost_tables(costs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield what a billion voxels cost, and from the largest volume of each verb what far larger ones would."""
    said = "said before"
    columns = ("what", "s", "core s", said, "memory MB", said, "scratch bytes/voxel", said, "output bytes/voxel")
    lines = []
    for cost in costs:
        guess, voxels = cost["estimate"], cost["voxels"]
        numbers = (
            f"{cost['seconds']:.1f}",
            f"{cost['core seconds']:.1f}",
            f"{1e9 * guess['core seconds'] / voxels:.1f}",
        )
        numbers += (format_memory(cost["memory"]), format_memory(guess["memory"]))
        stored = (f"{cost['scratch']:.2f}", f"{guess['scratch'] / voxels:.2f}", f"{cost['output']:.3f}")
        what = f"{cost['verb']}, {cost['connectivity']}" if cost["verb"] == "label" else cost["verb"]
        lines.append((f"{what}, {cost['input']}, {name_size(tuple(cost['shape']))}", *numbers, *stored))
    yield format_table(columns, lines)
    yield "\nAs many voxels at the same rate, from the largest volume of each verb:\n"
    # Noise is for the budget: no volume is like it.
    usual = [cost for cost in costs if cost["input"] != "noise"]
    largest = {cost["verb"]: cost for cost in sorted(usual, key=lambda cost: cost["voxels"])}
    lines = []
    for voxels, verb in itertools.product((LARGEST_STACK, 10**12), sorted(largest)):
        cost = largest[verb]
        hours = cost["core seconds"] * voxels / 1e9 / 3600
        stored = (f"{cost[kind] * voxels / 1e9:,.1f}" for kind in ("scratch", "output"))
        lines.append((f"{voxels:.3g} voxels, {verb}", f"{hours:,.1f}", format_memory(cost["memory"]), *stored))
    yield format_table(("what", "core-hours", "memory MB", "scratch GB", "output GB"), lines)


# ---------------------------------------------------------------------------------------------------------- the rows


def tiled_entry(verb: str, stores: Mapping[str, str], shape: Shape, **options: Any) -> Entry:
    chunk = {} if verb == "evaluate" else {"chunk": CHUNK}
    return Entry("lpa3d", f"{verb} tiled", stores, shape, {"memory": BUDGETS[verb], **chunk, **options})


def run_label(session: Session, sizes: Sequence[int], wanted: Callable[[str], object]) -> list[Entry]:
    """Label the eroded segmentation, beside tilewise-ccl and cc3d in memory."""
    speeds: list[tuple[str, Entry, Entry, float | None, float | None]] = []
    memories: list[tuple[str, Entry, str, float | None]] = []
    entries: list[Entry] = []
    for size, floor in zip(sizes, (0.8, 0.6), strict=True):
        what = f"{size} cubed"
        if not wanted(f"label: {what}"):
            continue
        shape, stores = (size,) * 3, {"volume": "eroded"}
        ours = tiled_entry("label", stores, shape, connectivity=26)
        peers = [
            Entry(
                f"tilewise-ccl, {tile} tiles, {name}",
                call,
                stores,
                shape,
                {"tile": tile, "workers": session.threads, "pool": pool, "chunk": CHUNK},
                module=module,
                rounds=ROUNDS if pool == "max_threads" else 1,
            )
            for tile in (CHUNK, 2 * CHUNK)
            for name, call, module, pool in BACKENDS
        ]
        peers.append(Entry("cc3d in memory", "label cc3d", stores, shape, {"chunk": CHUNK}, module="cc3d", rounds=1))
        workers = {"tool": "lpa3d, distributed", "processes": session.threads, "module": "distributed", "rounds": 1}
        peers.append(replace(ours, **workers, samples=[]))
        if size == sizes[0]:
            options = {"connectivity": 26, "chunk": CHUNK, "again": False}
            peers.append(Entry("lpa3d in memory", "label in core", stores, shape, options, rounds=1))
        measured = take_turns(f"label: {what}", [*peers[:1], ours, *peers[1:]], session)
        entries += measured
        for entry in measured:
            memories.append((what, entry, "growth", GROWTH if entry is ours else None))
            if entry is not ours and ours.samples:
                asked = floor if entry.call in ("label tilewise", "label dyna") else None
                speeds.append((what, ours, entry, asked, None))
                note_differences(what, ours, entry, session)
    print_section("label", [speed_table(speeds)] if speeds else [], memories, session)
    return entries


CORE: dict[str, tuple[dict[str, str], float, float | None, float, tuple[str, ...]]] = {
    "propagate": ({"volume": "mask", "seeds": "seeds"}, 2.5, 1.5, 2000, ("read", "first call", "write")),
    "evaluate": ({"reference": "reference", "prediction": "prediction"}, 1.3, None, 600, ("read", "first call")),
}
"""Verbs that are compared with themselves in memory: stores, floor, aim, MB in all, parts of a call with files."""


def run_against_core(verb: str, session: Session, sizes: Sequence[int], wanted: Callable[[str], object]) -> list[Entry]:
    """Compare the time per voxel of a large volume, tiled, with that of a small one in memory."""
    small, large = sizes
    if not wanted(f"{verb}: {large} cubed"):
        return []
    stores, floor, aim, limit, parts = CORE[verb]
    core = Entry("lpa3d in memory", f"{verb} in core", stores, (small,) * 3, {"chunk": CHUNK})
    same = tiled_entry(verb, stores, (small,) * 3)
    ours = tiled_entry(verb, stores, (large,) * 3)
    measured = take_turns(verb, [core, same, ours], session)
    lines = []
    if core.samples:
        reading = "reading and writing" if "write" in parts else "reading"
        per_voxel = {
            "in memory": 1e9 * core.median("call") / core.voxels,
            f"in memory, with {reading}": 1e9 * sum(core.median(part) for part in parts) / core.voxels,
        }
        for (title, base), entry in itertools.product(per_voxel.items(), (ours, same)):
            if not entry.samples:
                continue
            mine = 1e9 * entry.median() / entry.voxels
            asked = (floor, aim) if entry is ours else (None, None)
            numbers = (f"{mine:.1f}", f"{title}, {small} cubed", f"{base:.1f}", format_ratio(mine / base))
            lines.append((name_size(entry.shape), format_seconds(entry.median()), *numbers,
                          *judge(mine / base, *asked)))  # fmt: skip
        if same.samples:
            note_differences(f"{small} cubed", same, core, session)
    memories = [(name_size(entry.shape), entry, "in all", limit if entry is ours else None) for entry in measured]
    columns = ("tiled", "s", "ns/voxel", "beside", "ns/voxel there", "ratio", "floor", "met?")
    print_section(verb, [format_table(columns, lines)] if lines else [], memories, session)
    return measured


def run_noise(session: Session, size: int, wanted: Callable[[str], object]) -> list[Entry]:
    """Label noise: its components are many, and the budget must hold."""
    if not wanted(f"noise: {size} cubed"):
        return []
    shape = (size,) * 3
    entries = [tiled_entry("label", {"volume": "noise"}, shape, connectivity=number) for number in (26, 6)]
    entries = [replace(entry, tool=f"lpa3d, {entry.options['connectivity']}", rounds=1) for entry in entries]
    measured = take_turns("noise", entries, session)
    budget = float(BUDGETS["label"].removesuffix("MB"))
    lines = [
        (
            f"{name_size(shape)}, {entry.options['connectivity']}",
            format_seconds(entry.median()),
            f"{entry.samples[-1]['answer']['largest label']:,}",
        )
        for entry in measured
    ]
    memories = [(name_size(shape), entry, "in all", budget) for entry in measured]
    columns = ("noise p = 0.3", "s", "components")
    print_section("noise", [format_table(columns, lines)] if lines else [], memories, session)
    return measured


def run_driver(session: Session, tiles: int, wanted: Callable[[str], object]) -> list[dict[str, Any]]:
    """Map a stub over many tiles, by threads and by processes."""
    rows: list[dict[str, Any]] = []
    lines = []
    for name, floor in (("threads", 0.2), ("distributed", 1.0)):
        if not wanted(f"driver: {name}"):
            continue
        if name == "distributed" and not is_installed("distributed"):
            session.note("distributed: not installed.")
            continue
        say(f"driver: {name}")
        task = {"tiles": tiles, "processes": name == "distributed", "workers": session.threads}
        try:
            done = session.do("drive", task)
        except FailedError as error:
            session.failures.append(f"driver: {name}: {error}")
            continue
        rows.append({"scheduler": name} | done)
        each = 1e3 * done["seconds"] / done["tiles"]
        peak = None if done["peak"] is None else done["peak"] / 1e6
        everywhere = done.get("seen", {}).get("memory")
        memory = (format_memory(peak), *judge(peak, 400.0))
        in_all = format_memory(None if everywhere is None else everywhere / 1e6)
        lines.append((f"{name}, {done['tiles']:,} tiles", f"{done['seconds']:.1f}", f"{each:.3f}",
                      *judge(each, floor), *memory, in_all))  # fmt: skip
    columns = ("a stub", "s", "ms/tile", "floor", "met?", "driver MB", "floor", "met?", "all processes MB")
    print_section("driver", [format_table(columns, lines)] if lines else [], [], session)
    return rows


def run_scaling(session: Session, slices: int, side: int, wanted: Callable[[str], object]) -> list[Entry]:
    """Measure the verbs on a stack of large images."""
    measured: list[Entry] = []
    if slices:
        shape = (slices, side, side)
        entries = {
            "label": tiled_entry("label", {"volume": "eroded"}, shape, connectivity=26),
            **{verb: tiled_entry(verb, CORE[verb][0], shape) for verb in CORE},
        }
        for verb, entry in entries.items():
            if wanted(f"scaling: {verb}, {name_size(shape)}"):
                entry.rounds = 1
                measured += take_turns(f"scaling: {verb}", [entry], session)
    memories = [(f"{e.call}, {name_size(e.shape)}", e, "in all", None) for e in measured]
    tables = list(cost_tables(session.costs)) if session.costs else []
    print_section("scaling: a billion voxels cost", tables, memories, session)
    return measured


def print_section(
    title: str,
    tables: Sequence[str],
    memories: Sequence[tuple[str, Entry, str, float | None]],
    session: Session,
) -> None:
    if tables or memories or session.notes:
        print(f"\n## {title}\n")
    if tables:
        print(*tables, sep="\n")
    if memories:
        print("\nMemory:\n", memory_table(memories), sep="\n")
    print_notes(session.notes)
    session.notes.clear()
    sys.stdout.flush()


# ----------------------------------------------------------------------------------------------------------- the script


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tiled", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", metavar="REGEX", help="rows whose 'section: what' matches")
    parser.add_argument("--size", type=int, default=1024, metavar="N", help="side of the large volumes (default 1024)")
    parser.add_argument(
        "--rounds", type=int, default=ROUNDS, metavar="N", help=f"turns of each tool (default {ROUNDS})"
    )
    parser.add_argument("--tiles", type=int, default=TILES, metavar="N", help=f"tiles of the stub (default {TILES:,})")
    parser.add_argument("--slices", type=int, default=0, metavar="N", help="also a stack of so many large images")
    parser.add_argument("--image", type=int, default=IMAGE, metavar="N", help=f"side of its images (default {IMAGE})")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="folder that holds urocell/ and connectomics.zarr")
    parser.add_argument("--folder", type=Path, metavar="FOLDER", help="where the stores are made and kept")
    parser.add_argument("--threads", type=int, metavar="N", help="threads and processes (default: all cores)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample to a file")
    parser.add_argument("--make", action="store_true", help="make the stores and end")
    parser.add_argument("--list", action="store_true", help="list the rows and end")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    if args.size < 32 or args.size % 2 or min(args.rounds, args.tiles, args.threads or 1, args.image) < 1:
        parser.error("--size is even and at least 32, --rounds, --tiles, --image and --threads are at least 1")
    if args.data is not None and not args.data.is_dir():
        parser.error(f"--data {args.data} is no folder")
    return args


def list_rows(sizes: Sequence[int], stack: Shape) -> list[str]:
    rows = [f"label: {size} cubed" for size in sizes]
    rows += [f"{section}: {sizes[1]} cubed" for section in (*CORE, "noise")]
    rows += ["driver: threads", "driver: distributed"]
    return rows + [f"scaling: {verb}, {name_size(stack)}" for verb in BUDGETS if stack[0]]


def main(words: Sequence[str] | None = None, work: Callable[..., dict[str, Any]] = run_worker) -> int:
    """Run the script; `work` does a job, by default in a process of its own."""
    args = parse(words)
    if args.worker:
        warnings.simplefilter("ignore")
        print(json.dumps(JOBS[args.worker[0]](json.loads(args.worker[1]))))
        return 0
    wanted = re.compile(args.only).search
    sizes, stack = (args.size // 2, args.size), (args.slices, args.image, args.image)
    if args.list:
        print(*filter(wanted, list_rows(sizes, stack)), sep="\n")
        return 0
    started = time.perf_counter()
    threads = args.threads or count_cores()
    folder = args.folder or Path(tempfile.gettempdir()) / "lpa3d-tiled"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="lpa3d-kernels-") as kernels:
        environment = {
            **os.environ,
            "LPA3D_NUM_THREADS": str(threads),
            "OMP_NUM_THREADS": "1",
            "NUMBA_CACHE_DIR": kernels,
            "LPA3D_KERNEL_CACHE": "1",
        }
        session = Session(args.data or find_data(), folder.resolve(), environment, args.rounds, threads, work)
        if args.make:
            return make_all(session, sizes, stack)
        facts = describe_machine(threads)
        for module in TOOLS:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                facts[module] = importlib.metadata.version(module)
        print("# lpa3d on stored volumes\n\n" + "; ".join(f"{k} {v}" for k, v in facts.items()), flush=True)
        report: dict[str, Any] = {"machine": facts, "size": args.size}
        entries = {
            "label": run_label(session, sizes, wanted),
            **{verb: run_against_core(verb, session, sizes, wanted) for verb in CORE},
            "noise": run_noise(session, args.size, wanted),
        }
        report["driver"] = run_driver(session, args.tiles, wanted)
        entries["scaling"] = run_scaling(session, args.slices, args.image, wanted)
    keys = ("tool", "call", "stores", "shape", "options", "samples")
    report |= {name: [{key: getattr(e, key) for key in keys} for e in found] for name, found in entries.items()}
    report |= {"costs": session.costs, "failures": session.failures}
    report["minutes"] = (time.perf_counter() - started) / 60
    print(f"\n{report['minutes']:.1f} minutes.")
    if session.failures:
        print("\n## failures\n", *(f"- {text}" for text in session.failures), sep="\n")
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if session.failures else 0


def make_all(session: Session, sizes: Sequence[int], stack: Shape) -> int:
    """Make every store that the rows need."""
    for name in (*STORES, "noise"):
        shapes: list[Shape] = [(size, size, size) for size in (sizes[1:] if name == "noise" else sizes)]
        if stack[0] and name != "noise":
            shapes.append(stack)
        for shape in shapes:
            try:
                print(session.store(name, shape), flush=True)
            except NotThereError as error:
                print(f"{name}: {error}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
