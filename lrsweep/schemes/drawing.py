"""A scheme's block drawn as text, from its row alone: the stream on the left, what a sub-layer does beside it."""

from __future__ import annotations

from lrsweep.schemes.scheme import Scheme

_NORMS = {"body": "Norm", "rms": "RMSNorm", "dyt": "DyT"}
_EMBED = {"plain": "", "scaled": " · √d", "norm": " → {norm}", "detach": " (a tenth of its gradient)"}
_JOIN = {
    "add": "x + f",
    "layerscale": "x + γ ⊙ f",
    "post_norm": "{norm}(x + f)",
    "deepnorm": "{norm}((2N)^¼·x + f)",
    "lerp": "ν(α)·(x + α(f − x))",
    "sphere": "unit(x + |α|(unit(f) − x))",
}


def draw_block(scheme: Scheme) -> list[str]:
    """Lines of the drawing, from the token to the output logits."""
    norm = _NORMS[scheme.norm]
    linear = " (g/σ(W)·W)" if scheme.linear == "sigma_reparam" else ""
    join = _JOIN[scheme.residual].format(norm=norm)
    nu = scheme.geometry == "ball"
    attention = [
        *([norm] if scheme.attn_pre_norm else []),
        f"QKV{linear}",
        *_qkv_norms(scheme, norm),
        _score(scheme),
        f"Proj{linear}{' · √(d_h/d)' if nu else ''}",
        *([norm] if scheme.proj_norm else []),
    ]
    mlp = [
        *([norm] if scheme.mlp_pre_norm else []),
        f"FC1{linear}",
        *([f"{norm} (SwiGLU: on gate and on up)"] if scheme.fc1_norm else []),
        *(["· √(d/f), and √d into the activation"] if nu else []),
        *(["gain · √d"] if scheme.geometry == "sphere" else []),
        "act",
        f"FC2{linear}{' · √(f/d)/√E[act²]' if nu else ''}",
        *([norm] if scheme.fc2_norm else []),
    ]
    last = [f"{norm} → " if scheme.final_norm else "", f"head{linear}"]
    last += [" · gain" if scheme.head_gain else "", f" · {scheme.mup_base}/d" if scheme.mup_base else ""]
    last += [f" → {scheme.final_cap:g}·tanh(logit/{scheme.final_cap:g})" if scheme.final_cap else ""]
    return [
        f"x = E[token]{_EMBED[scheme.embed].format(norm=norm)}",
        "│",
        *_sub_layer(attention, join),
        *([norm, "│"] if scheme.mlp_stream_norm else []),
        *_sub_layer(mlp, join),
        "".join(last),
        *_after_step(scheme),
    ]


def _sub_layer(parts: list[str], join: str) -> list[str]:
    return ["├──────┐", *(f"│      {part}" for part in parts), "│      f", f"│◄─────┘  x ← {join}", "│"]


def _qkv_norms(scheme: Scheme, norm: str) -> list[str]:
    scope = {"head": "per head", "full": "full width"}
    lines = [f"q, k: {norm} {scope[scheme.qk_norm]}"] if scheme.qk_norm in scope else []
    lines += [f"v: {norm} {scope[scheme.v_norm]}"] if scheme.v_norm in scope else []
    lines += ["v: · √(d/d_h)"] if scheme.geometry == "ball" else []
    lines += ["q, k: RoPE"]
    lines += {"unit": ["q, k: unit length"], "unit_gain": ["q, k: unit length · gain"]}.get(scheme.qk_norm, [])
    return lines


def _score(scheme: Scheme) -> str:
    factor = "√d_h" if scheme.qk_norm.startswith("unit") else "√32/d_h" if scheme.mup_base else "1/√d_h"
    logit = f"{factor}·q·k" if scheme.logit_scale == 1 else f"{scheme.logit_scale:g}·{factor}·q·k"
    if scheme.logit_cap is not None:
        logit = f"{scheme.logit_cap:g}·tanh({logit}/{scheme.logit_cap:g})"
    if scheme.prob_clip is None:
        return f"softmax({logit}) v"
    zeta, gamma = scheme.prob_clip
    return f"clip({zeta - gamma:.3g}·softmax({logit}) − {-gamma:g}, 0, 1) v"


def _after_step(scheme: Scheme) -> list[str]:
    after = {"free": [], "ball": ["w ← w/max(1, ‖w‖) for each row over the input axis"]}
    after["sphere"] = ["w ← w/‖w‖ for each row along the embedding axis"]
    lines = list(after[scheme.geometry])
    if scheme.qk_clip is not None:
        lines.append(f"q, k of a head with S_max > τ = {scheme.qk_clip:g}: each · √(τ/S_max)")
    return ["", "after each step:", *(f"  {line}" for line in lines)] if lines else []
