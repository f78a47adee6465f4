"""Statistics of activations as pure functions; each returns fp32 tensors on the input's device.

NaN and inf in an input show in its statistic and nowhere else. No gradient flows through any of them.

Legend: B batch, T sequence, H heads, K head width, F features, R rows of a block.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ROWS = 128


@torch.no_grad()
def token_norms(y_BxTxF: Tensor) -> tuple[Tensor, Tensor]:
    """Two aggregations of a layer output's L2 norm: RMS over tokens, ‖Y‖_F/√tokens, and the largest token's."""
    norms_BxT = torch.linalg.vector_norm(y_BxTxF, dim=-1, dtype=torch.float32)
    return torch.linalg.vector_norm(norms_BxT) / norms_BxT.numel() ** 0.5, norms_BxT.amax()


def at_least_fp32(x: Tensor) -> Tensor:
    """``x`` in fp32, or as it is if it has more precision."""
    return x if x.dtype == torch.float64 else x.float()


def products(q_BxHxRxK: Tensor, k_BxHxTxK: Tensor) -> Tensor:
    """q_i·k_j of all pairs, at least in fp32, also under autocast: bf16 would round a logit of 43 by up to 0.13."""
    with torch.autocast(q_BxHxRxK.device.type, enabled=False):
        return at_least_fp32(q_BxHxRxK) @ at_least_fp32(k_BxHxTxK).transpose(-1, -2)


@torch.no_grad()
def causal_logit_stats(q_BxHxTxK: Tensor, k_BxHxTxK: Tensor, *, scale: float) -> tuple[Tensor, Tensor]:
    """Exact maximum of each head (H) and RMS over all heads of the logits ``scale·q_i·k_j``, causal pairs j ≤ i.

    Computed by block rows of the lower triangle, so that no more than 128 rows of the T × T matrix are held.

    Args:
        q_BxHxTxK: queries as they enter the product.
        k_BxHxTxK: keys as they enter the product.
        scale: factor on the product, above 0.
    """
    seq = q_BxHxTxK.shape[-2]
    rows = min(seq, _ROWS)
    above_RxR = torch.full((rows, rows), -torch.inf, device=q_BxHxTxK.device).triu_(1)
    maxima: list[Tensor] = []
    norms: list[Tensor] = []
    for start in range(0, seq, rows):
        stop = min(start + rows, seq)
        s_BxHxRxT = products(q_BxHxTxK[:, :, start:stop], k_BxHxTxK[:, :, :stop])
        s_BxHxRxT[..., start:].tril_()
        norms.append(_frobenius(s_BxHxRxT))
        s_BxHxRxT[..., start:].add_(above_RxR[: stop - start, : stop - start])
        maxima.append(s_BxHxRxT.amax(dim=(0, 2, 3)))
    norm = torch.linalg.vector_norm(torch.stack(norms))
    return torch.stack(maxima).amax(dim=0) * scale, norm * (scale / _causal_pairs(q_BxHxTxK) ** 0.5)


@torch.no_grad()
def causal_rms(s_BxHxTxT: Tensor) -> Tensor:
    """RMS over all causal pairs j ≤ i of a matrix that is in memory."""
    rms: Tensor = _frobenius(s_BxHxTxT.tril()) / _causal_pairs(s_BxHxTxT) ** 0.5
    return rms


def _frobenius(s: Tensor) -> Tensor:
    # Row by row: in one sweep over ten million elements the CPU kernel's running fp32 sum is off by 0.1%.
    norm: Tensor = torch.linalg.vector_norm(torch.linalg.vector_norm(s, dim=-1))
    return norm


def _causal_pairs(x_BxHxTx: Tensor) -> float:
    batch, heads, seq = x_BxHxTx.shape[:3]
    return batch * heads * seq * (seq + 1) / 2
