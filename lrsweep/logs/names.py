"""What the columns of a log are called: which names stand for the step, the loss, the gradient norm."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal

Role = Literal["step", "loss", "grad_norm", "epoch", "rank"]

NAMES: dict[Role, tuple[str, ...]] = {
    "step": (
        "global step",
        "trainer global step",
        "train global step",
        "step",
        "iteration",
        "iter",
        "train step",
        "training step",
        "train iteration",
        "train iter",
        "update",
        "num updates",
        "s",
        "it",
        "steps",
        "samples count",
        "count",
    ),
    "loss": (
        "loss",
        "train loss",
        "training loss",
        "lm loss",
        "train lm loss",
        "reduced train loss",
        "avg train loss",
        "train loss step",
        "train ce loss",
        "train cross entropy loss",
        "loss train",
        "loss train total",
        "loss out",
        "loss metrics global avg loss",
        "global avg loss",
        "trl",
    ),
    "grad_norm": (
        "grad norm",
        "train grad norm",
        "gradient norm",
        "train gradient norm",
        "global grad norm",
        "train global grad norm",
        "total grad norm",
        "optim grad norm",
        "optim total grad norm",
        "l2 norm grad global",
        "grad 2 0 norm total",
        "gnorm",
        "norm",
    ),
    "epoch": ("epoch", "train epoch"),
    "rank": ("rank", "global rank", "trainer rank"),
}
"""Names that are taken for what they say, in order of preference; compared as :func:`words` gives them."""

_ENDINGS: dict[Role, tuple[str, ...]] = {
    "step": ("step", "iteration", "iter"),
    "loss": ("loss",),
    "grad_norm": ("grad norm", "gradient norm", "gradnorm"),
}
_NOT_TRAINING = frozenset(
    ("val", "valid", "validate", "validation", "eval", "evaluation", "test", "dev", "heldout", "warmup", "per")
)


@lru_cache(maxsize=4096)
def words(name: str) -> str:
    """``train/loss``, ``Train_Loss``, ``train-loss`` and ``trainLoss`` are all ``train loss``."""
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return " ".join(re.split(r"[\s_./:-]+", parted.casefold())).strip()


def role_of(name: str) -> Role | None:
    """What a column may stand for by its name, or by how its name ends; None for any other, and for validation."""
    plain = words(name)
    for role, names in NAMES.items():
        if plain in names:
            return role
    if _NOT_TRAINING.isdisjoint(plain.split()):
        for role, endings in _ENDINGS.items():
            if plain.endswith(tuple(f" {ending}" for ending in endings)):
                return role
    return None
