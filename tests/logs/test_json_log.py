"""JSON lines and JSON documents."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from lrsweep.errors import UserError
from tests.logs.reading import read, same

NAN = math.nan


def trainer_state(*entries: dict[str, object]) -> str:
    return json.dumps({"best_metric": None, "epoch": 1.0, "global_step": 4, "log_history": entries}, indent=2)


def test_json_lines_with_steps_and_nested_values(tmp_path: Path) -> None:
    log = (
        '{"val/loss": 9.0, "step": 0}\n'
        '{"train": {"loss": 4.25, "grad_norm": 0.75}, "step": 1}\n'
        '{"train": {"loss": NaN, "grad_norm": Infinity}, "step": 2}\n'
        '{"train": {"loss": "nan", "grad_norm": null}, "step": 3}\n'
        '{"train": {"loss": 4.125, "gr'
    )
    curve = read(tmp_path, log)
    assert curve.format == "jsonl"
    assert (curve.loss_key, curve.grad_norm_key) == ("train/loss", "train/grad_norm")
    assert curve.steps == (1, 2, 3)
    assert same(curve.losses, [4.25, NAN, NAN])
    assert same(curve.grad_norms or (), [0.75, math.inf, None])
    assert any("1 lines are not JSON" in note for note in curve.notes)


def test_a_loss_and_a_norm_in_separate_lines_meet_by_the_step(tmp_path: Path) -> None:
    log = '{"step": 1, "grad_norm": 0.75}\n{"step": 1, "loss": 4.25}\n{"step": 2, "loss": 4.0}\n'
    assert read(tmp_path, log).grad_norms == (0.75, None)


def test_trainer_state_of_transformers(tmp_path: Path) -> None:
    log = trainer_state(
        {"epoch": 0.1, "grad_norm": 0.75, "learning_rate": 1e-4, "loss": 4.25, "step": 10},
        {"epoch": 0.1, "eval_loss": 9.0, "eval_runtime": 1.5, "step": 10},
        {"epoch": 0.2, "grad_norm": 0.5, "learning_rate": 1e-4, "loss": 4.125, "step": 20},
        {"epoch": 0.2, "step": 20, "total_flos": 1e9, "train_loss": 4.2, "train_runtime": 60.0},
    )
    curve = read(tmp_path, log)
    assert curve.format == "json"
    assert (curve.steps, curve.losses, curve.grad_norms) == ((10, 20), (4.25, 4.125), (0.75, 0.5))
    assert curve.notes == ()


def test_transformers_zero_that_stands_for_nan(tmp_path: Path) -> None:
    log = trainer_state(
        {"step": 1, "loss": 4.25, "grad_norm": 0.75},
        {"step": 2, "loss": 0.0, "grad_norm": 0.5},  # a loss of zero: the norm is fine
        {"step": 3, "loss": 0.0, "grad_norm": NAN},
        {"step": 4, "loss": 0.0},
    )
    curve = read(tmp_path, log)
    assert same(curve.losses, [4.25, 0.0, NAN, NAN])
    assert len(curve.notes) == 2
    assert all("read as NaN" in note for note in curve.notes)


def test_a_zero_loss_in_any_other_log_is_zero(tmp_path: Path) -> None:
    assert read(tmp_path, '{"step": 1, "loss": 1.5}\n{"step": 2, "loss": 0.0}\n').losses == (1.5, 0.0)


def test_golden_values_of_megatron(tmp_path: Path) -> None:
    def metric(values: dict[str, object]) -> dict[str, object]:
        return {"start_step": 1, "end_step": 10, "step_interval": 5, "values": values}

    log = {"lm loss": metric({"1": 4.25, "5": 4.125, "10": "nan"}), "num-zeros": metric({"1": 7, "5": 8, "10": 9})}
    curve = read(tmp_path, json.dumps(log))
    assert (curve.steps, curve.losses) == ((1, 5), (4.25, 4.125))  # "nan" is a step that was never reached


def test_a_single_record(tmp_path: Path) -> None:
    assert read(tmp_path, '{"step": 7, "loss": 4.25}\n').steps == (7,)


@pytest.mark.parametrize(
    "document",
    [
        [{"step": 1, "loss": 4.25}, {"step": 2, "loss": 4.125}],
        {"step": [1, 2], "loss": [4.25, 4.125], "name": "run"},
        {
            "config": {"depth": 4, "stages": [{"loss": 9}]},
            "run": {"steps": [{"step": 1, "loss": 4.25}, {"step": 2, "loss": 4.125}]},
        },
    ],
)
def test_other_documents(document: object, tmp_path: Path) -> None:
    curve = read(tmp_path, json.dumps(document, indent=1))
    assert curve.format == "json"
    assert (curve.steps, curve.losses) == ((1, 2), (4.25, 4.125))


def test_what_is_not_json_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not valid JSON \(.*line 2.*--format") as caught:
        read(tmp_path, '{"log_history": [\n')
    assert "\n" not in str(caught.value)


def test_a_python_dictionary_a_line_is_text(tmp_path: Path) -> None:
    log = "{'loss': '4.25', 'grad_norm': '0.75', 'epoch': '0.1'}\n{'loss': '0', 'grad_norm': 'nan', 'epoch': '0.2'}\n"
    with pytest.raises(UserError, match="--step-key none"):
        read(tmp_path, log)
    curve = read(tmp_path, log, step="none")
    assert curve.format == "text"
    assert same(curve.losses, [4.25, NAN])
