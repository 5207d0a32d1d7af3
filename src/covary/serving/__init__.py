"""Detectors at work: beside a model, over HTTP, over piles."""
