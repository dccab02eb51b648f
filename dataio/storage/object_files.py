"""Large objects from and to files: in parts, several at once, with hashes of what was sent."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from mim3d.dataio.errors import StoreError
from mim3d.dataio.storage.bucket import Bucket
from mim3d.dataio.waiting import asking_threads

PART_BYTES = 8 << 20
MOST_PARTS = 9_000
"""S3 takes 10,000 of an object."""
PARALLEL_PARTS = 8


@dataclass(frozen=True)
class Listed:
    """What a store lists of an object."""

    nbytes: int
    e_tag: str
    """Of an S3 object without a key of its owner's: `FileDigest.e_tag`."""


@dataclass(frozen=True)
class FileDigest:
    """Size and hashes of a file."""

    nbytes: int
    sha256: str
    e_tag: str
    """MD5 of the file as S3 gives it where `send_file` wrote the object: of one put its own, of
    several parts that of theirs (https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html).
    """


def part_bytes(nbytes: int) -> int:
    """Size of the parts in which so many bytes are sent."""
    return max(PART_BYTES, -(-nbytes // MOST_PARTS))


def digest_file(file: Path) -> FileDigest:
    """Hashes of a file, read once."""
    nbytes = file.stat().st_size
    sha256, parts = hashlib.sha256(), []
    with file.open("rb") as stream:
        while part := stream.read(part_bytes(nbytes)):
            sha256.update(part)
            parts.append(hashlib.md5(part, usedforsecurity=False))
    if nbytes < PART_BYTES:
        e_tag = parts[0].hexdigest() if parts else hashlib.md5(usedforsecurity=False).hexdigest()
    else:
        joined = b"".join(part.digest() for part in parts)
        e_tag = f"{hashlib.md5(joined, usedforsecurity=False).hexdigest()}-{len(parts)}"
    return FileDigest(nbytes, sha256.hexdigest(), e_tag)


def send_file(bucket: Bucket, key: str, file: Path) -> None:
    """Write an object from a file: small ones whole, others in parts; there when this returns."""
    nbytes = file.stat().st_size
    with file.open("rb") as stream:
        if nbytes < PART_BYTES:
            bucket.put(key, stream.read(), use_multipart=False)
            return
        size = part_bytes(nbytes)
        add = bucket.writer(key, size, PARALLEL_PARTS)
        while part := stream.read(size):
            add(part)
        add(None)


def fetch_file(bucket: Bucket, key: str, file: Path, nbytes: int) -> None:
    """Write an object of that size to a file, parts of it at once; whole, or not there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as out, asking_threads(PARALLEL_PARTS) as pool:
            if nbytes < PART_BYTES:
                out.write(bucket.get(key).bytes())
            else:
                spans = [(at, min(PART_BYTES, nbytes - at)) for at in range(0, nbytes, PART_BYTES)]

                def fetch(span: tuple[int, int]) -> None:
                    at, length = span
                    data = memoryview(bucket.get_range(key, start=at, length=length))
                    while data:  # a disk that is almost full takes a part
                        written = os.pwrite(out.fileno(), data, at)
                        data, at = data[written:], at + written

                list(pool.map(fetch, spans))
        if partial.stat().st_size != nbytes:
            raise StoreError(
                f"{bucket.origin}/{key}: is not of {nbytes} bytes any more, so it was written "
                "while it was read: run the same command again"
            )
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
