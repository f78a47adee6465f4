"""The page: well-formed, self-contained, everything escaped, and nothing needed from the manifest."""

import re
import xml.etree.ElementTree as ET

import pytest

from lrsweep.analysis import GridAdvice
from lrsweep.report.page import Illustration, PageContent, render_page
from lrsweep.report.tables import TextTable

EVIL = '</pre><script>alert("&")</script>'
TABLE = TextTable(
    header=("scheme", "outcome", "LR", "reason"), rows=((EVIL, "stable", "1", EVIL), ("b", "error", "1", "")), labels=2
)


def content(tmp_path, **changes) -> PageContent:
    (tmp_path / "f.svg").write_bytes(b"<svg/>")
    (tmp_path / "f.png").write_bytes(b"png")
    figure = Illustration(
        section=EVIL,
        heading=EVIL,
        caption=EVIL,
        folded=False,
        width=7.2,
        files={"svg": tmp_path / "f.svg", "png": tmp_path / "f.png"},
    )
    fields = {
        "manifest": {"command": ["lrsweep", "sweep", EVIL], "config": {EVIL: [1, None]}, EVIL: EVIL},
        "frontier": TABLE,
        "brackets": TABLE,
        "trials": TABLE,
        "leads": TABLE,
        "exits": TABLE,
        "spikes": TABLE,
        "advice": (GridAdvice(scheme=EVIL, body="gpt", size="2m", where="above", lrs=(1.0, 3.0)),),
        "illustrations": (figure,),
    }
    return PageContent(**{**fields, **changes})


def parse(page: str) -> ET.Element:
    return ET.fromstring(page)


def test_well_formed_and_escaped(tmp_path):
    page = render_page(content(tmp_path))
    root = parse(page)
    assert root.tag == "html"
    assert not list(root.iter("script"))
    for tag in ("pre", "h3", "figcaption", "td", "dd", "dt", "b"):
        assert any(EVIL in "".join(e.itertext()) for e in root.iter(tag)), tag
    assert root.find(".//img").get("alt") == EVIL


def test_nothing_is_loaded_from_anywhere(tmp_path):
    page = render_page(content(tmp_path, manifest={}))
    root = parse(page)
    references = [e.get(name) for e in root.iter() for name in ("src", "href", "srcset", "data") if e.get(name)]
    assert references
    assert all(reference.startswith("data:image/") for reference in references)
    assert not re.search(r"url\(|@import|https?:", page)
    assert not {e.tag for e in root.iter()} & {"script", "link", "iframe", "object"}


@pytest.mark.parametrize(("size", "kind"), [(200, "svg+xml"), (201, "png")])
def test_a_drawing_over_twice_its_picture_is_shown_as_one(tmp_path, size, kind):
    page = content(tmp_path)
    (tmp_path / "f.svg").write_bytes(b"x" * size)
    (tmp_path / "f.png").write_bytes(b"x" * 100)
    assert parse(render_page(page)).find(".//img").get("src").startswith(f"data:image/{kind};base64,")


def test_failures_are_counted_apart(tmp_path):
    lead = parse(render_page(content(tmp_path))).find(".//main/p").text
    assert lead == "1 trial: 1 stable. 1 more failed by a fault of the program or machine and count in nothing."


@pytest.mark.parametrize("manifest", [{}, {"command": "lrsweep sweep"}, {"odd": None, "deep": {"a": {"b": 1.5}}}])
def test_any_manifest_will_do(tmp_path, manifest):
    root = parse(render_page(content(tmp_path, manifest=manifest)))
    terms = [e.text for e in root.iter("dt")]
    assert terms[len(terms) - len(manifest) :] == list(manifest)
    assert [e.text for e in root.iter("pre")] == (["lrsweep sweep"] if "command" in manifest else [])


def test_every_outcome_is_defined(tmp_path):
    terms = {e.text for e in parse(render_page(content(tmp_path))).iter("dt")}
    assert terms >= {"ε", "stable", "degraded", "undertrained", "stalled", "diverged", "nonfinite", "error", "LR50"}


def test_advice_says_which_side(tmp_path):
    sides = [
        GridAdvice(scheme="in", body="gpt", size="2m", where="inside", lrs=(0.2, 0.4)),
        GridAdvice(scheme="tight", body="gpt", size="2m", where="inside", lrs=()),
        GridAdvice(scheme="best", body="gpt", size="2m", where="edge", lrs=(1e-3,)),
        GridAdvice(scheme="flat", body="gpt", size="2m", where="plateau", lrs=(0.1, 0.2, 0.8)),
        GridAdvice(scheme="low", body="gpt", size="2m", where="below", lrs=(1e-4, 3e-4)),
    ]
    items = ["".join(e.itertext()) for e in parse(render_page(content(tmp_path, advice=tuple(sides)))).iter("li")]
    assert len(items) == 4
    assert "low (gpt 2m): the frontier lies below the grid" in items[0]
    assert items[0].endswith("1e-4, 3e-4")
    assert "flat (gpt 2m): the bracket cuts a plateau" in items[1]
    assert items[1].endswith("train longer: 0.1, 0.2, 0.8")
    assert "best (gpt 2m): the best loss is at the lowest LR" in items[2]
    assert items[3].endswith("0.2, 0.4")


def test_sections_without_a_row_are_left_out(tmp_path):
    empty = TextTable(header=("scheme", "LR"), rows=(), labels=1)
    headings = [e.text for e in parse(render_page(content(tmp_path))).iter("h2")]
    assert {"What moved first", "Spikes"} < set(headings)
    page = parse(render_page(content(tmp_path, leads=empty, exits=empty, spikes=empty)))
    assert [e.text for e in page.iter("h2")] == [h for h in headings if h not in ("What moved first", "Spikes")]
