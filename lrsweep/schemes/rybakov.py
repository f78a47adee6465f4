"""Rybakov et al., Methods of improving LLM training stability (arXiv 2410.16682).

The LRs that converged and diverged are the paper's, at 830M (24 layers, d 1024, T 4096), one seed.
"""

from lrsweep.schemes.scheme import Scheme

_SOURCE = "Rybakov et al., arXiv 2410.16682"
_PER_HEAD = "norm per head with eps 1e-5, gain shared across heads"

SCHEMES = (
    Scheme(
        name="preln",
        source=_SOURCE,
        formula="x + Proj(Attn(QKV(Norm(x)))), then x + FC2(act(FC1(Norm(x))))",
        claim="converges at LR 6e-3, diverges at 8e-3",
    ),
    Scheme(
        name="soft_temp",
        source=_SOURCE,
        formula="softmax(β·logit), β = 0.5",
        claim="converges at LR 8e-3, diverges at 20e-3",
        ours="β read as a factor on the logits that is fixed",
        logit_scale=0.5,
    ),
    Scheme(
        name="soft_clip",
        source=f"{_SOURCE}; clipped softmax of Bondarenko et al., arXiv 2306.12929",
        formula="clip((ζ−γ)·softmax(logit) + γ, 0, 1), ζ = 1.03, γ = −0.03",
        claim="converges at LR 8e-3, diverges at 20e-3",
        ours="γ fixed for all lengths: a query that attends evenly to more than 35 keys gets exactly 0",
        prob_clip=(1.03, -0.03),
    ),
    Scheme(
        name="sigma_reparam",
        source=f"{_SOURCE}; Zhai et al., arXiv 2303.06296",
        formula="W → (g/σ(W))·W, σ by one power-iteration step per training forward, g learnable",
        claim="converges at LR 20e-3, diverges at 40e-3",
        ours="the head is included; QKV is one matrix, gate and up of SwiGLU are one; no weight decay on g",
        linear="sigma_reparam",
    ),
    Scheme(
        name="layerscale",
        source=f"{_SOURCE}; Touvron et al., arXiv 2103.17239",
        formula="x + γ ⊙ f(x), γ learnable per channel",
        claim="converges at LR 20e-3, diverges at 40e-3",
        ours="γ starts at 1e-4 up to 12 layers and at 1e-5 beyond, as in CaiT's code; this paper does not report it",
        residual="layerscale",
    ),
    Scheme(
        name="soft_cap",
        source=f"{_SOURCE}; Gemma 2",
        formula="logit → c·tanh(logit/c), c = 50",
        claim="converges at LR 40e-3, diverges at 60e-3",
        logit_cap=50.0,
    ),
    Scheme(
        name="qknorm",
        source=f"{_SOURCE}; Dehghani et al., arXiv 2302.05442",
        formula="Norm(q)·Norm(k), before RoPE, pre-norms kept",
        claim="converges at LR 40e-3, diverges at 60e-3",
        ours=_PER_HEAD,
        qk_norm="head",
    ),
    Scheme(
        name="qk_fc_norm",
        source=_SOURCE,
        formula="qknorm, and x + Norm(Proj(·)), x + Norm(FC2(·))",
        claim="converges at LR 40e-3, diverges at 60e-3",
        ours=_PER_HEAD,
        qk_norm="head",
        proj_norm=True,
        fc2_norm=True,
    ),
    Scheme(
        name="qkv_norm",
        source=_SOURCE,
        formula="Norm on q, k and v; no norm before attention; the MLP's pre-norm stays",
        claim="converges at LR 60e-3, diverges at 80e-3: 1.5 times qknorm's",
        ours=_PER_HEAD,
        attn_pre_norm=False,
        qk_norm="head",
        v_norm="head",
    ),
    Scheme(
        name="qknorm_cap",
        source=_SOURCE,
        formula="qknorm, and logit → c·tanh(logit/c), c = 50",
        claim="converges at LR 60e-3 or more (accounts of 80e-3 differ): 1.5 times qknorm's",
        ours=_PER_HEAD,
        qk_norm="head",
        logit_cap=50.0,
    ),
)
