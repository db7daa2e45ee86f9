"""Settings for every test: no kernel cache, bounded hypothesis, and where the real data is."""

import os

# A stale cached kernel would be tested instead of the one in the file.
os.environ["LPA3D_KERNEL_CACHE"] = "0"

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "lpa3d",
    deadline=None,  # the first example compiles
    max_examples=int(os.environ.get("LPA3D_MAX_EXAMPLES", "40")),
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=bool(os.environ.get("CI")),
)
settings.load_profile("lpa3d")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder with the real volumes; skips the test, saying why, where there is none."""
    root = Path(__file__).resolve().parents[1]
    for folder in (os.environ.get("LPA3D_DATA"), root.parent / "shared" / "data", root / "shared" / "data"):
        if folder and (Path(folder) / "urocell").is_dir():
            return Path(folder)
    pytest.skip("no real data: set LPA3D_DATA to a folder that holds urocell/ and connectomics.zarr/")
