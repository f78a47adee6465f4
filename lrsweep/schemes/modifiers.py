"""Modifiers: small changes that combine with any row, written behind it, as in ``qknorm+zloss``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from lrsweep.errors import UserError
from lrsweep.names import look_up
from lrsweep.schemes.scheme import Scheme


@dataclass(frozen=True, slots=True, kw_only=True)
class Modifier:
    """A change to a row."""

    name: str
    """What stands behind the ``+``."""
    source: str
    """Paper and arXiv number."""
    formula: str
    """The change in one line."""
    ours: str = ""
    """What the source leaves open and lrsweep decided."""
    change: Callable[[Scheme], Scheme]
    """The row with the change; its name and documentation are not this function's business."""


def _training(field: str, value: object) -> Callable[[Scheme], Scheme]:
    return lambda row: replace(row, training=(*(pair for pair in row.training if pair[0] != field), (field, value)))


def _full_width(row: Scheme) -> Scheme:
    if row.qk_norm != "head":
        raise UserError(f"--arch {row.name}+full_qk: {row.name} has no per-head norm on q and k to widen")
    return replace(row, qk_norm="full", v_norm="full" if row.v_norm == "head" else row.v_norm)


def _mup(row: Scheme) -> Scheme:
    if row.geometry != "free":
        raise UserError(
            f"--arch {row.name}+mup: {row.name} fixes the length of its rows, which is a scaling of its own"
        )
    return replace(row, mup_base=64)


MODIFIERS = {
    modifier.name: modifier
    for modifier in (
        Modifier(
            name="zloss",
            source="Chowdhery et al., PaLM, arXiv 2204.02311; Wortsman et al., arXiv 2309.14322",
            formula="loss + 1e-4·log²Z is minimized, Z the softmax normalizer of the output; the loss shown is bare",
            change=_training("z_loss", 1e-4),
        ),
        Modifier(
            name="qk_clip",
            source="Kimi K2, arXiv 2507.20534",
            formula="after a step, per head: γ = min(1, τ/S_max), q and k each times √γ; τ = 100",
            ours="S_max is that of the step's own batch, before any cap; without a norm on q and k the weights are "
            "scaled, with one its gain, because a norm undoes what is done to the weights before it: a gain shared "
            "across heads takes the smallest γ; σReparam answers only in part, since its σ shrinks with its weight",
            change=lambda row: replace(row, qk_clip=100.0),
        ),
        Modifier(
            name="final_cap",
            source="Gemma 2, arXiv 2408.00118",
            formula="output logit → c·tanh(logit/c), c = 30",
            change=lambda row: replace(row, final_cap=30.0),
        ),
        Modifier(
            name="independent_wd",
            source="Loshchilov & Hutter, arXiv 1711.05101; Wortsman et al., arXiv 2309.14322",
            formula="θ ← θ·(1 − (η/η_peak)·λ): the decay follows the schedule, not the peak LR",
            change=_training("decay_mode", "independent"),
        ),
        Modifier(
            name="stable_adamw",
            source="Wortsman et al., arXiv 2304.13013",
            formula="AdamW whose LR of each tensor is divided by max(1, RMS(g/√v))",
            change=_training("optimizer", "stable_adamw"),
        ),
        Modifier(
            name="muon",
            source="Jordan et al.; Liu et al., arXiv 2502.16982",
            formula="matrices of the blocks: momentum, orthogonalized, times 0.2·√max(n_in, n_out); the rest: AdamW",
            ours="updates have the RMS of AdamW's, so that one LR grid serves both optimizers; orthogonalized in bf16 "
            "on a GPU, in fp32 elsewhere; the fused QKV and gate-up matrices are orthogonalized whole",
            change=_training("optimizer", "muon"),
        ),
        Modifier(
            name="adamw",
            source="Loshchilov & Hutter, arXiv 1711.05101",
            formula="AdamW, which is the default",
            change=lambda row: replace(row, training=tuple(pair for pair in row.training if pair[0] != "optimizer")),
        ),
        Modifier(
            name="full_qk",
            source="option of the row",
            formula="norms on q, k and v over the full width in place of each head",
            change=_full_width,
        ),
        Modifier(
            name="mup",
            source="Yang et al., Tensor Programs V, arXiv 2203.03466, Table 8",
            formula="at m = d/64: hidden matrices start at std/√m and learn at LR/m, output logits times 1/m, "
            "attention scale √32/d_h",
            ours="equal to the standard parametrization at width 64 with heads of 32, as in size 0.2m; "
            "λ of hidden matrices times m, so that LR·λ stays; with Muon √m for m in both, since its update's spectral "
            "norm grows only as √d; scaled_embed's √d is that of the base width; "
            "σReparam's activations do not stay flat, since its g is no matrix",
            change=_mup,
        ),
    )
}
"""Modifiers by name."""


def modify(row: Scheme, names: tuple[str, ...]) -> Scheme:
    """``row`` with modifiers applied, in alphabetical order and each once: one combination has one name.

    Raises:
        UserError: an unknown modifier, two optimizers, or a row that one of them cannot change.
    """
    modifiers = {m.name: m for m in (look_up(n, MODIFIERS, flag="--arch", what="modifier") for n in names)}
    chosen = [modifiers[name] for name in sorted(modifiers)]
    optimizers = [m.name for m in chosen if m.name in ("adamw", "muon", "stable_adamw")]
    if len(optimizers) > 1:
        raise UserError(
            f"--arch {row.name}+{'+'.join(names)}: {' and '.join(optimizers)} are both optimizers; keep one"
        )
    changed = row
    for modifier in chosen:
        changed = modifier.change(changed)
    shown = [m for m in chosen if m.name != "adamw" or "optimizer" in dict(row.training)]
    return replace(
        changed,
        name="+".join([row.name, *(m.name for m in shown)]),
        source="; ".join([row.source, *(f"{m.name}: {m.source}" for m in shown)]),
        formula="; ".join([row.formula, *(f"{m.name}: {m.formula}" for m in shown)]),
        ours="; ".join(filter(None, [row.ours, *(f"{m.name}: {m.ours}" for m in shown if m.ours)])),
    )
