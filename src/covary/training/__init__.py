"""A held pile judged while a network trains, from Lightning's loop, transformers' Trainer, or one's own."""

from covary.training.held_pile import HeldPile

__all__ = ["HeldPile"]
