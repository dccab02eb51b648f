"""Which label file is whose: by where it lies, else by its name, and never one for two unsaid.

A label file fits a scan the better, the more of its place is the scan's: the whole path below
--labels is that below SRC, its last folders are the scan's, it has the name of the scan's map, or
its name alone is the scan's. Better fits are settled first, and what is settled is not given twice.
"""

import os
import posixpath
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mim3d.dataio.convert.volume_ids import safe_id
from mim3d.dataio.nifti.names import cases_of, identifies_no_case, is_image, stem
from mim3d.dataio.subjects.words import has_digit, is_gathering
from mim3d.engine.errors import ConfigError
from mim3d.engine.predict.scans import Scan

SAME_PATH, SAME_FOLDERS, NAME_OF_MAP, SAME_NAME, NAME_LIKE_MAP, ONLY_ONE = 1000, 10, 5, 1, 0, -1
"""How well a label fits; of SAME_FOLDERS the number of folders is added."""
SHOWN = 3


@dataclass(frozen=True)
class LabelFile:
    """A label file, and the folders it lies in below --labels."""

    path: str
    folders: tuple[str, ...]

    @property
    def name(self) -> str:
        """Without its suffix."""
        return stem(self.path)


@dataclass(frozen=True)
class Fit:
    """A label that may be a scan's: how well, and how many words of the scan's name it lacks."""

    rank: int
    words: int
    label: LabelFile
    scan: Scan


@dataclass
class Matches:
    """Label files by the scans' ids, why other scans have none, and what a person should look at.

    `by_name` are the pairs of label and scan of which the name alone tells.
    """

    files: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    doubts: list[str] = field(default_factory=list)
    by_name: list[tuple[str, str]] = field(default_factory=list)


def label_files(place: str) -> list[LabelFile]:
    """The label files of a folder, in order, or the one file; ConfigError where there are none."""
    root = Path(place).expanduser()
    if root.is_file() and not is_image(root.name):
        raise ConfigError(f"--labels {place}: no label map (.nii, ...); name one, or a folder")
    if root.is_file():
        return [LabelFile(str(root), ())]
    if not root.is_dir():
        raise ConfigError(f"--labels {place}: no such folder or file; `own` takes the source's own")
    files = sorted(file for file in root.rglob("*") if is_image(file.name))
    if not files:
        raise ConfigError(f"--labels {place}: holds no label files (.nii, .nii.gz, ...)")
    return [LabelFile(str(file), file.relative_to(root).parts[:-1]) for file in files]


def true_labels(
    files: Sequence[LabelFile], place: str, scans: Sequence[Scan], results: Path
) -> list[LabelFile]:
    """The files without scans and without label maps that were predicted; ConfigError where nothing
    is left."""
    images = {os.path.realpath(path) for scan in scans for path in scan.paths}
    kept, within = [], results.resolve()
    for file in files:
        real = os.path.realpath(file.path)
        if real not in images and within not in Path(real).parents:
            kept.append(file)
    if not kept:
        what = "the scans themselves" if images else "predicted label maps"
        if any(within in Path(os.path.realpath(file.path)).parents for file in files):
            what = "label maps that were predicted"
        raise ConfigError(f"--labels {place}: holds {what}; name a folder of true label maps")
    return kept


def matched(files: Sequence[LabelFile], place: str, scans: Sequence[Scan], root: str) -> Matches:
    """The label file of each scan, where that is sure; `root` is the folder SRC."""
    found = Matches()
    best: dict[tuple[str, str], Fit] = {}
    for fit in fits(files, place, scans, root):
        known = best.get(key := (fit.label.path, fit.scan.id))
        if known is None or (fit.rank, -fit.words) > (known.rank, -known.words):
            best[key] = fit
    levels: dict[tuple[int, int], list[Fit]] = defaultdict(list)
    for fit in best.values():
        levels[fit.rank, -fit.words].append(fit)
    spent: dict[str, Scan] = {}
    for level in sorted(levels, reverse=True):
        settle([fit for fit in levels[level] if fit.label.path not in spent], place, found, spent)
    for fit in best.values():
        if fit.scan.id not in found.files and fit.label.path in spent:
            owner = spent[fit.label.path]
            detail = f"{fit.label.path} is that of {owner.name}, which it fits better"
            found.problems.setdefault(fit.scan.id, f"{no_label(place, fit.scan)} ({detail})")
    return found


def fits(files: Sequence[LabelFile], place: str, scans: Sequence[Scan], root: str) -> Iterator[Fit]:
    """Every label that may be a scan's."""
    by_name: dict[str, list[LabelFile]] = defaultdict(list)
    for file in files:
        for name in {file.name, safe_id(file.name)}:
            by_name[name].append(file)
    for scan in scans:
        for file in by_name.get(scan.id, ()):
            yield Fit(NAME_OF_MAP if file.name == scan.id else NAME_LIKE_MAP, 0, file, scan)
        for path in scan.paths:
            for words, name in enumerate(filter(None, cases_of(stem(path)))):
                for file in by_name.get(name, ()):
                    if file.name == name and (rank := rank_of(file, path, root)) is not None:
                        yield Fit(rank, words, file, scan)
        if len(scans) == 1 and [file.path for file in files] == [str(Path(place).expanduser())]:
            yield Fit(ONLY_ONE, 0, files[0], scan)


def rank_of(file: LabelFile, path: str, root: str) -> int | None:
    """How well the place of a label of a scan's name fits; None where it tells against it."""
    folder = posixpath.dirname(path)
    below = tuple(filter(None, folder[len(root) :].split("/")))
    inside = f"{folder}/".startswith(f"{root.rstrip('/')}/")
    if inside and below == file.folders:
        return SAME_PATH
    same = 0
    for one, other in zip(reversed(file.folders), reversed(folder.split("/")), strict=False):
        if one != other:
            break
        same += 1
    if same:
        return SAME_FOLDERS + same
    return None if file.folders and identifies_no_case(file.name) else SAME_NAME


def settle(level: list[Fit], place: str, found: Matches, spent: dict[str, Scan]) -> None:
    """Give labels to the scans that they fit equally well; what may be either's is nobody's."""
    level = [fit for fit in level if fit.scan.id not in {**found.files, **found.problems}]
    by_scan: dict[str, list[Fit]] = defaultdict(list)
    by_label: dict[str, list[Fit]] = defaultdict(list)
    for fit in level:
        by_scan[fit.scan.id].append(fit)
    for id, several in by_scan.items():
        if len(several) > 1:
            names = ", ".join(fit.label.path for fit in several[:SHOWN])
            found.problems[id] = (
                f"{place} has several label files of it: {names}; leave one, or the folder of one"
            )
        else:
            by_label[several[0].label.path].append(several[0])
    for path, several in by_label.items():
        spent[path] = several[0].scan
        names = ", ".join(fit.scan.name for fit in several[:SHOWN])
        if len(several) > 1 and not of_one_case(several):
            for fit in several:
                found.problems[fit.scan.id] = (
                    f"{path} has the name of {len(several)} scans ({names}): if it is this one's, "
                    f"name it {fit.scan.id}.nii.gz"
                )
            continue
        if len(several) > 1:
            found.doubts.append(
                f"{path} scores {len(several)} scans ({names}), by their names images of one case: "
                f"if it is one's alone, name it as that one's map, such as {several[0].scan.id}"
                ".nii.gz"
            )
        for fit in several:
            found.files[fit.scan.id] = path
            if fit.rank < NAME_OF_MAP:
                found.by_name.append((path, fit.scan.name))
            if other := other_person(fit):
                home = posixpath.basename(posixpath.dirname(fit.scan.paths[0]))
                found.doubts.append(
                    f"{path} scores {fit.scan.name}, and lies in {other}, which that one does not: "
                    f"is it of another person? If not, move it to {Path(place, home, '')}"
                )


def other_person(fit: Fit) -> str:
    """A folder of a label with a number that the scan's folders and name lack (`p2`, `sub-02`);
    empty where none has, where both lie alike, or where the label's name tells the folders."""
    label, path = fit.label, fit.scan.paths[0]
    if fit.rank >= SAME_PATH or label.name not in cases_of(stem(path)):
        return ""
    known = set(words_of(path))
    for folder in label.folders:
        numbered = [word for word in words_of(folder) if has_digit(word)]
        if numbered and not known.intersection(numbered) and not is_gathering(folder):
            return folder
    return ""


def words_of(path: str) -> list[str]:
    """Letters and digits, so that `p1` is in `sc/p1/ct.nii` and not in `sc/p10/ct.nii`."""
    return re.findall(r"[^\W_]+", path.lower())


def of_one_case(several: Sequence[Fit]) -> bool:
    """Whether scans of one folder have other names than their label, which is the case's."""
    folders = {posixpath.dirname(fit.scan.name) for fit in several}
    return len(folders) == 1 and all(fit.words for fit in several)


def no_label(place: str, scan: Scan) -> str:
    """What to say of a scan without one, and how to call it."""
    return f"{place} has no label of it: name its file {scan.id}.nii.gz"
