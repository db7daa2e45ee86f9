"""Benchmarks: `compare.py` runs every peer beside lpa3d, `benchmarks.py` is the asv suite that follows lpa3d itself."""
