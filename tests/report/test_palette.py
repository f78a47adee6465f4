"""Looks: distinct among the known, fixed for every name."""

from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import is_color_like
from matplotlib.lines import Line2D

from lrsweep.report.palette import Style, in_order, style_of
from lrsweep.schemes import all_schemes, rybakov

KNOWN = [scheme.name for scheme in all_schemes()]


def test_every_scheme_has_a_colour_of_its_own_and_few_share_a_marker_or_a_line():
    styles = [style_of(name) for name in KNOWN]
    assert len({s.color for s in styles}) == len(KNOWN)
    assert len({(s.marker, s.linestyle) for s in styles}) == len(KNOWN)


def test_the_ten_of_one_paper_have_markers_of_their_own():
    assert len({style_of(scheme.name).marker for scheme in rybakov.SCHEMES}) == 10


def test_any_other_name_has_a_look_that_matplotlib_knows_and_no_known_scheme_has():
    taken = {style_of(name).color for name in KNOWN}
    for name in ("mine", "zeta", "", "ÿ" * 50):
        style = style_of(name)
        assert is_color_like(style.color)
        assert style.color not in taken
        assert style.marker in Line2D.markers
        assert style.linestyle in Line2D.lineStyles


@given(st.sampled_from(KNOWN), st.sampled_from(["zloss", "mup", "muon+zloss", "full_qk"]))
def test_a_modified_scheme_has_its_schemes_colour_and_another_marker_and_line(name, modifiers):
    plain, modified = style_of(name), style_of(f"{name}+{modifiers}")
    assert modified.color == plain.color
    assert modified.marker != plain.marker
    assert modified.linestyle != plain.linestyle


def test_the_hash_is_the_same_on_every_machine():
    # SHA-256 of "mine" begins with the bytes 63, 211, 5: colour 3 of 6, marker 1 of 10, line style 1 of 4.
    assert style_of("mine") == Style("#4477AA", "s", "--")


@given(st.lists(st.sampled_from([*KNOWN, "zeta", "alpha", "mine"])))
def test_order_does_not_depend_on_the_subset(names):
    full = in_order([*KNOWN, "zeta", "alpha", "mine"])
    assert full == [*KNOWN, "alpha", "mine", "zeta"]
    assert in_order(names) == [name for name in full if name in names]


def test_modified_schemes_stand_behind_their_own():
    assert in_order(["zz", "qknorm+zloss", "qknorm", "preln", "preln+mup"]) == [
        "preln", "preln+mup", "qknorm", "qknorm+zloss", "zz",
    ]  # fmt: skip
