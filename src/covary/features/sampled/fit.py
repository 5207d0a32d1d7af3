"""Fitting along draws: which trusted inputs may move the weights, which may choose settings, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from covary.data.source import Source
from covary.errors import CovaryError
from covary.features.guards import check_shape, shape_of_one
from covary.features.sampled.extractor import LOOKED_AT, SampledExtractor
from covary.features.sampled.rows import sampling_data
from covary.features.sampled.summary import diagnosed
from covary.features.sampled.traces import predictions
from covary.scoring.calibration.splits import LEAST_SAMPLING, not_calibrating, sampling_split
from covary.scoring.rows import Rows


def take_draws(
    extractor: SampledExtractor,
    trusted: Source,
    sampling: Source | None,
    calibration: Source | None,
    roles: Mapping[str, Sequence[str]] | None = None,
) -> tuple[Source, list[str]]:
    """Takes the extractor's draws; what is left of the trusted inputs, and the ids of those that moved the weights.

    Chains descend on the `sampling` set where there is one, else on half of the trusted inputs, which then have no
    other role. Sigma, and when to stop, are chosen on inputs that will not calibrate. `roles` are kept where given.

    Raises:
        CovaryError: sampling inputs that are too few, unlabelled, given in vain, or also among the others.
    """
    s = extractor.settings
    if not extractor.needs_sampling:
        if sampling is not None:
            found = f"a sampling set for the estimator {s.estimator}, whose draws need none"
            raise CovaryError(found, "no sampling=", "or choose estimator=paper or estimator=sgld")
        data, ids = None, []
    else:
        if sampling is None:
            own, rest = sampling_split(trusted.ids, trusted.y, s.seed)
            if roles is not None:
                moving = np.isin(trusted.ids, roles["sampling"])
                own, rest = np.flatnonzero(moving), np.flatnonzero(~moving)
            sampling, trusted = trusted.take(own), trusted.take(rest)
        else:
            if len(sampling) < LEAST_SAMPLING:
                found = f"the sampling set has {len(sampling)} inputs"
                raise CovaryError(found, f"at least {LEAST_SAMPLING} of known class")
            one, other_one = (next(source.take([0]).batches(1)).x for source in (sampling, trusted))
            check_shape(one, shape_of_one(other_one), sampling.name)
            for other, what in ((trusted, "trusted"), (calibration, "calibration")):
                _check_overlap(sampling, other, what)
        data, ids = sampling_data(extractor.network, sampling.batches(s.batch_size)), sampling.ids
    found = [predictions(extractor.network, extractor.network.place(b.x)) for b in trusted.batches(s.batch_size)]
    classes = np.concatenate([part.cpu().numpy() for part in found]).astype(np.int64)
    if roles is not None and "calibration" in roles:
        free = np.flatnonzero(~np.isin(trusted.ids, [] if calibration is not None else roles["calibration"]))
    else:
        free = not_calibrating(trusted.ids, classes, s.seed, calibration is not None, s.conformal)
    chosen = trusted.take(free[:: max(1, len(free) // LOOKED_AT)][:LOOKED_AT])
    extractor.draw(list(chosen.batches(s.batch_size)), data)
    return trusted, list(ids)


def add_diagnostics(extractor: SampledExtractor, rows: Rows) -> None:
    """Adds to the extractor's `told` and `notes` what the trusted rows say of its draws."""
    assert extractor.bank is not None
    extractor.summary |= diagnosed(extractor.bank, extractor.settings, rows)
    extractor.notes += [f"Sampling: {sentence}" for sentence in extractor.summary["verdict"]["sentences"]]
    extractor.summary["notes"] = list(extractor.notes)


def _check_overlap(sampling: Source, other: Source | None, what: str) -> None:
    if other is None or not (sampling.reader.cheap and other.reader.cheap):
        return
    known = set(other.digests())
    same = [name for name, digest in zip(sampling.ids, sampling.digests(), strict=True) if digest in known]
    if same:
        raise CovaryError(
            f"{len(same)} sampling inputs, {same[0]!r} the first, are identical to {what} ones",
            "two sets without a common input, since chains are tied to what they descend on",
            "take them out of either set",
        )
