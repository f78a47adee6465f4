"""Statistics of activations as pure functions; each returns fp32 tensors on the input's device.

NaN and inf in an input show in its statistic and nowhere else. No gradient flows through any of them.

Legend: B batch, T sequence, H heads, K head width, F features, R rows of a block, N layers,
P one or two sums.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lrsweep.probes import gpu_logits

_ROWS = 128
_GROUP = 64


def token_squares(*parts: Tensor) -> Tensor:
    """Sums of squares over groups of channels (B, T, G), which add up to each token's squared L2 norm, in fp32.

    Args:
        parts: what a layer's output (B, T, F) is held in, alike in shape; or heads of it (B, T, H, K).

    A compiler puts squares and sums into the kernel that reads a part anyway. Where groups are small, heads or 64
    channels, it tries several shapes of that kernel and finds one as fast as without them: of groups up to whole rows,
    64 was the fastest on an H100. Uncompiled, one pass over the part gives its norm.
    """
    of_part = _squares_of_groups if torch.compiler.is_compiling() else _square_of_norm
    squares = [of_part(part.detach()) for part in parts]
    return sum(squares[1:], start=squares[0])


def n_groups(width: int) -> int:
    """Groups that a compiler makes of so many channels."""
    return width // _GROUP if width % _GROUP == 0 else 1


def _squares_of_groups(x: Tensor) -> Tensor:
    if x.ndim == 3:
        x = x.view(*x.shape[:-1], n_groups(x.shape[-1]), -1)
    return at_least_fp32(x).square().sum(dim=-1).float()


def _square_of_norm(x: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(x.flatten(2), dim=-1, keepdim=True, dtype=torch.float32)
    return norms.square()


def at_least_fp32(x: Tensor) -> Tensor:
    """``x`` in fp32, or as it is if it has more precision."""
    return x if x.dtype == torch.float64 else x.float()


def products(q_BxHxRxK: Tensor, k_BxHxTxK: Tensor) -> Tensor:
    """q_i·k_j of all pairs, at least in fp32, also under autocast: bf16 would round a logit of 43 by up to 0.13."""
    with torch.autocast(q_BxHxRxK.device.type, enabled=False):
        return at_least_fp32(q_BxHxRxK) @ at_least_fp32(k_BxHxTxK).transpose(-1, -2)


@torch.no_grad()
def causal_logit_sums(
    layers: Sequence[tuple[Tensor, Tensor]], *, scale: float, cap: float | None = None
) -> tuple[Tensor, Tensor]:
    """Exact maximum (N, H) and sum of squares (N, H, P) of each head's logits s = ``scale·q_i·k_j``, j ≤ i.

    With a cap the sums are two: of s² and of (cap·tanh(s/cap))². One kernel a layer on a GPU; elsewhere block rows of
    the lower triangle, so that no more than 128 rows of the T × T matrix are held.

    Args:
        layers: queries and keys (B, H, T, K) as they enter the product.
        scale: factor on the product, above 0.
        cap: c of the cap, if the score has one.
    """
    if gpu_logits.serves(layers[0][0]):
        return gpu_logits.causal_logit_sums(layers, scale, cap)
    maxima, sums = zip(*(_by_rows(q, k, scale, cap) for q, k in layers), strict=True)
    return torch.stack(maxima), torch.stack(sums)


def _by_rows(q_BxHxTxK: Tensor, k_BxHxTxK: Tensor, scale: float, cap: float | None) -> tuple[Tensor, Tensor]:
    seq = q_BxHxTxK.shape[-2]
    rows = min(seq, _ROWS)
    above_RxR = torch.full((rows, rows), -torch.inf, device=q_BxHxTxK.device).triu_(1)
    maxima: list[Tensor] = []
    sums: list[Tensor] = []
    for start in range(0, seq, rows):
        stop = min(start + rows, seq)
        s_BxHxRxT = products(q_BxHxTxK[:, :, start:stop], k_BxHxTxK[:, :, :stop])
        s_BxHxRxT[..., start:].tril_()
        squares = [_sums_of_squares(s_BxHxRxT) * scale**2]
        if cap is not None:
            squares.append(_sums_of_squares(torch.tanh(s_BxHxRxT * (scale / cap))) * cap**2)
        sums.append(torch.stack(squares, dim=-1))
        s_BxHxRxT[..., start:].add_(above_RxR[: stop - start, : stop - start])
        maxima.append(s_BxHxRxT.amax(dim=(0, 2, 3)))
    return torch.stack(maxima).amax(dim=0) * scale, torch.stack(sums).sum(dim=0)


@torch.no_grad()
def causal_logit_stats(q_BxHxTxK: Tensor, k_BxHxTxK: Tensor, *, scale: float) -> tuple[Tensor, Tensor]:
    """Exact maximum of each head (H) and RMS over all heads of the logits ``scale·q_i·k_j``, causal pairs j ≤ i."""
    largest_NxH, sums_NxHxP = causal_logit_sums([(q_BxHxTxK, k_BxHxTxK)], scale=scale)
    batch, heads, seq = q_BxHxTxK.shape[:3]
    return largest_NxH[0], (sums_NxHxP[0, :, 0].sum() / causal_pairs(batch, heads, seq)).sqrt()


def causal_pairs(batch: int, heads: int, seq: int) -> int:
    """Number of pairs j ≤ i over all heads."""
    return batch * heads * seq * (seq + 1) // 2


def _sums_of_squares(s_BxHxRxT: Tensor) -> Tensor:
    # Row by row: in one sweep over ten million elements the CPU kernel's running fp32 sum is off by 0.1%.
    sums_H: Tensor = torch.linalg.vector_norm(s_BxHxRxT, dim=-1).square().sum(dim=(0, 2))
    return sums_H
