"""True label maps of scans on their own grid: files of a folder, or those the source tells."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mim3d.dataio.convert.label import file_classes
from mim3d.dataio.convert.volume_ids import safe_id
from mim3d.dataio.corpus.conversion import Conversion
from mim3d.dataio.corpus.manifest import IGNORED
from mim3d.dataio.errors import SourceError
from mim3d.dataio.geometry import Grid
from mim3d.engine.predict.label_files import Matches, label_files, matched, no_label, true_labels
from mim3d.engine.predict.scans import Scan, Scans

OWN = "own"


@dataclass(frozen=True)
class OwnFile:
    """A label map that was written, as what a true one is held against."""

    file_grid: Grid
    frame: int = -1
    n_frames: int = 1


class Truth:
    """Label files by scan: of a folder or file (see `label_files`), or (`own`) told with the scans.

    ConfigError where that folder or file holds none.
    """

    def __init__(self, place: str, label: str) -> None:
        self.place, self.label = place, label
        self._listed = [] if place == OWN else label_files(place)
        self.matches = Matches()

    def match(self, scans: Scans, results: Path) -> None:
        """Settle whose each label file is, among all scans of SRC."""
        if self.place != OWN:
            files = true_labels(self._listed, self.place, scans.all, results)
            self.matches = matched(files, self.place, scans.all, scans.root)

    def path(self, scan: Scan) -> str:
        """The label file of a scan; SourceError where there is none, or it is not sure."""
        if self.place == OWN:
            return self._of_source(scan)
        if scan.id in self.matches.files:
            return self.matches.files[scan.id]
        detail = self.matches.problems.get(scan.id)
        code = "label-pairs" if detail else "no-label"
        raise SourceError(code, scan.name, detail or no_label(self.place, scan))

    def notes(self, scans: Sequence[Scan]) -> list[str]:
        """What is said of labels that were matched by name alone."""
        names = {scan.name for scan in scans}
        pairs = [(label, scan) for label, scan in self.matches.by_name if scan in names]
        if not pairs:
            return []
        label, scan = pairs[0]
        return [f"labels matched by name alone: {len(pairs)}, such as {label} for {scan}"]

    def _of_source(self, scan: Scan) -> str:
        named = {safe_id(name): path for name, path in scan.labels.items()}
        if self.label in named:
            return named[self.label]
        if len(named) == 1:
            return next(iter(named.values()))
        known = f"labels {', '.join(sorted(named))}, not {self.label!r}" if named else "no label"
        detail = f"its source tells {known}: name the folder of label files by --labels"
        raise SourceError("no-label", scan.name, detail)


def true_classes(
    path: str, place: OwnFile, scan: Scan, classes: int, ignore: int | None, conversion: Conversion
) -> tuple[np.ndarray, np.ndarray | None]:
    """Classes (z, y, x) on a scan's own grid, 0 where they are untold, and where that is.

    As in a corpus a mask of 0 and 255 is 0 and 1, and 255 above the classes tells nothing.
    SourceError where the file is broken, on another grid, or has classes that are not known.
    """
    voxels = file_classes("truth", path, place, scan.name, conversion).voxels
    return known_classes(voxels, path, classes, ignore)


def known_classes(
    voxels: np.ndarray, path: str, classes: int, ignore: int | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """The same of voxels that were read."""
    present = np.unique(voxels).tolist()
    if set(present) - {0} == {IGNORED} and classes <= IGNORED and ignore is None:
        return (voxels == IGNORED).astype(np.uint8), None
    untold = IGNORED if ignore is None and classes <= IGNORED else ignore
    foreign = [number for number in present if not 0 <= number < classes and number != untold]
    if foreign:
        detail = f"has class {foreign[0]}, and the network knows 0 to {classes - 1}"
        raise SourceError("label-classes", path, f"{detail}; renumber it as the run's labels")
    where = voxels == untold if untold in present else None
    return (voxels if where is None else np.where(where, 0, voxels)), where
