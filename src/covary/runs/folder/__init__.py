"""A RUN's folder: what is written, in which cells, and whether its sources are still the same."""
