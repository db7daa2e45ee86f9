"""A smoke test of an installed package, for `make package`: every part that is not Python is there, and verbs work."""

import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np

import lpa3d
from lpa3d import io, phantom


def main() -> None:
    folder = Path(lpa3d.__file__).parent
    assert Path(sys.prefix) in folder.parents, f"{folder} is not the installed package"
    assert version("lpa3d") == lpa3d.__version__
    for name in ("py.typed", "commands/pipeline.toml", "cuda/label.cu", "cuda/maps.cuh"):
        assert (folder / name).is_file(), name

    cell = phantom.cell((32, 64, 64))
    seeds = np.zeros_like(cell.instances)
    seeds[::8] = cell.instances[::8]
    labels = lpa3d.propagate(cell.classes, seeds, spacing=cell.spacing)
    assert lpa3d.evaluate(cell.instances, labels)["pq"] > 0.5

    with tempfile.TemporaryDirectory() as place:
        io.write(Path(place, "mask.npy"), cell.classes)
        command = [str(Path(sys.executable).with_name("lpa3d")), "label", "mask.npy", "labels.npy"]
        said = subprocess.run(command, cwd=place, capture_output=True, text=True, check=True).stderr
        assert "components" in said, said
        np.testing.assert_array_equal(io.read(Path(place, "labels.npy")), lpa3d.label(cell.classes))
    print(f"lpa3d {lpa3d.__version__}: installed, and it works")


if __name__ == "__main__":
    main()
