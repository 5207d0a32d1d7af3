"""Inputs: from a path, a name or an array to batches."""
