"""What a run can be told when it is gone on with: its length, its corpus, settings that may
change; each is kept in the run's configuration."""

from pathlib import Path

from mim3d.engine.errors import CheckpointError
from mim3d.engine.pretrain.config import PretrainConfig, config_dict
from mim3d.engine.runs.checkpoint_files import CHECKPOINTS, newest_facts
from mim3d.engine.runs.history import NO_SETTING, Record, setting_records, with_records

MAY_CHANGE = ("schedule", "optim.clip_norm", "optim.weight_decay")
"""Parts of what is learned that a run under way may have otherwise from a step on."""
KEPT = (*MAY_CHANGE, "checkpoint", "log", "probe", "parallel.precision", "divergence")
"""What the history tells of where it changes."""


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
    facts, now, schedule = newest_facts(out / CHECKPOINTS), config.steps, config.schedule
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
    """What this sitting changes of the run stored in `out`; `corpus` is the hash of today's."""
    facts = newest_facts(out / CHECKPOINTS)
    if facts is None:
        return []
    found = setting_records(stored, config_dict(config), ("steps", *KEPT), facts.step)
    if facts.corpus_sha256 != corpus:
        before = facts.corpus_sha256
        found.append(
            {"at_step": facts.step, "changed": NO_SETTING, "before": before, "now": corpus}
        )
    history = stored.get("history", [])
    return with_records(history, found)[len(history) :]
