"""The loop alone: when hooks are called, who decides what is measured, where it stops."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from mim3d.engine.distributed.stop import StopSignal
from mim3d.engine.training.clocks import TrainingClock
from mim3d.engine.training.train_step import MeanLoss, Stepper
from mim3d.engine.training.trainer import Hook, Trainer


class FakeStepper:
    """Remembers what it was asked for."""

    def __init__(self) -> None:
        self.ranks = SimpleNamespace(device=torch.device("cpu"), world=1, rank=0)
        self.asked: list[tuple[float, bool]] = []

    def step(self, lr: float, measure: bool) -> str:
        self.asked.append((lr, measure))
        return f"figures {len(self.asked)}"


class Diary(Hook):
    """Writes down what is called."""

    def __init__(self, name: str, pages: list[str], measured: tuple[int, ...] = ()) -> None:
        self.name, self.pages, self.measured = name, pages, measured

    def begin(self, trainer: Trainer) -> None:
        self.pages.append(f"{self.name} begin {trainer.step}")

    def due(self, step: int, steps: int) -> bool:
        return step in self.measured

    def before_step(self, trainer: Trainer) -> None:
        self.pages.append(f"{self.name} before {trainer.step}")

    def after_step(self, trainer: Trainer) -> None:
        self.pages.append(f"{self.name} after {trainer.step} {trainer.figures}")

    def end(self, trainer: Trainer) -> None:
        self.pages.append(f"{self.name} end {trainer.step}")

    def close(self) -> None:
        self.pages.append(f"{self.name} close")


def stopping(*answers: bool) -> StopSignal:
    given = iter(answers)
    return cast(
        StopSignal, SimpleNamespace(agreed=lambda: next(given, False), at_once=lambda: False)
    )


def trainer_of(hooks: list[Hook], steps: int = 2) -> tuple[Trainer, FakeStepper]:
    fake = FakeStepper()
    return Trainer(cast(Stepper, fake), lambda step: 10.0 + step, steps, hooks), fake


def test_hooks_are_called_in_order_around_every_step() -> None:
    pages: list[str] = []
    trainer, fake = trainer_of([Diary("a", pages), Diary("b", pages, (2,))])
    assert trainer.run(stopping())
    trainer.close()
    assert pages == [
        "a begin 0", "b begin 0",
        "a before 0", "b before 0", "a after 1 figures 1", "b after 1 figures 1",
        "a before 1", "b before 1", "a after 2 figures 2", "b after 2 figures 2",
        "a end 2", "b end 2", "b close", "a close",
    ]  # fmt: skip
    assert fake.asked == [(10.0, False), (11.0, True)]


def test_a_signal_stops_between_steps_and_hooks_still_end() -> None:
    pages: list[str] = []
    trainer, fake = trainer_of([Diary("a", pages)], steps=9)
    assert not trainer.run(stopping(False, True))
    assert (trainer.step, trainer.finished, len(fake.asked)) == (1, False, 1)
    assert pages[-1] == "a end 1"


def test_a_run_that_is_at_its_end_does_no_step() -> None:
    trainer, fake = trainer_of([], steps=3)
    trainer.step = 3
    assert trainer.run(stopping())
    assert fake.asked == []


def test_what_is_done_while_paused_is_no_training_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    clock = TrainingClock(torch.device("cpu"))
    assert clock.seconds == 0.0
    clock.start(before=5.0)
    now[0] += 2.0
    with clock.paused():
        now[0] += 50.0
    now[0] += 1.0
    assert clock.seconds == 8.0


def test_a_mean_goes_on_where_it_was_kept() -> None:
    whole, first, second = (MeanLoss(torch.device("cpu")) for _ in range(3))
    losses: list[Any] = [[torch.tensor(0.1), torch.tensor(0.2)], [torch.tensor(0.7)]]
    for loss in losses:
        whole.add(loss)
    first.add(losses[0])
    second.load_state({key: value.clone() for key, value in first.state().items()})
    second.add(losses[1])
    assert torch.equal(second.total, whole.total)
    assert second.steps == whole.steps == 2
    assert first.value() == pytest.approx(0.3)
    second.clear()
    assert (float(second.total), second.steps) == (0.0, 0)


def test_a_step_in_which_nothing_counted_is_no_part_of_a_mean() -> None:
    mean = MeanLoss(torch.device("cpu"))
    for loss, counted in ((0.4, 0.5), (0.0, 0.0), (0.8, 1.0)):
        mean.add([torch.tensor(loss)], torch.tensor(counted))
    assert mean.value() == pytest.approx(0.6)
    other = MeanLoss(torch.device("cpu"))
    other.load_state({key: value.clone() for key, value in mean.state().items()})
    other.add([torch.tensor(0.0)], torch.tensor(0.0))
    assert other.value() == pytest.approx(0.6)
    other.clear()
    other.add([torch.tensor(0.0)], torch.tensor(0.0))
    assert other.value().isnan()
