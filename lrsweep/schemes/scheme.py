"""What a method is: one declarative row. Rows hold no code; :mod:`lrsweep.model` puts them into a block.

The baseline that every field departs from is the pre-LN block::

    x' = x + Proj(Attn(QKV(Norm(x)))),    y = x' + FC2(act(FC1(Norm(x'))))
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

NormScope = Literal["none", "head", "full"]
LinearKind = Literal["plain", "sigma_reparam"]
ResidualKind = Literal["add", "layerscale"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """One normalization scheme.

    The first fields document the row, the others build the block; a field left alone is the pre-LN baseline's.
    """

    name: str
    """Label in tables and plots; matched without case, ``_`` and ``-``."""
    source: str
    """Paper and arXiv number."""
    formula: str
    """The change in one line."""
    claim: str = ""
    """What its paper claims, to be tested."""
    ours: str = ""
    """What the source leaves open and lrsweep decided."""

    attn_pre_norm: bool = True
    """Norm before attention."""
    qk_norm: NormScope = "none"
    """Norm on q and k before RoPE: over each head (gain shared across heads) or over the full width."""
    v_norm: NormScope = "none"
    """Norm on v."""
    logit_scale: float = 1.0
    """Factor on q·k/√d_h before the softmax."""
    logit_cap: float | None = None
    """c of logit → c·tanh(logit/c); None: no cap."""
    prob_clip: tuple[float, float] | None = None
    """(ζ, γ) of p → clip((ζ−γ)·p + γ, 0, 1) after the softmax; None: no clip."""
    proj_norm: bool = False
    """Norm on the output of Proj, before the residual add."""
    mlp_pre_norm: bool = True
    """Norm before the MLP."""
    fc2_norm: bool = False
    """Norm on the output of FC2, before the residual add."""
    residual: ResidualKind = "add"
    """How a sub-layer's output joins the stream."""
    linear: LinearKind = "plain"
    """Parametrisation of every linear layer, the output head included."""
    final_norm: bool = True
    """Norm before the output head."""

    def build_fields(self) -> dict[str, Any]:
        """The fields that decide the numbers: all but the documentation."""
        return {k: v for k, v in asdict(self).items() if k not in _DOCUMENTATION}


_DOCUMENTATION = ("name", "source", "formula", "claim", "ours")
