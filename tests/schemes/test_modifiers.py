"""Modifiers behind a row: what each changes, names, order, identity of trials, and what is refused."""

from __future__ import annotations

import dataclasses
import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrsweep.config import DataConfig, ModelShape, TrainConfig, TrialSpec, find_size
from lrsweep.errors import UserError
from lrsweep.schemes import MODIFIERS, Scheme, all_schemes, find, register
from lrsweep.sweep.plan import train_config

CHANGES: dict[str, dict[str, Any]] = {
    "zloss": {"training": (("z_loss", 1e-4),)},
    "qk_clip": {"qk_clip": 100.0},
    "final_cap": {"final_cap": 30.0},
    "independent_wd": {"training": (("decay_mode", "independent"),)},
    "stable_adamw": {"training": (("optimizer", "stable_adamw"),)},
    "muon": {"training": (("optimizer", "muon"),)},
    "adamw": {},
    "full_qk": {"qk_norm": "full"},
    "mup": {"mup_base": 64},
}
"""What each modifier changes in qknorm, and nothing else."""
OPTIMIZERS = ("adamw", "stable_adamw", "muon")
ROWS = [s.name for s in all_schemes()]


def applies(modifier: str, row: Scheme) -> bool:
    """full_qk needs a norm per head, mup free weights."""
    return {"full_qk": row.qk_norm == "head", "mup": row.geometry == "free"}.get(modifier, True)


def spec(scheme: Scheme) -> TrialSpec:
    return TrialSpec(
        scheme=scheme,
        body="gpt",
        size="tiny",
        shape=ModelShape(n_layers=1, d_model=8, n_heads=1, seq_len=4, vocab_size=8),
        train=TrainConfig(**{"steps": 2, "batch_size": 1, "warmup_steps": 1, **dict(scheme.training)}),
        data=DataConfig(path=None, text_column="text", tokenizer="bytes", data_hash="0"),
        device="cpu",
        lr=1e-3,
        seed=0,
    )


def test_these_are_all_modifiers() -> None:
    assert list(MODIFIERS) == list(CHANGES)


@pytest.mark.parametrize("name", CHANGES)
def test_each_modifier_changes_exactly_what_its_paper_says(name: str) -> None:
    row, changed = find("qknorm").build_fields(), find(f"qknorm+{name}").build_fields()
    assert {k: v for k, v in changed.items() if v != row[k]} == CHANGES[name]


@pytest.mark.parametrize("name", ROWS)
def test_every_modifier_goes_with_every_row_or_says_why_not(name: str) -> None:
    """Its label, its documentation and its training carry the modifier, whatever the row prescribes itself."""
    row = find(name)
    for modifier in MODIFIERS.values():
        if not applies(modifier.name, row):
            with pytest.raises(UserError, match=rf"^--arch {name}\+{modifier.name}: "):
                find(f"{name}+{modifier.name}")
            continue
        changed = find(f"{name}+{modifier.name}")
        if modifier.name == "adamw":
            assert changed == row
            continue
        assert changed.name == f"{name}+{modifier.name}"
        assert modifier.source in changed.source
        assert modifier.formula in changed.formula
        assert modifier.ours in changed.ours
        assert row.formula in changed.formula
        assert changed.build_fields() != row.build_fields()
        assert dict(row.training).items() <= dict(changed.training).items()
        TrainConfig(**{"steps": 2, "batch_size": 1, "warmup_steps": 1, **dict(changed.training)})


def test_a_modifier_reaches_the_training_of_a_plan_and_a_flag_goes_over_it() -> None:
    """So does what a row prescribes: anGPT's missing decay and warm-up."""
    size = find_size("0.2m")
    train = train_config(find("angpt+zloss+muon"), size, {}, "cpu")
    assert (train.z_loss, train.optimizer, train.weight_decay, train.warmup_steps) == (1e-4, "muon", 0.0, 0)
    assert train_config(find("angpt"), size, {"weight_decay": 0.2}, "cpu").weight_decay == 0.2
    with pytest.raises(UserError, match="--decay-mode decoupled contradicts --arch preln\\+independent_wd"):
        train_config(find("preln+independent_wd"), size, {"decay_mode": "decoupled"}, "cpu")


@settings(max_examples=200)
@given(data=st.data(), row=st.sampled_from(all_schemes()))
def test_order_repetition_and_spelling_do_not_matter(data: st.DataObject, row: Scheme) -> None:
    """One combination is one row with one name, modifiers in alphabetical order."""
    usable = [m for m in MODIFIERS if applies(m, row) and m not in OPTIMIZERS]
    chosen = data.draw(st.lists(st.sampled_from(usable), min_size=1, unique=True))
    chosen += [data.draw(st.sampled_from(("stable_adamw", "muon")))] if data.draw(st.booleans()) else []
    typed = data.draw(st.permutations([*chosen, *data.draw(st.lists(st.sampled_from(chosen), max_size=2))]))
    spelled = [data.draw(st.sampled_from((m, m.upper(), m.replace("_", "-"), m.replace("_", "")))) for m in typed]
    found = find("+".join([row.name.upper(), *spelled]))
    assert found == find("+".join([row.name, *sorted(chosen)]))
    assert found.name == "+".join([row.name, *sorted(chosen)])


@pytest.mark.parametrize(
    ("typed", "nearest"),
    [("z-los", "zloss"), ("qkclp", "qk_clip"), ("mun", "muon"), ("adam", "adamw"), ("finalcapp", "final_cap")],
)
def test_an_unknown_modifier_lists_all_known_ones_nearest_first(typed: str, nearest: str) -> None:
    with pytest.raises(UserError) as caught:
        find(f"preln+{typed}")
    message = str(caught.value)
    assert message.startswith(f"--arch: unknown modifier {typed!r}; known, nearest first: {nearest}, ")
    assert sorted(message.split("nearest first: ")[1].split(", ")) == sorted(MODIFIERS)


@pytest.mark.parametrize("typed", ["preln+", "preln++zloss", "+zloss", "qknrm+zloss"])
def test_half_a_name_is_a_user_error(typed: str) -> None:
    with pytest.raises(UserError, match=r"^--arch: unknown "):
        find(typed)


@pytest.mark.parametrize(("one", "other"), list(itertools.permutations(OPTIMIZERS, 2)))
def test_two_optimizers_are_refused(one: str, other: str) -> None:
    first, second = sorted((one, other))
    message = rf"^--arch preln\+{one}\+zloss\+{other}: {first} and {second} are both optimizers; keep one$"
    with pytest.raises(UserError, match=message):
        find(f"preln+{one}+zloss+{other}")


@pytest.mark.parametrize("name", ["ngpt", "angpt"])
def test_mup_is_refused_where_weights_have_a_length_of_their_own(name: str) -> None:
    with pytest.raises(UserError, match=rf"^--arch {name}\+mup: {name} fixes the length of its rows"):
        find(f"{name}+mup")


@pytest.mark.parametrize("name", ["preln", "olmo2", "simplenorm", "ngpt", "dyt"])
def test_full_qk_is_refused_where_there_is_nothing_to_widen(name: str) -> None:
    with pytest.raises(UserError, match=rf"^--arch {name}\+full_qk: {name} has no per-head norm on q and k"):
        find(f"{name}+full_qk")


def test_adamw_shows_where_the_row_has_another_optimizer_of_its_own() -> None:
    mine = register(Scheme(name="mine", source="", formula="", training=(("optimizer", "muon"), ("beta2", 0.9))))
    changed = find("mine+adamw")
    assert (changed.name, changed.training) == ("mine+adamw", (("beta2", 0.9),))
    assert find("mine+stable_adamw").training == (("beta2", 0.9), ("optimizer", "stable_adamw"))
    assert find("mine") is mine


def every_combination() -> list[Scheme]:
    """Every row by itself and with each modifier that goes with it, and qknorm with every pair of modifiers."""
    ones = [find(f"{s.name}+{m}") for s in all_schemes() for m in MODIFIERS if applies(m, s) and m != "adamw"]
    pairs = itertools.combinations([m for m in MODIFIERS if m not in OPTIMIZERS], 2)
    return [*all_schemes(), *ones, *(find(f"qknorm+{a}+{b}") for a, b in pairs)]


def test_no_two_rows_or_combinations_build_and_train_the_same_model() -> None:
    built = [json.dumps(s.build_fields(), sort_keys=True) for s in every_combination()]
    assert len(built) > 180
    assert len(set(built)) == len(built)


def test_trials_carry_the_combination_in_name_and_hash() -> None:
    """No two share a trial; the hash differs also where names are the same; documentation does not enter it."""
    specs = [spec(s) for s in every_combination()]
    assert len({s.trial for s in specs}) == len(specs)
    assert len({s.trial.rpartition("-")[2] for s in specs}) == len(specs)
    for one in specs:
        assert one.trial.startswith(f"{one.scheme.name}-tiny-lr0.001-s0-")
        assert one.label == f"{one.scheme.name} lr 0.001 seed 0"
    renamed = dataclasses.replace(find("qknorm+zloss"), source="x", formula="x", claim="x", ours="x")
    assert spec(renamed).trial == spec(find("qknorm+zloss")).trial
