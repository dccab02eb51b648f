"""A NIfTI file on disk or in a bucket to verified voxels in memory: nothing is trusted unread."""

import stat
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from mim3d.dataio.errors import SourceError
from mim3d.dataio.memory import scratch
from mim3d.dataio.nifti.containers import (
    ITK,
    MGH,
    files_of_itk,
    is_container,
    itk_header,
    itk_voxels,
    mgh_payload,
    parse_mgh,
)
from mim3d.dataio.nifti.gzip_stream import MAX_RATIO, inflate, is_gzip, peek
from mim3d.dataio.nifti.header import (
    DEFAULT_TRUST,
    HEADER_BYTES,
    HeaderTrust,
    NiftiHeader,
    parse_header,
)
from mim3d.dataio.nifti.merged import masks_of
from mim3d.dataio.storage.remote import ADDRESS

MOST_TAIL = 1024  # bytes of padding after the voxels that are believed
PAIRS = {".hdr": ".img", ".img": ".hdr", ".HDR": ".IMG", ".IMG": ".HDR"}


@dataclass(frozen=True)
class NiftiFile:
    """Verified content of one image; `voxels` is (t, z, y, x) of the file, in its byte order."""

    path: str
    header: NiftiHeader
    voxels: np.ndarray
    hash: str
    nbytes: int


def is_remote(path: str) -> bool:
    """Whether a path is an address for the object-store reader."""
    return bool(ADDRESS.match(path))


def read_source_bytes(path: str, budget: int) -> memoryview:
    """All bytes of a source, local or remote.

    Raises SourceError missing, unreadable, not-a-file, empty, changing or over-budget; a pipe or a
    device is never opened.
    """
    if is_remote(path):
        from mim3d.dataio.storage.remote import read_remote_bytes

        return memoryview(read_remote_bytes(path, budget))
    try:
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):
            raise SourceError("not-a-file", path, "is a folder, a pipe or a device, not a file")
        if status.st_size > budget:
            detail = f"{status.st_size} bytes, over the budget of {budget} (--byte-budget)"
            raise SourceError("over-budget", path, detail)
        data = _read_whole(path, status.st_size)
    except FileNotFoundError as error:
        raise SourceError("missing", path, "no such file") from error
    except OSError as error:
        raise SourceError("unreadable", path, f"cannot be read: {error.strerror}") from error
    if not data:
        raise SourceError("empty", path, "is empty (0 bytes); download or copy it again")
    return data


def _read_whole(path: str, size: int) -> memoryview:
    """The `size` bytes of a file, fewer where it was cut meanwhile; SourceError where it grew."""
    data = scratch(size).data
    done = 0
    with Path(path).open("rb", buffering=0) as file:
        while done < size and (got := file.readinto(data[done:])):
            done += got
        if done == size and file.read(1):
            raise SourceError("changing", path, "grows while it is read; let its writer finish")
    return data[:done]


def pair_paths(path: str) -> tuple[str, str] | None:
    """(.hdr, .img) paths of a pair named by either, or None for a single file."""
    zipped = ".gz" if path.endswith(".gz") else ""
    bare = path.removesuffix(zipped)
    stem, suffix = bare[:-4], bare[-4:]
    if suffix not in PAIRS:
        return None
    header, image = sorted((suffix, PAIRS[suffix]))
    return stem + header + zipped, stem + image + zipped


def source_hash(path: str, budget: int) -> str:
    """Hash of a source's bytes, header file first for a pair, as `read_nifti` records it; of the
    classes and hashes of its masks for a merged label.

    XXH3 tells a changed file, not a forged one; SHA-256 took an eighth of inflating and encoding.
    """
    digest = xxhash.xxh3_128()
    for number, mask in masks_of(path):
        digest.update(f"{number} {source_hash(mask, budget)} ".encode())
    for part in () if masks_of(path) else files_behind(path):
        digest.update(read_source_bytes(part, budget))
    return hash_text(digest)


def hash_text(digest: xxhash.xxh3_128) -> str:
    """A 128-bit hash as the manifest has it, its kind in front."""
    return f"xxh3:{digest.hexdigest()}"


def read_nifti(path: str, budget: int, trust: HeaderTrust = DEFAULT_TRUST) -> NiftiFile:
    """Read, verify and map one image of at most `budget` bytes of voxels."""
    if is_container(path):
        return read_container(path, budget)
    pair = pair_paths(path)
    digest = xxhash.xxh3_128()
    total, declared = 0, None
    if pair:
        block = bytes(read_source_bytes(pair[0], budget))
        digest.update(block)
        total += len(block)
        declared = inflate_header(block, pair[0], trust)
        path = pair[1]
    data = read_source_bytes(path, budget)
    digest.update(data)
    total += len(data)
    header = declared or parse_header(_head(data, path), path, paired=False, trust=trust)
    payload = verified_payload(data, header, path, budget)
    voxels = np.frombuffer(payload, header.dtype, header.n_voxels, header.offset)
    shape = (header.n_frames, *header.shape[::-1])
    return NiftiFile(path, header, voxels.reshape(shape), hash_text(digest), total)


def read_container(path: str, budget: int) -> NiftiFile:
    """Read, verify and map an image of another format."""
    digest = xxhash.xxh3_128()
    total, data = 0, memoryview(b"")
    for part in files_behind(path):
        data = read_source_bytes(part, budget)
        digest.update(data)
        total += len(data)
    if path.lower().endswith(MGH):
        header, payload = mgh_payload(data, path)
        check_budget(header, path, budget)
        voxels = np.frombuffer(payload, header.dtype, header.n_voxels, header.offset)
        voxels = voxels.reshape((header.n_frames, *header.shape[::-1]))
    else:
        header = itk_header(path)
        check_budget(header, path, budget)
        voxels = itk_voxels(path, header, data)
    return NiftiFile(path, header, voxels, hash_text(digest), total)


def files_behind(path: str) -> tuple[str, ...]:
    """The files of one image: two of a pair, those that a detached header names, else itself."""
    if path.lower().endswith(ITK):
        return files_of_itk(path)
    return pair_paths(path) or (path,)


def inflate_header(block: bytes, path: str, trust: HeaderTrust) -> NiftiHeader:
    """Header of a .hdr file, verified to its end when it is compressed."""
    if is_gzip(block):
        block = bytes(inflate(block, min(HEADER_BYTES, MAX_RATIO * len(block)), path))
    return parse_header(block, path, paired=True, trust=trust)


def verified_payload(data: memoryview, header: NiftiHeader, path: str, budget: int) -> memoryview:
    """The uncompressed file, checked against what the header declares before it is allocated."""
    check_budget(header, path, budget)
    payload = inflate(data, header.end, path) if is_gzip(data) else data
    if len(payload) < header.end:
        detail = f"holds {len(payload)} bytes, but its header declares {header.end}"
        raise SourceError("truncated", path, f"{detail}; download or copy it again")
    check_tail(len(payload) - header.end, header, path)
    return payload


def check_tail(nbytes: int, header: NiftiHeader, path: str) -> None:
    """SourceError too-long where more follows the voxels than a little padding.

    A header damaged in its dimensions leaves at least a plane of voxels over.
    """
    most = min(MOST_TAIL, header.plane_bytes - 1)
    if nbytes > most:
        detail = f"{nbytes} bytes follow the {header.end} its header declares; at most {most} may"
        remedy = "its dimensions may be damaged: compare it with the original, or cut them off"
        raise SourceError("too-long", path, f"{detail} ({remedy})")


def check_budget(header: NiftiHeader, path: str, budget: int) -> None:
    """SourceError over-budget where the header declares more than is believed."""
    if header.end > budget:
        detail = f"declares {header.end} bytes of voxels, over the budget of {budget}"
        raise SourceError("over-budget", path, f"{detail} (--byte-budget)")


def _head(data: bytes | memoryview, path: str) -> bytes:
    return peek(data, HEADER_BYTES, path) if is_gzip(data) else bytes(data[:HEADER_BYTES])


HEAD_BYTES = 64 * 1024


def read_header(path: str, budget: int, trust: HeaderTrust = DEFAULT_TRUST) -> NiftiHeader:
    """Checked header of a file, of the first mask of a merged label; of a remote one only its first
    bytes are asked for.
    """
    if parts := masks_of(path):
        return read_header(parts[0][1], budget, trust)
    if path.lower().endswith(ITK):
        return itk_header(path)
    place, block = header_block(path, budget)
    if path.lower().endswith(MGH):
        return parse_mgh(block, path)
    header = parse_header(block, place, paired=pair_paths(path) is not None, trust=trust)
    check_budget(header, place, budget)
    return header


def header_block(path: str, budget: int) -> tuple[str, bytes]:
    """The file that has the header of an image, the .hdr of a pair, and its first bytes, unpacked.

    SourceError where it is missing, empty or cannot be read.
    """
    pair = pair_paths(path)
    place = pair[0] if pair else path
    data = remote_start(place, budget) if is_remote(place) else local_start(place)
    if not data:
        raise SourceError("empty", place, "is empty (0 bytes); download or copy it again")
    return place, _head(data, place)


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

    from mim3d.dataio.storage.remote import locate

    store, key = locate(path)
    try:
        return bytes(store.get_range(key, start=0, length=HEAD_BYTES))
    except FileNotFoundError as error:
        raise SourceError("missing", path, "no such object") from error
    except (obstore.exceptions.BaseError, OSError):
        # Servers without ranges say so in many ways; a real failure fails again here, and is told.
        return read_source_bytes(path, budget)
