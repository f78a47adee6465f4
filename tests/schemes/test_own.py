"""A user's own schemes: from a file, from an entry point, with modifiers, in Ray's workers."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

import lrsweep.schemes as schemes
from lrsweep.analysis import GridAdvice
from lrsweep.config import SweepConfig
from lrsweep.errors import UserError
from lrsweep.schemes import all_schemes, find
from lrsweep.sweep.closing import next_commands
from lrsweep.sweep.plan import make_plan
from tests.commands import QUICK, lrsweep

MINE = """
from lrsweep.schemes import Scheme, register

register(Scheme(name="mine", source="ours", formula="qk-norm over the full width", qk_norm="full"))
register(Scheme(name="other", source="ours", formula="no final norm", final_norm=False))
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine+1.py"
    path.write_text(MINE)
    return path


def test_a_file_registers_its_schemes_and_takes_modifiers(mine: Path) -> None:
    row = find(f"{mine}:mine")
    assert (row.name, row.qk_norm) == ("mine", "full")
    assert find(f"{mine}:MINE+zloss+qk-clip").name == "mine+qk_clip+zloss"
    assert find(f"{mine}:mine") is row
    assert {"mine", "other"} <= {s.name for s in all_schemes()}


def test_a_file_of_the_current_folder_is_named_as_a_shell_would(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(mine.parent)
    assert find("./mine+1.py:mine").name == find("mine+1.py:mine").name == "mine"


@pytest.mark.parametrize(
    ("text", "asked", "said"),
    [
        (None, "mine", "no file"),
        ("import nowhere_at_all", "mine", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("1 / 0", "mine", "ZeroDivisionError"),
        ("def (", "mine", "SyntaxError"),
        (MINE, "mien", "unknown scheme 'mien'; known, nearest first: mine, "),
        (MINE.replace('"mine"', '"qknorm"'), "qknorm", "'qknorm' exists already"),
        (MINE.replace('"mine"', '"a+b"'), "a", "cannot be named 'a+b'"),
        (MINE.replace('"full"', '"fill"'), "mine", "qk_norm must be one of none, head, full"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(tmp_path: Path, text: str | None, asked: str, said: str) -> None:
    path = tmp_path / "own.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match="--arch") as caught:
        find(f"{path}:{asked}")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_repaired_file_is_run_again(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text("1 / 0")
    with pytest.raises(UserError):
        find(f"{path}:mine")
    path.write_text(MINE)
    assert find(f"{path}:mine").name == "mine"


def test_entry_points_are_found_once(monkeypatch: pytest.MonkeyPatch, mine: Path) -> None:
    """A package's module registers on import; a broken one is named with its package."""
    monkeypatch.syspath_prepend(str(mine.parent))
    (mine.parent / "their_schemes.py").write_text(MINE.replace('"mine"', '"theirs"'))
    point = importlib.metadata.EntryPoint("theirs", "their_schemes", "lrsweep.schemes")
    broken = SimpleNamespace(name="bad", dist=SimpleNamespace(name="bad-package"), load=lambda: 1 / 0)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda *, group: [point] if "schemes" in group else [])
    monkeypatch.setattr(schemes, "_entry_points_loaded", False)
    assert find("theirs").qk_norm == "full"
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda *, group: [broken])
    assert find("theirs").name == "theirs"
    monkeypatch.setattr(schemes, "_entry_points_loaded", False)
    with pytest.raises(UserError, match=r"'bad' of bad-package .* ZeroDivisionError"):
        find("preln")


def test_the_plan_keeps_how_a_file_was_named_and_the_next_command_too(mine: Path, tmp_path: Path) -> None:
    config = SweepConfig(
        arch=(f"{mine}:mine+zloss", "QK-norm"),
        lrs=(1e-3, 1e-2),
        seeds=1,
        steps=2,
        device="cpu",
        out=str(tmp_path / "r"),
    )
    plan = make_plan(config)
    assert plan.config.arch == (f"{mine}:mine+zloss", "qknorm")
    assert {spec.scheme.name for spec in plan.specs} == {"mine+zloss", "qknorm"}
    assert {spec.train.z_loss for spec in plan.specs if spec.scheme.name == "mine+zloss"} == {1e-4}
    advice = GridAdvice(scheme="mine+zloss", body="gpt", size="0.2m", where="above", lrs=(0.1,))
    [(why, command)] = next_commands(plan, (advice,))
    assert why.startswith("mine+zloss: ")
    assert f"--arch '{mine}:mine+zloss' " in command or f"--arch {mine}:mine+zloss " in command
    # A longer training is another sweep, in a folder beside this one's.
    advice = GridAdvice(scheme="qknorm", body="gpt", size="0.2m", where="plateau", lrs=(1e-3, 1e-2))
    [(why, command)] = next_commands(plan, (advice,))
    assert "plateau" in why
    assert "--arch qknorm " in command
    assert "--lrs 0.001 0.01 " in command
    assert "--steps 4 " in command
    assert f"{tmp_path / 'r'}-4steps" in command


@pytest.mark.xdist_group("ray")
def test_a_sweep_trains_it_in_workers_that_never_see_the_file(mine: Path, tmp_path: Path) -> None:
    """Ray's workers get the row with the trial; tables and manifest carry the whole label."""
    out = tmp_path / "result"
    schemes_and_lrs = ("--arch", f"{mine}:mine+zloss", "ngpt", "--lrs", "1e-3", "1e-2", "--seeds", "1")
    done = lrsweep("sweep", *schemes_and_lrs, *QUICK, "--out", out, cwd=tmp_path, timeout=300)
    assert done.returncode in (0, 4), done.stderr
    assert "mine+zloss" in (out / "frontier.md").read_text()
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["schemes"]["mine+zloss"]["qk_norm"] == "full"
    assert manifest["frozen"]["train.0.2m.mine+zloss.z_loss"] == 1e-4
    assert manifest["frozen"]["train.0.2m.ngpt.weight_decay"] == 0
    assert lrsweep("report", out, cwd=tmp_path).returncode == 0
