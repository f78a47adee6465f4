"""Two real processes train as one does: over gloo, and over NCCL given two GPUs."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lrsweep.train.step import Engine, EngineKey
from tests.commands import two_ranks
from tests.train.two_ranks import CASES, case, network, run, state

Seen = dict[str, Any]


@pytest.fixture(scope="module", params=["cpu", "cuda"] if torch.cuda.device_count() >= 2 else ["cpu"])
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def both(device: str, root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Seen]:
    """What each rank saw."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    two_ranks("tests.train.two_ranks", str(folder), str(port), device, root=root, timeout=400)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def test_each_has_its_own_share(both: list[Seen]) -> None:
    assert [(seen["rank"], seen["size"], seen["share"]) for seen in both] == [(0, 2, range(3)), (1, 2, range(3, 6))]


def test_who_left_leaves_no_thread_of_the_group_behind(both: list[Seen]) -> None:
    for seen in both:
        assert not [name for name in seen["threads"] if "gloo" in name]


def test_sums_and_maxima_are_those_of_both_and_nan_is_never_lost(both: list[Seen]) -> None:
    nan, inf = np.nan, np.inf
    for seen in both:
        np.testing.assert_array_equal(seen["statistics"]["max"], [2, -3, nan, nan, nan, inf, -inf, nan])
        np.testing.assert_array_equal(seen["statistics"]["sum"], [3, -7, nan, nan, nan, inf, -inf, nan])


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("buckets", [True, False])
def test_gradients_are_those_of_the_whole_batch(both: list[Seen], micro_batches: int, buckets: bool) -> None:
    layers, _, _ = network(torch.device("cpu"))
    layers(torch.randn(8, 8, generator=torch.Generator().manual_seed(7))).square().sum().backward()
    expected = [p.grad.numpy() for p in layers.parameters() if p.grad is not None]
    for seen in both:
        found = seen[f"gradients {micro_batches} {buckets}"]
        for ours, whole in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, whole, rtol=1e-5, atol=1e-5)


def test_sent_early_or_at_the_end_they_are_bitwise_the_same(both: list[Seen]) -> None:
    for seen in both:
        for micro_batches in (1, 2):
            early, late = (seen[f"gradients {micro_batches} {buckets}"] for buckets in (True, False))
            assert all(np.array_equal(a, b) for a, b in zip(early, late, strict=True))


@pytest.mark.parametrize(("name", "train"), CASES, ids=[name for name, _ in CASES])
def test_an_engine_on_two_ranks_does_what_it_does_alone(
    both: list[Seen], device: str, name: str, train: dict[str, Any]
) -> None:
    engine = Engine(EngineKey.of(case(name, train, device)))
    alone = run(engine)
    scalars, layers, *after = both[0]["engines"][name]
    assert scalars[:, 0].min() < scalars[0, 0] - 0.01  # it learns
    np.testing.assert_allclose(scalars, alone.scalars_RxS, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(layers, alone.layers_RxNxS, rtol=1e-4, atol=1e-5)
    for found, expected in zip(after, state(engine), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_the_ranks_agree_bitwise(both: list[Seen], device: str) -> None:
    for name, _ in CASES:
        *pairs, (ours, theirs) = zip(*(seen["engines"][name] for seen in both), strict=True)
        for mine, others in pairs:
            np.testing.assert_array_equal(mine, others)
        # Buffers are σReparam's vectors, which each rank has of the same weights: on a GPU the compiler times several
        # kernels, and two ranks need not choose the same.
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=0 if device == "cpu" else 1e-6)


def test_a_nan_on_one_rank_is_guarded_on_both(both: list[Seen]) -> None:
    for seen in both:
        scalars, layers = seen["engines"]["nan"]
        assert np.isnan(scalars[0, 0])
        assert scalars[0, 4] == 1
        assert np.isnan(layers).all()
