"""A detector of latent evidence as a graph for other runtimes, and the judge of its numbers without torch."""
