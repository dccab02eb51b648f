"""Scan by scan: what is done already is kept, what is broken is set aside, the rest is done."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from mim3d.dataio.errors import CorpusError, Mim3dError, Rejection, SourceError, first_line
from mim3d.dataio.progress import Progress
from mim3d.engine.predict.ledger import Ledger
from mim3d.engine.predict.scans import OpenVolume, Scan, Scans
from mim3d.engine.runs.scan_recipe import ScanRecipe


class OnePart:
    """Progress within one scan of `of` volumes."""

    def __init__(self, shown: Progress, id: str) -> None:
        self.shown, self.id, self.of, self.done = shown, id, 1, 0.0

    def advance(self, share: float) -> None:
        """Count a share of a volume."""
        self.done += share / self.of
        self.shown.advance(share / self.of, self.id)

    def fill(self) -> None:
        """Count the rest, of a scan that is done or given up."""
        if self.done < 1:
            self.shown.advance(1 - self.done, self.id)


Do = Callable[[OpenVolume, Callable[[float], None]], dict[str, Any]]
"""A volume, and what is told the share of it that was done, to what the ledger notes of it."""


@dataclass
class Done:
    """The entries of all scans that are finished, how many of them now, and what could not be."""

    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    n_now: int = 0
    failed: list[Rejection] = field(default_factory=list)

    @property
    def n_kept(self) -> int:
        """Scans that were finished before."""
        return len(self.entries) - self.n_now

    def doubts(self, scans: Scans) -> tuple[str, ...]:
        """What a person should look at, of all scans."""
        each = (doubt for entry in self.entries.values() for doubt in entry["doubts"])
        return tuple(dict.fromkeys([*scans.doubts, *each]))

    def volumes(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Every volume's note, with its scan's entry."""
        for entry in self.entries.values():
            for volume in entry["volumes"]:
                yield entry, volume


def each_scan(scans: Scans, ledger: Ledger, recipe: ScanRecipe, shown: Progress, do: Do) -> Done:
    """Do every scan that the ledger does not have; a failing one takes no other along."""
    done = Done(failed=list(scans.left_out))
    for line in [*scans.notes, *(f"{each.path}: {each.detail}" for each in done.failed)]:
        shown.note(line)
    for scan in scans.scans:
        entry = ledger.entry(scan)
        part = OnePart(shown, scan.id)
        if entry is None:
            with explained(scan, done.failed, shown):
                entry = one_scan(scans, scan, part, do, recipe)
                entry = ledger.add(scan, entry)
                done.n_now += 1
            ledger.tell_failed(done.failed)
        part.fill()
        if entry is not None:
            done.entries[scan.id] = entry
    ledger.tell_failed(done.failed)
    return done


def one_scan(scans: Scans, scan: Scan, part: OnePart, do: Do, recipe: ScanRecipe) -> dict[str, Any]:
    """What is noted of a scan: its files, a note for each volume, and doubts."""
    with scans.opened(scan) as volumes:
        part.of = len(volumes)
        notes = [do(volume, part.advance) for volume in volumes]
        doubts = doubts_of(volumes, recipe)
    files = [file for each in notes for file in each.get("files", ())]
    return {"files": files, "volumes": notes, "doubts": doubts}


def doubts_of(volumes: Sequence[OpenVolume], recipe: ScanRecipe) -> list[str]:
    """What a person should know of a scan: its header disagrees, its voxels are of other sizes."""
    found = []
    for volume in volumes:
        record = volume.record
        for doubt in (record.header_doubt, recipe.spacing_doubt(record.spacing_mm)):
            found += [f"{record.sources[0]}: {doubt}"] if doubt else []
    return list(dict.fromkeys(found))


@contextmanager
def explained(scan: Scan, failed: list[Rejection], shown: Progress) -> Iterator[None]:
    """Set a scan that cannot be done aside, whatever that shows itself by, and go on.

    What no scan could be done with (a full disk, a wrong configuration) is raised.
    """
    try:
        yield
        return
    except SourceError as error:
        found = Rejection.of(error)
    except CorpusError as error:
        found = Rejection(scan.name, "damaged", str(error))
    except (MemoryError, torch.OutOfMemoryError):
        detail = "did not fit into memory; use --device cpu, or a machine with more"
        found = Rejection(scan.name, "out-of-memory", detail)
    except (Mim3dError, OSError):
        raise
    except Exception as error:
        # As in a conversion: one broken file of thousands must not end the others.
        detail = f"cannot be done: {type(error).__name__}: {first_line(error)}"
        found = Rejection(scan.name, "unforeseen", detail)
    failed.append(found)
    shown.note(f"{found.path}: {found.detail}")
