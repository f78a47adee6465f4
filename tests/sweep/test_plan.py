"""From what a user asks for to trials."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lrsweep.config import SIZES, SweepConfig, TrialSpec, read_config_file
from lrsweep.errors import UserError
from lrsweep.schemes import all_schemes
from lrsweep.sweep.plan import default_name, find_schemes, make_plan


def config(tmp_path: Path, **changes: object) -> SweepConfig:
    base = SweepConfig(arch=("preln", "qknorm"), lrs=(3e-3, 1e-3), seeds=2, device="cpu", out=str(tmp_path / "out"))
    return replace(base, **changes)


def test_plan_is_the_product_of_its_axes(tmp_path: Path) -> None:
    plan = make_plan(config(tmp_path, body=("gpt", "llama")))
    assert len(plan.specs) == 2 * 2 * 2 * 2
    found = {(s.scheme.name, s.body, s.seed, s.lr) for s in plan.specs}
    assert found == {
        (a, b, seed, lr)
        for a in ("preln", "qknorm")
        for b in ("gpt", "llama")
        for seed in (0, 1)
        for lr in (1e-3, 3e-3)
    }


def test_trials_of_one_scheme_stand_together(tmp_path: Path) -> None:
    names = [s.scheme.name for s in make_plan(config(tmp_path)).specs]
    assert names == sorted(names, key=["preln", "qknorm"].index)


def test_planning_writes_nothing(tmp_path: Path) -> None:
    make_plan(config(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_trial_id_depends_on_what_decides_the_numbers_and_on_nothing_else(tmp_path: Path) -> None:
    def ids(**changes: object) -> list[str]:
        return [s.trial for s in make_plan(config(tmp_path, **changes)).specs]

    base = ids()
    assert len(set(base)) == len(base)
    assert ids(out=str(tmp_path / "elsewhere"), epsilon=1.0, jobs=1, local=True) == base
    for change in ({"steps": 301}, {"batch_size": 4}, {"schedule": "linear"}, {"data_seed": 1}, {"weight_decay": 0.2}):
        assert not set(ids(**change)) & set(base), change


def test_trial_id_ignores_how_often_statistics_are_fetched(tmp_path: Path) -> None:
    spec = make_plan(config(tmp_path)).specs[0]
    other = {f: getattr(spec, f) for f in ("scheme", "body", "size", "shape", "data", "device", "lr", "seed")}
    assert TrialSpec(train=replace(spec.train, report_every=3), **other).trial == spec.trial


def test_names_match_without_case_and_separators(tmp_path: Path) -> None:
    plan = make_plan(config(tmp_path, arch=("QK_norm-cap", "qknormcap"), size=("0.2M",), body=("GPT",)))
    assert {(s.scheme.name, s.size, s.body) for s in plan.specs} == {("qknorm_cap", "0.2m", "gpt")}


def test_all_means_every_scheme() -> None:
    assert find_schemes(("ALL",)) == all_schemes()
    assert default_name(SweepConfig(arch=("all",), size=("2m",)), all_schemes()) == "all-gpt-2m"


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_preset_grid_and_warmup(size: object) -> None:
    from lrsweep.config import SizePreset

    assert isinstance(size, SizePreset)
    assert size.lrs == tuple(sorted(set(size.lrs)))
    assert 0 < size.warmup_steps < size.steps
    assert size.train_config(steps=size.steps * 2).warmup_steps == size.warmup_steps * 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arch": ()}, ["--arch"]),
        ({"arch": ("qkvnrm",)}, ["--arch", "'qkvnrm'", "nearest first: qkv_norm"]),
        ({"size": ("10mm",)}, ["--size", "nearest first: 10m"]),
        ({"body": ("lama",)}, ["--body", "nearest first: llama"]),
        ({"lrs": (1e-3, 0.0)}, ["--lrs", "positive", "0"]),
        ({"lrs": (float("nan"),)}, ["--lrs", "nan"]),
        ({"seeds": 0}, ["--seeds"]),
        ({"steps": 0}, ["--steps"]),
        ({"warmup_steps": 300}, ["--warmup-steps", "--steps"]),
        ({"batch_size": -1}, ["--batch-size"]),
        ({"probe_every": 0}, ["--probe-every"]),
        ({"clip": float("nan")}, ["--clip"]),
        ({"epsilon": -0.5}, ["--epsilon"]),
        ({"jobs": 0}, ["--jobs"]),
        ({"data": "nowhere.txt"}, ["--data", "nowhere.txt"]),
    ],
)  # fmt: skip
def test_mistakes_name_the_flag_in_one_line_and_write_nothing(
    tmp_path: Path, changes: dict[str, object], words: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        make_plan(config(tmp_path, **changes))
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message
    assert list(tmp_path.iterdir()) == []


def test_out_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("kept")
    with pytest.raises(UserError, match=r"--out .* is a file"):
        make_plan(config(tmp_path))
    assert (tmp_path / "out").read_text() == "kept"


def test_config_file_sets_fields(tmp_path: Path) -> None:
    file = tmp_path / "sweep.toml"
    file.write_text('arch = ["preln"]\nlrs = [1, 1e-3]\nseeds = 3\nlocal = true\nschedule = "linear"\nbody = "llama"\n')
    assert read_config_file(file) == {
        "arch": ("preln",), "lrs": (1.0, 1e-3), "seeds": 3, "local": True, "schedule": "linear", "body": ("llama",)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed = 3", ["'seed'", "nearest known: seeds"]),
        ("seeds = 1.5", ["seeds", "int", "1.5"]),
        ("seeds = true", ["seeds", "int"]),
        ("lrs = []", ["lrs", "empty"]),
        ('lrs = ["a"]', ["lrs", "float"]),
        ('schedule = "cosin"', ["schedule", "cosine"]),
        ("arch = [", ["TOML"]),
    ],
)
def test_config_file_mistakes(tmp_path: Path, text: str, words: list[str]) -> None:
    file = tmp_path / "sweep.toml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        read_config_file(file)
    assert all(word in str(caught.value) for word in ["--config", *words]), caught.value
