"""Every config under experiments/ resolves, and every README there says what stands beside it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lrsweep.config import SIZES, TRAIN_FLAGS, SweepConfig, find_body, find_size, mlp_width, read_config_file
from lrsweep.schemes import find
from lrsweep.sweep.plan import find_schemes, make_plan, train_config

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "experiments"
CONFIGS = sorted(FOLDER.glob("*/*.toml"))
PAPERS = sorted(path.parent for path in FOLDER.glob("*/README.md"))


def name_of(path: Path) -> str:
    return path.relative_to(FOLDER).as_posix()


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Configs name files as seen from the checkout."""
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_config_names_known_things_and_its_first_line_counts_the_trials(path: Path) -> None:
    config = SweepConfig(**read_config_file(path))
    rows, sizes = find_schemes(config.arch), [find_size(size) for size in config.size]
    bodies = [find_body(body) for body in config.body]
    given = {flag: getattr(config, flag) for flag in TRAIN_FLAGS if getattr(config, flag) is not None}
    for scheme in rows:
        for size in sizes:
            train = train_config(scheme, size, given, "cpu" if config.device == "cpu" else "cuda")
            assert {flag: getattr(train, flag) for flag in given} == given
    points = sum((config.seeds or size.seeds) * len(config.lrs or size.lrs) for size in sizes)
    stated = re.search(r"([\d × ]+= )?(\d+) trials", path.read_text(encoding="utf-8").splitlines()[0])
    assert stated is not None
    assert int(stated[2]) == len(rows) * len(bodies) * points
    if stated[1]:
        assert np.prod([int(factor) for factor in stated[1].rstrip(" =").split("×")]) == int(stated[2])


@pytest.mark.parametrize("path", [p for p in CONFIGS if p.stem.startswith("cpu")], ids=name_of)
def test_cpu_config_plans_what_two_cores_can_do(path: Path, tmp_path: Path) -> None:
    """Byte tokens, and at most 100,000 steps of 1,024 tokens: about an hour at 12 s per 300 steps, two at a time."""
    config = SweepConfig(**{**read_config_file(path), "device": "cpu", "out": str(tmp_path / "out")})
    plan = make_plan(config)
    assert all(corpus.tokenizer == "bytes" for corpus in plan.corpora.values())
    assert sum(spec.train.steps for spec in plan.specs) <= 100_000
    assert len({spec.trial for spec in plan.specs}) == len(plan.specs)


@pytest.mark.parametrize("paper", PAPERS, ids=lambda p: p.name)
def test_readme_names_every_file_and_no_other(paper: Path) -> None:
    named = set(re.findall(r"`([\w.]+\.(?:toml|py))`", (paper / "README.md").read_text(encoding="utf-8")))
    assert named == {path.name for path in paper.iterdir() if path.suffix in (".toml", ".py")}


@pytest.mark.parametrize("paper", PAPERS, ids=lambda p: p.name)
def test_readme_has_one_command_to_run_and_says_what_came_of_it(paper: Path) -> None:
    text = (paper / "README.md").read_text(encoding="utf-8")
    configs = re.findall(r"--config (\S+)", text)
    assert configs
    assert all((ROOT / config).parent == paper and (ROOT / config).is_file() for config in configs)
    for heading in ("**Claim.**", "**Setup here.**", "**What differs", "**What to look at.**", "**What came out.**"):
        assert heading in text, heading


def test_every_folder_has_a_readme_and_the_overview_lists_it() -> None:
    assert {path.parent for path in CONFIGS} == set(PAPERS)
    overview = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\]\((\w+)/README\.md\)", overview)) == {paper.name for paper in PAPERS}


@pytest.mark.parametrize("name", ["39m", "67m", "102m", "162m", "271m", "360m"])
def test_simplegpt_sizes_train_on_twenty_tokens_a_parameter(name: str) -> None:
    preset = SIZES[name]
    d, hidden = preset.shape.d_model, mlp_width(find("simplenorm"), "llama", preset.shape.d_model)
    n_params = preset.shape.n_layers * (4 * d * d + 3 * d * hidden) + 2 * preset.shape.vocab_size * d
    assert n_params == pytest.approx(float(name[:-1]) * 1e6, rel=0.035)
    assert preset.steps * preset.batch_size * preset.shape.seq_len / n_params == pytest.approx(20, rel=0.03)
    assert preset.warmup_steps == pytest.approx(preset.steps / 100, abs=1)


def test_angpt_compares_three_models_of_one_size() -> None:
    """Attention 4d², MLP 3·4d·d, and two vocabularies: 505.7M without gains."""
    config = SweepConfig(**read_config_file(FOLDER / "angpt" / "paper.toml"))
    shape = find_size(config.size[0]).shape
    d = shape.d_model
    assert {mlp_width(scheme, "llama", d) for scheme in find_schemes(config.arch)} == {4 * d}
    assert shape.n_layers * 16 * d * d + 2 * shape.vocab_size * d == pytest.approx(0.5e9, rel=0.02)


def result_folder(folder: Path, losses: dict[str, list[np.ndarray]]) -> Path:
    """What speedup.py reads: two seeds of each scheme at its best LR, and one that is worse at another."""
    (folder / "steps").mkdir(parents=True)
    trials = []
    for scheme, seeds in losses.items():
        for seed, curve in enumerate([*seeds, np.full_like(seeds[0], 9.0)]):
            trial = f"{scheme}-{seed}"
            pd.DataFrame({"loss": curve}).to_parquet(folder / "steps" / f"{trial}.parquet")
            lr = 1e-2 if seed < len(seeds) else 1.0
            trials.append({"scheme": scheme, "body": "llama", "size": "0.2m", "lr": lr, "trial": trial})
    pd.DataFrame(trials).to_parquet(folder / "trials.parquet")
    table = [{"scheme": scheme, "body": "llama", "size": "0.2m", "best_lr": 1e-2} for scheme in losses]
    pd.DataFrame(table).to_csv(folder / "frontier.csv", index=False)
    return folder


def test_speed_up_of_straight_lines_is_the_ratio_of_their_slopes(tmp_path: Path) -> None:
    """A loss that falls linearly reaches any level in a time that goes with one over its slope."""
    steps = np.arange(1000.0)
    slow, fast = 4 - steps / 1000, 4 - 1.6 * steps / 1000
    noise = np.random.default_rng(0).normal(0, 0.05, 1000)
    folder = result_folder(tmp_path / "r", {"slow": [slow + noise, slow - noise], "fast": [fast], "equal": [slow]})
    script = FOLDER / "angpt" / "speedup.py"

    def lines(reference: str) -> dict[str, float]:
        done = subprocess.run([sys.executable, script, folder, reference], capture_output=True, text=True, check=True)
        return {line.split()[0]: float(line.split()[-4]) for line in done.stdout.splitlines()}

    # Half the smoothing window of 100 steps goes to both sides alike: (950 / 1.6) + 50 steps of 1,000.
    assert lines("slow") == pytest.approx({"slow": 1.0, "fast": 1000 / (950 / 1.6 + 50), "equal": 1.0}, abs=0.01)
    assert lines("fast")["slow"] == pytest.approx((950 / 1.6 + 50) / 1000, abs=0.01)
