"""Training: a held pile judged while a network trains, and the training set itself cleaned afterwards."""

from covary.training.cleaned import Cleaned
from covary.training.held_pile import HeldPile
from covary.training.sanitisation import clean

__all__ = ["Cleaned", "HeldPile", "clean"]
