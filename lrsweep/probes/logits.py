"""Attention logits of code that was not written to show them.

While an attention module runs, a torch function mode looks at each call of ``scaled_dot_product_attention`` and of
``softmax``: what goes into them is what the model made of q and k after every norm, rotation, scale, cap and mask. A
compiler traces through the mode, so it costs no graph break.

Legend: B batch, T queries, S keys, H heads, K head width, R rows of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lrsweep.probes.stats import causal_logit_stats, causal_pairs, products

Moments = tuple[Tensor, Tensor | float, Tensor]
"""Mean square, number and largest of a set of values."""

_ROWS = 128
_SOFTMAX = (F.softmax, torch.softmax, Tensor.softmax)


class LogitWatch(TorchFunctionMode):
    """Calls ``note`` with the moments of the logits of each attention that runs inside it.

    A pair that the mask leaves out counts for nothing; what a bias adds counts. NaN shows in both statistics.
    """

    def __init__(self, note: Callable[[Moments], None]) -> None:
        super().__init__()
        self._note = note

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self._note(_entering_sdpa(*args, **kwargs))
        elif func in _SOFTMAX and args[0].ndim >= 3:
            self._note(_entering_softmax(args[0]))
        if func is Tensor.unflatten:
            # Its Python body calls super(), which the compiler traces as a method of a tensor alone.
            return args[0].unflatten(*args[1:], **kwargs)
        return func(*args, **kwargs)


@torch.no_grad()
def _entering_softmax(s: Tensor) -> Moments:
    s = s.detach()
    kept = ~(s <= torch.finfo(s.dtype).min / 2)
    count = kept.sum().float()
    square = torch.where(kept, s, 0).float().square().sum() / count.clamp(min=1)
    return square, count, torch.where(kept, s, -torch.inf).amax().float()


@torch.no_grad()
def _entering_sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Moments:
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    mask = None if attn_mask is None else attn_mask.detach()
    square, count, largest = sdpa_logit_moments(query.detach(), key.detach(), mask, is_causal, scale).unbind()
    return square, count, largest


# One opaque operator: traced, its blocks of rows would be hundreds of kernels to compile.
@torch.library.custom_op("lrsweep::sdpa_logit_moments", mutates_args=())
def sdpa_logit_moments(q: Tensor, k: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    """Mean square, number and largest, stacked, of the logits that ``scaled_dot_product_attention`` would hold.

    Args:
        q: (…, H, T, K).
        k: (…, H, S, K), or fewer heads, each for as many of the queries' in a row.
        mask: broadcast to (…, H, T, S); Boolean, True where a pair counts, or added to the logits.
        causal: only pairs with j ≤ i, counted from the first query and key.
        scale: factor on q·k.
    """
    if k.shape[-3] != q.shape[-3]:
        k = k.repeat_interleave(q.shape[-3] // k.shape[-3], dim=-3)
    *batch, seq, _ = q.shape
    if causal and mask is None and len(batch) == 2 and k.shape[-2] == seq:
        largest, rms = causal_logit_stats(q, k, scale=scale)
        pairs = causal_pairs(batch[0], batch[1], seq)
        return torch.stack([rms.square(), torch.full_like(rms, pairs), largest.amax()])
    if mask is None:
        mask = q.new_ones(seq, k.shape[-2], dtype=torch.bool)
        mask = mask.tril_() if causal else mask
    mask = mask.expand(*mask.shape[:-2], seq, k.shape[-2])
    parts = [
        _masked_moments(products(q_R, k) * scale, mask_R)
        for q_R, mask_R in zip(torch.split(q, _ROWS, -2), torch.split(mask, _ROWS, -2), strict=True)
    ]
    squares, counts, largest = (torch.stack(values) for values in zip(*parts, strict=True))
    return torch.stack([squares.sum() / counts.sum().clamp(min=1), counts.sum(), largest.amax()])


@sdpa_logit_moments.register_fake
def _(q: Tensor, k: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    return q.new_empty(3, dtype=torch.float32)


def _masked_moments(s: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of squares, number and largest of the logits that the mask lets through."""
    if mask.dtype == torch.bool:
        kept = mask
    else:
        s = s + mask
        kept = ~(s <= torch.finfo(mask.dtype).min / 2)
    square = torch.linalg.vector_norm(torch.where(kept, s, 0), dim=-1).square().sum()
    return square, kept.expand_as(s).sum().float(), torch.where(kept, s, -torch.inf).amax()
