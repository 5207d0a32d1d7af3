"""The benchmark's raw material: networks, data, attacks, corruptions and the cases made of them.

- `public`: networks trained by other people; `victims`: small networks trained here with poisoned data.
- `datasets`: one reader a data set.
- `attacks`: triggers that poison training data, and adversarial examples; `corruptions`: hard benign inputs.
- `cases`: everything above joined into files that `covary scan` takes.
"""
