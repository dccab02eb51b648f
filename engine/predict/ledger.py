"""What was done in DST: by which network and how, and a line for every scan that is finished.

A line is written when all files of its scan are whole, so a run that was ended anyhow goes on with
the first scan that has none. A scan that changed since, or whose files are gone, is done again.
Before a file is written it is noted as ours (NAME.files.jsonl): one that is there and is not, or
was changed since, is somebody's, and stays.
"""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from mim3d.dataio.errors import Rejection, SourceError
from mim3d.dataio.nifti.file import source_hash
from mim3d.dataio.subjects.grouping import counted
from mim3d.engine.errors import ConfigError
from mim3d.engine.predict.scans import Scan
from mim3d.engine.runs.files import (
    differences,
    file_sha256,
    finite,
    read_json,
    write_json,
    write_jsonl,
)

FAILED = "failed.jsonl"
FILES = ".files.jsonl"
ANY_SIZE = 1 << 62  # what is hashed again was read before


class Ledger:
    """The finished scans of a folder; `name` tells the kind of work (predict, embed).

    ConfigError where the folder holds what another network made, or the same one otherwise.
    """

    def __init__(self, folder: Path, name: str, identity: dict[str, Any]) -> None:
        self.folder, self.name = folder, name
        self.file, self.claims = folder / f"{name}.jsonl", folder / f"{name}{FILES}"
        self.entries: dict[str, dict[str, Any]] = {}
        self.noted = read_entries(self.claims)
        self.own = {file for noted in folder.glob(f"*{FILES}") for file in read_entries(noted)}
        claimed = folder / f"{name}.json"
        wanted = json.loads(json.dumps(finite(identity)))
        self._unclaimed: dict[str, Any] | None = None
        if claimed.exists():
            read = read_json(claimed)
            stored = read if isinstance(read, dict) else {}
            differing = differences({field: stored.get(field) for field in wanted}, wanted)
            self.entries = read_entries(self.file)
            if differing and not self.entries and not any(map(is_result, folder.iterdir())):
                self._unclaimed = wanted  # that call was refused, or failed, before its first scan
            elif differing:
                field, before, now = differing[0]
                raise ConfigError(
                    f"{folder} holds results with {field} {before}, not {now}: choose another DST"
                )
            self.own |= {file for entry in self.entries.values() for file in entry["files"]}
            if not self.claims.exists():  # of an earlier version, which noted none
                self.own |= {file.name for file in folder.iterdir()}
        else:
            self.refuse_foreign([self.file.name])
            self._unclaimed = wanted

    def begin(self) -> None:
        """Make the folder ours, when nothing is left to refuse."""
        if self._unclaimed is not None:
            self.file.unlink(missing_ok=True)
            self.claim([self.file.name])
            write_json(self.folder / f"{self.name}.json", self._unclaimed)
            self._unclaimed = None

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
            "written": {file: written(self.folder / file) for file in facts["files"]},
            **facts,
        }
        append(self.file, [entry])
        self.entries[scan.id] = entry
        return entry

    def claim(self, files: Iterable[str]) -> None:
        """Note files as ours before they are written; ConfigError where one is somebody's."""
        new = [f for f in files if f not in self.noted or "sha256" in self.noted[f]]
        self.refuse_foreign(new)
        append(self.claims, notes := [{"id": file} for file in new])
        self.noted |= {note["id"]: note for note in notes}
        self.own.update(new)

    def seal(self, tables: Iterable[str]) -> None:
        """Note what tables are, now that they are written: who changes one keeps it."""
        there = [file for file in tables if (self.folder / file).is_file()]
        notes = [{"id": file, "sha256": file_sha256(self.folder / file)} for file in there]
        append(self.claims, notes)
        self.noted |= {note["id"]: note for note in notes}

    def claim_for(self, path: str, files: Iterable[str]) -> None:
        """The same for what is made of one scan; a SourceError sets that one aside."""
        try:
            self.claim(files)
        except ConfigError as error:
            raise SourceError("taken", path, str(error)) from error

    @property
    def sources(self) -> dict[tuple[str, ...], str]:
        """The ids of finished scans by their files."""
        return {tuple(entry["sources"]): id for id, entry in self.entries.items()}

    def refuse_foreign(self, files: Iterable[str]) -> None:
        """A ConfigError where one of the files is there and is not ours, or is a table of ours that
        was changed since."""
        for file in files:
            place, known = self.folder / file, self.noted.get(file, {}).get("sha256")
            if known and place.is_file() and file_sha256(place) != known:
                raise ConfigError(
                    f"{self.folder / file} was changed since it was written, and would be written "
                    "anew: move that file away"
                )
            if file not in self.own and os.path.lexists(self.folder / file):
                raise ConfigError(
                    f"{self.folder / file} is there, and `mim3d {self.name}` did not write it: "
                    "name another DST, or move that file away"
                )

    def refuse_taken(self, scans: Sequence[Scan], outputs: Callable[[str], list[str]]) -> None:
        """A ConfigError where what is made of a scan would replace a file that is not ours, or what
        was made of another scan; `outputs` are the files of an id, as far as they are known."""
        for scan in scans:
            self.refuse_foreign(outputs(scan.id))
            before = self.entries.get(scan.id)
            if before is None or is_same(before, scan):
                continue
            there = [file for file in before["files"] if os.path.lexists(self.folder / file)]
            if before["files"] and not there:
                continue
            what = str(self.folder / there[0]) if there else f"{scan.id} in {self.file}"
            remedy = "name another DST, or move that file away" if there else "name another DST"
            raise ConfigError(
                f"{what} is of {before['sources'][0]}, and that of {scan.name} would take its "
                f"place: {remedy}"
            )

    def changed(self, id: str) -> Path | None:
        """A file of a scan that is there and was changed by somebody since it was written."""
        for file, facts in self.entries.get(id, {}).get("written", {}).items():
            place = self.folder / file
            if not place.is_file() or place.stat().st_mtime_ns == facts["mtime_ns"]:
                continue
            if file_sha256(place) != facts["sha256"]:
                return place
        return None

    def refuse_changed(self, scan: Scan) -> None:
        """A SourceError where a scan is to be done again, and somebody changed what was made."""
        if place := self.changed(scan.id):
            detail = (
                f"is to be done again, and {place} was changed since it was written: move it away"
            )
            raise SourceError("changed-result", scan.name, detail)

    def tell_failed(self, failed: list[Rejection]) -> None:
        """Write the list of what could not be done, or take an earlier one away."""
        file = self.folder / FAILED
        if failed:
            self.claim([FAILED])
            write_jsonl(file, [vars(each) for each in failed])
        elif FAILED in self.noted:
            file.unlink(missing_ok=True)

    def leftovers(
        self, every: Sequence[Scan], asked: Sequence[Scan], done: Iterable[str]
    ) -> list[str]:
        """Lines of results that are of none of these scans as they are now: scans that are not
        among `every`, frames that are no more, and maps of those `asked` for and not `done`."""
        ids, stale = {scan.id for scan in every}, {scan.id for scan in asked} - {*done}
        gone = [e for e in self.entries.values() if e["id"] not in ids and self._has_any(e)]
        lines = []
        if gone:
            one = gone[0]
            named = self.folder / one["files"][0] if one["files"] else one["id"]
            n = counted(len(gone), "scan")
            lines.append(
                f"{self.folder} also holds results of {n} that SRC does not have "
                f"(such as {named}, of {one['sources'][0]}): they are in no table of this call; "
                f"{'delete them' if one['files'] else 'name another DST'} if that is not wanted"
            )
        current = [entry["files"] for id, entry in self.entries.items() if id not in stale]
        of_entries = {file for files in current for file in files}
        stray = [f for f in sorted({*self.noted} - of_entries) if is_result(self.folder / f)]
        if stray:
            lines.append(
                f"{self.folder / stray[0]}{more(stray)}: of an earlier call, not of its scan as it "
                "is now: do not count on it, or delete it"
            )
        return lines

    def _has_any(self, entry: dict[str, Any]) -> bool:
        """Whether any file of an entry is there, or it has none but its line."""
        files = entry["files"]
        return not files or any(os.path.lexists(self.folder / file) for file in files)


def is_result(file: Path) -> bool:
    """Whether a file is there and is a scan's, not a table."""
    return file.name.endswith((".nii.gz", ".safetensors")) and file.is_file()


def more(files: Sequence[str]) -> str:
    """` and 2 more` of three files."""
    return f" and {len(files) - 1} more" if len(files) > 1 else ""


def written(file: Path) -> dict[str, Any]:
    """What tells whether a file was changed."""
    return {"mtime_ns": file.stat().st_mtime_ns, "sha256": file_sha256(file)}


def is_same(entry: dict[str, Any], scan: Scan) -> bool:
    """Whether an entry is of this scan, which may have moved or changed: by path, by stamp, or by
    the hashes of its files."""
    if tuple(entry["sources"]) == scan.paths or (scan.stamp and entry["stamp"] == scan.stamp):
        return True
    try:
        hashes = scan.hashes or tuple(source_hash(path, ANY_SIZE) for path in scan.paths)
    except SourceError:
        return False
    return tuple(entry.get("hashes", ())) == hashes


def append(file: Path, entries: Sequence[dict[str, Any]]) -> None:
    """Add lines to a file, on the disk when this returns."""
    with file.open("a", encoding="utf-8") as stream:
        stream.writelines(json.dumps(finite(entry)) + "\n" for entry in entries)
        stream.flush()
        os.fsync(stream.fileno())


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
