"""Verbs on volumes of any size: tile by tile, on threads or a cluster, resumable, with the answer of the whole volume.

Modules, from the bottom up: `grid` (geometry), `scratch` and `journal` (what a run keeps), `stages` (what of it is
still needed), `stored` (inputs and outputs), `schedulers` and `run` (the driver), then one module for each verb.
"""
