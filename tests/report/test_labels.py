"""Numbers as text."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrsweep.report.labels import bracket_text, format_lr, lr50_text, size_order

NAN = math.nan


@pytest.mark.parametrize(
    ("lr", "text"),
    [
        (1e-3, "1e-3"),
        (3e-3, "3e-3"),
        (1.6e-2, "0.016"),
        (0.03, "0.03"),
        (0.3, "0.3"),
        (1.024, "1.024"),
        (3.0, "3"),
        (100.0, "100"),
        (1000.0, "1e3"),
        (6.25e-4, "6.25e-4"),
        (NAN, "—"),
        (math.inf, "—"),
    ],
)
def test_format_lr(lr, text):
    assert format_lr(lr) == text


@given(st.floats(1e-12, 1e12))
def test_format_lr_keeps_four_digits(lr):
    assert float(format_lr(lr)) == pytest.approx(lr, rel=1e-3)


def test_brackets():
    assert bracket_text(0.1, 0.3) == "0.1 … 0.3"
    assert bracket_text(3.0, NAN) == "> 3"
    assert bracket_text(NAN, 1e-3) == "< 1e-3"
    assert bracket_text(NAN, NAN) == "—"


def test_lr50():
    assert lr50_text(0.1732, 0.0912, 0.314) == "0.17 [0.091, 0.31]"
    assert lr50_text(NAN, 3.0, NAN) == "> 3"
    assert lr50_text(NAN, NAN, 1e-3) == "< 1e-3"
    assert lr50_text(NAN, NAN, NAN) == "—"


def test_sizes_are_ordered_by_their_parameters():
    assert sorted(["10m", "odd", "780m", "0.2m", "1.3b", "2M"], key=size_order) == [
        "0.2m",
        "2M",
        "10m",
        "780m",
        "1.3b",
        "odd",
    ]
