"""Numbers in every spelling that a log may have."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrsweep.logs.numbers import NUMBER, number


@pytest.mark.parametrize("text", ["nan", "NaN", "-nan", "NAN", "1.#QNAN", "-1.#IND", "tensor(nan, device='cuda:0')"])
def test_nan(text: str) -> None:
    value = number(text)
    assert value is not None
    assert math.isnan(value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("inf", math.inf),
        ("-Infinity", -math.inf),
        ("+Inf", math.inf),
        ("1.#INF", math.inf),
        ("-1.#INF00", -math.inf),
        ("12,345", 12345.0),
        ("1,234,567.5", 1234567.5),
        (" 2.5 ", 2.5),
        ("2.198845E+00", 2.198845),
        ("-.5e-3", -0.0005),
        ("tensor(2.31, device='cuda:0')", 2.31),
        ("tensor(4.)", 4.0),
        (7, 7.0),
        (10**400, math.inf),
    ],
)
def test_finite_and_infinite(text: object, expected: float) -> None:
    assert number(text) == expected


@pytest.mark.parametrize(
    "text", ["", " ", "None", "null", "n/a", "nano", "info", "12,34", "3 apples", None, [1], "0x1f"]
)
def test_what_is_no_number_was_not_logged(text: object) -> None:
    assert number(text) is None


@given(st.floats())
def test_what_python_prints_is_read_back(value: float) -> None:
    for text in (repr(value), f"{value:e}", f"{value:G}"):
        found = number(text)
        assert found is not None
        assert math.isnan(found) if math.isnan(value) else math.isclose(found, value, rel_tol=1e-5)


@given(st.integers(0, 10**12))
def test_thousands_may_be_parted(value: int) -> None:
    assert number(f"{value:,}") == value
    assert re.fullmatch(NUMBER, f"{value:,}")


@given(st.floats(allow_nan=False), st.sampled_from([" ", ",", "|", ")", "ms", "%", "\n"]))
def test_the_expression_takes_the_whole_number_and_no_more(value: float, after: str) -> None:
    if math.isinf(value) and after == "ms":
        return  # «infms» is a word
    found = re.match(NUMBER, f"{value!r}{after} 5")
    assert found is not None
    assert found[0] == repr(value)
