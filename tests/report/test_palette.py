"""Looks: distinct among the known, fixed for every name."""

from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import is_color_like
from matplotlib.lines import Line2D

from lrsweep.report.palette import Style, in_order, style_of

KNOWN = [
    "preln",
    "soft_temp",
    "soft_clip",
    "sigma_reparam",
    "layerscale",
    "soft_cap",
    "qknorm",
    "qk_fc_norm",
    "qkv_norm",
    "qknorm_cap",
]


def test_known_schemes_have_colours_and_markers_of_their_own():
    styles = [style_of(name) for name in KNOWN]
    assert len({s.color for s in styles}) == len(KNOWN)
    assert len({s.marker for s in styles}) == len(KNOWN)


def test_any_other_name_has_a_look_that_matplotlib_knows_and_no_known_scheme_has():
    taken = {style_of(name).color for name in KNOWN}
    for name in ("simplenorm", "angpt", "preln+zloss", "", "ÿ" * 50):
        style = style_of(name)
        assert is_color_like(style.color)
        assert style.color not in taken
        assert style.marker in Line2D.markers
        assert style.linestyle in Line2D.lineStyles


def test_the_hash_is_the_same_on_every_machine():
    # SHA-256 of "simplenorm" begins with the bytes 191, 211, 178: colour 5 of 6, marker 1 of 10, line style 2 of 4.
    assert style_of("simplenorm") == Style("#DDAA33", "s", "-.")


@given(st.lists(st.sampled_from([*KNOWN, "zeta", "alpha", "mine"])))
def test_order_does_not_depend_on_the_subset(names):
    full = in_order([*KNOWN, "zeta", "alpha", "mine"])
    assert full == [*KNOWN, "alpha", "mine", "zeta"]
    assert in_order(names) == [name for name in full if name in names]
