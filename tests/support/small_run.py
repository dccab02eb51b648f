"""A pretraining run of seconds, for tests; run as a script it injects a fault in one rank.

python small_run.py CORPUS OUT [FAULT [METHOD [REPLICATE [ACCUM]]]]

A fault that begins with `lamb` trains with LAMB; what follows is the fault, if any.
"""

import dataclasses
import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path

import torch
from torch.distributed.checkpoint import FileSystemWriter

from mim3d.dataio.convert.run import convert
from mim3d.dataio.corpus.conversion import Conversion
from mim3d.dataio.loader.batch import Batch
from mim3d.dataio.sources.discover import discover
from mim3d.dataio.sources.phantom import make_cohort
from mim3d.dataio.storage.object_store import RemoteStore
from mim3d.engine.distributed import shared
from mim3d.engine.models.config import MAEConfig, SwinConfig
from mim3d.engine.models.objective import StepOutput
from mim3d.engine.models.primus.config import PrimusConfig
from mim3d.engine.models.resenc.config import ResEncConfig
from mim3d.engine.pretrain.config import PretrainConfig
from mim3d.engine.pretrain.pretrain import run_pretrain
from mim3d.engine.pretrain.recipes import recipe
from mim3d.engine.probe.config import ProbeConfig
from mim3d.engine.runs import checkpoint_files
from mim3d.engine.training.checkpoints import Checkpoints
from mim3d.engine.training.config import DivergenceConfig
from mim3d.engine.training.train_step import StepFigures, Stepper
from mim3d.engine.training.trainer import Trainer

SPECIAL = {
    "swin": "simmim", "compiled": "mae", "primus": "mae", "resenc": "mae", "ignoring": "mae",
}  # fmt: skip
"""Methods of `small_config` that stand for one on another encoder."""


def make_corpus(folder: Path, subjects: int = 4) -> Path:
    """A corpus of generated volumes of about 36 mm edge."""
    cohort = make_cohort(folder / f"nifti-{subjects}", subjects, field_of_view_mm=36)
    convert(discover(str(cohort)).sources, folder / "corpus.zarr", Conversion(), workers=1)
    return folder / "corpus.zarr"


def small_config(corpus: Path | str, method: str = "mae", **changes: object) -> PretrainConfig:
    """Eight steps of a few milliseconds; a checkpoint every three.

    Method swin is SimMIM on a Swin encoder, compiled is MAE under torch.compile, primus and resenc
    (sparse) are MAE on those; ignoring is MAE that scores no air.
    """
    special, method = method, SPECIAL.get(method, method)
    base = recipe(f"demo-{method}")
    part = base.method
    if method == "mae":
        part = dataclasses.replace(part, decoder_width=24, decoder_depth=1, decoder_heads=2)
    if special == "ignoring":
        assert isinstance(part, MAEConfig)
        part = dataclasses.replace(part, ignore=("air",))
    config = dataclasses.replace(
        base,
        method=part,
        vit=dataclasses.replace(base.vit, crop_size=(16, 16, 32), width=24, depth=2, heads=2),
        data=dataclasses.replace(
            base.data,
            corpus=str(corpus),
            loader=dataclasses.replace(base.data.loader, threads=1),
        ),
        schedule=dataclasses.replace(base.schedule, warmup_steps=2),
        checkpoint=dataclasses.replace(base.checkpoint, every=3),
        log=dataclasses.replace(base.log, every=1, tensorboard=False, picture_every=0),
        parallel=dataclasses.replace(
            base.parallel,
            min_block_parameters=100,
            timeout_s=120.0,
            precision="fp32",
            deterministic=True,
        ),
        global_batch=4,
        steps=8,
    )
    if special == "swin":
        vit = dataclasses.replace(config.vit, crop_size=(32, 32, 32), patch_size=(16, 16, 16))
        swin = SwinConfig(feature_size=12, depths=(1, 1, 1, 1), heads=(1, 2, 2, 4), window=4)
        config = dataclasses.replace(config, vit=vit, swin=swin)
    if special == "primus":
        assert isinstance(config.method, MAEConfig)
        vit = PrimusConfig(config.vit.crop_size, (8, 8, 8), width=24, depth=2, heads=2, registers=1)
        config = dataclasses.replace(
            config, vit=vit, method=dataclasses.replace(config.method, decoder_heads=4)
        )
    if special == "resenc":
        config = dataclasses.replace(
            config, resenc=ResEncConfig((4, 6, 8), (1, 1, 1), masking="sparse")
        )
    if special == "compiled":
        parallel = dataclasses.replace(config.parallel, compile=True)
        config = dataclasses.replace(config, parallel=parallel)
    return dataclasses.replace(config, **changes)


def at_step(
    step: int,
    act: Callable[[Trainer], object],
    setattr: Callable[[object, str, object], None] = setattr,
) -> None:
    """Call `act` when a run is about to do that step."""
    plain = Trainer.one_step

    def one_step(self: Trainer) -> None:
        if self.step + 1 == step:
            act(self)
        plain(self)

    setattr(Trainer, "one_step", one_step)


def signal_at(
    step: int,
    setattr: Callable[[object, str, object], None],
    number: signal.Signals = signal.SIGTERM,
) -> None:
    """Send this process a signal when a run is about to do that step."""
    at_step(step, lambda _: signal.raise_signal(number), setattr)


def before_step(step: int, rank: int, act: Callable[[Trainer], object]) -> None:
    """As `at_step` on that rank, in the first round only."""

    def in_first_round(trainer: Trainer) -> None:
        first_round = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        if trainer.stepper.ranks.rank == rank and first_round:
            act(trainer)

    at_step(step, in_first_round)


def kill(*_: object) -> None:
    """End this process as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)


def full_disk(*_: object) -> None:
    """What a rank meets that cannot write."""
    raise OSError(errno.ENOSPC, "No space left on device")


def die_after_the_commit(trainer: Trainer) -> None:
    """Wait for checkpoint 3, which is written in the background, and end this process."""
    saver = next(hook for hook in trainer.hooks if isinstance(hook, Checkpoints)).checkpointer
    while not (saver.root / "step-00000003").exists():
        time.sleep(0.05)
    kill()


def die_once(trainer: Trainer) -> None:
    """The same, unless another process did: after a restart ranks may have changed places."""
    saver = next(hook for hook in trainer.hooks if isinstance(hook, Checkpoints)).checkpointer
    mark = saver.root.parent.with_suffix(".died")
    if not mark.exists():
        mark.touch()
        die_after_the_commit(trainer)


def spoil_gradients(steps: set[int], rank: int) -> None:
    """Make that rank's loss infinite in these steps."""
    plain = Stepper.step
    calls = 0

    def step(self: Stepper, lr: float, measure: bool) -> StepFigures:
        nonlocal calls
        calls += 1
        if calls in steps and self.ranks.rank == rank:
            weight = next(iter(self.optimiser.local.values())).detach()
            kept = weight.clone()
            weight.fill_(float("nan"))
            figures = plain(self, lr, measure)
            weight.copy_(kept)
            return figures
        return plain(self, lr, measure)

    Stepper.step = step


def poison_samples(
    samples: Collection[int], setattr: Callable[[object, str, object], None] = setattr
) -> None:
    """Make the loss of micro-batches with one of these samples (global indices) NaN."""
    plain = Stepper._micro_step

    def micro_step(self: Stepper, batch: Batch) -> StepOutput:
        if any(sample in samples for sample in batch.sample.tolist()):
            batch.image.fill_(float("nan"))
        return plain(self, batch)

    setattr(Stepper, "_micro_step", micro_step)


def inject(fault: str) -> None:
    """Arrange one fault by name."""
    signals = {"sigterm": [15], "sigint": [2], "sigint-twice": [2, 2]}
    found = signals.get(fault.removeprefix("lamb"))
    if found is not None:
        last = int(os.environ.get("WORLD_SIZE", "1")) - 1
        before_step(5, last, lambda _: [signal.raise_signal(number) for number in found])
    elif fault == "nan":
        spoil_gradients({4}, 1)
    elif fault == "poison":
        poison_samples({18, 22, 26})  # the second of two ranks draws them
    elif fault == "full-disk":
        before_step(5, 1, full_disk)
    elif fault == "dead":
        before_step(5, 1, die_after_the_commit)
    elif fault.startswith("dead-once-"):
        before_step(5, int(fault.removeprefix("dead-once-")), die_once)
    elif fault.startswith("kill-at-"):
        kill_at(fault.removeprefix("kill-at-"))
    elif fault.startswith("kill-sending-"):
        kill_sending(fault.removeprefix("kill-sending-"))


def kill_sending(name: str) -> None:
    """End this process when it is about to send that object of checkpoint 6."""
    for verb in ("send", "put"):
        plain = getattr(RemoteStore, verb)

        def fatal(
            self: RemoteStore, key: str, *rest: object, plain: Callable[..., None] = plain
        ) -> None:
            if key.endswith(f"step-00000006/{name}"):
                kill()
            plain(self, key, *rest)

        setattr(RemoteStore, verb, fatal)


def kill_at(name: str) -> None:
    """End this process when it enters a function that saves, once checkpoint 3 is there."""
    owner = FileSystemWriter if hasattr(FileSystemWriter, name) else checkpoint_files
    plain = getattr(owner, name)

    def fatal(first: object, *rest: object, **named: object) -> object:
        place = Path(first.path) if isinstance(first, FileSystemWriter) else Path(str(first))
        root = next(part for part in (place, *place.parents) if part.name == "checkpoints")
        if (root / "step-00000003").exists() and place.name != "step-00000003":
            kill()
        if name == "discard":
            kill()
        return plain(first, *rest, **named)

    setattr(owner, name, fatal)


def main(corpus: str, out: str, fault: str = "", method: str = "mae", *counts: str) -> None:
    """Run as told."""
    torch.set_num_threads(1)
    inject(fault.removesuffix("own-cache"))
    replicate, accum = (int(count) for count in (*counts, "1", "1")[:2])
    if fault.endswith("own-cache"):
        os.environ["XDG_CACHE_HOME"] += os.environ["RANK"]
    elif fault == "own-address":
        out += os.environ["RANK"]
        shared.SEEN_S = 0.5
    elif fault.startswith("own-") and os.environ["RANK"] != "0":  # as on a node with its own disk
        own = Path(out if fault == "own-out" else corpus).parent / "own"
        corpus, out = (corpus, str(own)) if fault == "own-out" else (str(own), out)
    config = small_config(corpus, method)
    parallel = dataclasses.replace(config.parallel, replicate=replicate, grad_accum=accum)
    optim = dataclasses.replace(config.optim, kind="lamb" if fault.startswith("lamb") else "adamw")
    config = dataclasses.replace(config, parallel=parallel, optim=optim)
    if fault == "probe":
        probe = ProbeConfig(corpus, every=2, windows=2, patience=9)
        config = dataclasses.replace(config, probe=probe)
    if fault.startswith("kill-sending-"):  # or it would be luck whether 6 is saved at all
        waits = dataclasses.replace(config.checkpoint, asynchronous=False)
        config = dataclasses.replace(config, checkpoint=waits)
    if fault == "poison":
        log = dataclasses.replace(config.log, max_bad_steps=3)
        config = dataclasses.replace(config, log=log, divergence=DivergenceConfig("rewind"))
    result = run_pretrain(config, out)
    print(f"rank {os.environ.get('RANK', '0')} step {result.step} {result.interrupted}")


def wait_for_peers(deadline_s: float = 30) -> None:
    """Wait until every rank of a launch has said what ended it.

    The agent kills all others as soon as one has gone, and those may be about to speak.
    """
    if "TORCHELASTIC_ERROR_FILE" not in os.environ:
        return
    own = Path(os.environ["TORCHELASTIC_ERROR_FILE"]).with_name("said")
    own.touch()
    world, deadline = int(os.environ["WORLD_SIZE"]), time.monotonic() + deadline_s
    # The agent has a folder for this attempt, and in it one for each rank.
    while time.monotonic() < deadline and len(list(own.parents[1].glob("*/said"))) < world:
        time.sleep(0.05)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Exception:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        sys.stderr.flush()
        wait_for_peers()
        raise SystemExit(1) from None
