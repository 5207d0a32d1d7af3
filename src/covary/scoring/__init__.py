"""Rows -> verdicts and evidence. NumPy only: no torch, no network, no files."""
