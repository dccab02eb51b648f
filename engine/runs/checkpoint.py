"""Saving and restoring a run's tensors through DCP, asynchronously, all ranks together."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from mim3d.dataio.errors import Mim3dError
from mim3d.engine.distributed.process_group import Ranks, first_decides
from mim3d.engine.errors import CheckpointError, TrainingError
from mim3d.engine.runs.checkpoint_files import CheckpointFacts
from mim3d.engine.runs.checkpoint_reader import State, failure_line
from mim3d.engine.runs.config import CheckpointConfig
from mim3d.engine.runs.shelf import Shelf


@dataclass(frozen=True)
class Saved:
    """A finished attempt to save: where it is, or why it is not."""

    step: int
    error: str = ""
    final: bool = False
    """Whether the run must end: nothing that it saves can stand any more."""


class Checkpointer:
    """Keeps a run's checkpoints; one save at a time is under way."""

    def __init__(
        self, shelf: Shelf, config: CheckpointConfig, ranks: Ranks, note: Callable[[str], None]
    ) -> None:
        self.shelf, self.config, self.ranks, self.note = shelf, config, ranks, note
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[Saved] | None = None
        self._last: Saved | None = None
        self._told_busy = False
        shelf.prepare(ranks)

    @property
    def root(self) -> Path:
        """Folder in which this process writes checkpoints."""
        return self.shelf.root

    def is_free(self, step: int) -> bool:
        """Whether the checkpoint of a step that is due can begin; every rank is told the same.

        Where one is still on its way to a bucket the step's is left out: training does not wait.
        """
        if self._pending is None or self.shelf.waits or not self.config.asynchronous:
            return True
        done: list[object] = [self._pending.done()]
        dist.broadcast_object_list(done, group=self.ranks.control, group_src=0)
        if not done[0] and not self._told_busy:
            self._told_busy = True
            self.note(
                f"no checkpoint of step {step}, nor of later ones until the one before is in "
                f"{self.shelf.run}: they come faster than they are sent"
            )
        return bool(done[0])

    def save(self, state: State, facts: CheckpointFacts) -> None:
        """Copy the state and begin to write it; `state` may change as soon as this returns."""
        self.wait()
        self._told_busy = False
        writer = self.shelf.writer(facts.step)
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
        try:
            self.shelf.commit(facts, self.config, self.ranks)
        except TrainingError as error:
            return Saved(facts.step, str(error), final=True)
        except (OSError, Mim3dError, RuntimeError) as error:  # the last is gloo's
            return Saved(facts.step, failure_line(error))
        return Saved(facts.step)

    def wait(self) -> Saved | None:
        """Wait for the save under way; say loudly if it failed, and clear what it left.

        TrainingError on every rank where no other could succeed.
        """
        if self._pending is None:
            return None
        shared: list[object] = [self._pending.result()]
        self._pending = None
        # Only the first rank commits: all must know whether it could.
        dist.broadcast_object_list(shared, group=self.ranks.control, group_src=0)
        saved = shared[0]
        assert isinstance(saved, Saved)
        self._last = saved
        if saved.final:
            raise TrainingError(saved.error)
        if saved.error and self.ranks.first:
            self.note(
                f"CHECKPOINT OF STEP {saved.step} WAS NOT SAVED: {saved.error}. The run goes on; "
                f"{self.shelf.remedy} or a crash will lose the steps since the last one"
            )
            try:
                self.shelf.sweep()
            except OSError as error:
                self.note(f"and its remains could not be removed: {error}")
        return saved

    def settle(self) -> None:
        """Let a save under way end, without telling or asking other ranks."""
        if self._pending is not None:
            self._pending.exception()

    def finish(self) -> None:
        """Wait for the last save; a CheckpointError on every rank if it failed."""
        saved = self.wait() or self._last
        if saved is not None and saved.error:
            remedy = self.shelf.remedy
            raise CheckpointError(
                f"the last checkpoint, of step {saved.step}, was not saved in {self.shelf.where}: "
                f"{saved.error}. {remedy[0].upper()}{remedy[1:]}, and run the same command again: "
                "it goes on from the checkpoint before"
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
        return first_decides(self.ranks, lambda: self._choose(known, usable))

    def load(self, state: State, facts: CheckpointFacts) -> None:
        """Read the tensors of a checkpoint that was chosen into `state`."""
        self.shelf.load(state, facts, self.ranks)

    def discard_after(self, step: int) -> None:
        """Remove the checkpoints of later steps; none may be under way."""
        first_decides(self.ranks, lambda: self.shelf.discard_after(step))

    def _choose(
        self, known: Sequence[str], usable: Callable[[CheckpointFacts], bool]
    ) -> CheckpointFacts | None:
        """The newest good checkpoint's facts; CheckpointError with the reason why none will do."""
        folders = self.shelf.committed()
        whole = False
        for folder in folders:
            try:
                facts = self.shelf.verified(folder)
            except CheckpointError as error:
                self.note(f"DAMAGED CHECKPOINT {folder.name} PASSED OVER: {error}")
                continue
            whole = True
            if not usable(facts):
                continue
            if facts.config_sha256 not in known:
                raise CheckpointError(
                    f"{folder} is of a run with another configuration (hash "
                    f"{facts.config_sha256[:12]}, this one {known[0][:12]}): choose another "
                    "--out, or the old settings"
                )
            return facts
        if folders and not whole:
            raise CheckpointError(
                f"none of the {len(folders)} checkpoints in {self.shelf.where} is whole: restore "
                "them from a backup, or start again with another --out"
            )
        return None
