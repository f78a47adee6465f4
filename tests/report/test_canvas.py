"""Axes, and saving: three formats, the same bytes each time, whatever the user's own settings."""

import matplotlib
import pytest

from lrsweep.report.canvas import lr_limits, lr_norm, lr_ticks, new_figure, plain_log_axis, save, style


def draw(folder):
    with style():
        figure = new_figure(3, 2)
        axes = figure.add_subplot()
        axes.plot([1, 2, 3], [1, 4, 9], label="ε")
        axes.set_xscale("log")
        lr_ticks(axes.xaxis, [1, 2, 3])
        axes.legend()
        return save(figure, folder, "drawing")


def test_saved_three_times_and_alike(tmp_path):
    first = draw(tmp_path / "a")
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.hashsalt": "x"}):
        second = draw(tmp_path / "b")
    heads = {"svg": b"<?xml", "pdf": b"%PDF", "png": b"\x89PNG"}
    assert list(first) == list(heads)
    for suffix, head in heads.items():
        content = first[suffix].read_bytes()
        assert first[suffix].name == f"drawing.{suffix}"
        assert content.startswith(head)
        assert content == second[suffix].read_bytes()
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["drawing.pdf", "drawing.png", "drawing.svg"]


def test_the_users_settings_are_left_as_they_were():
    with matplotlib.rc_context({"font.size": 30}):
        before = dict(matplotlib.rcParams), matplotlib.get_backend(auto_select=False)
        with style():
            assert matplotlib.rcParams["font.size"] == 9
        assert (dict(matplotlib.rcParams), matplotlib.get_backend(auto_select=False)) == before


def test_ticks_are_tested_lrs_and_never_crowd():
    axis = new_figure(3, 2).add_subplot().xaxis
    lr_ticks(axis, [1e-3, 0.03, 3.0])
    assert [t.get_text() for t in axis.get_ticklabels()] == ["1e-3", "0.03", "3"]
    lr_ticks(axis, [2.0**i for i in range(30)])
    ticks = axis.get_majorticklocs().tolist()
    assert 5 <= len(ticks) <= 12
    assert set(ticks) <= {2.0**i for i in range(30)}


@pytest.mark.parametrize(("low", "high"), [(1e-3, 1e6), (2.0, 150.0), (11.0, 18.0)])
def test_a_log_axis_has_a_few_plain_ticks_however_wide(low, high):
    axes = new_figure(3, 2).add_subplot()
    axes.set_yscale("log")
    axes.plot([0, 1], [low, high])
    plain_log_axis(axes.yaxis)
    bottom, top = axes.get_ylim()
    ticks = [t for t in axes.yaxis.get_majorticklocs() if bottom <= t <= top]
    assert 2 <= len(ticks) <= 12
    assert not any("$" in text for text in axes.yaxis.get_major_formatter().format_ticks(ticks))


def test_one_lr_has_room_on_both_sides():
    low, high = lr_limits([0.1])
    assert low < 0.1 < high
    assert lr_norm([0.1])(0.1) == pytest.approx(0.5)
    assert lr_limits([0.1, 1.0]) == pytest.approx((0.1 / 10**0.5, 10**0.5))
    assert lr_limits([0.1, 0.3, 10.0], beyond=1) == pytest.approx((0.01, 100))
