"""Inputs that nobody would write, for `benchmarks/fuzz.py`."""
