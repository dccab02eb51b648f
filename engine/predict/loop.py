"""Scan by scan: what is done already is kept, what is broken is set aside, the rest is done."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from mim3d.dataio.convert.volume import trust_of
from mim3d.dataio.corpus.conversion import Conversion
from mim3d.dataio.corpus.manifest import VolumeRecord
from mim3d.dataio.errors import CorpusError, Mim3dError, Rejection, SourceError, first_line
from mim3d.dataio.geometry import Triple
from mim3d.dataio.nifti.file import read_header
from mim3d.dataio.progress import Progress
from mim3d.engine.predict.config import OF_SCANS
from mim3d.engine.predict.ledger import Ledger
from mim3d.engine.predict.scans import OpenVolume, Scan, Scans
from mim3d.engine.runs.scan_recipe import ScanRecipe

SAME_AFFINE_MM = 1e-3
FEW_VALUES = "few whole numbers, as label maps have: leave it out if it is one"
GUESSED = "no sform and no qform: left and right are a guess; set one in its header"


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


def each_scan(
    scans: Scans, ledger: Ledger, recipe: ScanRecipe, crop: Triple, shown: Progress, do: Do
) -> Done:
    """Do every scan that the ledger does not have; a failing one takes no other along."""
    done = Done(failed=list(scans.left_out))
    for line in [*scans.notes, *(f"{each.path}: {each.detail}" for each in done.failed)]:
        shown.note(line)
    for scan in scans.scans:
        entry = ledger.entry(scan)
        part = OnePart(shown, scan.id)
        if entry is None or not holds(entry, scan, scans.conversion):
            entry = None
            with explained(scan, done.failed, shown):
                ledger.refuse_changed(scan)
                entry = one_scan(scans, scan, part, do, recipe, crop)
                entry = ledger.add(scan, entry)
                done.n_now += 1
            ledger.tell_failed(done.failed)
        elif place := ledger.changed(scan.id):
            scans.doubts.append(f"{place} was changed since it was written, and is kept as it is")
        part.fill()
        if entry is not None:
            done.entries[scan.id] = entry
    ledger.tell_failed(done.failed)
    return done


def one_scan(
    scans: Scans, scan: Scan, part: OnePart, do: Do, recipe: ScanRecipe, crop: Triple
) -> dict[str, Any]:
    """What is noted of a scan: its files, a note for each volume, doubts, and how it was read."""
    with scans.opened(scan) as volumes:
        part.of = len(volumes)
        notes = [do(volume, part.advance) for volume in volumes]
        doubts = doubts_of(volumes, recipe, crop, scans.header_remedy)
        records = [volume.record for volume in volumes]
    files = [file for each in notes for file in each.get("files", ())]
    first = records[0]
    return {
        "files": files,
        "volumes": notes,
        "doubts": doubts,
        "hashes": first.source_hash,
        "read_as": read_as(scans.conversion),
        "n_not_finite": sum(record.n_nan + record.n_inf for record in records),
        "affine": first.original_affine,
        "header_doubt": first.header_doubt,
    }


def read_as(conversion: Conversion) -> dict[str, str]:
    """What of a recipe a scan may be read otherwise by."""
    return {name: getattr(conversion, name) for name in OF_SCANS}


def holds(entry: dict[str, Any], scan: Scan, conversion: Conversion) -> bool:
    """Whether a scan would be read now as it was, though NaN may be taken otherwise now, or its
    header believed otherwise."""
    now = read_as(conversion)
    before = entry.get("read_as", now)
    if before["nan_policy"] != now["nan_policy"] and entry["n_not_finite"]:
        return False
    if all(before[name] == now[name] for name in ("believe", "units")):
        return True
    if entry["header_doubt"]:
        return False
    try:
        found = read_header(scan.paths[0], conversion.byte_budget, trust_of(conversion))
    except SourceError:
        return False
    return np.allclose(found.affine, np.array(entry["affine"]), rtol=0, atol=SAME_AFFINE_MM)


def doubts_of(
    volumes: Sequence[OpenVolume], recipe: ScanRecipe, crop: Triple, remedy: str
) -> list[str]:
    """What a person should know of a scan: its header disagrees, its voxels are of other sizes, or
    there is too little to see. `remedy` is what to do about the header."""
    found = []
    for volume in volumes:
        record = volume.record
        doubts = [
            f"{record.header_doubt}; {remedy}" if record.header_doubt else "",
            FEW_VALUES if record.n_values else "",
            GUESSED if record.affine_from == "pixdim" else "",
            recipe.spacing_doubt(record.spacing_mm),
            recipe.size_doubt(record.shape, crop),
            *constant(record),
        ]
        found += [f"{record.sources[0]}: {doubt}" for doubt in doubts if doubt]
    return list(dict.fromkeys(found))


def constant(record: VolumeRecord) -> list[str]:
    """What to say of a volume, or of channels, of one value everywhere."""
    lowest = record.intensity.minimum
    if lowest == record.intensity.maximum:
        return [f"every voxel is {lowest:g}: there is nothing to see, do not count on it"]
    return [
        f"channel {i} of {record.channels} is one value everywhere: is it missing?"
        for i in record.constant_channels
    ]


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
