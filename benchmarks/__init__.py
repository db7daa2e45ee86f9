"""Benchmarks: `compare.py` and `tiled.py` run peers beside lpa3d, in memory and on stored volumes; the others are asv's.

The asv suite follows lpa3d itself: `benchmarks.py`, and `benchmarks_tiled.py` on stored volumes.
"""
