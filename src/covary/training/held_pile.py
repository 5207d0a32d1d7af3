"""Trusted inputs and a pile that are kept aside, and judged again as weights change; training never notices."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from covary.detector import Detector
from covary.errors import CovaryError

LOG = logging.getLogger(__name__)
# Inputs whose evidence is kept at each look.
CARDS = 3


class HeldPile:
    """A pile to be judged every so many epochs by the network as it then is.

    >>> pile = HeldPile((trusted_images, trusted_labels), new_images, every=2)      # doctest: +SKIP
    >>> trainer = lightning.Trainer(callbacks=[pile.lightning()])                   # doctest: +SKIP
    >>> pile.history[-1]["flag_rate"]                                               # doctest: +SKIP

    Each look fits a detector anew, so that it costs one forward and one backward pass for every trusted and every held
    input. A look that cannot be done is told in the log and in `history`, and training goes on.

    Args:
        trusted: whatever `Detector.fit` takes, such as (x, y).
        pile: whatever `Detector.score` takes.
        every: epochs between two looks, >= 1.
        network: what of the model in training is judged, a function of it; None judges the model itself.
        out: folder that gets a RUN with its report for each look; None writes nothing.
        together: judge the pile together.
        settings: of the `Detector`.

    Attributes:
        history: for each look its `epoch`, `n`, `n_flagged`, `flag_rate` and `cards`, the evidence on the inputs with
            the highest scores; or its `epoch` and why it `failed`.
    """

    def __init__(
        self,
        trusted: Any,
        pile: Any,
        *,
        every: int = 1,
        network: Callable[[nn.Module], nn.Module] | None = None,
        out: str | Path | None = None,
        together: bool = False,
        **settings: Any,
    ) -> None:
        if every < 1:
            raise CovaryError(f"every is {every}", "1 epoch or more")
        self.trusted, self.pile, self.every, self.network = trusted, pile, every, network
        self.out, self.together, self.settings = None if out is None else Path(out), together, settings
        self.history: list[dict[str, Any]] = []

    def due(self, epoch: int) -> bool:
        """Whether an epoch, counted from 0, is one after which the pile is judged."""
        return (epoch + 1) % self.every == 0

    def judge(self, model: nn.Module, epoch: int) -> dict[str, Any]:
        """Judges the pile by the network as it is now; what `history` gets."""
        with undisturbed(model):
            try:
                record = self._judged(model, epoch)
            except CovaryError as problem:
                LOG.warning("covary could not judge the held pile after epoch %s: %s", epoch, problem)
                record = {"epoch": epoch, "failed": str(problem)}
        self.history.append(record)
        return record

    def _judged(self, model: nn.Module, epoch: int) -> dict[str, Any]:
        network = model if self.network is None else self.network(model)
        device = next((str(p.device) for p in network.parameters()), "cpu")
        detector = Detector(network, **{"device": device, **self.settings}).fit(self.trusted)
        source = detector.open(self.pile)
        verdicts = detector.score(source, together=self.together)
        worst = np.argsort(-verdicts.score, kind="stable")[:CARDS]
        if self.out is not None:
            detector.report(self.out / f"epoch-{epoch}", source, together=self.together)
        return {
            "epoch": epoch,
            "n": len(verdicts),
            "n_flagged": int(verdicts.flagged.sum()),
            "flag_rate": float(verdicts.flagged.mean()),
            "cards": [evidence.to_json() for evidence in detector.explain(source.take(worst))],
        }

    def lightning(self) -> Any:
        """A `Callback` of Lightning, which logs `covary/flag_rate` and `covary/n_flagged`."""
        from covary.training.callbacks import lightning_callback

        return lightning_callback(self)

    def transformers(self) -> Any:
        """A `TrainerCallback` of transformers, which writes the same into the Trainer's `log_history`."""
        from covary.training.callbacks import trainer_callback

        return trainer_callback(self)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Leaves modes, gradients and every random state as they were."""
    modes = {module: module.training for module in model.modules()}
    gradients = [(p, p.grad, p.requires_grad) for p in model.parameters()]
    numbers, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(), torch.enable_grad():
            yield
    finally:
        random.setstate(numbers)
        np.random.set_state(numpy_state)  # noqa: NPY002
        for module, training in modes.items():
            module.training = training
        for parameter, gradient, expected in gradients:
            parameter.grad = gradient
            parameter.requires_grad_(expected)
