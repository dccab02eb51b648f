"""A pretraining run from configuration to encoder file, on one rank or many.

    run_pretrain(config, out) -> PretrainResult

An `out` that holds checkpoints of the same configuration is gone on with; one that holds the
finished run is answered from disk.
"""

import errno
import os
from collections.abc import Collection, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import torch

from mim3d.dataio.loader.loader import Loader
from mim3d.dataio.progress import Progress, progress
from mim3d.engine.distributed.one_voice import one_voice
from mim3d.engine.distributed.process_group import Ranks, first_decides, process_ranks
from mim3d.engine.distributed.stop import stop_on_signal
from mim3d.engine.errors import ConfigError, TrainingError
from mim3d.engine.models.build import method_name
from mim3d.engine.pretrain.config import PretrainConfig
from mim3d.engine.pretrain.data import CorpusFit, Subjects, choose_subjects, corpus_fit
from mim3d.engine.pretrain.held_out import HeldOut
from mim3d.engine.pretrain.run_folder import PretrainResult, finished_result, open_run
from mim3d.engine.pretrain.trainer import Training
from mim3d.engine.runs.folder_lock import sole_writer


def run_pretrain(config: PretrainConfig, out: str | Path) -> PretrainResult:
    """Train to `config.steps`, or until a signal; leaves the process group as it was found.

    Raises CorpusError, ConfigError, CheckpointError or TrainingError, each with its remedy; of
    many ranks one does, and the others raise PeerError.
    """
    out = Path(out)
    done = finished_result(out, config)
    if done is not None:
        return done
    with ExitStack() as stack:
        stack.enter_context(deterministic_kernels(config.parallel.deterministic))
        ranks = stack.enter_context(process_ranks(config.parallel.timeout_s))
        stack.enter_context(one_voice(ranks))
        subjects = subjects_of(config)
        loader = stack.enter_context(open_loader(config, ranks, subjects.train))
        fit = corpus_fit(loader.corpus.table, config.vit, subjects.train)
        held_out = None
        if subjects.held_out:
            held_out = stack.enter_context(closing(HeldOut(config, ranks, subjects.held_out)))
        first_decides(ranks, lambda: stack.enter_context(sole_writer(out)))
        first_decides(ranks, lambda: open_run(out, config, ranks, subjects.held_out))
        watch = stack.enter_context(stop_on_signal(ranks))
        shown = stack.enter_context(shown_progress(config, ranks))
        stack.enter_context(full_disk_told(out))
        for remark in remarks(config, fit):
            shown.note(remark)
        training = Training(config, out, ranks, loader, shown, held_out)
        try:
            return training.run(watch)
        finally:
            watch.settle()
            training.close()


def subjects_of(config: PretrainConfig) -> Subjects:
    """Who trains and who is held out, of a corpus that must be named."""
    if not config.data.corpus:
        raise ConfigError("no corpus: set --data.corpus to a folder that `mim3d convert` wrote")
    return choose_subjects(config.data, config.seed)


def open_loader(
    config: PretrainConfig, ranks: Ranks, subjects: Collection[str] | None = None
) -> Loader:
    """The rank's loader; made before the run's folder, so a wrong corpus leaves nothing behind."""
    data = config.data
    micro_batch = config.micro_batch(ranks.world)
    return Loader(
        data.corpus,
        data.loader_config(config.vit, config.method, micro_batch, config.seed),
        rank=ranks.rank,
        world=ranks.world,
        device=ranks.device,
        subjects=subjects,
    )


def remarks(config: PretrainConfig, fit: CorpusFit) -> list[str]:
    """What is allowed and seldom meant."""
    found: list[str] = []
    schedule = config.schedule
    if schedule.warmup_steps >= config.steps:
        found.append(
            f"schedule.warmup_steps {schedule.warmup_steps} is not below steps {config.steps}: the "
            f"rate never reaches schedule.lr {schedule.lr:g} nor falls; set --schedule.warmup-steps"
        )
    if fit.padded:
        found.append(
            f"{fit.padded} of {fit.volumes} volumes are smaller than vit.crop_size "
            f"{config.vit.crop_size} on some axis: their crops are padded, and padding is learned"
        )
    return found


@contextmanager
def full_disk_told(out: Path) -> Iterator[None]:
    """A TrainingError with the remedy where the run's own files no longer find room."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise TrainingError(
            f"{out} cannot be written: {os.strerror(error.errno)}. Free space there and run the "
            "same command again: it goes on from the last checkpoint"
        ) from error


@contextmanager
def deterministic_kernels(wanted: bool) -> Iterator[None]:
    """Choose deterministic kernels for a while; a CPU's are anyway."""
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    # cuBLAS reads this when its first handle is made.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


class Silent:
    """Progress of the ranks that do not print."""

    def advance(self, items: float = 1.0, status: str = "") -> None:
        """Show nothing."""

    def note(self, line: str) -> None:
        """Say nothing: the first rank tells."""


@contextmanager
def shown_progress(config: PretrainConfig, ranks: Ranks) -> Iterator[Progress]:
    """Progress on the first rank."""
    if not ranks.first:
        yield Silent()
        return
    with progress(f"pretrain {method_name(config.method)}", config.steps, "steps") as shown:
        yield shown
