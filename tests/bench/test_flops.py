"""Model FLOPs against counts written out by hand and against the model's own matrices; peaks by device name."""

from __future__ import annotations

import pytest
import torch

from lrsweep.bench.flops import PEAK_FLOPS, flops_per_token, matrix_parameters, mfu, peak_flops
from lrsweep.config import Body, ModelShape, find_size
from lrsweep.model import GPT
from lrsweep.model.gpt import is_matrix
from lrsweep.schemes import all_schemes, find

SHAPE = ModelShape(n_layers=4, d_model=64, n_heads=2, seq_len=128, vocab_size=256)


def test_gpt_written_out() -> None:
    """Two FLOPs a multiply-add, one forward and two backward products; scores and mix over the causal half."""
    per_layer = 64 * 192 + 64 * 64 + 64 * 256 + 256 * 64  # QKV, Proj, FC1, FC2
    matrices = 4 * per_layer + 64 * 256
    pairs = 128 / 2  # causal keys that a token sees on average
    attention = 4 * 2 * (64 * pairs)  # layers; q·k and p·v
    assert flops_per_token(find("preln"), "gpt", SHAPE) == 3 * 2 * (matrices + attention) == 1_474_560


def test_llama_written_out() -> None:
    hidden = 192  # 8·64/3 = 170.7, rounded up to a multiple of 64
    per_layer = 64 * 192 + 64 * 64 + 2 * 64 * hidden + hidden * 64
    matrices = 4 * per_layer + 64 * 256
    assert flops_per_token(find("preln"), "llama", SHAPE) == 6 * matrices + 6 * 4 * 64 * 128 == 1_572_864


@pytest.mark.parametrize("body", ["gpt", "llama"])
@pytest.mark.parametrize("scheme", all_schemes(), ids=lambda s: s.name)
def test_every_matrix_but_the_embedding_counts(scheme, body: Body) -> None:  # type: ignore[no-untyped-def]
    with torch.device("meta"):
        model = GPT(scheme, body, SHAPE)
    matrices = {name: p.numel() for name, p in model.named_parameters() if is_matrix(p)}
    assert matrix_parameters(scheme, body, SHAPE) == sum(matrices.values()) - matrices["embedding"]


def test_attention_is_half_of_palms() -> None:
    """PaLM: 12·N·H·K·T a token for the full square; all that depends on T is attention."""
    scheme, shape = find("preln"), find_size("780m").shape
    matrices = 6 * matrix_parameters(scheme, "gpt", shape)
    palm = 12 * shape.n_layers * shape.n_heads * shape.d_head * shape.seq_len
    assert flops_per_token(scheme, "gpt", shape) - matrices == palm / 2


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H200", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("A100-SXM4-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA A10", 125),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA B200", 2250),
    ],
)
def test_peak_by_name(name: str, tera: float) -> None:
    assert peak_flops(name) == tera * 1e12


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA H100 NVL",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA GH200 480GB",
        "NVIDIA A10G",
        "NVIDIA L40",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "cpu, 1 thread",
    ],
)
def test_a_name_that_only_resembles_has_no_peak_and_no_mfu(name: str) -> None:
    assert peak_flops(name) is None
    assert mfu(1e6, 10**9, name) is None


def test_mfu_is_one_at_the_peak() -> None:
    for name, peak in PEAK_FLOPS.items():
        assert mfu(peak / 5e9, 5 * 10**9, f"NVIDIA {name}") == pytest.approx(1)
