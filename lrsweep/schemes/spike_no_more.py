"""Spike No More (arXiv 2312.16903): small sub-layers and a large shortcut, on a pre-LN body.

The two conditions bound the gradient of a block by 1 + (s₁s₂/s_x)·(√d + √d_ffn)² for the MLP (its Eq. 15) and by
1 + (s_O/s_x)·2√d·‖J‖ for attention (Eq. 20), where s are standard deviations of weights and s_x that of the shortcut.
"""

from lrsweep.schemes.scheme import Scheme

_SOURCE = "Spike No More, arXiv 2312.16903"
_SMALL = "all weights N(0, 2/(5d)), those of Proj and FC2 also times √(1/(2N))"

SCHEMES = (
    Scheme(
        name="vanilla_init",
        source=_SOURCE,
        formula=_SMALL,
        claim="small sub-layers, small shortcut: loss and gradient spike at LR 5e-4, 13B diverges at 3e-4",
        init="small",
    ),
    Scheme(
        name="embed_detach",
        source=f"{_SOURCE}; Zeng et al., arXiv 2210.02414",
        formula="vanilla_init, and e ← g·e + (1−g)·stop_gradient(e), g = 0.1",
        claim="small sub-layers, small shortcut: spikes at LR 5e-4",
        embed="detach",
        init="small",
    ),
    Scheme(
        name="scaled_embed",
        source=_SOURCE,
        formula="vanilla_init, and e ← √d·e",
        claim="small sub-layers and large shortcut: no spikes; 13B converges at LR 3e-4",
        embed="scaled",
        init="small",
    ),
    Scheme(
        name="embed_ln",
        source=_SOURCE,
        formula="vanilla_init, and e ← Norm(e)",
        claim="small sub-layers and large shortcut: no spikes",
        ours="the body's norm, with its learnable gain",
        embed="norm",
        init="small",
    ),
    Scheme(
        name="xavier_init",
        source=_SOURCE,
        formula="all weights N(0, 2/(n_in + n_out))",
        claim="neither condition holds: spikes",
        ours="each part of the fused QKV and gate-up matrices has its own n_out; the embedding has V + d",
        init="xavier",
    ),
)
