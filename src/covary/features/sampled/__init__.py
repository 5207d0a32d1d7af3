"""Rows from traces: the observable along draws of the weights."""
