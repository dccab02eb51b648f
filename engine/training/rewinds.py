"""What a run that went back from a divergence did so far: kept beside its checkpoints.

The record is written before anything is removed or loaded, so a crash in between goes back too.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from mim3d.engine.runs.checkpoint_files import CheckpointFacts
from mim3d.engine.runs.files import read_json, write_json
from mim3d.engine.training.metrics import Row

REWINDS = "rewinds.json"
"""File of a run's folder."""
STATE = "divergence"
"""Under which a checkpoint tells how many times its run had gone back."""


@dataclass(frozen=True)
class Rewind:
    """One time that a run went back."""

    at_step: int
    """The step that was reached, or gone back over."""
    first_bad: int
    """The first of the steps without a finite gradient."""
    to_step: int
    """Of the checkpoint that was taken up."""
    sample: int
    """Global index of the first sample that is not skipped."""
    skipped_samples: int
    lr_scale: float
    """Of the schedule's rate, from there on."""
    volumes: tuple[str, ...] = ()
    """Some that the last of those steps were made of."""


class Rewinds:
    """The record of a run, in order."""

    def __init__(self, out: Path) -> None:
        self.file = out / REWINDS
        stored = read_json(self.file) if self.file.exists() else []
        self.done = [Rewind(**{**one, "volumes": tuple(one["volumes"])}) for one in stored]

    def __len__(self) -> int:
        return len(self.done)

    def __iter__(self) -> Iterator[Rewind]:
        return iter(self.done)

    @property
    def lr_scale(self) -> float:
        """Of the schedule's rate, by now."""
        return self.done[-1].lr_scale if self.done else 1.0

    @property
    def redone(self) -> int:
        """Steps that were gone back over, all times together."""
        return sum(one.at_step - one.to_step for one in self.done)

    def add(self, rewind: Rewind, writes: bool) -> None:
        """One more; one rank of many writes it."""
        self.done.append(rewind)
        if writes:
            write_json(self.file, [asdict(one) for one in self.done])

    def since(self, facts: CheckpointFacts) -> list[Rewind]:
        """Those that a checkpoint does not know of: it was written before them."""
        return self.done[facts.hooks.get(STATE, {}).get("rewinds", 0) :]

    def lead_to(self, facts: CheckpointFacts) -> bool:
        """Whether a checkpoint is of the run as it went on, not of what was gone back over."""
        return all(facts.step <= one.to_step for one in self.since(facts))

    def row(self) -> Row:
        """What every row tells after the first time."""
        if not self.done:
            return {}
        return {
            "rewinds": len(self.done),
            "lr_scale": self.lr_scale,
            "redone_steps": self.redone,
            "skipped_samples": sum(one.skipped_samples for one in self.done),
        }

    def lines(self) -> list[str]:
        """What a reader of the run's result must know."""
        return [
            f"diverged at step {one.first_bad} and went back from step {one.at_step} to "
            f"{one.to_step}: {one.skipped_samples} samples skipped, {one.lr_scale:g} of the "
            "schedule's rate from there on"
            for one in self.done
        ]
