"""docs/performance.md: its commands run, its columns are the tables', its links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from lrsweep.bench.table import kernel_table, ratio_table, speed_table
from tests.bench.test_comparison import OURS
from tests.commands import lrsweep

FILE = Path(__file__).parents[2] / "docs" / "performance.md"
PAGE = FILE.read_text(encoding="utf-8")


@pytest.mark.parametrize("line", "".join(re.findall(r"```sh\n(.*?)```", PAGE, flags=re.S)).splitlines())
def test_command_runs(line: str, tmp_path: Path) -> None:
    """At the smallest size and with one scheme; of flags given twice the last one counts."""
    program, *words = shlex.split(line)
    assert program == "lrsweep"
    result = lrsweep(*words, "--size", "0.2m", "--arch", "preln", "--rounds", "2", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / words[words.index("--out") + 1]).exists()


def test_every_column_is_explained() -> None:
    named = re.findall(r"^\| `(.+?)` \|", PAGE, flags=re.M)
    tables = speed_table([OURS]), ratio_table([OURS]), kernel_table([OURS])
    columns = [str(column.header) for table in tables for column in table.columns]
    assert named == [name for name in columns if name not in ("scheme", "size")]


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", PAGE):
        assert (FILE.parent / target).exists(), target
