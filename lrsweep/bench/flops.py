"""Model FLOPs: what the arithmetic of a step needs, and what share of a GPU's peak that is (MFU).

Legend: T sequence, d model width, N layers, V vocabulary, F MLP width.
"""

from __future__ import annotations

from lrsweep.config import Body, ModelShape, mlp_width
from lrsweep.schemes import Scheme

_TERA = 1e12
PEAK_FLOPS = {
    "H100 80GB HBM3": 989.4 * _TERA,
    "H100 PCIe": 756 * _TERA,
    "H200": 989.4 * _TERA,
    "B200": 2250 * _TERA,
    "A100-SXM4-40GB": 312 * _TERA,
    "A100-SXM4-80GB": 312 * _TERA,
    "A100-PCIE-40GB": 312 * _TERA,
    "A100 80GB PCIe": 312 * _TERA,
    "L40S": 362 * _TERA,
    "A10": 125 * _TERA,
    "GeForce RTX 4090": 165.2 * _TERA,
}
"""Peak FLOP/s in bf16 without sparsity, from the makers' data sheets, by the name that CUDA gives the device.

Names are whole: an H100 NVL, a laptop's 4090 or a slice of a card (MIG) is another device and has no entry.
"""


def matrix_parameters(scheme: Scheme, body: Body, shape: ModelShape) -> int:
    """Parameters that multiply an activation: every matrix but the input embedding, which is only looked up.

    A layer has QKV 3d² and Proj d², and FC1 and FC2 of 2dF together, 3dF where FC1 is gate and up; the head has dV.
    """
    d = shape.d_model
    mlp = (2 if body == "gpt" else 3) * d * mlp_width(scheme, body, d)
    return shape.n_layers * (4 * d * d + mlp) + d * shape.vocab_size


def flops_per_token(scheme: Scheme, body: Body, shape: ModelShape) -> int:
    """FLOPs of forward and backward for one token: 6 a matrix parameter, and 6·N·d·T for attention.

    After PaLM (Chowdhery et al., 2204.02311, appendix B), with one difference: PaLM counts the scores of all T × T
    pairs, 12·N·d·T a token. Half of them are masked and no good kernel computes them, so only the causal half counts
    here; the MFU is the lower for it. Norms, probes, the softmax and the optimizer count nothing.
    """
    attention = shape.n_layers * shape.d_model * shape.seq_len
    return 6 * (matrix_parameters(scheme, body, shape) + attention)


def peak_flops(device_name: str) -> float | None:
    """Peak bf16 FLOP/s of the GPU of that name; None where it is not known."""
    return PEAK_FLOPS.get(device_name.removeprefix("NVIDIA "))


def mfu(tokens_per_s: float, flops: int, device_name: str) -> float | None:
    """Model FLOPs utilization: the share of the peak that ``tokens_per_s`` makes use of; None where none is known."""
    peak = peak_flops(device_name)
    return None if peak is None else tokens_per_s * flops / peak
