"""Paired rounds and their summary, on times made by hand."""

from __future__ import annotations

import pytest

from lrsweep.bench.rounds import paired_rounds, ratio, steps_a_round


def test_ratio_is_of_pairs_not_of_medians() -> None:
    """The machine slows down fivefold halfway; the variant always takes 10% more."""
    base = [1.0, 1.0, 1.0, 5.0, 5.0, 5.0]
    found = ratio([1.1 * s for s in base], base)
    assert (found.low, found.median, found.high) == pytest.approx((1.1, 1.1, 1.1))


def test_ratio_holds_the_quartiles() -> None:
    found = ratio([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], [1.0] * 7)
    assert (found.low, found.median, found.high) == (2, 4, 6)


def test_every_variant_runs_once_a_round_and_comes_after_every_other() -> None:
    calls: list[str] = []
    variants = {name: lambda name=name: calls.append(name) for name in "abc"}
    seconds = paired_rounds(variants, 6, "cpu")
    assert calls[:3] == ["a", "b", "c"], "one run of each that does not count"
    rounds = [tuple(calls[i : i + 3]) for i in range(3, len(calls), 3)]
    assert rounds == [tuple(order) for order in ("abc", "bca", "cab", "cba", "acb", "bac")]
    assert {name: len(found) for name, found in seconds.items()} == {"a": 6, "b": 6, "c": 6}


def test_a_round_lasts_a_quarter_of_a_second_within_bounds() -> None:
    assert [steps_a_round(s) for s in (1e-4, 0.0125, 0.025, 0.05, 2.0)] == [20, 20, 10, 5, 5]
