"""The header of a file from its first bytes alone: for a look before anything is converted."""

from pathlib import Path

from mim3d.dataio.errors import SourceError
from mim3d.dataio.gzip_stream import is_gzip, peek
from mim3d.dataio.nifti_file import check_budget, is_remote, pair_paths, read_source_bytes
from mim3d.dataio.nifti_header import HEADER_BYTES, NiftiHeader, parse_header

HEAD_BYTES = 64 * 1024


def read_header(path: str, budget: int) -> NiftiHeader:
    """Checked header of a file; of a remote one only its first bytes are asked for."""
    pair = pair_paths(path)
    place = pair[0] if pair else path
    data = remote_start(place, budget) if is_remote(place) else local_start(place)
    if not data:
        raise SourceError("empty", place, "is empty (0 bytes); download or copy it again")
    block = peek(data, HEADER_BYTES, place) if is_gzip(data) else bytes(data[:HEADER_BYTES])
    header = parse_header(block, place, paired=pair is not None)
    check_budget(header, place, budget)
    return header


def local_start(path: str) -> bytes:
    """First bytes of a file here."""
    if not Path(path).is_file():
        raise SourceError("missing", path, "no such file")
    try:
        with Path(path).open("rb") as file:
            return file.read(HEAD_BYTES)
    except OSError as error:
        raise SourceError("unreadable", path, f"cannot be read: {error.strerror}") from error


def remote_start(path: str, budget: int) -> bytes | memoryview:
    """First bytes of an object, by a range; all of it where the server knows no ranges."""
    import obstore

    from mim3d.dataio.remote import locate

    store, key = locate(path)
    try:
        return bytes(obstore.get_range(store, key, start=0, length=HEAD_BYTES))
    except FileNotFoundError as error:
        raise SourceError("missing", path, "no such object") from error
    except (obstore.exceptions.BaseError, OSError):
        # Servers without ranges say so in many ways; a real failure fails again here, and is told.
        return read_source_bytes(path, budget)
