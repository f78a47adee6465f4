"""From what the blocks have kept of a forward to the statistics of its layers.

Sums and maxima come first: those of micro-batches, and of the ranks of one trial, are the whole batch's once added and
compared. They become root mean squares and norms at the end of a step.

Legend: N layers, S sites, B batch, T sequence, H heads, C logits, and with a cap the capped logits, P = S + C columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lrsweep.model.block import SITES, ProbeLevel, Seen
from lrsweep.probes import causal_logit_sums, gpu_tokens
from lrsweep.probes.stats import causal_pairs

SiteMoments = tuple[Tensor, Tensor]
"""Largest squared token norms and sums of squares, each (N, S)."""
LogitMoments = tuple[Tensor, Tensor]
"""Of each head the largest logit (N, H) and sums of squares (N, H, C)."""


class Moments(NamedTuple):
    """Of one forward; None what it did not keep."""

    sites: SiteMoments | None
    logits: LogitMoments | None

    @classmethod
    def zeros(cls, n_layers: int, n_heads: int, cap: float | None, device: torch.device) -> Moments:
        """Of a model of such layers, with nothing in them; ``cap`` is its score's."""
        n_logits = n_columns(cap) - len(SITES)
        shapes = (n_layers, len(SITES)), (n_layers, len(SITES)), (n_layers, n_heads), (n_layers, n_heads, n_logits)
        site_maxima, site_sums, maxima, sums = (torch.zeros(shape, device=device) for shape in shapes)
        return cls((site_maxima, site_sums), (maxima, sums))

    def like(self, other: Moments) -> Moments:
        """Without what ``other`` lacks."""
        return Moments(other.sites and self.sites, other.logits and self.logits)

    def maxima(self) -> list[Tensor]:
        """What those of other micro-batches and ranks are compared with."""
        return [kind[0] for kind in self if kind is not None]

    def sums(self) -> list[Tensor]:
        """What those of other micro-batches and ranks are added to."""
        return [kind[1] for kind in self if kind is not None]

    def asked(self, probe: ProbeLevel) -> Moments:
        """What ``probe`` asks for. A row that clips its heads keeps logits without being asked."""
        return Moments(self.sites, self.logits if probe == ProbeLevel.ALL else None)


def n_columns(cap: float | None) -> int:
    """P: each has a sum and a maximum."""
    return len(stat_names(cap)) // 2


def stat_names(cap: float | None) -> tuple[tuple[str, str], ...]:
    """(site, stat) of each column of the statistics."""
    norms = [(site, stat) for site in SITES for stat in ("l2_rms", "l2_max")]
    logits = ["logit_max", "logit_rms"] + ([] if cap is None else ["logit_max_capped", "logit_rms_capped"])
    return (*norms, *(("attn", stat) for stat in logits))


@torch.no_grad()
def site_moments(seen: Sequence[Seen]) -> SiteMoments | None:
    """Of the sites' outputs, None if a forward kept none."""
    if not seen[0].squares:
        return None
    if gpu_tokens.serves(seen[0].squares[0][0]):
        return gpu_tokens.site_moments([s.squares for s in seen])
    squares_SxNxM = [_of_tokens([s.squares[site] for s in seen]) for site in range(len(SITES))]
    squares_NxSxM = torch.stack(squares_SxNxM, dim=1)
    return squares_NxSxM.amax(dim=-1), squares_NxSxM.sum(dim=-1)


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
def columns(moments: Moments, cap: float | None) -> Tensor:
    """Sums and maxima (2, N, P) over the heads of each layer; NaN where there are none.

    Of the capped logits' maximum, too, which :func:`statistics` takes from that of the others.
    """
    (held, *_) = moments.sums()
    both_2xNxP = held.new_full((2, len(held), n_columns(cap)), torch.nan)
    if moments.sites is not None:
        maxima_NxS, sums_NxS = moments.sites
        both_2xNxP[..., : len(SITES)] = torch.stack([sums_NxS, maxima_NxS])
    if moments.logits is not None:
        maxima_NxH, sums_NxHxC = moments.logits
        both_2xNxP[0, :, len(SITES) :] = sums_NxHxC.sum(dim=1)
        both_2xNxP[1, :, len(SITES)] = maxima_NxH.amax(dim=-1)
    return both_2xNxP


def _of_tokens(layers: Sequence[tuple[Tensor, ...]]) -> Tensor:
    """Squared norms (N, M) of the M tokens from those of their groups, which each layer has in one or more parts."""
    return torch.stack([torch.cat(parts, dim=-1).sum(dim=-1).flatten() for parts in layers])


@torch.no_grad()
def statistics(columns_2xNxP: Tensor, *, cap: float | None, batch: int, heads: int, seq: int) -> Tensor:
    """The statistics (…, N, columns of :func:`stat_names`) of ``batch`` sequences of ``seq`` tokens, fp32.

    Args:
        columns_2xNxP: :func:`columns` of one forward, or (2, …, N, P) of many.
        cap: of the score.
        batch: sequences that they are of.
        heads: attention heads.
        seq: tokens of a sequence.
    """
    sums, maxima = columns_2xNxP
    tokens, pairs, n = batch * seq, causal_pairs(batch, heads, seq), len(SITES)
    largest = maxima[..., n : n + 1]
    if cap is not None:
        largest = torch.cat([largest, cap * torch.tanh(largest / cap)], dim=-1)
    norms = torch.stack([sums[..., :n] / tokens, maxima[..., :n]], dim=-1).sqrt()
    logits = torch.stack([largest, (sums[..., n:] / pairs).sqrt()], dim=-1)
    return torch.cat([norms.flatten(-2), logits.flatten(-2)], dim=-1)
