"""Strop's own CPU kernels: C that is compiled for this machine when a process starts, and what calls it."""
