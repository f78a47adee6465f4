"""Each snippet of docs/probes.md runs by itself, and its table of known names is the code's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from lrsweep.probes.layers import KNOWN

PAGE = (Path(__file__).parents[2] / "docs" / "probes.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_snippet_runs(snippet: str, capsys: pytest.CaptureFixture[str]) -> None:
    torch.compiler.reset()
    exec(snippet, {"__name__": "snippet"})
    assert capsys.readouterr().out


def test_the_table_of_known_names_is_complete() -> None:
    """Every name of the code stands in its site's column, braces spelled out, and no other."""
    rows = re.findall(
        r"^\|(?! \|)(?!-)(.*)\|$", PAGE.split("## Which models are known")[1].split("\n\n")[1], flags=re.M
    )
    columns = zip(*(row.split("|")[1:] for row in rows), strict=True)
    for site, column in zip(("qkv", "proj", "fc1", "fc2"), columns, strict=True):
        told: set[tuple[str, ...]] = set()
        for name in re.findall(r"`([^`]+)`", " ".join(column)):
            inside = re.search(r"\{(.*)\}", name)
            told.add(tuple(name.replace(inside[0], part) for part in inside[1].split(",")) if inside else (name,))
        assert told == set(KNOWN[site])
