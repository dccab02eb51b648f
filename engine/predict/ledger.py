"""What was done in DST: by which network and how, and a line for every scan that is finished.

A line is written when all files of its scan are whole, so a run that was ended anyhow goes on with
the first scan that has none. A scan that changed since, or whose files are gone, is done again.
"""

import json
import os
from pathlib import Path
from typing import Any

from mim3d.dataio.errors import Rejection
from mim3d.engine.errors import ConfigError
from mim3d.engine.predict.scans import Scan
from mim3d.engine.runs.files import differences, finite, read_json, write_json, write_jsonl

FAILED = "failed.jsonl"


class Ledger:
    """The finished scans of a folder; `name` tells the kind of work (predict, embed).

    ConfigError where the folder holds what another network made, or the same one otherwise.
    """

    def __init__(self, folder: Path, name: str, identity: dict[str, Any]) -> None:
        self.folder, self.file = folder, folder / f"{name}.jsonl"
        self.entries: dict[str, dict[str, Any]] = {}
        claimed = folder / f"{name}.json"
        wanted = json.loads(json.dumps(finite(identity)))
        if claimed.exists():
            differing = differences(read_json(claimed), wanted)
            if differing:
                field, before, now = differing[0]
                raise ConfigError(
                    f"{folder} holds results with {field} {before}, not {now}: choose another DST, "
                    "or delete that folder"
                )
            self.entries = read_entries(self.file)
        else:
            self.file.unlink(missing_ok=True)
            write_json(claimed, wanted)

    def entry(self, scan: Scan) -> dict[str, Any] | None:
        """What was noted of a scan that is finished, as it is now, with all its files there."""
        found = self.entries.get(scan.id)
        if found is None or not scan.stamp or found["stamp"] != scan.stamp:
            return None
        if not all((self.folder / file).is_file() for file in found["files"]):
            return None
        return found

    def add(self, scan: Scan, facts: dict[str, Any]) -> dict[str, Any]:
        """Note that a scan is finished; `facts` has `files`, relative to the folder."""
        entry = {
            "id": scan.id,
            "subject": scan.subject,
            "sources": list(scan.paths),
            "stamp": scan.stamp,
            **facts,
        }
        line = json.dumps(finite(entry)) + "\n"
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(line)
            stream.flush()
            os.fsync(stream.fileno())
        self.entries[scan.id] = entry
        return entry

    def tell_failed(self, failed: list[Rejection]) -> None:
        """Write the list of what could not be done, or take an earlier one away."""
        file = self.folder / FAILED
        if failed:
            write_jsonl(file, [vars(each) for each in failed])
        else:
            file.unlink(missing_ok=True)


def read_entries(file: Path) -> dict[str, dict[str, Any]]:
    """Lines by scan, the latest of each; the file is cut before a line that was torn."""
    if not file.exists():
        return {}
    found: dict[str, dict[str, Any]] = {}
    whole = 0
    data = file.read_bytes()
    for line in data.splitlines(keepends=True):
        try:
            entry = json.loads(line)
            found[entry["id"]] = entry
        except (ValueError, KeyError, TypeError):
            break
        if not line.endswith(b"\n"):
            break
        whole += len(line)
    if whole < len(data):
        with file.open("r+b") as stream:
            stream.truncate(whole)
    return found
