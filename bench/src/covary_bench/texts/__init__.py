"""Language models with planted mechanisms: cases, their victims, baselines and the table of results."""
