"""Tasks of the Medical Segmentation Decathlon by name, through MONAI's downloader."""

import os
import shutil
import socket
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mim3d.dataio.errors import SourceError

TIMEOUT_S = 15.0  # of one silent socket, not of the download


def fetch_task(task: str, cache: str | Path | None = None) -> Path:
    """Folder of a task such as `Task04_Hippocampus`, downloaded and hash-checked if need be.

    `cache` defaults to $MIM3D_CACHE or ~/.cache/mim3d. An archive or an unpacked folder put there
    by hand serves a machine without a network. Raises SourceError, never leaves half a task.
    """
    from monai.apps import DecathlonDataset

    name = full_name(task, list(DecathlonDataset.resource))
    root = Path(cache or os.environ.get("MIM3D_CACHE") or Path.home() / ".cache" / "mim3d")
    folder = root / name
    if (folder / "dataset.json").is_file():
        return folder
    root.mkdir(parents=True, exist_ok=True)
    unpack(DecathlonDataset.resource[name], DecathlonDataset.md5[name], folder)
    return folder


def full_name(task: str, known: list[str]) -> str:
    """Full name of a task told in full, by number (`Task04`, `4`) or by organ, in any case."""
    wanted = task.strip().lower()
    for name in known:
        number, organ = name.lower().split("_", 1)
        if wanted in {name.lower(), number, organ, number[4:], number[4:].lstrip("0")}:
            return name
    raise SourceError("unknown-task", f"msd:{task}", f"is none of {', '.join(known)}")


def unpack(address: str, md5: str, folder: Path) -> None:
    """Download an archive beside `folder` (unless it is there) and unpack it into `folder`."""
    from monai.apps.utils import download_and_extract

    archive = folder.parent / f"{folder.name}.tar"
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unpacking-") as scratch:
        try:
            if not archive.is_file():
                probe(address)
            with socket_timeout(TIMEOUT_S):
                download_and_extract(
                    address, archive, scratch, hash_val=md5, hash_type="md5", progress=False
                )
        except OSError as error:  # URLError, timeouts, refused connections, a full disk
            raise SourceError("no-network", address, no_network(folder, archive, error)) from error
        except Exception as error:  # MONAI raises plain Exception, HashCheckError, RuntimeError
            detail = f"did not arrive whole ({error}); delete {archive} and try again"
            raise SourceError("bad-download", address, detail) from error
        unpacked = Path(scratch, folder.name)
        if not (unpacked / "dataset.json").is_file():
            detail = f"holds no {folder.name}/dataset.json; delete {archive} and try again"
            raise SourceError("bad-download", address, detail)
        shutil.rmtree(folder, ignore_errors=True)  # half a folder of an older unpacking
        unpacked.rename(folder)


def probe(address: str) -> None:
    """Ask for the headers only: OSError within seconds where there is no network.

    MONAI's own first request has no timeout and would hang for minutes behind a firewall.
    """
    request = urllib.request.Request(address, method="HEAD")
    with urllib.request.urlopen(request, timeout=TIMEOUT_S):
        pass


def no_network(folder: Path, archive: Path, error: OSError) -> str:
    """One line that says what failed and how to do without a network."""
    reason = getattr(error, "reason", None) or error.strerror or error
    return (
        f"cannot be downloaded ({reason}); on a machine without a network put the archive at "
        f"{archive} or the unpacked task at {folder}"
    )


@contextmanager
def socket_timeout(seconds: float) -> Iterator[None]:
    """Default timeout of new sockets inside the block: urllib has none of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
