"""Which files of a plain folder are labels, and of which images: told by names alone."""

import posixpath
import re
from collections import defaultdict
from dataclasses import dataclass, field

from mim3d.dataio.nifti_name import LABEL_WORDS, stem, without_last_word

LABEL_FOLDER = re.compile(r"(labels?|segmentations?|masks?|annotations?)(tr|ts|val)?")
MOST_IMAGES_OF_A_SUBJECT = 12  # a folder with more is a collection, not one person


@dataclass
class Pairing:
    """`labels`: image name -> label name -> file; `orphans`: label files that no image owns."""

    labels: dict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    orphans: list[str] = field(default_factory=list)

    @property
    def label_files(self) -> set[str]:
        """Every file that is a label."""
        owned = {file for found in self.labels.values() for file in found.values()}
        return owned | set(self.orphans)


@dataclass
class FolderImages:
    """The files of one folder that are not called labels, and where their names begin alike."""

    names: list[str] = field(default_factory=list)
    by_case: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, name: str) -> None:
        """File an image under its stem and every part of it before a `_` or `-`."""
        self.names.append(name)
        whole = stem(name)
        for case in {whole, *(whole[: m.start()] for m in re.finditer("[_-]", whole))}:
            self.by_case[case].append(name)


Folders = dict[str, FolderImages]


def pair_labels(names: list[str]) -> Pairing:
    """Pair NIfTI files with the labels among them, in time linear in their number.

    Labels are: `case_seg` beside `case` or `case_t1`; `lesion` beside a subject's few images; a
    file in `labelsTr/` named like one in `imagesTr/`; a file in `segmentations/` below the images'
    folder. A label word with nothing beside it is an ordinary image.
    """
    folders: Folders = defaultdict(FolderImages)
    for name in names:
        if not label_word(name)[1]:
            folders[posixpath.dirname(name)].add(name)
    pairing = Pairing()
    for name in names:
        folder = posixpath.dirname(name)
        if LABEL_FOLDER.fullmatch(posixpath.basename(folder).lower()):
            key, owners = owners_across(name, folders)
            if not owners and has_images(folder, folders):
                pairing.orphans.append(name)
        else:
            key, owners = owners_beside(name, folders)
        for owner in owners:
            pairing.labels[owner][key] = name
    return pairing


def owners_across(name: str, folders: Folders) -> tuple[str, list[str]]:
    """Label's name and owners of a file in a label folder: in the parent, or in the twin."""
    folder = posixpath.dirname(name)
    parent = posixpath.dirname(folder)
    if 0 < len(names_in(parent, folders)) <= MOST_IMAGES_OF_A_SUBJECT:
        return stem(name), names_in(parent, folders)
    cases = {stem(name), label_word(name)[0]} - {""}
    found = {
        image
        for twin in twins_of(folder)
        if twin in folders
        for case in cases
        for image in folders[twin].by_case.get(case, [])
        if stem(image) == case or without_channel(stem(image)) == case
    }
    return "seg", sorted(found)


def twins_of(folder: str) -> list[str]:
    """Image folders that a label folder goes with: `a/labelsTr` -> `a/imagesTr`, `a/images`."""
    parent, last = posixpath.split(folder)
    match = LABEL_FOLDER.fullmatch(last.lower())
    tail = (match[2] or "") if match else ""
    tails = {tail, tail.capitalize(), ""}
    return [posixpath.join(parent, word + t) for word in ("images", "image") for t in sorted(tails)]


def has_images(folder: str, folders: Folders) -> bool:
    """Whether a label folder stands beside or below images at all."""
    return any(names_in(f, folders) for f in (posixpath.dirname(folder), *twins_of(folder)))


def names_in(folder: str, folders: Folders) -> list[str]:
    """Images of a folder, none where there is no such folder."""
    return folders[folder].names if folder in folders else []


def owners_beside(name: str, folders: Folders) -> tuple[str, list[str]]:
    """Label's name and owners of a file beside images; no owners where it is an image."""
    base, word = label_word(name)
    folder = posixpath.dirname(name)
    if not word or folder not in folders:
        return "", []
    if base:
        return "seg", folders[folder].by_case.get(base, [])
    few = len(folders[folder].names) <= MOST_IMAGES_OF_A_SUBJECT
    key = "seg" if word in {"label", "mask", "gt"} else word
    return key, folders[folder].names if few else []


def label_word(name: str) -> tuple[str, str]:
    """Split a label's stem into its case and its label word; ("", "") where it has none."""
    base, word = without_last_word(stem(name))
    return (base, word) if word in LABEL_WORDS else ("", "")


def without_channel(case: str) -> str:
    """Case of an nnU-Net image stem: `case_0000` -> `case`."""
    return re.sub(r"_\d{4}$", "", case)
