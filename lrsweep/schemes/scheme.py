"""What a method is: one declarative row. Rows hold no code; :mod:`lrsweep.model` puts them into a block.

The baseline that every field departs from is the pre-LN block::

    x' = x + Proj(Attn(QKV(Norm(x)))),    y = x' + FC2(act(FC1(Norm(x'))))
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from lrsweep.errors import UserError

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

    def __post_init__(self) -> None:
        """UserError if a value is none of those its field knows, or two fields exclude each other."""
        for field, known in _CHOICES.items():
            if getattr(self, field) not in known:
                raise UserError(
                    f"scheme {self.name!r}: {field} must be one of {', '.join(known)}, got {getattr(self, field)!r}"
                )
        if self.logit_cap is not None and self.prob_clip is not None:
            raise UserError(f"scheme {self.name!r}: logit_cap and prob_clip cannot be combined; leave one out")
        if self.prob_clip is not None and self.prob_clip[1] > 0:
            raise UserError(f"scheme {self.name!r}: γ of prob_clip must not be above 0, or masked pairs would leak")

    def build_fields(self) -> dict[str, Any]:
        """The fields that decide the numbers: all but the documentation."""
        return {k: v for k, v in asdict(self).items() if k not in _DOCUMENTATION}


_CHOICES: dict[str, tuple[str, ...]] = {
    "qk_norm": get_args(NormScope),
    "v_norm": get_args(NormScope),
    "residual": get_args(ResidualKind),
    "linear": get_args(LinearKind),
}
_DOCUMENTATION = ("name", "source", "formula", "claim", "ours")
