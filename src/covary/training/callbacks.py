"""Callbacks of others' training loops; their packages are asked for when a callback is made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from covary.errors import missing_extra

if TYPE_CHECKING:
    from covary.training.held_pile import HeldPile


def metrics(record: dict[str, Any]) -> dict[str, float]:
    """What a training loop logs of a look; nothing of one that failed."""
    return {f"covary/{name}": float(record[name]) for name in ("flag_rate", "n_flagged") if name in record}


def lightning_callback(pile: HeldPile) -> Any:
    """A callback of `lightning` or `pytorch_lightning`, whichever is in use.

    Raises:
        CovaryError: neither is installed.
    """
    import sys

    if "pytorch_lightning" in sys.modules or "lightning" not in sys.modules:
        try:
            from pytorch_lightning import Callback as base
        except ImportError:
            raise missing_extra("pytorch-lightning", "lightning") from None
    else:
        from lightning import Callback as base  # pyright: ignore[reportMissingImports]

    kind: Any = base

    class JudgeHeldPile(kind):
        """Judges the pile at the end of training epochs, on the first process alone."""

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            if pile.due(trainer.current_epoch) and trainer.is_global_zero:
                pl_module.log_dict(metrics(pile.judge(pl_module, trainer.current_epoch)), rank_zero_only=True)

    return JudgeHeldPile()


def trainer_callback(pile: HeldPile) -> Any:
    """A callback of transformers' `Trainer`.

    Raises:
        CovaryError: transformers is not installed.
    """
    try:
        from transformers import TrainerCallback
    except ImportError:
        raise missing_extra("transformers", "language") from None

    class JudgeHeldPile(TrainerCallback):
        """Judges the pile at the end of epochs, on the first process alone."""

        def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            epoch = max(round(state.epoch) - 1, 0)
            if model is not None and pile.due(epoch) and state.is_world_process_zero:
                record = {"epoch": state.epoch, "step": state.global_step}
                state.log_history.append({**metrics(pile.judge(model, epoch)), **record})

    return JudgeHeldPile()
