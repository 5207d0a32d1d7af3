"""Baselines: one protocol, what all modalities share here, and a table for images and one for texts."""
