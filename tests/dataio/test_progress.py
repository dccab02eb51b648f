"""Progress on something that is no terminal: plain lines, nothing silly before the first item."""

from types import SimpleNamespace

import pytest

from mim3d.dataio import progress as module
from mim3d.dataio.progress import PlainProgress, progress


def test_plain_lines_tell_share_rate_and_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "PLAIN_INTERVAL_S", 0.0)
    with PlainProgress("convert", 4, "volumes") as shown:
        shown.advance(0, "starting")
        shown.advance(1, "a.nii.gz")
    first, second, last = capsys.readouterr().out.splitlines()
    assert first == "convert 0/4 (0 %), starting"
    assert second.startswith("convert 1/4 (25 %), ")
    assert second.endswith("s left, a.nii.gz")
    assert "volumes/s" in last


def test_lines_are_held_to_an_interval(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("x", 1000) as shown:
        for _ in range(1000):
            shown.advance()
        shown.note("kept")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "kept"
    assert len(lines) == 2


def test_an_error_inside_passes_without_a_closing_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="inner"), progress("x", 2) as shown:
        shown.advance()
        raise ValueError("inner")
    assert capsys.readouterr().out == ""


def test_a_loss_stays_on_the_line_between_steps_that_tell_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "PLAIN_INTERVAL_S", 0.0)
    with PlainProgress("pretrain", 3, "steps") as shown:
        shown.advance(1, "loss 0.5")
        shown.advance()
        shown.advance(1, "loss 0.4")
    lines = capsys.readouterr().out.splitlines()
    assert [line.rsplit(", ", 1)[1] for line in lines] == [
        "loss 0.5", "loss 0.5", "loss 0.4", "loss 0.4",
    ]  # fmt: skip


def test_a_terminals_bar_keeps_it_too() -> None:
    shown = module.RichProgress("pretrain", 3, "steps")
    shown.advance(1, "loss 0.5")
    shown.advance()
    assert shown._bar.tasks[0].fields["status"] == "loss 0.5"


def test_what_an_earlier_run_did_or_a_rewind_undid_is_no_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = iter([0.0, 0.0, 10.0, 20.0, 30.0])
    monkeypatch.setattr(module, "PLAIN_INTERVAL_S", 0.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(now)))
    with PlainProgress("pretrain", 1000, "steps") as shown:
        shown.move(900, "resumed")
        shown.advance(20, "loss 0.5")
        shown.move(-10, "rewound")
    resumed, worked, rewound, last = capsys.readouterr().out.splitlines()
    assert resumed == "pretrain 900/1000 (90 %), resumed"
    assert worked == "pretrain 920/1000 (92 %), 2 steps/s, 40 s left, loss 0.5"
    assert rewound == "pretrain 910/1000 (91 %), 1 steps/s, 90 s left, rewound"
    assert last.startswith("pretrain 910/1000 (91 %), 0.667 steps/s")


def test_a_terminals_bar_moves_without_a_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 10.0])
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(now)))
    shown = module.RichProgress("pretrain", 1000, "steps")
    shown.move(900, "resumed")
    assert shown._bar.tasks[0].completed == 900
    assert shown._bar.tasks[0].speed is None
    shown.advance(20, "loss 0.5")
    assert shown._bar.tasks[0].completed == 920
    assert shown._bar.tasks[0].fields["rate"] == "2 steps/s"
