"""One fine-tuning run: constant rate after warm-up, scored at fixed steps, resumable at each.

For one seed every arm sees the same crops in the same order, the same decoder weights and the
same evaluations; only the encoder's weights differ. Seconds and FLOPs are of training alone.
"""

import math
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from mim3d.dataio.corpus.manifest import MANIFEST
from mim3d.dataio.loader.loader import Loader, LoaderConfig
from mim3d.dataio.reader.corpus import Corpus, opened_corpus
from mim3d.dataio.reader.shard_reader import Shards
from mim3d.engine.errors import CheckpointError, ConfigError, TrainingError
from mim3d.engine.finetune.classification import ClassificationTask, read_targets
from mim3d.engine.finetune.config import (
    FinetuneConfig,
    identity,
    input_mismatch,
    stored_identity,
)
from mim3d.engine.finetune.network import step_flops
from mim3d.engine.finetune.segmentation import SegmentationTask
from mim3d.engine.finetune.splits import Splits, labelled_subset, make_splits
from mim3d.engine.finetune.task import Task
from mim3d.engine.runs.files import differences, local_sha256, read_json, write_json
from mim3d.engine.runs.folder_lock import sole_writer
from mim3d.engine.training.corpus import corpus_fit
from mim3d.engine.training.schedule import lr_at

CONFIG, STATE, RESULT, PICTURES = "config.json", "state.pt", "result.json", "pictures.npz"
MODEL, SPLITS = "model.pt", ("train", "validation", "test")
DIVERGED = "the loss is"
"""How the error of a run begins whose loss ceased to be finite."""
Told = Callable[[int, str], None]
"""Called with steps just done and a status line."""


@dataclass
class FinetuneResult:
    """Evaluations (one row each), scores of each case at the end, cost of one step, remarks."""

    rows: list[dict[str, Any]]
    cases: list[dict[str, Any]]
    step_flops: float
    seconds: float
    notes: list[str] = field(default_factory=list)
    subjects: dict[str, list[str]] = field(default_factory=dict)


def run_finetune(
    config: FinetuneConfig, out: Path, told: Told | None = None, keep_model: bool = True
) -> FinetuneResult:
    """Train, or go on where a run with the same configuration stopped; a finished one is read."""
    with sole_writer(out):
        claim(config, out)
        if not (out / RESULT).exists():
            train(config, out, told, keep_model)
    return FinetuneResult(**read_json(out / RESULT))


def train(config: FinetuneConfig, out: Path, told: Told | None, keep_model: bool) -> None:
    """Write the run's result."""
    session = Session(config)
    try:
        session.resume(out / STATE)
        result = session.run(out, told or (lambda steps, status: None))
        if keep_model:
            torch.save(session.task.net.state_dict(), out / MODEL)
    finally:
        session.close()
    write_json(out / RESULT, asdict(result))
    (out / STATE).unlink(missing_ok=True)


def claim(config: FinetuneConfig, out: Path) -> None:
    """Store the configuration, or refuse a folder that holds a run of another one."""
    wanted, file = identity(config), out / CONFIG
    inputs = inputs_sha256(config)
    if not file.exists():
        return write_json(file, wanted | inputs)
    found = stored_identity(read_json(file))
    for name, now in inputs.items():
        if now and found.get(name, now) != now:  # runs from before this was stored have none
            raise ConfigError(
                f"{out} holds a run on another {name.removesuffix('_sha256')} (sha256 "
                f"{str(found[name])[:12]} then, {now[:12]} now): restore it, choose another --out "
                "or delete that folder"
            )
    differing = differences({key: found.get(key) for key in wanted}, wanted)
    if differing:
        name, before, now = differing[0]
        raise ConfigError(
            f"{out} holds a run with {name} {before}, not {now}: choose another --out or delete "
            "that folder"
        )
    return None


def inputs_sha256(config: FinetuneConfig) -> dict[str, str]:
    """Hashes of what a run learns from, where it lies on this machine."""
    files = {"corpus": Path(config.data.corpus) / MANIFEST if config.data.corpus else None}
    if config.data.targets:
        files["targets"] = Path(config.data.targets)
    hashes = {name: local_sha256(file) for name, file in files.items() if file is not None}
    return {f"{name}_sha256": known for name, known in hashes.items() if known is not None}


class Session:
    """Network, optimiser, loader and what was measured so far."""

    def __init__(self, config: FinetuneConfig) -> None:
        self.config = config
        self.device = pick_device(config.device)
        self.opened = ExitStack()
        corpus, shards = self.opened.enter_context(opened_corpus(config.data.corpus))
        self.splits = resolve_splits(config, corpus)
        corpus_fit(corpus.table, config.vit, self.splits.train)
        self.task: Task = make_task(config, corpus, shards, self.device)
        self.trained = [p for p in self.task.net.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(
            parameter_groups(self.task.net, config.encoder_lr_scale),
            lr=config.schedule.lr,
            weight_decay=config.weight_decay,
        )
        self.step_flops = step_flops(config, self.task.net)
        self.loader = Loader(
            config.data.corpus,
            loader_config(config),
            device=str(self.device),
            subjects=self.splits.train,
        )
        self.step, self.seconds = 0, 0.0
        self.rows: list[dict[str, Any]] = []
        self.cases: list[dict[str, Any]] = []
        self.losses: list[float] = []

    def close(self) -> None:
        """Stop the loader; a remote corpus's table goes."""
        self.loader.close()
        self.opened.close()

    def run(self, out: Path, told: Told) -> FinetuneResult:
        """Train to the end; after each evaluation the state is saved."""
        evaluations = self.config.evaluation_steps
        begun = self.rows[-1]["step"] if self.rows else -1
        told(max(begun, 0), "resumed" if self.rows else "")
        for at in (step for step in evaluations if step > begun):
            done = at - self.step
            while self.step < at:
                self.train_step()
            self.evaluate("validation", final=at == self.config.steps)
            told(done, f"{self.task.metric} {self.rows[-1]['score']:.3f}")
            self.save(out / STATE)
        return self.finish(out)

    def train_step(self) -> None:
        """One optimiser step on one batch."""
        began = time.perf_counter()
        self.task.net.train()
        rate = lr_at(self.config.schedule, self.step, self.config.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["scale"]
        batch = next(self.loader)
        with autocast(self.device):
            loss = self.task.loss(batch)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if self.config.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.trained, self.config.clip_norm)
        self.optimiser.step()
        value = loss.item()
        if not math.isfinite(value):
            raise TrainingError(f"{DIVERGED} {value} at step {self.step}: lower schedule.lr")
        self.losses.append(value)
        self.step += 1
        self.seconds += time.perf_counter() - began

    def evaluate(self, split: str, final: bool) -> None:
        """Add a tidy row of the scores now and, where `final`, the scores by case."""
        with autocast(self.device):
            found = self.task.evaluate(getattr(self.splits, split), final)
        row = {
            "split": split,
            "step": self.step,
            "crops": self.step * self.config.global_batch,
            "score": found.score,
            **found.fields,
            "train_loss": sum(self.losses) / len(self.losses) if self.losses else None,
            "flops": self.step * self.step_flops,
            "seconds": self.seconds,
        }
        self.rows.append(row)
        self.losses = []
        if final:
            self.cases += [{"split": split, **asdict(case)} for case in found.cases]

    def finish(self, out: Path) -> FinetuneResult:
        """Score the test subjects once, draw a few cases, and sum up."""
        if self.splits.test:
            self.evaluate("test", final=True)
        self.task.save_pictures(self.splits.validation, out / PICTURES)
        return FinetuneResult(
            self.rows,
            self.cases,
            self.step_flops,
            self.seconds,
            notes=self.notes(),
            subjects={name: list(getattr(self.splits, name)) for name in SPLITS},
        )

    def notes(self) -> list[str]:
        """What a reader must know of the subjects: who is left out, which classes a split lacks."""
        found = [
            *input_mismatch(self.config),
            *self.splits.notes,
            *self.task.notes(self.splits.train, "training"),
        ]
        for split in ("validation", "test"):
            if subjects := getattr(self.splits, split):
                found += self.task.notes(subjects, split)
        return found

    def save(self, file: Path) -> None:
        """Write everything a resumed run needs, whole or not at all."""
        state = {
            "net": self.task.net.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "loader": self.loader.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "rows": self.rows,
            "cases": self.cases,
        }
        partial = file.with_name(f".{file.name}.{os.getpid()}.part")
        torch.save(state, partial)
        partial.replace(file)

    def resume(self, file: Path) -> None:
        """Take up a saved state; CheckpointError where it cannot be read."""
        if not file.exists():
            return
        try:
            state = torch.load(file, map_location=self.device, weights_only=True)
        except Exception as error:
            raise CheckpointError(f"{file}: cannot be read ({error}); delete it") from error
        self.task.net.load_state_dict(state["net"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.loader.load_state_dict(state["loader"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.rows, self.cases = state["rows"], state["cases"]


def parameter_groups(net: torch.nn.Module, encoder_lr_scale: float) -> list[dict[str, Any]]:
    """Trained parameters of the head and of the encoder, with the `scale` of their rate."""
    encoder = [p for p in net.get_submodule("encoder").parameters() if p.requires_grad]
    known = set(map(id, encoder))
    head = [p for p in net.parameters() if p.requires_grad and id(p) not in known]
    groups = [{"params": head, "scale": 1.0}, {"params": encoder, "scale": encoder_lr_scale}]
    return [group for group in groups if group["params"]]


def make_task(config: FinetuneConfig, corpus: Corpus, shards: Shards, device: torch.device) -> Task:
    """Segmentation, or classification for head classify."""
    if config.head == "classify":
        return ClassificationTask(config, corpus, device, shards)
    return SegmentationTask(config, corpus, device, shards)


def resolve_splits(config: FinetuneConfig, corpus: Corpus) -> Splits:
    """Named subjects, or those `config.data.split` deals; of the training ones, `config.labels`."""
    if config.train:
        splits = Splits(config.train, config.validation, config.test, (), (), ())
    else:
        targets = read_targets(Path(config.data.targets)) if config.head == "classify" else None
        splits = make_splits(corpus.records, config.data.label, config.data.split, targets)
    return replace(splits, train=labelled_subset(splits.train, config.labels, config.seed))


def loader_config(config: FinetuneConfig) -> LoaderConfig:
    """Labelled crops of the encoder's size, any start (few volumes make no case for snapping)."""
    segments = config.head != "classify"
    return LoaderConfig(
        crop_size=config.vit.crop_size,
        micro_batch=config.global_batch,
        label=config.data.label if segments else None,
        seed=config.seed,
        snap=1,
        foreground_fraction=config.foreground_fraction if segments else 0.0,
        normalise=config.data.normalise,
        augment=config.augment,
        cache="host",
        threads=config.threads,
    )


def pick_device(wanted: str) -> torch.device:
    """The device named, or a GPU where there is one."""
    if wanted != "auto":
        return torch.device(wanted)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Bfloat16 on a GPU, float32 on a CPU."""
    if device.type == "cuda":
        return torch.autocast("cuda", torch.bfloat16)
    return nullcontext()
