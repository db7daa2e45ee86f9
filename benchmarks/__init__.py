"""Benchmarks: lpa3d beside its peers, in memory (`compare.py`) and on stored volumes (`tiled.py`).

The asv suite follows lpa3d itself: `benchmarks.py`, and `benchmarks_tiled.py` on stored volumes.
"""
