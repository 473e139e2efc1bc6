"""Controlled comparisons of all objectives on tiny base models, offline (docs/results.md).

``run.py`` is the command, ``pretrain.py`` makes a base model. Scripts put ``benchmarks/`` on the
path and import this package as ``lab``.
"""
