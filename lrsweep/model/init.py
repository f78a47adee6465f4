"""Initial weights: a standard deviation for each site, by the name that a scheme's row gives its init.

================  ==============================================================================================
``gpt2``          N(0, 0.02²); Proj and FC2 times 1/√(2N), N layers (GPT-2)
``normal``        N(0, 0.02²) (OLMo 2, arXiv 2501.00656)
``small``         N(0, 2/(5d)); Proj and FC2 times 1/√(2N) (Spike No More, arXiv 2312.16903, section 2)
``xavier``        N(0, 2/(n_in + n_out)), n_out of each part of a fused matrix (Glorot & Bengio, 2010)
``post_norm``     Xavier; embedding N(0, 1)
``deepnorm``      Xavier; FC1, FC2, Proj and V divided by (8N)^¼; embedding N(0, 1) (DeepNet, arXiv 2203.00555)
``simplegpt``     N(0, 0.02²); Proj, FC2 and SwiGLU's up half N(0, 0.02²/(2(l+1))) in layer l from 0 on; head
                  N(0, 1/d) cut at 3 σ; embedding N(0, 1) (SimpleGPT, arXiv 2602.01212)
``unit``          rows of length 1 (nGPT, anGPT)
================  ==============================================================================================

Gains are set by the ``start`` of their modules. Each matrix is drawn from a stream of its own, a very large one from
several, keyed by the seed and its name and made on the CPU: schemes share initial weights wherever names and shapes
agree, on every device, and the inits differ in scale alone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

WEIGHT_STD = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A matrix, or a part of a fused one, as an init sees it."""

    kind: str
    """``embedding``, ``q``, ``k``, ``v``, ``proj``, ``fc1``, ``up``, ``fc2`` or ``head``."""
    n_in: int
    """Inputs; for the embedding V."""
    n_out: int
    """Outputs; for the embedding d."""
    layer: int
    """0-based; 0 for embedding and head."""
    n_layers: int
    """Layers of the model."""
    d_model: int
    """Width of the stream."""


def _into_stream(site: Site) -> bool:
    return site.kind in ("proj", "fc2")


def _gpt2(site: Site) -> float:
    return WEIGHT_STD / math.sqrt(2 * site.n_layers) if _into_stream(site) else WEIGHT_STD


def _normal(site: Site) -> float:
    return WEIGHT_STD


def _small(site: Site) -> float:
    std = math.sqrt(2 / (5 * site.d_model))
    return std / math.sqrt(2 * site.n_layers) if _into_stream(site) else std


def _xavier(site: Site) -> float:
    return math.sqrt(2 / (site.n_in + site.n_out))


def _post_norm(site: Site) -> float:
    return 1.0 if site.kind == "embedding" else _xavier(site)


def _deepnorm(site: Site) -> float:
    divided = site.kind in ("v", "proj", "fc1", "up", "fc2")
    std: float = _post_norm(site) / ((8 * site.n_layers) ** 0.25 if divided else 1.0)
    return std


def _simplegpt(site: Site) -> float:
    if site.kind in ("proj", "fc2", "up"):
        return WEIGHT_STD / math.sqrt(2 * (site.layer + 1))
    return {"embedding": 1.0, "head": 1 / math.sqrt(site.d_model)}.get(site.kind, WEIGHT_STD)


def _unit(site: Site) -> float:
    return 1.0  # of no account: rows are brought to length 1 afterwards


STDS: dict[str, Callable[[Site], float]] = {
    "gpt2": _gpt2,
    "normal": _normal,
    "small": _small,
    "xavier": _xavier,
    "post_norm": _post_norm,
    "deepnorm": _deepnorm,
    "simplegpt": _simplegpt,
    "unit": _unit,
}
"""Standard deviation of a site, by the name of the init."""


def sites(name: str, shape: torch.Size, *, gated: bool, n_layers: int, d_model: int) -> Iterator[Site]:
    """The parts of the matrix ``name``, in the order of its rows; together they make up all rows."""
    n_out, n_in = shape
    layer = int(name.split(".")[1]) if name.startswith("blocks.") else 0
    owner = name.split(".")[-2] if "." in name else name
    kinds = {"qkv": ("q", "k", "v"), "fc1": ("fc1", "up") if gated else ("fc1",)}.get(owner, (owner,))
    if owner == "embedding":
        n_out, n_in = n_in, n_out
    for kind in kinds:
        yield Site(kind=kind, n_in=n_in, n_out=n_out // len(kinds), layer=layer, n_layers=n_layers, d_model=d_model)


_STREAM = 2**26
"""Numbers of one random stream; a stream is drawn by one core, so the vocabulary of a large model takes several."""


def draw(name: str, shape: torch.Size, seed: int, *, cut: float | None = None) -> Tensor:
    """Standard normal numbers, or those cut at ``cut`` σ, that depend on ``seed``, ``name`` and ``shape`` alone."""
    values = torch.empty(shape)
    parts = torch.split(values.view(-1), _STREAM)

    def fill(i: int) -> None:
        stream = f"{seed}/{name}" if i == 0 else f"{seed}/{name}/{i}"
        digest = hashlib.sha256(stream.encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        if cut is None:
            parts[i].normal_(generator=generator)
        else:
            torch.nn.init.trunc_normal_(parts[i], a=-cut, b=cut, generator=generator)

    if len(parts) > 1:
        with ThreadPoolExecutor() as pool:
            list(pool.map(fill, range(len(parts))))
    else:
        fill(0)
    return values
