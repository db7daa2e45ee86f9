"""What is free of the memory: of the machine, of control groups of both versions, of the address space; and what of it
a plan counts on."""

from __future__ import annotations

import re
import resource
from pathlib import Path
from typing import Any

import psutil
import pytest

from lpa3d.errors import InputError
from lpa3d.tiled.driver.budget import DECODERS, available_memory, choose_tile, count_decoded
from lpa3d.tiled.driver.stored import open_source

GB = 10**9


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 GB of the machine are free."""
    memory = psutil.virtual_memory()._replace(available=64 * GB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def mount(root: Path, groups: str, *mounts: str) -> None:
    """Say which groups the process is in and where they are mounted."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    lines = ["22 1 0:5 / / rw shared:1 - ext4 /dev/sda rw", *mounts]
    (root / "proc/self/mountinfo").write_text("\n".join(lines) + "\n")


def limit(folder: Path, limit: Any, used: int, cached: int = 0, *, high: Any = "max", version: int = 2) -> None:
    """Write what the kernel says of a group."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    for name, value in zip(names, (limit, used), strict=True):
        (folder / name).write_text(f"{value}\n")
    if version == 2:
        (folder / "memory.high").write_text(f"{high}\n")
    total = "" if version == 2 else "total_"
    (folder / "memory.stat").write_text(f"anon {used - cached}\n{total}inactive_file {cached}\n")


CGROUP2 = "30 22 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"


def test_without_groups_it_is_that_of_the_machine(tmp_path: Path) -> None:
    assert available_memory(tmp_path) == 64 * GB
    mount(tmp_path, "0::/job\n", CGROUP2)
    limit(tmp_path / "sys/fs/cgroup/job", "max", 3 * GB)
    assert available_memory(tmp_path) == 64 * GB


def test_a_batch_job_sees_its_own_limit_and_those_around_it(tmp_path: Path) -> None:
    mount(tmp_path, "0::/slurm/job_7/step_0\n", CGROUP2)
    top = tmp_path / "sys/fs/cgroup"
    limit(top / "slurm/job_7/step_0", "max", 2 * GB)
    limit(top / "slurm/job_7", 16 * GB, 4 * GB)
    limit(top / "slurm/job_8", 1 * GB, 1 * GB)
    assert available_memory(tmp_path) == 12 * GB
    # What was read of files, and is not needed any more, is given back.
    limit(top / "slurm/job_7", 16 * GB, 15 * GB, cached=14 * GB)
    assert available_memory(tmp_path) == 15 * GB
    limit(top / "slurm/job_7/step_0", "max", 2 * GB, high=3 * GB)
    assert available_memory(tmp_path) == 1 * GB
    limit(top / "slurm", 8 * GB, 9 * GB)
    assert available_memory(tmp_path) == 0


def test_a_container_whose_group_is_mounted_as_the_root(tmp_path: Path) -> None:
    mount(tmp_path, "0::/\n", CGROUP2)
    limit(tmp_path / "sys/fs/cgroup", 5 * GB, 1 * GB)
    assert available_memory(tmp_path) == 4 * GB


def test_groups_of_version_1(tmp_path: Path) -> None:
    mount(
        tmp_path,
        "9:name=systemd:/x\n4:cpu,cpuacct:/docker/abc\n3:memory:/docker/abc/job\n0::/\n",
        "31 22 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct",
        "32 22 0:29 /docker/abc /memory\\040of rw shared:9 - cgroup cgroup rw,memory",
    )
    limit(tmp_path / "memory of/job", 2**63 - 4096, 1 * GB, version=1)
    assert available_memory(tmp_path) == 64 * GB
    limit(tmp_path / "memory of", 10 * GB, 8 * GB, cached=5 * GB, version=1)
    assert available_memory(tmp_path) == 7 * GB


def test_the_address_space_may_be_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = psutil.Process().memory_info().vms
    monkeypatch.setattr(resource, "getrlimit", lambda _: (taken + 4 * GB, -1))
    assert 3 * GB < available_memory(tmp_path) < 5 * GB


def test_chunks_that_are_decoded_whole_are_in_the_budget() -> None:
    da = pytest.importorskip("dask.array")

    def plan(memory: str, *chunks: Any, **more: Any) -> Any:
        # What zarr decodes; dask decodes one chunk after the other.
        arrays = [da.zeros((256, 512, 512), chunks=sides, dtype="u4") for sides in chunks]
        sources = [open_source(array, "labels") for array in arrays]
        first = sources[0]
        how = {"memory": memory, "bytes_per_voxel": 10, "workers": 2, "inputs": sources} | more
        return choose_tile(first.shape, first.chunks, **how)

    whole, usual, flat = (256, 512, 512), (128, 128, 128), (1, 512, 512)
    with pytest.raises(
        InputError, match=r"for chunks of \(256, 512, 512\), which are decoded whole, of labels\)"
    ) as one:
        plan("400MB", whole)
    enough = re.search(r"e\.g\. memory='(.*)'", str(one.value))
    assert enough is not None
    assert plan(enough[1], whole).workers == 1
    # The plan counts what two workers decode, and what they decode from.
    assert plan("2GB", whole, tile=64).memory > 250e6 + 2 * 2 * 256 * 512 * 512 * 4
    # Of chunks that tiles hold whole ones of, only those count that threads keep.
    kept = plan("2GB", usual, tile=128).memory - plan("2GB", usual, tile=128, inputs=()).memory
    assert 0 < kept <= (DECODERS + 4) * 128**3 * 4
    # Another input of the run has the large chunks.
    with pytest.raises(InputError, match="decoded whole"):
        plan("400MB", usual, whole)
    assert plan("2GB", usual, flat).tile == plan("2GB", usual).tile


def test_shards_are_read_in_parts() -> None:
    zarr = pytest.importorskip("zarr")
    shards = zarr.create_array({}, shape=(256, 512, 512), chunks=(64, 64, 64), shards=(256, 512, 512), dtype="u4")
    chunks = zarr.create_array({}, shape=(256, 512, 512), chunks=(1, 512, 512), dtype="u4")
    inside, flat = open_source(shards, "labels"), open_source(chunks, "labels")
    assert count_decoded((64, 64, 64), 0, inside, 2) <= (DECODERS + 4) * 64**3 * 4
    # As many slices at once as zarr decodes, whatever the number of workers.
    most = max(2, DECODERS) * 512 * 512 * 4
    assert 0 < count_decoded((256, 8, 8), 0, flat, 2) <= 2 * most
    assert count_decoded((256, 512, 512), 0, flat, 2) <= (DECODERS + 4) * 512 * 512 * 4
