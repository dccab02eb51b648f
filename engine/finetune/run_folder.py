"""A fine-tuning run's folder: whose it is, what it came to, and what an earlier version left."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mim3d.dataio.corpus.names import MANIFEST, own_file
from mim3d.engine.errors import CheckpointError, ConfigError
from mim3d.engine.finetune.config import (
    MAY_CHANGE,
    OFF,
    FinetuneConfig,
    beside_identity,
    identity,
    stored_identity,
)
from mim3d.engine.runs.checkpoint_files import CHECKPOINTS, newest_facts
from mim3d.engine.runs.files import differences, local_sha256, read_json, write_json
from mim3d.engine.runs.history import Record, setting_records, stands_in
from mim3d.engine.runs.own_parts import changed_parts, own_parts

CONFIG, RESULT, PICTURES = "config.json", "result.json", "pictures.npz"
MODEL, SPLITS = "model.pt", ("train", "validation", "test")
RECORDED = ("log", "divergence", "parallel.precision")
"""What else the history tells of where it changes."""
EARLIER_STATE = "state.pt"
"""Where versions before 0.2 kept a run that was under way."""
DECAYED = "decayed"
"""Field of config.json: what weight decay acts on; versions before 0.2 have none."""
EARLIER_DECAY = (
    "fine-tuned by mim3d before 0.2, which decayed norms, biases and positions too: not comparable "
    "with runs of this version; delete its folder to train it anew"
)


@dataclass
class FinetuneResult:
    """Evaluations (one row each), scores of each case at the end, cost of one step, remarks."""

    rows: list[dict[str, Any]]
    cases: list[dict[str, Any]]
    step_flops: float
    seconds: float
    notes: list[str] = field(default_factory=list)
    subjects: dict[str, list[str]] = field(default_factory=dict)
    interrupted: bool = False
    """Told to stop by a signal; the same command goes on."""
    doubts: list[str] = field(default_factory=list)
    """Parts of the encoder that are not those of the weights it began with."""
    warnings: list[str] = field(default_factory=list)
    """Classes that are scored and not trained on, targets that may be none or are lost."""


@dataclass(frozen=True)
class Claim:
    """What a run's folder was found to be."""

    finished: bool = False
    changed: list[Record] = field(default_factory=list)
    """Settings that are others in this sitting."""
    remarks: list[str] = field(default_factory=list)
    """What else is not what it was: plugins."""


def claim(config: FinetuneConfig, out: Path) -> Claim:
    """Store the configuration, or refuse a folder that holds a run of another one."""
    wanted, file = identity(config), out / CONFIG
    about = {**wanted, **beside_identity(config), DECAYED: "matrices", **inputs_sha256(config)}
    about |= {"plugins": parts} if (parts := plugin_parts(config)) else {}
    finished = (out / RESULT).exists()
    if not file.exists():
        write_json(file, about)
        return Claim(finished)
    found = stored_identity(read_json(file))
    refuse_other_settings(config, out, () if finished else MAY_CHANGE)
    if not finished:
        refuse_earlier_state(out)
        facts = newest_facts(out / CHECKPOINTS)
        step = 0 if facts is None else facts.step
        changed = setting_records(found, about, (*MAY_CHANGE, *RECORDED), step)
        history = [*found.get("history", []), *changed]
        write_json(file, {**found, **about, "history": history})
        return Claim(changed=changed, remarks=changed_parts(found.get("plugins", []), parts))
    return Claim(finished)


def refuse_other_settings(config: FinetuneConfig, out: Path, spared: Sequence[str] = ()) -> None:
    """A ConfigError where a folder holds a run on other data, or of settings not in `spared`."""
    if not (out / CONFIG).exists():
        return
    found, wanted = stored_identity(read_json(out / CONFIG)), identity(config)
    refuse_other_inputs(found, inputs_sha256(config), out)
    known = [*wanted, *(key for key in OFF if key in found and key not in wanted)]
    differing = differences({key: found.get(key) for key in known}, wanted)
    for name, before, now in differing:
        if not stands_in(name, spared):
            raise ConfigError(
                f"{out} holds a run with {name} {in_words(before)}, not {in_words(now)}: choose "
                "another --out or delete that folder"
            )


def in_words(value: object) -> str:
    """A setting's value as it is told; text that is empty would be no word."""
    return "empty" if value == "" else str(value)


def plugin_parts(config: FinetuneConfig) -> list[dict[str, Any]]:
    """A record of each part of a run that is a plugin's."""
    return own_parts(config.encoder.kind, config.augment, config.data.normalise)


def refuse_other_inputs(found: dict[str, Any], inputs: dict[str, str], out: Path) -> None:
    """A ConfigError where what a run learns from is not what it was."""
    for name, now in inputs.items():
        if now and found.get(name, now) != now:  # runs from before this was stored have none
            raise ConfigError(
                f"{out} holds a run on another {name.removesuffix('_sha256')} (sha256 "
                f"{str(found[name])[:12]} then, {now[:12]} now): restore it, choose another --out "
                "or delete that folder"
            )


def refuse_earlier_state(out: Path) -> None:
    """A CheckpointError where a run was under way in a version that trained otherwise."""
    if (out / EARLIER_STATE).exists():
        raise CheckpointError(
            f"{out / EARLIER_STATE} is a run that mim3d before 0.2 left under way, with norms, "
            f"biases and positions decayed: it cannot be gone on with. Delete {out} to train it "
            "anew, or choose another --out"
        )


def inputs_sha256(config: FinetuneConfig) -> dict[str, str]:
    """Hashes of what a run learns from, where it lies on this machine."""
    files = {"corpus": own_file(config.data.corpus, MANIFEST) if config.data.corpus else None}
    if config.data.targets:
        files["targets"] = Path(config.data.targets)
    hashes = {name: local_sha256(file) for name, file in files.items() if file is not None}
    return {f"{name}_sha256": known for name, known in hashes.items() if known is not None}


def read_result(out: Path) -> FinetuneResult:
    """The result of a finished run, with a note where an earlier version trained otherwise."""
    result = FinetuneResult(**read_json(out / RESULT))
    file = out / CONFIG
    if file.exists() and DECAYED not in read_json(file):
        result.notes = [*result.notes, EARLIER_DECAY]
    return result
