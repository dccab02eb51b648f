"""Progress on something that is no terminal: plain lines, nothing silly before the first item."""

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
