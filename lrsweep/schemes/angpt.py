"""anGPT (arXiv 2505.22014) and nGPT (arXiv 2410.01131): constrained weights in place of norms.

Claims are of the anGPT paper at 0.5B parameters, both against GPT with qk-norm.
"""

from lrsweep.schemes.scheme import Scheme

_UNCONSTRAINED_TRAINING = (("weight_decay", 0.0), ("warmup_steps", 0))

SCHEMES = (
    Scheme(
        name="angpt",
        source="anGPT, arXiv 2505.22014",
        formula="no norms; h ← ν(α)·(h + α(f(h) − h)), ν = 1/√(α² + (1−α)²); every linear layer times a constant; "
        "rows of W over the input axis kept at ‖w‖ ≤ 1",
        claim="converges 1.40 times as fast as GPT with qk-norm, 2.75% more step time",
        ours="α and the logits' gain stored at scale d^−1/2 as in nGPT; rows start at length 1; on the GELU body the "
        "MLP's constants come from E[gelu(g)²] in place of E[silu(g)²]",
        attn_pre_norm=False,
        qk_norm="unit",
        mlp_pre_norm=False,
        mlp_width="4d",
        residual="lerp",
        geometry="ball",
        final_norm=False,
        head_gain=True,
        init="unit",
        training=_UNCONSTRAINED_TRAINING,
    ),
    Scheme(
        name="ngpt",
        source="nGPT, arXiv 2410.01131",
        formula="h ← Norm(h + |α|·(Norm(f(h)) − h)) on the unit sphere; all matrices kept at unit rows along the "
        "embedding axis; gains on q and k, on FC1's output and on the logits",
        claim="converges 1.29 times as fast as GPT with qk-norm, 9.6% more step time",
        ours="on the GELU body the gain stands on the one FC1 output",
        attn_pre_norm=False,
        qk_norm="unit_gain",
        mlp_pre_norm=False,
        mlp_width="4d",
        residual="sphere",
        geometry="sphere",
        final_norm=False,
        head_gain=True,
        init="unit",
        training=_UNCONSTRAINED_TRAINING,
    ),
)
