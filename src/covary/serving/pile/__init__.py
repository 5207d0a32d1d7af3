"""Piles too large for one machine: cut into partitions, scored by one process or by a Ray cluster, resumable.

`partitions` says how a pile is cut, `sources` how partitions are read, `worker` and `passes` what is done to one,
`local` and `on_ray` who does it, `score` the whole, `cost` how long it takes.
"""

INPUTS_PER_PARTITION = 8192
