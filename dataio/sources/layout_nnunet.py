"""Layout `nnunet`: nnU-Net v2 raw, `imagesTr/CASE_0000.nii.gz` with a file per channel."""

import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mim3d.dataio.errors import Rejection, SourceError
from mim3d.dataio.nifti.names import SUFFIXES
from mim3d.dataio.sources.class_names import classes_of, modalities_of, with_names
from mim3d.dataio.sources.source import Discovery, Source
from mim3d.dataio.sources.subjects import with_subject
from mim3d.dataio.sources.tree import Tree, read_json
from mim3d.dataio.subjects.inferred import infer_subjects

FOLDERS = {"imagesTr": "train", "imagesTs": "test"}
LABELS = re.compile(r"(?:(.+)[-_])?labels(Tr|Ts|Va|Val)(?:[-_](.+))?")
"""A folder of labels: `labelsTr`, or of one of several kinds, `cow_seg_labelsTr`."""
Channels = dict[int, str]


def find(tree: Tree, file: str = "dataset.json") -> Discovery:
    """Sources of the raw data set; cases listed in dataset.json's `dataset` win over folders."""
    described = read_description(tree, file)
    ending = str(described.get("file_ending", ".nii.gz"))
    if ending.lower() not in SUFFIXES:
        detail = f"says file_ending {ending!r}; mim3d reads {', '.join(SUFFIXES)}"
        raise SourceError("not-nifti", tree.path(file), detail)
    names = described.get("channel_names") or described.get("modality") or {}
    if not isinstance(names, dict | list):
        detail = f"says channel_names {names!r}; they must be an object"
        raise SourceError("bad-json", tree.path(file), detail)
    skipped = list(tree.problems)
    if isinstance(described.get("dataset"), dict):
        sources = listed_cases(tree, described["dataset"], skipped)
    else:
        sources = cases_in_folders(tree, ending, len(names), skipped)
    classes, ignore = classes_of(described)
    sources = [with_names(one, modalities_of(described), classes, ignore) for one in sources]
    inferred = infer_subjects([f"{source.id}.nii" for source in sources], tree.root)
    return Discovery(tuple(map(with_subject, sources, inferred)), tuple(skipped), "nnunet")


def find_without_json(tree: Tree, ending: str) -> Discovery:
    """Sources of the folders alone: as many channels a case as most cases have."""
    skipped = list(tree.problems)
    per_case = Counter(len(channels) for channels in channels_by_case(tree.names, ending).values())
    (n_channels, _), *others = per_case.most_common()
    sources = cases_in_folders(tree, ending, n_channels, skipped)
    inferred = infer_subjects([f"{source.id}.nii" for source in sources], tree.root)
    note = f"no dataset.json: {n_channels} channels a case, by names that end in _0000, _0001, ..."
    notes = (note,) if n_channels > 1 or others else ()
    return Discovery(
        tuple(map(with_subject, sources, inferred)), tuple(skipped), "nnunet", notes=notes
    )


def channels_by_case(names: Iterable[str], ending: str) -> dict[tuple[str, str], Channels]:
    """Files by (folder, case) and channel."""
    pattern = re.compile(rf"(imagesTr|imagesTs)/([^/.][^/]*)_(\d{{4}}){re.escape(ending)}")
    cases: dict[tuple[str, str], Channels] = defaultdict(dict)
    for name in names:
        if match := pattern.fullmatch(name):
            cases[match[1], match[2]][int(match[3])] = name
    return cases


def ending_of_channels(names: Sequence[str]) -> str:
    """The files' ending where folders without dataset.json hold channels of cases, else empty.

    They do where labels are called after cases without the number, or all of several cases have the
    same channels from 0; `amos_0001` with a label of the same name is a case. That all are `_0000`
    tells so too, where no label is.
    """
    known = set(names)
    for ending in SUFFIXES:
        cases = channels_by_case(names, ending)
        homes = {folder: label_folders(names, folder) for folder in FOLDERS} if cases else {}
        n_labelled = sum(
            f"{home}/{case}{ending}" in known
            for folder, case in cases
            for home in homes[folder].values()
        )
        sets = {tuple(sorted(channels)) for channels in cases.values()}
        alike = len(cases) > 1 and sets == {tuple(range(len(next(iter(sets), ()))))}
        if alike and len(next(iter(sets))) == 1:
            alike = not others_than(cases, names, ending) and not any(
                f"{home}/{case}_0000{ending}" in known
                for folder, case in cases
                for home in homes[folder].values()
            )
        if n_labelled or alike:
            return ending
    return ""


def read_description(tree: Tree, file: str) -> dict[str, Any]:
    """dataset.json as a dict; SourceError where it is not one."""
    described = read_json(tree, file)
    if not isinstance(described, dict):
        raise SourceError("bad-json", tree.path(file), "holds no JSON object")
    return described


def cases_in_folders(
    tree: Tree, ending: str, n_channels: int, skipped: list[Rejection]
) -> list[Source]:
    """Cases by file name: every channel 0..n-1 must be there (n from the case where unknown)."""
    cases = channels_by_case(tree.names, ending)
    used = {file for channels in cases.values() for file in channels.values()}
    for name in tree.names:
        is_hidden = posixpath.basename(name).startswith(".")
        of_folder = posixpath.dirname(name) in FOLDERS and name.lower().endswith(SUFFIXES)
        if of_folder and name not in used and not is_hidden:
            why = f"is not named CASE_0000{ending}"
            skipped.append(Rejection(tree.path(name), "bad-name", why))
    known = set(tree.names)
    homes = {folder: label_folders(tree.names, folder) for folder in FOLDERS}
    sources = []
    for (folder, case), channels in sorted(cases.items()):
        missing = set(range(n_channels or max(channels) + 1)) - set(channels)
        if missing:
            first = f"{folder}/{case}_{min(missing):04d}{ending}"
            why = f"is not there, but {n_channels} channels are declared or usual here"
            skipped.append(Rejection(tree.path(first), "missing-channel", why))
            continue
        labels = {key: f"{home}/{case}{ending}" for key, home in homes[folder].items()}
        missing_labels = sorted(set(labels.values()) - known) if folder == "imagesTr" else ()
        why = f"is not there for {case}"
        skipped += [Rejection(tree.path(one), "missing-label", why) for one in missing_labels]
        images = [channels[i] for i in sorted(channels)]
        labels = {key: label for key, label in labels.items() if label in known}
        sources.append(source(tree, case, images, labels, FOLDERS[folder]))
    return sources


def label_folders(names: Iterable[str], images: str) -> dict[str, str]:
    """Folders of labels of an image folder by the label's name, `seg` where it says no more."""
    found = {}
    for top in sorted({name.split("/", 1)[0] for name in names if "/" in name}):
        match = LABELS.fullmatch(top)
        if match and images == f"images{match[2]}":
            found["_".join(filter(None, (match[1], match[3]))) or "seg"] = top
    return found or {"seg": images.replace("images", "labels")}


def listed_cases(tree: Tree, cases: dict[str, Any], skipped: list[Rejection]) -> list[Source]:
    """Cases of dataset.json's `dataset`: {case: {"images": [...], "label": ...}}."""
    sources = []
    for case, entry in sorted(cases.items()):
        images = entry.get("images") if isinstance(entry, dict) else None
        if not isinstance(images, list) or not images:
            skipped.append(Rejection(tree.root, "bad-entry", f"case {case!r} lists no images"))
            continue
        absent = [i for i in images if not tree.has(str(i))]
        if absent:
            why = f"is listed for case {case!r} but is not there"
            skipped.append(Rejection(tree.path(str(absent[0])), "missing-channel", why))
            continue
        label = str(entry.get("label") or "")
        if label and not tree.has(label):
            why = f"is the label of case {case!r} but is not there"
            skipped.append(Rejection(tree.path(label), "missing-label", why))
            label = ""
        labels = {"seg": label} if label else {}
        sources.append(source(tree, case, [str(i) for i in images], labels, "train"))
    return sources


def source(tree: Tree, case: str, images: list[str], labels: dict[str, str], split: str) -> Source:
    """One case with its channels in order."""
    return Source(
        id=case,
        images=tuple(tree.path(i) for i in images),
        labels={k: tree.path(v) for k, v in labels.items()},
        split=split,
    )


def others_than(
    cases: Mapping[tuple[str, str], Channels], names: Iterable[str], ending: str
) -> bool:
    """Whether the image folders hold files beside the channels of the cases."""
    n_images = sum(posixpath.dirname(n) in FOLDERS and n.endswith(ending) for n in names)
    return n_images != sum(map(len, cases.values()))
