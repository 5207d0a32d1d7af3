"""Records of BackdoorBench (Wu et al., arXiv 2206.12654): their networks and triggered images, read and written.

- `records`, `writing`: the format; `models`, `architectures`: the networks in it.
- `material`: a record as files that `covary scan` takes; the command does it with `--backdoorbench FOLDER`.
"""
