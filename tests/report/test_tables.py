"""Tables as CSV, Markdown, LaTeX, and on a terminal."""

import io

import duckdb
import pandas as pd
from rich.console import Console

from lrsweep.analysis import FRONTIER_COLUMNS, brackets, frontier, judge
from lrsweep.report import brackets_text, frontier_text, to_rich
from lrsweep.report.tables import TextTable, display_order, to_csv, to_latex, to_markdown, trials_text
from tests.analysis.tables import make_curve, make_trials

TRIALS = pd.concat(
    [
        make_curve({0.01: 2.5, 0.1: 2.0, 1.0: 2.1}, scheme="qknorm"),
        make_curve({0.01: 2.25, 0.1: 2.0, 1.0: 2.6}, scheme="preln"),
        make_curve({0.01: "nonfinite"}, scheme="a_b", size="2m"),
        make_curve({0.01: 2.0}, scheme="preln", size="10m"),
    ]
)


def test_frontier_cells():
    table = frontier_text(frontier(TRIALS, 0.25))
    assert [row[0] for row in table.rows] == ["preln", "qknorm", "a_b", "preln"]
    assert [row[2] for row in table.rows] == ["0.2m", "0.2m", "2m", "10m"]
    cells = [dict(zip(table.header, row, strict=True)) for row in table.rows]
    assert [c["max stable LR"] for c in cells] == ["0.1 … 1", "> 1", "< 0.01", "> 0.01"]
    assert [c["at 2ε"] for c in cells] == ["0.1 … 1", "> 1", "< 0.01", "> 0.01"]
    (lenient,) = frontier_text(frontier(TRIALS[TRIALS["size"] == "0.2m"].iloc[3:], 0.4)).rows
    assert lenient[table.header.index("max stable LR")] == "0.1 … 1"
    assert lenient[table.header.index("at 2ε")] == "> 1"
    assert [c["best loss @ LR"] for c in cells] == ["2.000 @ 0.1", "2.000 @ 0.1", "—", "2.000 @ 0.01"]
    assert {c["ε (nats)"] for c in cells} == {"0.25"}
    assert cells[0]["LR sensitivity"] == f"{(0.25 + 0 + 0.6) / 3:.3f}"
    assert cells[2]["LR sensitivity"] == "—"


def test_trials_say_what_their_siblings_show():
    table = trials_text(judge(TRIALS, 0.25))
    cells = [dict(zip(table.header, row, strict=True)) for row in table.rows]
    by = {(c["scheme"], c["size"], c["LR"]): c for c in cells}
    assert by["preln", "0.2m", "1"]["outcome"] == "degraded"
    assert by["preln", "0.2m", "1"]["reason"] == "ended 0.600 nats above its best sibling"
    assert by["qknorm", "0.2m", "0.01"]["outcome"] == "undertrained"
    assert by["a_b", "2m", "0.01"]["final loss"] == "—"
    assert by["a_b", "2m", "0.01"]["onset"] == "—"
    assert len(cells) == len(TRIALS)


def test_csv_is_numeric_to_pandas_and_duckdb_even_without_a_value(tmp_path):
    table = frontier(make_curve({0.1: "nonfinite"}), 0.25)
    path = tmp_path / "frontier.csv"
    path.write_text(to_csv(table))
    pd.testing.assert_frame_equal(pd.read_csv(path), table)
    types = duckdb.sql(f"describe select * from '{path}'").df().set_index("column_name")["column_type"]
    assert list(types.index) == list(FRONTIER_COLUMNS)
    assert set(types[["max_stable_lr", "lr50", "best_loss", "lr_sensitivity"]]) == {"DOUBLE"}


def test_csv_keeps_every_digit():
    values = [1 / 3, 0.1 + 0.2, 1e-17]
    assert [float(line) for line in to_csv(pd.DataFrame({"x": values})).splitlines()[1:]] == values


def test_markdown():
    table = TextTable(header=("name", "x"), rows=(("a|b", "1"),), labels=1)
    assert to_markdown(table) == "| name | x |\n| :-- | --: |\n| a\\|b | 1 |\n"


def test_latex_escapes_and_is_a_booktabs_table():
    table = TextTable(header=("name", "ε"), rows=((r"a_b & 100% \x {~^#$}", "> 3 … —"), ("c", "< 1")), labels=1)
    lines = to_latex(table).splitlines()
    assert lines[1:4] == [r"\begin{tabular}{lr}", r"\toprule", r"name & $\varepsilon$ \\"]
    assert lines[5] == (
        r"a\_b \& 100\% \textbackslash{}x \{\textasciitilde{}\textasciicircum{}\#\$\} & $>$ 3 \ldots{} -- \\"
    )
    assert lines[4] == r"\midrule"
    assert lines[7:] == [r"\bottomrule", r"\end{tabular}"]


def test_the_terminal_table_fits_80_columns_and_names_epsilon():
    console = Console(width=80, record=True, file=io.StringIO())
    seeds = [make_curve({1e-3: 2.0, 0.1: 2.0, 1.0: 2.6}, scheme="sigma_reparam", seed=i) for i in (0, 1)]
    wide = [*seeds, *(seed.assign(scheme="preln") for seed in seeds)]
    console.print(to_rich(frontier_text(frontier(pd.concat(wide), 0.25)), title="Frontier"))
    text = console.export_text()
    assert "Frontier · gpt · 0.2m · seeds 2 · ε 0.25 nats" in text
    assert "same" not in text  # the same-batch rate has no room; it is on the page and in the files
    (row,) = [line for line in text.splitlines() if "sigma_reparam" in line]
    assert "0.1 … 1" in row
    assert "2.000 @ 1e-3" in row
    assert max(map(len, text.splitlines())) <= 80


def test_the_terminal_table_keeps_columns_that_vary_and_survives_no_rows():
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(to_rich(brackets_text(brackets(TRIALS, {"0.2m": 0.25, "2m": 0.5, "10m": 0.5})), title="Brackets"))
    text = console.export_text()
    assert "ε (nats)" in text
    assert "Brackets · gpt\n" in "\n".join(line.rstrip() for line in text.splitlines())
    console.print(to_rich(frontier_text(frontier(make_trials([]), 0.25)), title="none"))


def test_display_order_keeps_ties():
    table = pd.DataFrame({"scheme": ["b", "preln", "b"], "body": "gpt", "size": ["2m", "10m", "2m"], "x": [1, 2, 3]})
    assert display_order(table)["x"].tolist() == [1, 3, 2]
