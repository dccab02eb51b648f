"""A run's checkpoints in a bucket: parts first, the manifest last, and nothing stands without it.

    RUN/checkpoints/step-00000600/__0_0.distcp, .metadata, ...   by the ranks that wrote them
    RUN/checkpoints/step-00000600/manifest.json                  the commit

Names and contents are those of a checkpoint in a folder, so a run that is copied from a bucket is
one of a folder. DCP writes to a folder of this machine, from which the parts go on their way while
training goes on; of what stands in the bucket the first rank's folder has the manifests.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from mim3d.dataio.errors import Mim3dError, StoreError, StoreRefusedError
from mim3d.dataio.storage.object_files import FileDigest, Listed, digest_file
from mim3d.dataio.storage.object_store import RemoteStore
from mim3d.dataio.waiting import store_timeout_s
from mim3d.engine.bucket.agreement import elsewhere, first_acts, together
from mim3d.engine.distributed.process_group import Ranks
from mim3d.engine.errors import CheckpointError
from mim3d.engine.runs import checkpoint_files as files
from mim3d.engine.runs.checkpoint_files import CHECKPOINTS, COMMITTED, SEAL, CheckpointFacts
from mim3d.engine.runs.checkpoint_reader import State, load_tensors, read_metadata, verified
from mim3d.engine.runs.config import CheckpointConfig
from mim3d.engine.runs.files import write_text
from mim3d.engine.runs.shelf import FolderShelf

AGAIN_S = 2.0
Digests = Mapping[str, FileDigest]


class BucketShelf(FolderShelf):
    """Checkpoints below `store`, by way of the folder `root`.

    `push` has the bucket hold the run's other files: they stand before the commit of a step.
    `check_ours` raises TrainingError where another process took the run over.
    """

    waits = False

    def __init__(
        self,
        root: Path,
        store: RemoteStore,
        push: Callable[[], None],
        check_ours: Callable[[], None],
        note: Callable[[str], None],
    ) -> None:
        super().__init__(root)
        self.store, self.push, self.check_ours, self.note = store, push, check_ours, note
        self.where, self.run = f"{store.url}/{CHECKPOINTS}", store.url
        self.remedy = f"see to it that {store.url} can be written and {root} has room"

    def take_stock(self, listed: Mapping[str, Listed]) -> None:
        """Have the manifests of what stands in the bucket, whose objects are `listed`."""
        files.remove_quietly(self.root)
        self.root.mkdir(parents=True, exist_ok=True)
        for key, facts in listed.items():
            parts = key.split("/")
            if parts[0] == CHECKPOINTS and parts[2:] == [SEAL] and COMMITTED.fullmatch(parts[1]):
                self.store.fetch(key, self.root / parts[1] / SEAL, facts.nbytes)

    def prepare(self, ranks: Ranks) -> None:
        """Remove what was under way when the last sitting ended, here and in the bucket."""
        self.root.mkdir(parents=True, exist_ok=True)
        self.sweep()
        self.release()
        together(ranks, self._remove_remains if ranks.first else lambda: None)

    def writer(self, step: int) -> dcp.FileSystemWriter:
        """To the folder, which nothing is read from after a crash."""
        return dcp.FileSystemWriter(files.tmp_folder(self.root, step), sync_files=False)

    def commit(self, facts: CheckpointFacts, config: CheckpointConfig, ranks: Ranks) -> None:
        """Send every rank's files; where all are there as they should be, the manifest."""
        written, name = files.tmp_folder(self.root, facts.step), step_name(facts.step)
        try:
            first_acts(ranks, lambda: self._make_room(name))
            sent = together(ranks, lambda: self._send(written, name, ranks.rank))
            digests = {file: digest for one in sent for file, digest in one.items()}
            first_acts(ranks, lambda: self._seal(written, facts, digests))
        finally:
            files.remove_quietly(written)
        if ranks.first:
            try:
                self._prune(config, facts.step)
            except (Mim3dError, OSError) as error:  # the checkpoint stands nevertheless
                self.note(f"old checkpoints were not removed: {error}")

    def sweep(self) -> None:
        """What is half written here; in the bucket the next commit sees to it."""
        for folder in self.root.glob("tmp-*"):
            files.remove_quietly(folder)

    def verified(self, folder: Path) -> CheckpointFacts:
        """Fetch it, then by the manifest's hashes."""
        self.release()
        try:
            return self._fetched(folder)
        except CheckpointError:
            self.release()
            raise

    def load(self, state: State, facts: CheckpointFacts, ranks: Ranks) -> None:
        """Machines but the first rank's fetch it for themselves."""
        folder = files.step_folder(self.root, facts.step)
        elsewhere(ranks, self.root, lambda: self._fetch_anew(folder))
        load_tensors(folder, state, ranks.control)
        dist.barrier(group=ranks.control)
        self.release()

    def discard_after(self, step: int) -> None:
        """First the run's files, which tell why."""
        self.push()
        for folder in self.committed():
            if folder > files.step_folder(self.root, step):
                self._discard(folder.name)

    def clear(self) -> None:
        """First the run's files, which stand for what is removed."""
        persistent(self.push)
        for folder in self.committed():
            self._discard(folder.name)
        files.remove_quietly(self.root)

    def release(self) -> None:
        """Keep the manifests alone."""
        for folder in files.committed(self.root):
            for file in folder.iterdir():
                if file.name != SEAL:
                    file.unlink(missing_ok=True)

    def _send(self, written: Path, name: str, rank: int) -> dict[str, FileDigest]:
        """Send what this rank wrote, and of the first rank the metadata; hashes by name."""
        own = [file for file in written.iterdir() if file.name.startswith(f"__{rank}_")]
        if rank == 0:
            own.append(written / ".metadata")
        digests = {file.name: digest_file(file) for file in sorted(own)}
        for file in own:
            key = f"{CHECKPOINTS}/{name}/{file.name}"
            persistent(lambda key=key, file=file: self.store.send(key, file))
        return digests

    def _seal(self, written: Path, facts: CheckpointFacts, digests: Digests) -> None:
        """Check what arrived, then let it stand."""
        name = step_name(facts.step)
        with (written / ".metadata").open("rb") as stream:
            read_metadata(stream, f"{self.where}/{name}", digests.keys())
        persistent(lambda: self._check_arrived(written, name, digests))
        table = {
            file: {"bytes": digest.nbytes, "sha256": digest.sha256}
            for file, digest in sorted(digests.items())
        }
        text = files.manifest_text(facts, table)
        persistent(self.push)
        persistent(lambda: self.store.put(f"{CHECKPOINTS}/{name}/{SEAL}", text.encode()))
        write_text(self.root / name / SEAL, text)

    def _check_arrived(self, written: Path, name: str, digests: Digests) -> None:
        """Sizes and hashes of the objects; where the store tells no hash they are read again."""
        there = self.store.listed(f"{CHECKPOINTS}/{name}")
        for file, digest in digests.items():
            key = f"{CHECKPOINTS}/{name}/{file}"
            found = there.get(key)
            if found is None:
                raise CheckpointError(f"{self.store.url}/{key} was sent and is not there")
            if (found.nbytes, found.e_tag) == (digest.nbytes, digest.e_tag):
                continue
            back = written / f".back-{file}"
            self.store.fetch(key, back, found.nbytes)
            if digest_file(back).sha256 != digest.sha256:
                raise CheckpointError(
                    f"{self.store.url}/{key} is not what was sent: {found.nbytes} bytes there, "
                    f"{digest.nbytes} of another hash here"
                )
            back.unlink()

    def _fetched(self, folder: Path) -> CheckpointFacts:
        """Bring a checkpoint's files beside its manifest, and check them."""
        try:
            _, table = files.read_facts(folder)
            there = self.store.listed(f"{CHECKPOINTS}/{folder.name}")
            for name, entry in table.items():
                if Path(name).name != name:
                    raise CheckpointError(f"{folder / SEAL} points to another place, {name}")
                found = there.get(f"{CHECKPOINTS}/{folder.name}/{name}")
                if found is None or found.nbytes != entry["bytes"]:
                    has = "is missing" if found is None else f"has {found.nbytes} bytes"
                    raise CheckpointError(
                        f"{folder / name} {has}, its manifest says {entry['bytes']}"
                    )
                self.store.fetch(f"{CHECKPOINTS}/{folder.name}/{name}", folder / name, found.nbytes)
            return verified(folder)
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(str(self.root), self.where)) from error

    def _fetch_anew(self, folder: Path) -> None:
        """On a machine that has not even the manifest."""
        files.remove_quietly(folder)
        key = f"{CHECKPOINTS}/{folder.name}/{SEAL}"
        self.store.fetch(key, folder / SEAL, self.store.listed(key.rsplit("/", 1)[0])[key].nbytes)
        self._fetched(folder)

    def _make_room(self, name: str) -> None:
        """Take down a checkpoint of the same step, if it is ours: a run may come back to it."""
        self.check_ours()
        if (self.root / name).exists():
            self._discard(name)

    def _prune(self, config: CheckpointConfig, step: int) -> None:
        files.prune(self.root, config.keep, config.keep_best, step)
        self._remove_remains()

    def _remove_remains(self) -> None:
        """Remove from the bucket what does not stand, or does no longer."""
        standing = {folder.name for folder in self.committed()}
        there = {key.split("/")[1] for key in self.store.listed(CHECKPOINTS)}
        for name in sorted(there - standing):
            self._discard(name)

    def _discard(self, name: str) -> None:
        """The manifest first: half a checkpoint never looks like one."""
        self.store.delete(f"{CHECKPOINTS}/{name}/{SEAL}")
        self.store.delete(f"{CHECKPOINTS}/{name}")
        if (self.root / name).exists():
            files.discard(self.root / name)


def step_name(step: int) -> str:
    """A checkpoint's folder, by its name."""
    return files.step_folder(Path(), step).name


def persistent(act: Callable[[], None]) -> None:
    """Do it again where the store fails, as long as it may keep silent; not where it refuses."""
    until = time.monotonic() + store_timeout_s()
    while True:
        try:
            return act()
        except StoreError as error:
            if isinstance(error, StoreRefusedError) or time.monotonic() + AGAIN_S > until:
                raise
            time.sleep(AGAIN_S)
