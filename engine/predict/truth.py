"""True label maps of scans on their own grid: files of a folder, or those the source tells."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mim3d.dataio.convert.label import file_classes
from mim3d.dataio.convert.volume_ids import safe_id
from mim3d.dataio.corpus.conversion import Conversion
from mim3d.dataio.corpus.manifest import IGNORED
from mim3d.dataio.errors import SourceError
from mim3d.dataio.geometry import Grid
from mim3d.dataio.nifti.names import cases_of, is_image, stem
from mim3d.engine.errors import ConfigError
from mim3d.engine.predict.scans import Scan

OWN = "own"


@dataclass(frozen=True)
class OwnFile:
    """A label map that was written, as what a true one is held against."""

    file_grid: Grid
    frame: int = -1
    n_frames: int = 1


class Truth:
    """Label files by scan: of a folder or file, matched by name, or (`own`) told with the scans."""

    def __init__(self, place: str, label: str) -> None:
        self.place, self.label = place, label
        self._files: dict[str, list[str]] = {}
        if place != OWN:
            self._files = by_case(place)

    def path(self, scan: Scan) -> str:
        """The label file of a scan; SourceError where there is none, or more than one."""
        if self.place == OWN:
            return self._of_source(scan)
        names = [scan.id, *(name for path in scan.paths for name in cases_of(stem(path)))]
        for name in dict.fromkeys(filter(None, names)):
            found = self._files.get(name, [])
            if len(found) > 1:
                detail = f"{self.place} has several label files of it: {', '.join(found[:3])}"
                raise SourceError("label-pairs", scan.name, f"{detail}; leave one")
            if found:
                return found[0]
        detail = f"{self.place} has no label of it: name its file {scan.id}.nii.gz"
        raise SourceError("no-label", scan.name, detail)

    def _of_source(self, scan: Scan) -> str:
        named = {safe_id(name): path for name, path in scan.labels.items()}
        if self.label in named:
            return named[self.label]
        if len(named) == 1:
            return next(iter(named.values()))
        known = f"labels {', '.join(sorted(named))}, not {self.label!r}" if named else "no label"
        detail = f"its source tells {known}: name the folder of label files by --labels"
        raise SourceError("no-label", scan.name, detail)


def by_case(place: str) -> dict[str, list[str]]:
    """Label files by what their names tell of a case, in order."""
    root = Path(place).expanduser()
    if root.is_file():
        files = [root]
    elif root.is_dir():
        files = sorted(file for file in root.rglob("*") if is_image(file.name))
    else:
        raise ConfigError(f"--labels {place}: no such folder or file; `own` takes the source's own")
    found: dict[str, list[str]] = {}
    for file in files:
        for name in dict.fromkeys((safe_id(stem(file.name)), stem(file.name))):
            found.setdefault(name, []).append(str(file))
    if not found:
        raise ConfigError(f"--labels {place}: holds no label files (.nii, .nii.gz, ...)")
    return found


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
