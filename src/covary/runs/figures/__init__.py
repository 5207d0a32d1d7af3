"""Figures of verdicts: how good they were, and whether two rates differ."""
