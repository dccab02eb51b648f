"""What changed between the sittings of a run, its length or its corpus: whether it may, and a
record of it in the run's configuration."""

from pathlib import Path
from typing import Any

from mim3d.engine.errors import CheckpointError
from mim3d.engine.pretrain.config import PretrainConfig, config_identity
from mim3d.engine.runs.checkpoint_files import CheckpointFacts, committed, read_facts
from mim3d.engine.runs.files import json_sha256
from mim3d.engine.training.run import CHECKPOINTS

Record = dict[str, Any]


def newest_facts(out: Path) -> CheckpointFacts | None:
    """Of the newest checkpoint whose manifest can be read; None where there is none."""
    for folder in committed(out / CHECKPOINTS):
        try:
            return read_facts(folder)[0]
        except CheckpointError:
            continue
    return None


def corpus_remedy(out: Path) -> str:
    """What to do where a run's corpus is another one, besides restoring it."""
    return (
        f"go on with this one by --accept-corpus, or start a new run from its weights: --init "
        f"{out} with another --out"
    )


def refuse_other_length(out: Path, before: int, config: PretrainConfig) -> None:
    """A CheckpointError where a run of `before` steps cannot be one of `config.steps`.

    It can where the steps done are those of the longer run: the rate of none of them depended on
    how many there would be.
    """
    facts, now, schedule = newest_facts(out), config.steps, config.schedule
    anew = f"start a new run from its weights: --init {out} with another --out"
    if facts is None:
        raise CheckpointError(
            f"{out} holds a run of {before} steps without a checkpoint to lengthen to {now}: {anew}"
        )
    if now < facts.step:
        raise CheckpointError(
            f"{out} holds a run of {before} steps that is at step {facts.step}, past {now}: go on "
            f"with --steps {before}, or choose another --out"
        )
    stable = min(schedule.decay_start(before), schedule.decay_start(now))
    if facts.step > stable:
        raise CheckpointError(
            f"{out} holds a run of {before} steps whose {schedule.kind} rate has fallen since step "
            f"{stable} and is now at step {facts.step}: it cannot become one of {now}. Go on with "
            f"--steps {before}, or {anew}"
        )


def changes(stored: Record, out: Path, config: PretrainConfig, corpus: str) -> list[Record]:
    """The run's history with what this sitting changes; `corpus` is the hash of today's."""
    history = list(stored.get("history", []))
    facts = newest_facts(out)
    if facts is None:
        return history
    found = []
    if stored.get("steps", config.steps) != config.steps:
        found.append(("steps", stored["steps"], config.steps))
    if facts.corpus_sha256 != corpus:
        found.append(("corpus", facts.corpus_sha256, corpus))
    for what, before, now in found:
        record = {"at_step": facts.step, "changed": what, "before": before, "now": now}
        history += [record] * (record not in history)
    return history


def earlier_hashes(history: list[Record], config: PretrainConfig) -> tuple[str, ...]:
    """Hashes of the configurations that the run had when it was shorter."""
    now = config_identity(config)
    lengths = [record["before"] for record in history if record["changed"] == "steps"]
    return tuple(json_sha256({**now, "steps": steps}) for steps in lengths)
