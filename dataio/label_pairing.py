"""Which files of a plain folder are labels, and of which images: told by names alone."""

import posixpath
import re
from collections import defaultdict
from dataclasses import dataclass, field

from mim3d.dataio.nifti_name import LABEL_WORDS, stem, without_last_word

LABEL_FOLDER = re.compile(r"(labels?|segmentations?|masks?|annotations?)(tr|ts|val)?")


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


def pair_labels(names: list[str]) -> Pairing:
    """Pair NIfTI files with the labels among them.

    Labels are: `case_seg` beside `case` or `case_t1`; `lesion` beside a subject's images; a file
    in `labelsTr/` named like one in `imagesTr/`; a file in `segmentations/` below the images'
    folder. A label word with nothing beside it is an ordinary image.
    """
    by_folder: dict[str, list[str]] = defaultdict(list)
    for name in names:
        by_folder[posixpath.dirname(name)].append(name)
    pairing = Pairing()
    for name in names:
        folder = posixpath.dirname(name)
        if LABEL_FOLDER.fullmatch(posixpath.basename(folder).lower()):
            key, owners = owners_across(name, by_folder)
            if not owners and has_images(folder, by_folder):
                pairing.orphans.append(name)
        else:
            key, owners = owners_beside(name, by_folder[folder])
        for owner in owners:
            pairing.labels[owner][key] = name
    return pairing


def owners_across(name: str, by_folder: dict[str, list[str]]) -> tuple[str, list[str]]:
    """Label's name and owners of a file in a label folder: in the parent, or in the twin."""
    folder = posixpath.dirname(name)
    parent = posixpath.dirname(folder)
    beside = [n for n in by_folder.get(parent, []) if not label_word(n)[1]]
    if beside:
        return stem(name), beside
    wanted = {stem(name), label_word(name)[0]}
    twins = [n for twin in twins_of(folder) for n in by_folder.get(twin, [])]
    return "seg", [n for n in twins if without_channel(stem(n)) in wanted or stem(n) in wanted]


def twins_of(folder: str) -> list[str]:
    """Image folders that a label folder goes with: `a/labelsTr` -> `a/imagesTr`, `a/images`."""
    parent, last = posixpath.split(folder)
    match = LABEL_FOLDER.fullmatch(last.lower())
    tail = (match[2] or "") if match else ""
    tails = {tail, tail.capitalize(), ""}
    return [posixpath.join(parent, word + t) for word in ("images", "image") for t in sorted(tails)]


def has_images(folder: str, by_folder: dict[str, list[str]]) -> bool:
    """Whether a label folder stands beside or below images at all."""
    return any(by_folder.get(f) for f in (posixpath.dirname(folder), *twins_of(folder)))


def owners_beside(name: str, neighbours: list[str]) -> tuple[str, list[str]]:
    """Label's name and owners of a file beside images; no owners where it is an image."""
    base, word = label_word(name)
    if not word:
        return "", []
    others = [n for n in neighbours if n != name and not label_word(n)[1]]
    if not base:
        return ("seg" if word in {"label", "mask", "gt"} else word), others
    starts = (f"{base}_", f"{base}-")
    return "seg", [n for n in others if stem(n) == base or stem(n).startswith(starts)]


def label_word(name: str) -> tuple[str, str]:
    """Split a label's stem into its case and its label word; ("", "") where it has none."""
    base, word = without_last_word(stem(name))
    return (base, word) if word in LABEL_WORDS else ("", "")


def without_channel(case: str) -> str:
    """Case of an nnU-Net image stem: `case_0000` -> `case`."""
    return re.sub(r"_\d{4}$", "", case)
