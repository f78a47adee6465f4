"""SimpleGPT (arXiv 2602.01212): a norm right after every linear layer, and none before.

Claims are the paper's, at 1B to 8B parameters.
"""

from lrsweep.schemes.scheme import Scheme

SCHEMES = (
    Scheme(
        name="simplenorm",
        source="SimpleGPT, arXiv 2602.01212",
        formula="Ψ(x) = RMSNorm(Wx) over the whole output width, for every linear layer of a block; no pre-norms",
        claim="LR 3 to 10 times larger than Llama-2's block, lower loss than with qk-norm, about 3% more time",
        ours="on both bodies; QKV is one matrix with three norms, gate and up of SwiGLU one matrix with two",
        norm="rms",
        attn_pre_norm=False,
        qk_norm="full",
        v_norm="full",
        proj_norm=True,
        mlp_pre_norm=False,
        fc1_norm=True,
        fc2_norm=True,
        init="simplegpt",
    ),
)
