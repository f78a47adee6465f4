"""What a method is: one declarative row. Rows hold no code; :mod:`lrsweep.model` puts them into a block.

The baseline that every field departs from is the pre-LN block::

    x' = x + Proj(Attn(QKV(Norm(x)))),    y = x' + FC2(act(FC1(Norm(x'))))
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from lrsweep.errors import UserError

NormKind = Literal["body", "rms", "dyt"]
NormScope = Literal["none", "head", "full"]
QKNorm = Literal["none", "head", "full", "unit", "unit_gain"]
EmbedPath = Literal["plain", "scaled", "norm", "detach"]
LinearKind = Literal["plain", "sigma_reparam"]
ResidualKind = Literal["add", "layerscale", "post_norm", "deepnorm", "lerp", "sphere"]
Geometry = Literal["free", "ball", "sphere"]
MLPWidth = Literal["body", "4d"]
Init = Literal["gpt2", "normal", "small", "xavier", "post_norm", "deepnorm", "simplegpt", "unit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """One method: where the normalization stands, how the stream is joined, how weights start and stay.

    The first fields document the row, the others build the model and its training; a field left alone is the pre-LN
    baseline's.
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

    norm: NormKind = "body"
    """Every norm of the model: the body's, RMSNorm, or Dynamic Tanh."""
    embed: EmbedPath = "plain"
    """Between embedding and first block: nothing, times √d, a norm, or a tenth of the gradient."""
    attn_pre_norm: bool = True
    """Norm before attention."""
    qk_norm: QKNorm = "none"
    """On q and k. Before RoPE a norm over each head (gain shared across heads) or over the full width; after RoPE unit
    length per head, without or with a gain per channel, and then a softmax scale of √d_h for 1/√d_h."""
    v_norm: NormScope = "none"
    """Norm on v."""
    logit_scale: float = 1.0
    """Factor on q·k/√d_h before the softmax."""
    logit_cap: float | None = None
    """c of logit → c·tanh(logit/c); None: no cap."""
    prob_clip: tuple[float, float] | None = None
    """(ζ, γ) of p → clip((ζ−γ)·p + γ, 0, 1) after the softmax; None: no clip."""
    qk_clip: float | None = None
    """τ: after a step, q and k of a head whose largest logit passed τ are scaled down to it; None: never."""
    proj_norm: bool = False
    """Norm on the output of Proj, before the residual add."""
    mlp_stream_norm: bool = False
    """Norm on the stream itself before the MLP, so that the shortcut is normalized too."""
    mlp_pre_norm: bool = True
    """Norm before the MLP."""
    fc1_norm: bool = False
    """Norm on the output of FC1, before the activation; in SwiGLU one on the gate and one on the up half."""
    fc2_norm: bool = False
    """Norm on the output of FC2, before the residual add."""
    mlp_width: MLPWidth = "body"
    """Hidden width of the MLP: the body's, or 4d on both."""
    residual: ResidualKind = "add"
    """How a sub-layer's output joins the stream."""
    linear: LinearKind = "plain"
    """Parametrisation of every linear layer, the output head included."""
    geometry: Geometry = "free"
    """Where weights may be after a step: anywhere, rows in the unit ball (anGPT), or on the unit sphere (nGPT)."""
    final_norm: bool = True
    """Norm before the output head."""
    head_gain: bool = False
    """Learnable gain on each output logit."""
    final_cap: float | None = None
    """c of output logit → c·tanh(logit/c); None: no cap."""
    init: Init = "gpt2"
    """Initial weights; see :mod:`lrsweep.model.init`."""
    mup_base: int | None = None
    """Width at which maximal-update parametrization equals the standard one; None: standard at every width."""
    training: tuple[tuple[str, Any], ...] = ()
    """Fields of :class:`~lrsweep.config.TrainConfig` that the method prescribes, for example no weight decay."""

    def __post_init__(self) -> None:
        """UserError if a value is none of those its field knows, or two fields exclude each other."""
        for field, known in _CHOICES.items():
            if getattr(self, field) not in known:
                raise UserError(
                    f"scheme {self.name!r}: {field} must be one of {', '.join(known)}, got {getattr(self, field)!r}"
                )
        for field in ("logit_cap", "qk_clip", "final_cap"):
            value = getattr(self, field)
            if value is not None and not value > 0:
                raise UserError(f"scheme {self.name!r}: {field} must be above 0, got {value}")
        if self.logit_cap is not None and self.prob_clip is not None:
            raise UserError(f"scheme {self.name!r}: logit_cap and prob_clip cannot be combined; leave one out")
        if self.prob_clip is not None and self.prob_clip[1] > 0:
            raise UserError(f"scheme {self.name!r}: γ of prob_clip must not be above 0, or masked pairs would leak")
        if self.geometry != "free" and self.linear != "plain":
            raise UserError(f"scheme {self.name!r}: geometry {self.geometry} needs linear = 'plain'")

    def build_fields(self) -> dict[str, Any]:
        """The fields that decide the numbers: all but the documentation."""
        return {k: v for k, v in asdict(self).items() if k not in _DOCUMENTATION}


_CHOICES: dict[str, tuple[str, ...]] = {
    "norm": get_args(NormKind),
    "embed": get_args(EmbedPath),
    "qk_norm": get_args(QKNorm),
    "v_norm": get_args(NormScope),
    "mlp_width": get_args(MLPWidth),
    "residual": get_args(ResidualKind),
    "linear": get_args(LinearKind),
    "geometry": get_args(Geometry),
    "init": get_args(Init),
}
_DOCUMENTATION = ("name", "source", "formula", "claim", "ours")
