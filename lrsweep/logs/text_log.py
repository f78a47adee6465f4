"""Text logs: whatever prints names beside numbers, a line a step.

Covers Megatron-LM and its descendants, torchtitan, nanoGPT, nanochat, llm.c, modded-nanogpt, build-nanogpt, MLPerf
and the plain ``print(f"step {step}: loss {loss}")``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator

from lrsweep.logs.columns import Record
from lrsweep.logs.json_log import flat
from lrsweep.logs.names import NAMES, words
from lrsweep.logs.numbers import NUMBER, number

_WORD = r"[A-Za-z_][\w./-]*+"
_PAIR = re.compile(
    # A name is one word or several, as in «lm loss»; but «loss nan» is a name and its value.
    rf"({_WORD}(?: (?![nNiI][aAnN][nNfF](?:inity)?\b(?! iterations)){_WORD})*+)"
    r"(?:['\"]?[:=\s][:=\s\[('\"]*+(?:tensor\()?"
    rf"({NUMBER}))?+",  # words without a number are matched too, lest the search begin anew at each of their letters
    re.ASCII,
)
_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_RANK = re.compile(r"\s*(?:\[(?:rank|default)?(\d+)\]:|(\d+): |\[\d+,(\d+)\]<std(?:out|err)>:)")
_COUNT = re.compile(
    r"^[\d\s.:,-]*?(?<!\S)(\d[\d,]*)(?:/\d+\s|:? +(?=[A-Za-z]))"  # at the start, behind a time at most
    r"|\b(\d+)/\d+ \[\d+:\d\d"  # in a tqdm bar
)
_BARE = re.compile(rf"\s*(\d+) (train|val) ({NUMBER})$")
_SKIPPED, _NAN = "number of skipped iterations", "number of nan iterations"

Pairs = list[tuple[str, object]]


def text_records(lines: Iterable[str], notes: list[str]) -> Iterator[Record]:
    """One record for each line with a name beside a number.

    The rank in front of a line is its ``rank``; a number there, as in ``500/20000 train_loss: 2.3`` or ``500: loss
    2.3``, or the one in a tqdm bar, is its ``count``.
    """
    loss_name, hidden = "lm loss", 0
    for line in lines:
        if "\x1b" in line:
            line = _ANSI.sub("", line)
        pairs = _mllog(line) if ":::MLLOG" in line else _pairs(line)
        if not pairs:
            continue
        if _SKIPPED in line:
            logged = next((name for name, _ in pairs if words(name) in NAMES["loss"]), None)
            if logged is not None:
                loss_name = logged
            elif _left_out_nan(dict(pairs)):
                pairs.append((loss_name, math.nan))
                hidden += 1
        rank = _RANK.match(line)
        if rank is not None:
            pairs.append(("rank", rank[rank.lastindex or 0]))
        yield pairs
    if hidden:
        notes.append(f"{hidden} iterations without a loss are read as NaN: Megatron-LM leaves a NaN loss out")


def _pairs(line: str) -> Pairs:
    bare = _BARE.match(line)
    if bare is not None:
        return [("step", bare[1]), (f"{bare[2]} loss", bare[3])]
    pairs: Pairs = [pair for pair in _PAIR.findall(line) if pair[1]]
    count = _COUNT.search(line) if pairs else None
    if count is not None:
        pairs.append(("count", count[1] or count[2]))
    return pairs


def _left_out_nan(record: dict[str, object]) -> bool:
    """Whether a line of Megatron-LM that shows no loss had NaN for one.

    ``training_log`` prints a loss only if it is above 0, which NaN is not. An iteration skipped for overflow has none
    either; it is counted as skipped, and as nan only if its loss was the cause.
    """
    return number(record[_SKIPPED]) == 0 or (number(record.get(_NAN)) or 0) > 0


def _mllog(line: str) -> Pairs:
    """``:::MLLOG {"key": …, "value": …, "metadata": {…}}`` of MLPerf: the value, or what it holds, and the metadata."""
    try:
        entry = json.loads(line[line.index("{") :])
        return [*flat({entry["key"]: entry["value"]}), *flat(entry["metadata"])]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []
