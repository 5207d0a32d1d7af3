"""Questions about the published estimator."""
