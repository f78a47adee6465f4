"""Rows, their names, and the registry."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrsweep.errors import UserError
from lrsweep.names import look_up, nearest_first
from lrsweep.schemes import Scheme, all_schemes, find, register, rybakov

DOCUMENTATION = {"name", "source", "formula", "claim", "ours"}
CHANGES: dict[str, dict[str, Any]] = {
    "preln": {},
    "soft_temp": {"logit_scale": 0.5},
    "soft_clip": {"prob_clip": (1.03, -0.03)},
    "sigma_reparam": {"linear": "sigma_reparam"},
    "layerscale": {"residual": "layerscale"},
    "soft_cap": {"logit_cap": 50.0},
    "qknorm": {"qk_norm": "head"},
    "qk_fc_norm": {"qk_norm": "head", "proj_norm": True, "fc2_norm": True},
    "qkv_norm": {"qk_norm": "head", "v_norm": "head", "attn_pre_norm": False},
    "qknorm_cap": {"qk_norm": "head", "logit_cap": 50.0},
}
"""What arXiv 2410.16682 changes in the pre-LN block, and nothing else."""


def own(name: str, **fields: Any) -> Scheme:
    return Scheme(name=name, source="mine", formula="x", **fields)


def test_the_paper_has_ten_rows_in_its_order() -> None:
    assert [s.name for s in rybakov.SCHEMES] == list(CHANGES)
    assert all_schemes()[: len(CHANGES)] == rybakov.SCHEMES


@pytest.mark.parametrize("name", CHANGES)
def test_each_row_departs_from_preln_in_exactly_what_its_paper_changes(name: str) -> None:
    row, baseline = find(name).build_fields(), find("preln").build_fields()
    assert {k: v for k, v in row.items() if v != baseline[k]} == CHANGES[name]


def test_the_baseline_is_the_default_of_every_field() -> None:
    assert find("preln").build_fields() == own("any").build_fields()


@pytest.mark.parametrize("scheme", all_schemes(), ids=lambda s: s.name)
def test_build_fields_are_all_fields_but_the_documentation_and_go_into_json(scheme: Scheme) -> None:
    fields = scheme.build_fields()
    assert set(fields) == {f.name for f in dataclasses.fields(scheme)} - DOCUMENTATION
    assert json.loads(json.dumps(fields)).keys() == fields.keys()
    renamed = dataclasses.replace(scheme, name="x", source="x", formula="x", claim="x", ours="x")
    assert renamed.build_fields() == fields


@pytest.mark.parametrize("scheme", all_schemes(), ids=lambda s: s.name)
def test_every_row_tells_its_source_and_its_formula(scheme: Scheme) -> None:
    assert "arXiv" in scheme.source
    assert scheme.formula


def test_no_two_rows_build_the_same_model() -> None:
    built = [json.dumps(s.build_fields(), sort_keys=True) for s in all_schemes()]
    assert len(set(built)) == len(built)


@settings(max_examples=200)
@given(scheme=st.sampled_from(rybakov.SCHEMES), data=st.data())
def test_names_are_found_without_case_underscore_and_dash(scheme: Scheme, data: st.DataObject) -> None:
    """Every letter in either case, any run of _ and - before, between and after."""
    letters = scheme.name.replace("_", "")
    gaps = st.text("_-", max_size=2)
    typed = data.draw(gaps) + "".join(data.draw(st.sampled_from((c, c.upper()))) + data.draw(gaps) for c in letters)
    assert find(typed) is scheme


@pytest.mark.parametrize(
    ("typed", "nearest"),
    [
        ("qknrm", "qknorm"),
        ("QK-norm-cop", "qknorm_cap"),
        ("qkv_nrm", "qkv_norm"),
        ("layer-scales", "layerscale"),
        ("sigmareparm", "sigma_reparam"),
        ("softclp", "soft_clip"),
        ("pre", "preln"),
    ],
)
def test_an_unknown_name_lists_all_known_ones_nearest_first(typed: str, nearest: str) -> None:
    with pytest.raises(UserError) as caught:
        find(typed)
    message = str(caught.value)
    assert message.startswith(f"--arch: unknown scheme {typed!r}; known, nearest first: {nearest}, ")
    listed = message.split("nearest first: ")[1].split(", ")
    assert sorted(listed) == sorted(s.name for s in all_schemes())
    assert "\n" not in message


@settings(max_examples=30)
@given(name=st.text(max_size=10))
def test_any_text_finds_a_scheme_or_is_a_user_error(name: str) -> None:
    try:
        assert find(name) in all_schemes()
    except UserError:
        assert nearest_first(name, ["b", "a"])


def test_look_up_names_its_flag_and_its_thing() -> None:
    assert look_up("A-b", {"ab": 1}, flag="--x", what="thing") == 1
    with pytest.raises(UserError, match=r"^--x: unknown thing 'zz'; known, nearest first: ab$"):
        look_up("zz", {"ab": 1}, flag="--x", what="thing")


def test_a_registered_row_is_known_everywhere() -> None:
    mine = register(own("my_norm", qk_norm="full"))
    assert find("MY-norm") is mine
    assert all_schemes()[-1] is mine
    with pytest.raises(UserError, match="nearest first: my_norm, "):
        find("mynorms")


def test_registering_the_same_row_again_changes_nothing() -> None:
    before = all_schemes()
    assert register(find("qknorm")) == find("qknorm")
    register(own("my_norm"))
    register(own("my_norm"))
    assert [s.name for s in all_schemes()] == [*(s.name for s in before), "my_norm"]


@pytest.mark.parametrize("name", ["qknorm", "QK_NORM", "qk-norm"])
def test_another_row_under_a_taken_name_is_refused_and_leaves_the_registry_as_it_was(name: str) -> None:
    before = all_schemes()
    with pytest.raises(UserError, match="'qknorm' exists already"):
        register(own(name))
    assert all_schemes() == before


def test_a_row_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        find("preln").logit_cap = 1.0  # type: ignore[misc]
