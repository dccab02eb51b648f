"""Where a run lies: a folder that all ranks share, or a bucket with a folder of each machine."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Protocol

from mim3d.dataio.errors import Mim3dError
from mim3d.dataio.storage.lease import Lease
from mim3d.dataio.storage.object_store import RemoteStore
from mim3d.dataio.waiting import say
from mim3d.engine.bucket.agreement import elsewhere
from mim3d.engine.bucket.bucket_shelf import BucketShelf, persistent
from mim3d.engine.bucket.claim import claim_folder, sole_writer_there
from mim3d.engine.bucket.mirror import Mirror
from mim3d.engine.distributed.process_group import Ranks, first_decides
from mim3d.engine.distributed.shared import Marks, refuse_unseen, refuse_unshared_folder
from mim3d.engine.errors import CheckpointError, ConfigError, TrainingError
from mim3d.engine.runs.address import bucket_address, cache_folder
from mim3d.engine.runs.checkpoint_files import CHECKPOINTS
from mim3d.engine.runs.files import refuse_address
from mim3d.engine.runs.folder_lock import sole_writer
from mim3d.engine.runs.shelf import FolderShelf, Shelf


class RunPlace(Protocol):
    """What a run asks of its place, in this order; `ranks` mean that all call it together."""

    folder: Path
    """Where this process finds and writes the run's files."""
    where: str
    """The place as people are told it."""
    is_here: bool
    """Whether the folder is the place."""

    def opened(self, ranks: Ranks) -> AbstractContextManager[None]:
        """Have the run's files in the folder."""
        ...

    def claim(self, ranks: Ranks, stack: ExitStack) -> None:
        """Be its only writer until `stack` closes, and see that all ranks mean the same place."""
        ...

    def share(self, ranks: Ranks) -> None:
        """Have every rank's folder hold what the first one's does."""
        ...

    def shelf(self, note: Callable[[str], None]) -> Shelf:
        """Its checkpoints."""
        ...

    def leave(self) -> None:
        """Have the place hold what the folder does; the first rank calls it."""
        ...


class FolderPlace:
    """A folder that all ranks share."""

    is_here = True

    def __init__(self, folder: Path) -> None:
        self.folder, self.where = folder, str(folder)

    @contextmanager
    def opened(self, ranks: Ranks) -> Iterator[None]:
        """It is."""
        yield

    def claim(self, ranks: Ranks, stack: ExitStack) -> None:
        """By the kernel's lock on a file in it."""
        first_decides(ranks, lambda: stack.enter_context(sole_writer(self.folder)))
        refuse_unshared_folder(self.folder, ranks)

    def share(self, ranks: Ranks) -> None:
        """It is shared."""

    def shelf(self, note: Callable[[str], None]) -> Shelf:
        """In a folder of it."""
        return FolderShelf(self.folder / CHECKPOINTS)

    def leave(self) -> None:
        """It does."""


class BucketPlace:
    """An address, and the folder in which this machine makes what goes there."""

    is_here = False

    def __init__(self, address: str, staging: str = "") -> None:
        self.where = address
        self.folder = Path(staging) if staging else cache_folder("runs", address)
        self.store = RemoteStore(address)
        self.mirror = Mirror(self.folder, self.store)
        self._lease: Lease | None = None

    @contextmanager
    def opened(self, ranks: Ranks) -> Iterator[None]:
        """Be its only writer, with its files in the folder; what an error leaves goes there too."""
        with ExitStack() as stack:
            first_decides(ranks, lambda: self._open(stack))
            claim_folder(self.folder, self.where)
            try:
                yield
            except Exception as error:
                if ranks.first:
                    with suppress(Mim3dError, OSError):
                        self.push()
                if isinstance(error, ConfigError | CheckpointError):
                    # What is wrong with the run, not with the room for it here.
                    error.args = (str(error).replace(str(self.folder), self.where),)
                raise

    def _open(self, stack: ExitStack) -> None:
        self._lease = stack.enter_context(sole_writer_there(self.store, self.folder, say))
        say(f"{self.where} is made in {self.folder} (--staging), and kept at every checkpoint")
        listed = self.store.listed()
        self.mirror.pull(listed)
        self._shelf(say).take_stock(listed)

    def claim(self, ranks: Ranks, stack: ExitStack) -> None:
        """Its writer it is already; every rank leaves a mark, as it will its part of a checkpoint.

        Another endpoint or other credentials on a machine would show at the first save only.
        """
        if ranks.world > 1:
            mine = f".written-by-{ranks.rank}"
            self.store.put(mine, b"")
            self.store.delete(mine)
        refuse_unseen(
            ranks,
            Marks(
                f"{self.where} is not one place on all nodes",
                lambda name: self.store.put(name, b""),
                self.store.exists,
                self.store.delete,
                "Give all nodes the same endpoint and credentials (AWS_..., GOOGLE_...)",
            ),
        )

    def share(self, ranks: Ranks) -> None:
        """By way of the bucket."""
        first_decides(ranks, self.push)
        if ranks.world > 1:
            elsewhere(ranks, self.folder, lambda: self.mirror.pull(self.store.listed()))

    def shelf(self, note: Callable[[str], None]) -> Shelf:
        """Below the address."""
        return self._shelf(note)

    def _shelf(self, note: Callable[[str], None]) -> BucketShelf:
        return BucketShelf(self.folder / CHECKPOINTS, self.store, self.push, self.check_ours, note)

    def leave(self) -> None:
        """Send what changed, however long a store may be away."""
        persistent(self.push)

    def push(self) -> None:
        """Send what changed; TrainingError where another process took the run over."""
        self.check_ours()
        self.mirror.push()

    def check_ours(self) -> None:
        """A TrainingError where another process took the run over."""
        if self._lease is not None and not self._lease.is_ours():
            raise TrainingError(
                f"{self.where} was taken over by another process while this one kept silent: look "
                "which of the two is to go on, and end the other"
            )


def place_of(out: str | Path, staging: str = "") -> RunPlace:
    """The place that `out` names; ConfigError for addresses that cannot be written."""
    address = bucket_address(out)
    refuse_address(staging, "--staging")
    if staging and not address:
        raise ConfigError(
            f"--staging {staging} says nothing of --out {out}, a folder of this machine: leave it "
            "out, or name s3://BUCKET/RUN"
        )
    return BucketPlace(address, staging) if address else FolderPlace(Path(out))
