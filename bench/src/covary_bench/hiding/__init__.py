"""Attackers who know the detector: victims trained further until detectors see nothing."""
