"""How couplings are estimated: by gradients at w*, or by traces along draws; all of it is the table below."""

from __future__ import annotations

from dataclasses import dataclass

from covary.errors import unknown_name


@dataclass(frozen=True)
class Estimator:
    """An estimator as data: which draws it takes, and what it is read by unless told otherwise.

    Attributes:
        preset: a name in `samplers.PRESETS`; None for gradients.
        observable, score, coupling: the defaults of those three settings.
        draws: kept draws a chain.
        burn_in: steps whose draws are dropped.
        thinning: every so-many-th step is kept.
        needs_sampling: whether its chains need labelled data of their own.
    """

    preset: str | None
    observable: str
    score: str
    coupling: str
    draws: int = 0
    burn_in: int = 0
    thinning: int = 1
    needs_sampling: bool = False


# `paper`: 2,000 steps of which 250 are dropped, as published (arXiv 2604.18970), and every tenth kept, since a step
# forgets 5 %; scored by the largest class mean of Lin's concordance of the nll ("Class CCC").
ESTIMATORS: dict[str, Estimator] = {
    "first-order": Estimator(None, "margin", "combined", "cosine"),
    "gaussian": Estimator("gaussian", "margin", "class-max", "cosine", draws=250),
    "paper": Estimator("paper", "nll", "class-max", "ccc", draws=175, burn_in=250, thinning=10, needs_sampling=True),
    "sgld": Estimator(
        "sgld", "margin", "class-max", "cosine", draws=175, burn_in=250, thinning=10, needs_sampling=True
    ),
}


def estimator_named(name: str) -> Estimator:
    """The estimator of that name; an unknown name lists the valid ones."""
    if name not in ESTIMATORS:
        raise unknown_name("estimator", name, ESTIMATORS)
    return ESTIMATORS[name]
