"""docs/detector.md: snippets run and print what they say, the table is the configuration, links lead somewhere."""

import contextlib
import io
import re
from dataclasses import fields
from pathlib import Path

import pytest

from lrsweep.detect import DetectorConfig
from lrsweep.detector_bench.rules import RULES

PAGE = Path(__file__).parents[2] / "docs" / "detector.md"
TEXT = PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("snippet", re.findall(r"```python\n(.*?)```", TEXT, flags=re.S))
def test_snippets_print_what_their_comments_say(snippet):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(snippet, {})
    assert printed.getvalue().splitlines() == re.findall(r"^print\(.*\)  # (.*)$", snippet, flags=re.M)
    assert printed.getvalue()


def test_the_table_holds_every_field_and_its_default():
    table = re.findall(r"^\| `(\w+)` \| ([\w.]+) \|", TEXT, flags=re.M)
    assert table == [(field.name, str(getattr(DetectorConfig(), field.name))) for field in fields(DetectorConfig)]


def test_the_measured_table_names_every_rule():
    lines = [line.split(" | ")[0].removeprefix("| ") for line in TEXT.splitlines() if line.startswith("| ")]
    assert [line for line in lines if line in RULES] == list(RULES)


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT):
        assert (PAGE.parent / target).exists(), target
