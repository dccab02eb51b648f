"""Runs in a bucket: addresses, s3://BUCKET/RUN, and what is brought from there to be read."""

import fcntl
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from mim3d.dataio.storage.object_files import Listed, digest_file
from mim3d.dataio.storage.object_store import RemoteStore
from mim3d.dataio.waiting import say
from mim3d.engine.errors import CheckpointError, ConfigError
from mim3d.engine.runs.checkpoint_files import CHECKPOINTS, COMMITTED, SEAL
from mim3d.engine.runs.files import as_address

SCHEMES = ("s3", "gs", "az")
BESIDE = "trained_on.json"
"""What is asked of beside a file of weights: whom it was trained on."""
_fetched: dict[str, dict[str, Listed]] = {}
"""What this process has brought of an address, as it was listed."""


def bucket_address(place: str | Path, option: str = "--out") -> str:
    """The address of a folder in a bucket, empty where a place is of this machine's file system.

    ConfigError for addresses of other kinds, and for a bucket as a whole.
    """
    address = as_address(place)
    if not address:
        return ""
    scheme, _, rest = address.partition("://")
    if scheme.lower() not in SCHEMES:
        raise ConfigError(
            f"{option} {address} is an address of a kind that runs do not lie at: name a local "
            "path, or s3://BUCKET/RUN (gs://, az://)"
        )
    bucket, *folders = rest.rstrip("/").split("/")
    if not bucket or not folders or any(name in ("", ".", "..") for name in folders):
        raise ConfigError(
            f"{option} {address} names no folder in a bucket: {scheme.lower()}://BUCKET/RUN does"
        )
    return f"{scheme.lower()}://{'/'.join((bucket, *folders))}"


def place_text(place: str | Path) -> str:
    """A place as a command takes it."""
    return as_address(place) or str(place)


def inside(place: str | Path, name: str) -> str:
    """A file of a folder or of what an address names, as a command takes it."""
    return f"{place_text(place).rstrip('/')}/{name}"


def cache_folder(kind: str, address: str) -> Path:
    """This user's folder for what is kept of an address; its last part is that of the address."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    key = hashlib.sha256(address.encode()).hexdigest()[:12]
    return Path(root) / "mim3d" / kind / key / address.rsplit("/", 1)[1]


def local_run(source: str | Path, *, checkpoint: bool = False) -> Path:
    """The folder or file that `source` names; of one in a bucket a copy in this user's cache.

    Of a run come the files directly in its folder, with `checkpoint` its newest checkpoint too; of
    a file those that speak of it. What is there already and the same is kept. CheckpointError where
    the bucket has nothing by that name.
    """
    address = bucket_address(source, "the run")
    if not address:
        return Path(source)
    store, folder = RemoteStore(address), cache_folder("fetched", address)
    objects = {key: about for key, about in store.listed().items() if is_needed(key, checkpoint)}
    newest = max((key for key in objects if key.endswith(f"/{SEAL}")), default="/")
    wanted = {
        key: about
        for key, about in objects.items()
        if "/" not in key or key.startswith(newest.removesuffix(SEAL))
    }
    if SEAL in wanted:
        raise CheckpointError(f"{address} is one checkpoint of a run: name the run's own address")
    if not wanted:
        return local_file(address, folder)
    bring(store, folder, wanted)
    for file in stale(folder, wanted, checkpoint):
        file.unlink(missing_ok=True)
    return folder


def stale(folder: Path, wanted: Mapping[str, Listed], checkpoint: bool) -> list[Path]:
    """Files of another state of the run, which nothing may take for its own."""
    found = list(folder.iterdir())
    if checkpoint:
        found += folder.glob(f"{CHECKPOINTS}/*/*")
    return [
        file
        for file in found
        if file.is_file()
        and (file.parent != folder or not file.name.startswith("."))
        and file.relative_to(folder).as_posix() not in wanted
    ]


def local_file(address: str, folder: Path) -> Path:
    """A file in a bucket with what lies beside it; its copy keeps its name."""
    above, _, name = address.rpartition("/")
    store = RemoteStore(above)
    names = dict.fromkeys((name, str(Path(name).with_suffix(".json")), BESIDE))
    found = {one: about for one in names if (about := store.about(one)) is not None}
    if name not in found:
        raise CheckpointError(
            f"{address} is not there: give the address of a run, or of a file of weights"
        )
    bring(store, folder, found)
    return folder / name


def is_needed(key: str, checkpoint: bool) -> bool:
    """Whether an object is a file of the run's folder, or of a checkpoint if that is asked for."""
    parts = key.split("/")
    if len(parts) == 1:
        return not key.startswith(".")
    inside_one = len(parts) == 3 and COMMITTED.fullmatch(parts[1]) and parts[2] not in (".", "..")
    return checkpoint and parts[0] == CHECKPOINTS and bool(inside_one)


def bring(store: RemoteStore, folder: Path, listed: Mapping[str, Listed]) -> None:
    """Have the folder hold these objects; processes take turns."""
    known = _fetched.setdefault(str(folder), {})
    if all(known.get(key) == about and (folder / key).is_file() for key, about in listed.items()):
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".turn").open("a") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        lacking = [key for key, about in listed.items() if not is_same(folder / key, about)]
        if lacking:
            nbytes = sum(listed[key].nbytes for key in lacking)
            say(f"{store.url}: {len(lacking)} files, {nbytes / 1e6:.1f} MB, come into {folder}")
        try:
            for key in lacking:
                store.fetch(key, folder / key, listed[key].nbytes)
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{store.url} changed while it was read: is it being trained? Run the same command "
                "again"
            ) from error
    known.update(listed)


def is_same(file: Path, about: Listed) -> bool:
    """Whether a file is what the bucket lists."""
    if not file.is_file() or file.stat().st_size != about.nbytes:
        return False
    return digest_file(file).e_tag == about.e_tag
