"""JSON files that are there whole or not at all, and never hold a NaN."""

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from mim3d.engine.errors import CheckpointError, ConfigError

ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)


def as_address(place: str | Path) -> str:
    """An address as it is written, of which `Path` makes a folder; empty where it is none."""
    text = str(place)
    return re.sub(r":/+", "://", text, count=1) if ADDRESS.match(text) else ""


def refuse_address(place: str | Path, option: str = "--out") -> None:
    """A ConfigError where a folder or file to write is an address."""
    if address := as_address(place):
        raise ConfigError(
            f"{option} {address} is an address, and must be a place on this machine's file "
            f"system: name a local path, and copy it when it is written"
        )


def local_sha256(file: Path) -> str | None:
    """Hash of a file of this machine, None where there is none; read again only once it changed."""
    if not file.is_file():
        return None
    about = file.stat()
    return _sha256_of(file, about.st_mtime_ns, about.st_size)


@lru_cache(maxsize=64)
def _sha256_of(file: Path, changed_ns: int, size: int) -> str:
    return file_sha256(file)


def write_json(file: Path, value: object) -> None:
    """Write `value` as JSON by way of a temporary file, fsync and rename."""
    write_text(file, json.dumps(finite(value), indent=1, default=str) + "\n")


def write_jsonl(file: Path, rows: Iterable[object]) -> None:
    """Write one line of JSON per row, the whole file at once."""
    lines = [json.dumps(finite(row), default=str) + "\n" for row in rows]
    write_text(file, "".join(lines))


def write_text(file: Path, text: str) -> None:
    """Replace a text file atomically."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}.part")
    with partial.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(file)


def read_utf8(file: Path) -> str:
    """Text of a file; CheckpointError naming it where it is none."""
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"{file}: byte {error.start} is not UTF-8 text: it is damaged or another kind of file; "
            "restore it, or name another"
        ) from None


def read_json(file: Path) -> Any:
    """Value of a JSON file; CheckpointError naming it where it is none."""
    try:
        return json.loads(read_utf8(file))
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{file}: not JSON ({error}); delete it to make it again") from error


def read_jsonl(file: Path) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file."""
    lines = read_utf8(file).splitlines()
    try:
        return [json.loads(line) for line in lines if line]
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{file}: not JSON lines ({error}); restore or remake it") from error


def finite(value: object) -> object:
    """The same with NaN and infinities as None, which JSON can hold."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def json_sha256(value: object) -> str:
    """Hash of JSON values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Hash of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def differences(stored: Any, wanted: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """(field, stored, wanted) for every leaf that differs; None where one has no such field."""
    pair = [{} if side is None else side for side in (stored, wanted)]
    if stored != wanted and all(isinstance(side, dict) for side in pair):
        stored, wanted = pair
        found: list[tuple[str, Any, Any]] = []
        for key in {**wanted, **stored}:
            inner = f"{name}.{key}" if name else key
            found += differences(stored.get(key), wanted.get(key), inner)
        return found
    return [] if stored == wanted else [(name, stored, wanted)]


def value_at(plain: Any, name: str) -> Any:
    """The value of a field `part.field`, None where there is none."""
    for key in name.split("."):
        plain = plain.get(key) if isinstance(plain, dict) else None
    return plain
