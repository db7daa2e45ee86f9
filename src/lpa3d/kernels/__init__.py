"""Numba kernels: plain loops over canonical arrays.

Kernels validate nothing and import NumPy and Numba only. They are named ``verb_noun(inputs, parameters, out)``.
"""
