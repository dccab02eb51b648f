"""Where a run's checkpoints stand: a folder that all ranks share, or what has the same verbs."""

from pathlib import Path
from typing import Protocol

import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from mim3d.engine.distributed.process_group import Ranks
from mim3d.engine.runs import checkpoint_files as files
from mim3d.engine.runs.checkpoint_files import CheckpointFacts
from mim3d.engine.runs.checkpoint_reader import State, checked_metadata, load_tensors, verified
from mim3d.engine.runs.config import CheckpointConfig


class Shelf(Protocol):
    """What the `Checkpointer` asks of a place; `folder`s are those of checkpoints below `root`."""

    root: Path
    """Folder of this machine in which checkpoints are written and found."""
    where: str
    """The place as people are told it, and that of the run."""
    run: str
    remedy: str
    """What to do where a checkpoint could not be saved: "free space in ..."."""
    waits: bool
    """Whether a checkpoint that is due waits for the one under way, or is left out."""

    def prepare(self, ranks: Ranks) -> None:
        """Begin a sitting; every rank calls it."""
        ...

    def writer(self, step: int) -> dcp.FileSystemWriter:
        """What writes this rank's part of a checkpoint."""
        ...

    def commit(self, facts: CheckpointFacts, config: CheckpointConfig, ranks: Ranks) -> None:
        """Let a checkpoint stand whose parts all ranks have written, and remove old ones.

        Every rank calls it, in its saving thread.
        """
        ...

    def sweep(self) -> None:
        """Remove what is half written."""
        ...

    def committed(self) -> list[Path]:
        """Checkpoints that stand, newest first; the first rank asks."""
        ...

    def verified(self, folder: Path) -> CheckpointFacts:
        """Facts of a checkpoint whose every byte was checked; the first rank asks."""
        ...

    def load(self, state: State, facts: CheckpointFacts, ranks: Ranks) -> None:
        """Read a verified checkpoint into `state`; every rank calls it."""
        ...

    def discard_after(self, step: int) -> None:
        """Remove the checkpoints of later steps; the first rank calls it."""
        ...

    def clear(self) -> None:
        """Remove all checkpoints, of a run that needs none any more; the first rank calls it."""
        ...


class FolderShelf:
    """A folder of a file system that all ranks share."""

    waits = True

    def __init__(self, root: Path) -> None:
        self.root, self.where, self.run = root, str(root), str(root.parent)
        self.remedy = f"free space in {root}"

    def prepare(self, ranks: Ranks) -> None:
        """Make the folder, and remove what a crash left."""
        if ranks.first:
            self.root.mkdir(parents=True, exist_ok=True)
            self.sweep()
        dist.barrier(group=ranks.control)

    def writer(self, step: int) -> dcp.FileSystemWriter:
        """Beside the place, flushed to the disk."""
        return dcp.FileSystemWriter(files.tmp_folder(self.root, step), sync_files=True)

    def commit(self, facts: CheckpointFacts, config: CheckpointConfig, ranks: Ranks) -> None:
        """Hash and rename, with every file that the metadata names; the first rank does it."""
        if ranks.first:
            checked_metadata(files.tmp_folder(self.root, facts.step))
            files.commit(self.root, facts)
            files.prune(self.root, config.keep, config.keep_best, facts.step)

    def sweep(self) -> None:
        """Remove temporary folders."""
        files.sweep(self.root)

    def committed(self) -> list[Path]:
        """Folders that were renamed into their place."""
        return files.committed(self.root)

    def verified(self, folder: Path) -> CheckpointFacts:
        """By the manifest's hashes."""
        return verified(folder)

    def load(self, state: State, facts: CheckpointFacts, ranks: Ranks) -> None:
        """Every rank reads what it needs."""
        load_tensors(files.step_folder(self.root, facts.step), state, ranks.control)

    def discard_after(self, step: int) -> None:
        """One after the other."""
        for folder in self.committed():
            if folder > files.step_folder(self.root, step):
                files.discard(folder)

    def clear(self) -> None:
        """With the folder itself."""
        files.remove_quietly(self.root)
