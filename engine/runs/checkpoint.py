"""Saving and restoring a run's tensors through DCP, asynchronously, all ranks together."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import Metadata

from mim3d.dataio.errors import first_line
from mim3d.engine.distributed.process_group import Ranks
from mim3d.engine.errors import CheckpointError
from mim3d.engine.runs import checkpoint_files as files
from mim3d.engine.runs.checkpoint_files import CheckpointFacts
from mim3d.engine.runs.checkpoint_reader import SafeReader, TensorPlanner, read_metadata
from mim3d.engine.runs.config import CheckpointConfig

State = dict[str, Tensor]
RNG_PREFIX, HOOK_PREFIX = "rng.", "rank."
PER_RANK = (RNG_PREFIX, HOOK_PREFIX)
"""Keys that exist once per rank, so a run at another world size lacks or leaves some."""


@dataclass(frozen=True)
class Saved:
    """A finished attempt to save: where it is, or why it is not."""

    step: int
    error: str = ""


class Checkpointer:
    """Keeps a run's checkpoints; one save at a time is under way."""

    def __init__(
        self, root: Path, config: CheckpointConfig, ranks: Ranks, note: Callable[[str], None]
    ) -> None:
        self.root, self.config, self.ranks, self.note = root, config, ranks, note
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[Saved] | None = None
        if ranks.first:
            root.mkdir(parents=True, exist_ok=True)
            files.sweep(root)
        dist.barrier(group=ranks.control)

    def save(self, state: State, facts: CheckpointFacts) -> None:
        """Copy the state and begin to write it; `state` may change as soon as this returns."""
        self.wait()
        folder = files.tmp_folder(self.root, facts.step)
        writer = dcp.FileSystemWriter(folder, sync_files=True)
        if not self.config.asynchronous:
            self._pending = self._pool.submit(self._write_now, state, writer, facts)
            self.wait()
            return
        staged = dcp.async_save(state, storage_writer=writer, process_group=self.ranks.saving)
        upload = staged if isinstance(staged, Future) else staged.upload_completion
        self._pending = self._pool.submit(self._finish, upload, facts)

    def _write_now(
        self, state: State, writer: dcp.FileSystemWriter, facts: CheckpointFacts
    ) -> Saved:
        try:
            dcp.save(state, storage_writer=writer, process_group=self.ranks.saving)
        except BaseException as error:  # DCP's CheckpointException is no Exception
            return Saved(facts.step, failure_line(error))
        return self._commit(facts)

    def _finish(self, upload: Future, facts: CheckpointFacts) -> Saved:
        try:
            upload.result()
        except BaseException as error:
            return Saved(facts.step, failure_line(error))
        return self._commit(facts)

    def _commit(self, facts: CheckpointFacts) -> Saved:
        if not self.ranks.first:
            return Saved(facts.step)
        try:
            written = files.tmp_folder(self.root, facts.step)
            checked_metadata(written)  # with every file that it names
            files.commit(self.root, facts)
            files.prune(self.root, self.config.keep, self.config.keep_best, facts.step)
        except (OSError, CheckpointError) as error:
            return Saved(facts.step, failure_line(error))
        return Saved(facts.step)

    def wait(self) -> Saved | None:
        """Wait for the save under way; say loudly if it failed, and clear what it left."""
        if self._pending is None:
            return None
        shared: list[object] = [self._pending.result()]
        self._pending = None
        # Only the first rank commits: all must know whether it could.
        dist.broadcast_object_list(shared, group=self.ranks.control, group_src=0)
        saved = shared[0]
        assert isinstance(saved, Saved)
        if saved.error and self.ranks.first:
            self.note(
                f"CHECKPOINT OF STEP {saved.step} WAS NOT SAVED: {saved.error}. The run goes on; "
                f"free space in {self.root} or a crash will lose the steps since the last one"
            )
            try:
                files.sweep(self.root)
            except OSError as error:
                self.note(f"and its remains could not be removed: {error}")
        return saved

    def settle(self) -> None:
        """Let a save under way end, without telling or asking other ranks."""
        if self._pending is not None:
            self._pending.exception()

    def finish(self) -> None:
        """Wait for the last save; a CheckpointError on every rank if it failed."""
        saved = self.wait()
        if saved is not None and saved.error:
            raise CheckpointError(
                f"the last checkpoint, of step {saved.step}, was not saved in {self.root}: "
                f"{saved.error}. Free space there and run the same command again: it goes on from "
                "the checkpoint before"
            )

    def close(self) -> None:
        """Let a save under way end, and its thread with it."""
        self._pool.shutdown()

    def choose(
        self, known: Sequence[str], usable: Callable[[CheckpointFacts], bool]
    ) -> CheckpointFacts | None:
        """Facts of the newest checkpoint that is whole and `usable`; None where there is none.

        `known` are hashes of the run's configuration, today's first.

        Damaged ones are passed over with a loud line each. Raises CheckpointError where all are
        damaged, or the whole one is of another configuration.
        """
        chosen: list[object] = [None]
        if self.ranks.first:
            chosen = [self._choose(known, usable)]
        dist.broadcast_object_list(chosen, group=self.ranks.control, group_src=0)
        if isinstance(chosen[0], str):
            raise CheckpointError(chosen[0])
        assert chosen[0] is None or isinstance(chosen[0], CheckpointFacts)
        return chosen[0]

    def load(self, state: State, facts: CheckpointFacts) -> None:
        """Read the tensors of a checkpoint that was chosen into `state`."""
        load_tensors(files.step_folder(self.root, facts.step), state, self.ranks.control)

    def discard_after(self, step: int) -> None:
        """Remove the checkpoints of later steps; none may be under way."""
        if self.ranks.first:
            for folder in files.committed(self.root):
                if folder > files.step_folder(self.root, step):
                    files.discard(folder)
        dist.barrier(group=self.ranks.control)

    def _choose(
        self, known: Sequence[str], usable: Callable[[CheckpointFacts], bool]
    ) -> CheckpointFacts | str | None:
        """The newest good checkpoint's facts, None, or the reason why none can be used."""
        folders = files.committed(self.root)
        whole = False
        for folder in folders:
            try:
                facts = verified(folder)
            except CheckpointError as error:
                self.note(f"DAMAGED CHECKPOINT {folder.name} PASSED OVER: {error}")
                continue
            whole = True
            if not usable(facts):
                continue
            if facts.config_sha256 not in known:
                return (
                    f"{folder} is of a run with another configuration (hash "
                    f"{facts.config_sha256[:12]}, this one {known[0][:12]}): choose another "
                    "--out, or the old settings"
                )
            return facts
        if folders and not whole:
            return (
                f"none of the {len(folders)} checkpoints in {self.root} is whole: restore them "
                "from a backup, or start again with another --out"
            )
        return None


def verified(folder: Path) -> CheckpointFacts:
    """Facts of a checkpoint whose every byte matches its manifest and whose metadata is safe."""
    facts = files.verify(folder)
    checked_metadata(folder)
    return facts


def checked_metadata(folder: Path) -> Metadata:
    """What a checkpoint holds; CheckpointError where it is hostile, or files that it names lack."""
    with (folder / ".metadata").open("rb") as stream:
        return read_metadata(stream, folder)


def load_tensors(folder: Path, state: State, group: dist.ProcessGroup | None = None) -> None:
    """Read a checkpoint into the tensors of `state`, in place; its keys must be the same.

    Of the per-rank keys only those in both are read.
    """
    reader = SafeReader(folder)
    stored = reader.read_metadata().state_dict_metadata
    check_keys(folder, set(stored), set(state))
    wanted = {key: tensor for key, tensor in state.items() if key in stored}
    for key, tensor in wanted.items():
        size = tuple(getattr(stored[key], "size", ()))
        if size != tuple(tensor.shape):
            raise CheckpointError(
                f"{folder}: {key} has shape {size}, the model wants {tuple(tensor.shape)}"
            )
    try:
        dcp.load(wanted, storage_reader=reader, planner=TensorPlanner(), process_group=group)
    except dcp.api.CheckpointException as error:
        raise CheckpointError(f"{folder} cannot be loaded: {failure_line(error)}") from None


def check_keys(folder: Path, stored: set[str], wanted: set[str]) -> None:
    """A CheckpointError naming what is missing and what is foreign."""
    missing = sorted(key for key in wanted - stored if not key.startswith(PER_RANK))
    foreign = sorted(key for key in stored - wanted if not key.startswith(PER_RANK))
    if missing or foreign:
        raise CheckpointError(
            f"{folder} is of another model: it lacks {missing[:5] or 'nothing'} "
            f"and has {foreign[:5] or 'nothing'} besides ({len(missing)} and {len(foreign)} keys)"
        )


def failure_line(error: BaseException) -> str:
    """Kind and first line of an error, of the first failure where DCP lists one per rank."""
    failures = getattr(error, "failures", None)
    if failures:
        rank, (inner, _trace) = next(iter(failures.items()))
        return f"rank {rank}: {failure_line(inner)}"
    return f"{type(error).__name__}: {first_line(error)}"
