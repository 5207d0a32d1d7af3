"""Attacks, in three literal tables: triggers, poisoning recipes that train a backdoor, adversarial examples.

A trigger maps uint8 images (n, h, w, c) to triggered ones of the same shape and never changes its argument. A new
attack is one file with an `Attack` in it, and one line in `ATTACKS`.
"""

from __future__ import annotations

from covary.errors import unknown_name
from covary_bench.images.attacks import (
    adaptive_patch,
    adversarial,
    blended,
    bpp,
    evading,
    input_aware,
    low_frequency,
    minimal,
    patch,
    sig,
    ssba,
    tact,
    wanet,
)
from covary_bench.images.attacks.poisoning import ALL_TO_ALL, Attack, Shape, Trigger, poison

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
    "lf": low_frequency.LF,
    "ssba": ssba.SSBA,
    "wanet": wanet.WANET,
    "input-aware": input_aware.INPUT_AWARE,
    "bpp": bpp.BPP,
    "tact": tact.TACT,
    "adaptive-patch": adaptive_patch.ADAPTIVE_PATCH,
}

ADVERSARIAL: dict[str, adversarial.Adversary] = {
    "fgsm": adversarial.fgsm,
    "pgd-linf": adversarial.pgd_linf,
    "pgd-l2": adversarial.pgd_l2,
    "deepfool": minimal.deepfool,
    "carlini-wagner": minimal.carlini_wagner,
    "pgd-linf-evading": evading.pgd_linf_evading,
}

__all__ = [
    "ADVERSARIAL",
    "ALL_TO_ALL",
    "ATTACKS",
    "TRIGGERS",
    "Attack",
    "Shape",
    "Trigger",
    "attack",
    "poison",
    "trigger",
]


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
