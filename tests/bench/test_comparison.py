"""lrsweep beside its peers, on timings made by hand, and the tables' cells."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from importlib.util import find_spec
from json import dumps

import pytest
from rich.console import Console
from rich.table import Table

from lrsweep.bench.comparison import compare, installed_peers
from lrsweep.bench.job import Timing
from lrsweep.bench.kernels import GROUPS, OTHER
from lrsweep.bench.rounds import Ratio
from lrsweep.bench.table import kernel_table, peers_note, peers_table, ratio_table, speed_table

OURS = Timing(
    system="lrsweep",
    version="1",
    scheme="preln",
    body="llama",
    size="780m",
    device="NVIDIA H200",
    n_params=780_215_808,
    step_ms={"bare": 90.0, "norms": 91.0, "all": 100.0, "eager": 110.0},
    tokens_per_s=163_840.0,
    flops_per_token=5 * 10**9,
    mfu=0.828,
    first_step_s=10.0,
    next_trial_s=0.25,
    allocated_gib=40.0,
    reserved_gib=50.0,
    ratios={
        "norms/bare": Ratio(median=1.01, low=1.0, high=1.02),
        "all/bare": Ratio(median=1.111, low=1.1, high=1.12),
        "eager/captured": Ratio(median=1.1, low=1.09, high=1.11),
    },
    kernel_ms=dict.fromkeys(GROUPS, 5.0) | {OTHER: 45.0},
)
PEER = replace(OURS, step_ms={"bare": 125.0}, first_step_s=40.0, next_trial_s=None, ratios={}, kernel_ms={})
CPU = replace(OURS, device="cpu, 1 thread", mfu=None, allocated_gib=None, reserved_gib=None, kernel_ms={})


def shown(table: Table) -> list[list[str]]:
    console = Console(width=400)
    with console.capture() as captured:
        console.print(table)
    return [[c.strip() for c in line.split("  ") if c.strip()] for line in captured.get().splitlines()]


def test_ratios_are_to_the_best_peer_in_each_figure() -> None:
    """Ours: 105 ms and 12 s in the mean; best of the peers 125 ms, and 30 s by the other."""
    slow = replace(PEER, system="litgpt", step_ms={"bare": 150.0}, first_step_s=30.0)
    after = replace(OURS, step_ms={"bare": 95.0, "all": 110.0}, first_step_s=14.0)
    found = compare(OURS, [replace(PEER, system="transformers"), slow], after)
    assert [run.system for run in found.runs] == ["lrsweep", "transformers", "litgpt", "lrsweep"]
    assert found.step_over_peer == pytest.approx(105 / 125)
    assert found.first_step_over_peer == pytest.approx(12 / 30)
    assert found.drift == pytest.approx(1.1)
    assert "step 0.840, first step 0.400" in peers_note(found)


def test_another_number_of_parameters_is_another_model() -> None:
    with pytest.raises(AssertionError):
        compare(OURS, [replace(PEER, n_params=PEER.n_params + 1)], OURS)


def test_a_timing_survives_its_json() -> None:
    assert Timing.from_json(dumps(asdict(OURS))) == OURS


def test_speed_table_leaves_out_what_a_cpu_does_not_have() -> None:
    head, row = shown(speed_table([OURS]))
    assert dict(zip(head, row, strict=True)) == {
        "scheme": "preln",
        "size": "780m",
        "parameters": "780.22M",
        "bare step": "90.00 ms",
        "all probes": "100.00 ms",
        "tokens/s": "163,840",
        "MFU": "0.828",
        "first step": "10.0 s",
        "next trial": "0.25 s",
        "memory": "40.0 (50.0) GiB",
    }
    assert set(head) - set(shown(speed_table([CPU]))[0]) == {"MFU", "memory"}


def test_ratio_and_peers_tables() -> None:
    assert shown(ratio_table([OURS]))[1] == [
        "preln",
        "780m",
        "1.010 (1.000 to 1.020)",
        "1.111 (1.100 to 1.120)",
        "1.100 (1.090 to 1.110)",
    ]
    rows = shown(peers_table(compare(OURS, [replace(PEER, system="litgpt")], OURS)))
    assert [row[:3] for row in rows[1:3]] == [["lrsweep 1", "780m", "100.00 ms"], ["litgpt 1", "780m", "125.00 ms"]]


def test_kernel_table_holds_parts_of_the_whole() -> None:
    """Of each group 5 ms, of others 45 ms; one that a row lacks is left empty, one that all lack is left out."""
    head, *rows = shown(kernel_table([OURS, replace(OURS, kernel_ms={"products": 3.0, "loss": 1.0})]))
    assert head == ["scheme", "size", *GROUPS, OTHER]
    whole = 5 * len(GROUPS) + 45
    parts = [f"{ms / whole:.1%}" for ms in (*[5] * len(GROUPS), 45)]
    assert rows == [["preln", "780m", *parts], ["preln", "780m", "75.0%", "25.0%"]]
    assert shown(kernel_table([replace(OURS, kernel_ms={"products": 3.0})]))[0] == ["scheme", "size", "products"]


def test_a_peer_that_is_not_installed_has_a_line_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "litgpt", None)  # what Python itself takes for "cannot be imported"
    assert find_spec("transformers") is not None
    assert installed_peers() == (["transformers"], ["litgpt left out: it is not installed (pip install litgpt)"])
