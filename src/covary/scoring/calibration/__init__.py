"""From scores to p-values: roles of the trusted samples, conformal ranks, and over whom the rate holds."""
