"""Sections of `benchmarks/speed.py`."""
