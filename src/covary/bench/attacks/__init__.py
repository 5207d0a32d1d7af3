"""Attacks, in three literal tables: triggers, poisoning recipes that train a backdoor, adversarial examples.

A trigger maps uint8 images (n, h, w, c) to triggered ones of the same shape and never changes its argument.
"""

from __future__ import annotations

from covary.bench.attacks import adversarial, blended, patch, sig, wanet
from covary.bench.attacks.poisoning import Attack, Trigger, poison
from covary.errors import unknown_name

TRIGGERS: dict[str, Trigger] = {
    "grid": patch.grid,
    "white3": patch.white3,
    "white4": patch.white4,
    "white5": patch.white5,
    "trojan-square": patch.trojan_square,
}

ATTACKS: dict[str, Attack] = {
    "badnets": patch.BADNETS,
    "blended": blended.BLENDED,
    "sig": sig.SIG,
    "wanet": wanet.WANET,
}

ADVERSARIAL: dict[str, adversarial.Adversary] = {
    "fgsm": adversarial.fgsm,
    "pgd-linf": adversarial.pgd_linf,
    "pgd-l2": adversarial.pgd_l2,
}

__all__ = ["ADVERSARIAL", "ATTACKS", "TRIGGERS", "Attack", "Trigger", "attack", "poison", "trigger"]


def trigger(name: str) -> Trigger:
    """The trigger called `name` in `TRIGGERS`."""
    if name not in TRIGGERS:
        raise unknown_name("trigger", name, TRIGGERS)
    return TRIGGERS[name]


def attack(name: str) -> Attack:
    """The poisoning recipe called `name` in `ATTACKS`."""
    if name not in ATTACKS:
        raise unknown_name("attack", name, ATTACKS)
    return ATTACKS[name]
