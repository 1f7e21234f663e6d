"""Kernel sources (CUDA C++ and C) and the C libraries built from them; loaded by
mpidl.backend.kernels.
"""
