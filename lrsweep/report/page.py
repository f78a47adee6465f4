"""The report as one self-contained page: no script, nothing loaded from anywhere, readable on a phone and in
the dark.
"""

from __future__ import annotations

import base64
import json
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

from lrsweep.analysis import GridAdvice, worth_trying
from lrsweep.report.labels import format_lr
from lrsweep.report.page_text import CSS, DEFINITIONS
from lrsweep.report.tables import TextTable


@dataclass(frozen=True, slots=True, kw_only=True)
class Illustration:
    """A figure on disk, with its words."""

    section: str
    """Title of the body and size it belongs to."""
    heading: str
    """What it shows."""
    caption: str
    """How to read it."""
    folded: bool
    """Whether it is shown on demand only."""
    width: float
    """In inches."""
    files: Mapping[str, Path]
    """Suffix → path; one of ``svg`` and ``png`` is shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PageContent:
    """All that the page shows."""

    manifest: Mapping[str, Any]
    """Of the sweep; any keys, in this order, none needed."""
    frontier: TextTable
    """The frontier."""
    brackets: TextTable
    """Brackets of the seeds."""
    trials: TextTable
    """Every trial with its outcome, which is the column ``outcome``."""
    leads: TextTable
    """What left the siblings' band first, by scheme; left out without a row."""
    exits: TextTable
    """The same, by trial."""
    spikes: TextTable
    """Spike scores by scheme and LR; left out without a row."""
    advice: tuple[GridAdvice, ...]
    """Learning rates to try next."""
    illustrations: tuple[Illustration, ...]
    """In order; those of one section follow each other."""


def render_page(content: PageContent) -> str:
    """The page as well-formed HTML that an XML parser reads too."""
    command = content.manifest.get("command")
    parts = [
        "<h1>Learning-rate stability</h1>",
        f"<p>{escape(_lead(content))}</p>",
        f"<pre>{escape(_command(command))}</pre>" if command else "",
        '<h2 id="frontier">Frontier</h2>',
        _table(content.frontier),
        _advice(content.advice),
        *(_section(title, group) for title, group in groupby(content.illustrations, key=lambda i: i.section)),
        *_with_details("first", "What moved first", content.leads, "Each unstable trial", content.exits),
        *_with_details("spikes", "Spikes", None, "By learning rate", content.spikes),
        '<h2 id="seeds">Brackets of the seeds</h2>',
        _table(content.brackets),
        '<h2 id="trials">All trials</h2>',
        _table(content.trials),
        '<h2 id="definitions">Definitions</h2>',
        _definitions(DEFINITIONS),
        '<h2 id="run">What was run</h2>' if content.manifest else "",
        _definitions((key, _value(value)) for key, value in content.manifest.items()),
    ]
    body = "\n".join(part for part in parts if part)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8" />\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1" />\n'
        f"<title>Learning-rate stability</title>\n<style>{CSS}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _lead(content: PageContent) -> str:
    at = content.trials.header.index("outcome")
    outcomes = Counter(row[at] for row in content.trials.rows)
    failed = outcomes.pop("error", 0)
    counts = ", ".join(f"{n} {outcome}" for outcome, n in outcomes.most_common())
    lead = f"{_count(sum(outcomes.values()), 'trial')}{': ' if counts else ''}{counts}."
    return f"{lead} {failed} more failed by a fault of the program or machine and count in nothing." if failed else lead


def _section(title: str, illustrations: Iterable[Illustration]) -> str:
    parts = [f"<h2>{escape(title)}</h2>"]
    for folded, group in groupby(illustrations, key=lambda i: i.folded):
        figures = [_figure(illustration) for illustration in group]
        if folded:
            parts += [f"<details><summary>{_count(len(figures), 'more figure')}</summary>", *figures, "</details>"]
        else:
            parts += figures
    return "\n".join(parts)


def _figure(illustration: Illustration) -> str:
    heading, caption = escape(illustration.heading), escape(illustration.caption)
    svg, png = illustration.files["svg"].read_bytes(), illustration.files["png"].read_bytes()
    # The drawing scales, but one with very many points is better shown as a picture.
    kind, content = ("svg+xml", svg) if len(svg) <= 2 * len(png) else ("png", png)
    source = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    image = f'<img src="{source}" alt="{heading}" style="width: {96 * illustration.width:.0f}px" />'
    return (
        f'<figure>\n<h3>{heading}</h3>\n<div class="wide">{image}</div>\n<figcaption>{caption}</figcaption>\n</figure>'
    )


def _table(table: TextTable) -> str:
    def row(cells: Iterable[str], tag: str) -> str:
        inner = "".join(
            f"<{tag}{_cell_class(table, i, cell if tag == 'td' else '')}>{escape(cell)}</{tag}>"
            for i, cell in enumerate(cells)
        )
        return f"<tr>{inner}</tr>"

    head = row(table.header, "th")
    rows = "\n".join(row(cells, "td") for cells in table.rows)
    return f'<div class="wide"><table>\n<thead>{head}</thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>'


def _with_details(name: str, heading: str, shown: TextTable | None, summary: str, folded: TextTable) -> list[str]:
    """A heading, a table, and another one on demand; nothing where there are no rows."""
    if not (folded.rows or (shown is not None and shown.rows)):
        return []
    parts = [f'<h2 id="{name}">{heading}</h2>', "" if shown is None else _table(shown)]
    if folded.rows:
        parts.append(f"<details><summary>{summary}</summary>\n{_table(folded)}</details>")
    return parts


def _cell_class(table: TextTable, column: int, cell: str) -> str:
    name = table.header[column]
    if name in ("outcome", "reason"):
        return f' class="{escape(cell) if name == "outcome" else name}"'
    return "" if column < table.labels else ' class="number"'


def _advice(advice: Iterable[GridAdvice]) -> str:
    items = [
        f"<li><b>{escape(a.scheme)}</b> ({escape(a.body)} {escape(a.size)}): {a.why}: "
        f"{', '.join(map(format_lr, a.lrs))}</li>"
        for a in worth_trying(advice)
    ]
    if not items:
        return ""
    return f"<details><summary>Learning rates to try next</summary>\n<ul>{''.join(items)}</ul></details>"


def _definitions(pairs: Iterable[tuple[str, str]]) -> str:
    items = "\n".join(f"<dt>{escape(term)}</dt>\n<dd>{escape(text)}</dd>" for term, text in pairs)
    return f"<dl>\n{items}\n</dl>" if items else ""


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _command(command: Any) -> str:
    return command if isinstance(command, str) else shlex.join(map(str, command))


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1)
