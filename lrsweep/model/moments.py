"""From what the blocks have kept of a forward to the statistics of its layers.

Sums and maxima come first: those of micro-batches, and of the ranks of one trial, are the whole batch's once added and
compared. They become root mean squares and norms at the end of a step.

Legend: N layers, S sites, B batch, T sequence, H heads, P columns that hold a sum and a maximum: the sites, the logits,
and with a cap the capped logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lrsweep.model.block import SITES, ProbeLevel, Seen
from lrsweep.probes import causal_logit_sums, gpu_tokens
from lrsweep.probes.stats import causal_pairs


class Moments(NamedTuple):
    """Of one forward; columns of what it did not keep are NaN."""

    sums_NxP: Tensor
    """Sums of squares."""
    maxima_NxP: Tensor
    """Largest squared token norm at the sites, then the largest logit."""
    head_maxima_NxH: Tensor
    """Largest logit of each head."""


def stat_names(cap: float | None) -> tuple[tuple[str, str], ...]:
    """(site, stat) of each column of the statistics."""
    norms = [(site, stat) for site in SITES for stat in ("l2_rms", "l2_max")]
    logits = ["logit_max", "logit_rms"] + ([] if cap is None else ["logit_max_capped", "logit_rms_capped"])
    return (*norms, *(("attn", stat) for stat in logits))


SiteMoments = tuple[Tensor, Tensor]
"""Sums of squares and largest squared token norms, each (N, S)."""


@torch.no_grad()
def site_moments(seen: Sequence[Seen]) -> SiteMoments | None:
    """Of the sites' outputs, None if a forward kept none."""
    if not seen[0].squares:
        return None
    if gpu_tokens.serves(seen[0].squares[0][0]):
        return gpu_tokens.site_moments([s.squares for s in seen])
    squares_SxNxM = [_of_tokens([s.squares[site] for s in seen]) for site in range(len(SITES))]
    squares_NxSxM = torch.stack(squares_SxNxM, dim=1)
    return squares_NxSxM.sum(dim=-1), squares_NxSxM.amax(dim=-1)


LogitMoments = tuple[Tensor, Tensor]
"""Largest logit of each head (N, H), and sums of squares (N, P − S)."""


def logit_moments(seen: Sequence[Seen], scale: float, cap: float | None) -> LogitMoments | None:
    """Of logits that are scored with ``scale`` and ``cap``, None if a forward kept none."""
    if not seen[0].logits:
        return None
    return causal_logit_sums([(s.logits[0], s.logits[1]) for s in seen], scale=scale, cap=cap)


def joined(parts: Sequence[LogitMoments]) -> LogitMoments | None:
    """Of all layers, from those of some layers each; None if there are none."""
    if len(parts) < 2:
        return parts[0] if parts else None
    heads, sums = zip(*parts, strict=True)
    return torch.cat(heads), torch.cat(sums)


@torch.no_grad()
def moments_of(
    sites: SiteMoments | None, logits: LogitMoments | None, probe: ProbeLevel, cap: float | None
) -> Moments | None:
    """The moments of a forward from its :func:`site_moments` and :func:`logit_moments`, None if it kept nothing.

    Columns hold what ``probe`` asks for. A row that clips its heads keeps logits without being asked: their largest are
    then in ``head_maxima_NxH`` alone.
    """
    if sites is None:
        if logits is None:
            return None
        nothing_NxS = logits[0].new_full((len(logits[0]), len(SITES)), torch.nan)
        sites = nothing_NxS, nothing_NxS
    site_sums, site_maxima = sites
    heads_NxH = site_sums.new_full((len(site_sums), 1), torch.nan)
    logit_sums = logit_maxima = heads_NxH.expand(-1, 1 if cap is None else 2)
    if logits is not None:
        heads_NxH, sums = logits
        if probe == ProbeLevel.ALL:
            largest = heads_NxH.amax(dim=-1, keepdim=True)
            capped = [] if cap is None else [cap * torch.tanh(largest / cap)]
            logit_sums, logit_maxima = sums, torch.cat([largest, *capped], dim=-1)
    return Moments(
        torch.cat([site_sums, logit_sums], dim=-1), torch.cat([site_maxima, logit_maxima], dim=-1), heads_NxH
    )


def _of_tokens(layers: Sequence[tuple[Tensor, ...]]) -> Tensor:
    """Squared norms (N, M) of the M tokens from those of their groups, which each layer has in one or more parts."""
    return torch.stack([torch.cat(parts, dim=-1).sum(dim=-1).flatten() for parts in layers])


@torch.no_grad()
def statistics(sums: Tensor, maxima: Tensor, *, batch: int, heads: int, seq: int) -> Tensor:
    """The statistics (…, columns of :func:`stat_names`) of ``batch`` sequences of ``seq`` tokens, fp32.

    Args:
        sums: (…, P), as in :class:`Moments`.
        maxima: (…, P), as in :class:`Moments`.
        batch: sequences that they are of.
        heads: attention heads.
        seq: tokens of a sequence.
    """
    tokens, pairs, n = batch * seq, causal_pairs(batch, heads, seq), len(SITES)
    norms = torch.stack([sums[..., :n] / tokens, maxima[..., :n]], dim=-1).sqrt()
    logits = torch.stack([maxima[..., n:], (sums[..., n:] / pairs).sqrt()], dim=-1)
    return torch.cat([norms.flatten(-2), logits.flatten(-2)], dim=-1)
