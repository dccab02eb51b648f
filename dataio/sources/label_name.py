"""What names say of labels: label words before and after a case, label folders and their twins."""

import posixpath
import re

from mim3d.dataio.nifti.names import PLAIN_WORDS, without_last_word

GENERIC = (
    *("seg", "segmentation", "segmentations", "dseg", "gt", "label", "labels", "annotation"),
    "mask",
)
"""Words that name a label no further: it is called `seg`. In the order of their claims to it."""
LABEL_WORDS = frozenset({*GENERIC, "lesion", "lesions", "roi", "aseg"})
LABEL_FOLDER = re.compile(
    r"(labels?|segmentations?|segs?|masks?|annotations?|ground_?truths?|gts?)(tr|ts|val)?"
)
IMAGE_FOLDERS = ("images", "image", "imgs", "img", "volumes", "volume", "vols", "scans")
VISIT = re.compile(r"(v|visit|ses|session|tp|timepoint|fu|followup|bl|baseline|m|month)?\d*")
"""A word that may tell another visit, whose label nobody else's is."""


def ending_word(name: str) -> tuple[str, str]:
    """Case and label word of a stem that ends in one, `case_seg`; ("", "") where none does."""
    base, word = without_last_word(name)
    return (base, word) if word in LABEL_WORDS else ("", "")


def leading_word(name: str) -> tuple[str, str]:
    """Label word and number or case of a stem that begins with one: `segmentation-0`, `label01`."""
    match = re.fullmatch(r"([A-Za-z]+)(?:[_-](.+)|(\d.*))", name)
    if match is None or match[1].lower() not in LABEL_WORDS:
        return "", ""
    return match[1].lower(), match[2] or match[3]


def numbers_of(name: str) -> list[str]:
    """What an image's stem is called without a leading word: `volume-0`, `img0` -> `0`."""
    match = re.fullmatch(r"([A-Za-z]+)(?:[_-](.+)|(\d.*))", name)
    return [match[2] or match[3]] if match and match[1].lower() in PLAIN_WORDS else []


def label_folders(name: str) -> list[str]:
    """Folders above a file that are called labels and hold no image folder, innermost first."""
    folders = []
    folder = posixpath.dirname(name)
    while folder and not is_image_folder(folder):
        if is_label_folder(folder):
            folders.append(folder)
        folder = posixpath.dirname(folder)
    return folders


def is_label_folder(folder: str) -> bool:
    """Whether a folder itself is called labels, masks, ..."""
    return bool(LABEL_FOLDER.fullmatch(posixpath.basename(folder).lower()))


def is_image_folder(folder: str) -> bool:
    """Whether a folder itself is called images, imagesTr, volumes, ..."""
    return re.sub("(tr|ts|val)$", "", posixpath.basename(folder).lower()) in IMAGE_FOLDERS


def label_key(word: str) -> str:
    """Name of a label by its word: `seg` where the word says no more than that it is one."""
    return "seg" if word in GENERIC else word


def claim_of(word: str) -> int:
    """Place of a word among those that want the same name; the lowest has it."""
    return GENERIC.index(word) if word in GENERIC else 0


def tells_visit(rest: str) -> bool:
    """Whether what follows a case in a name (`2`, `v2_t1`) may be another visit of it."""
    return any(VISIT.fullmatch(word) for word in re.split("[_-]", rest.lower()) if word)


def twins_of(folder: str) -> list[str]:
    """Image folders that a label folder goes with: `a/labelsTr` -> `a/imagesTr`, `a/images`."""
    parent, last = posixpath.split(folder)
    match = LABEL_FOLDER.fullmatch(last.lower())
    tail = (match[2] or "") if match else ""
    tails = dict.fromkeys((tail.capitalize(), tail, ""))
    return [posixpath.join(parent, word + t) for t in tails for word in IMAGE_FOLDERS]
