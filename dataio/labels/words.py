"""What names say of labels: label words before and after a case, label folders and their twins."""

import posixpath
import re

from mim3d.dataio.nifti.names import PLAIN_WORDS, without_last_word
from mim3d.dataio.subjects.words import words_of

GENERIC = (
    *("seg", "segm", "segmentation", "segmentations", "dseg", "gt", "truth", "label", "labels"),
    *("annotation", "annotations", "msk", "mask", "masks"),
)
"""Words that name a label no further: it is called `seg`. In the order of their claims to it."""
LABEL_WORDS_TEXT = """
lesion lesions roi rois aseg fseg wmparc aparc ribbon wmh brainmask lesionmask groundtruth
parcellation contour contours consensus softseg gmseg wmseg scseg dlabel aparcaseg glm
delineation tumormask voi vois segmask labelmap labelmaps ground segmented delineated annot
annots annotated staple gtv gtvp gtvn gtvt ctv ptv oar firstseg fastseg synthseg
"""
LABEL_WORDS = frozenset({*GENERIC, *LABEL_WORDS_TEXT.split()})
OF_FOLDERS = frozenset(
    {*GENERIC, "groundtruth", "groundtruths", "gts", "segs", "rois", "instances", "labelmaps"}
    | {"delineations", "contours"}
) - {"truth"}
DESCRIBING = frozenset(
    {"brain", "lesion", "tumor", "tumour", "ground", "manual", "liver", "lung", "stroke", "vessel"}
    | {"wm", "gm", "csf", "skull", "head", "body", "prostate", "heart", "cord", "bone", "spine"}
    | {"ventricle", "infarct", "edema", "kidney", "pancreas", "spleen", "whole", "tissue", "organ"}
    | {"ms", "wmh", "final", "expert", "hippocampus", "artery", "vein", "airway", "aorta", "all"}
)
"""Words before a label word that tell what is labelled, and no case."""
ORGANS = frozenset(
    {"liver", "lung", "lungs", "lobes", "airway", "airways", "vessel", "vessels", "artery", "vein"}
    | {"arteries", "veins", "portalvein", "hepaticvein", "venacava", "aorta", "heart", "kidney"}
    | {"kidneys", "spleen", "pancreas", "gallbladder", "bladder", "stomach", "colon", "prostate"}
    | {"hippocampus", "ventricle", "ventricles", "tumor", "tumour", "tumors", "tumours", "edema"}
    | {"oedema", "necrosis", "infarct", "infarcts", "nodule", "nodules", "cyst", "cysts", "bone"}
    | {"bones", "spine", "vertebrae", "femur", "cord", "plaque", "plaques", "aneurysm", "trachea"}
)
"""Words that tell what is labelled where the image they are of lies beside; images elsewhere."""
QUALIFIER = re.compile(
    r"manual|final|auto|automatic|corrected|edited|fixed|binary|bin|expert\d*|rater\d*|reader\d*"
    r"|r\d|v\d|fs|pp|\d{1,2}"
)
"""What may stand after a label word and says which of several it is."""
DRAWN = re.compile(r"manual|(?:expert|rater|reader|observer|annotator)\d*")
"""Words that tell who drew a label, and so that it is one where no label word stands before."""
LABEL_FOLDER = re.compile(
    r"(labels?|segmentations?|segs?|masks?|annotations?|ground(?:_?truths?)?|gts?|instances)(tr|ts|val?)?"
)
IMAGE_FOLDERS = ("images", "image", "imgs", "img", "volumes", "volume", "vols", "scans")
VISIT = re.compile(
    r"(v|visit|ses|session|tp|timepoint|fu|followup|bl|baseline|m|month|time|frame|week|day)?\d*"
)
"""A word that may tell another visit, whose label nobody else's is."""
OFFICIAL = re.compile(r"(VSD|SMIR)\..*\bOT\.\d+", re.IGNORECASE)  # BraTS 2013-15, ISLES 2015-18


def pieces(word: str) -> list[str]:
    """A word's parts in small letters: `LabelsForTraining` -> labels, for, training."""
    parts = re.split(r"[.+]", word)
    found = [re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+", part) for part in parts]
    return [piece.lower() for several in found for piece in several]


def is_label_word(word: str) -> bool:
    """Whether a word tells a label: `seg`, `mask2`, `aparc+aseg`, `GroundTruth`."""
    bare = word.lower().rstrip("0123456789")
    if bare in LABEL_WORDS:
        return True
    parts = [part for part in pieces(word) if not part.isdigit()]
    return len(parts) > 1 and bool({parts[0], parts[-1]} & LABEL_WORDS)


def ending_word(name: str) -> tuple[str, str]:
    """Case and label words of a stem that ends in such, `case_seg`; ("", "") where none does.

    Words after it may tell which of several it is: `case_seg_manual`, `case_mask_2`.
    """
    base, word = split_last(name)
    qualified, whole = word, (base, word)
    while base and not is_label_word(word) and QUALIFIER.fullmatch(word.lower()):
        base, word = split_last(base)
        qualified = f"{word}_{qualified}"
    if base and is_label_word(word):
        return base, qualified
    return whole if whole[0] and DRAWN.fullmatch(whole[1].lower()) else ("", "")


def ending_organ(whole: str) -> tuple[str, str]:
    """Case and organ of a stem that ends in one, `case_liver`; of `liver` alone, no case."""
    base, word = split_last(whole)
    return (base, word) if word.lower() in ORGANS else ("", "")


def split_last(name: str) -> tuple[str, str]:
    """A stem cut before its last word, whose letters stay as they are."""
    base, word = without_last_word(name)
    return base, name[len(name) - len(word) :]


def leading_word(name: str) -> tuple[str, str]:
    """Label word and number or case of a stem that begins with one: `segmentation-0`, `label01`."""
    match = re.fullmatch(r"([A-Za-z]+)(?:[_-](.+)|(\d.*))", name)
    if match is None or match[1].lower() not in LABEL_WORDS:
        return "", ""
    return match[1].lower(), match[2] or match[3]


def bare_word(whole: str) -> str:
    """The stem where it is label words, or describes a label, and names no case."""
    base, word = ending_word(f"x_{whole}")
    if not base or any(part not in DESCRIBING for part in re.split("[_-]", base[2:].lower())):
        return word if base == "x" else ""
    return whole


def numbers_of(name: str) -> list[str]:
    """What an image's stem is called without a leading word: `volume-0`, `img0` -> `0`."""
    match = re.fullmatch(r"([A-Za-z]+)(?:[_-](.+)|(\d.*))", name)
    return [match[2] or match[3]] if match and match[1].lower() in PLAIN_WORDS else []


def label_folders(name: str) -> list[str]:
    """Folders above a file that are called labels and hold no image folder, innermost first."""
    folders = []
    folder = posixpath.dirname(name)
    while folder and not is_image_folder(folder):
        if is_label_folder(folder) or sounds_like_labels(folder):
            folders.append(folder)
        folder = posixpath.dirname(folder)
    return folders


def is_label_folder(folder: str) -> bool:
    """Whether a folder itself is called labels, masks, ..."""
    return bool(LABEL_FOLDER.fullmatch(posixpath.basename(folder).lower()))


def sounds_like_labels(folder: str) -> bool:
    """Whether a word of a folder's name tells labels and none images: `seg-lungs`, `LungMasks`."""
    words = [word.text for word in words_of(posixpath.basename(folder))]
    parts = {piece for word in words for piece in pieces(word)}
    return bool(parts & OF_FOLDERS) and not parts & {*PLAIN_WORDS, *IMAGE_FOLDERS}


def is_image_folder(folder: str) -> bool:
    """Whether a folder itself is called images, imagesTr, volumes, ..."""
    return re.sub("(tr|ts|va|val)$", "", posixpath.basename(folder).lower()) in IMAGE_FOLDERS


def label_key(word: str) -> str:
    """Name of a label by its words: `seg` where these say no more than that it is one."""
    if word.lower() in GENERIC:
        return "seg"
    parts = [part for part in pieces(word) if not part.isdigit()]
    distinctive = {*parts} - {*GENERIC} - {"for", "training", "manual", "ground", "final"}
    return word.lower() if distinctive or re.search(r"\d", word) else "seg"


def claim_of(word: str) -> int:
    """Place of a word among those that want the same name; the lowest has it."""
    bare = word.lower()
    return GENERIC.index(bare) if bare in GENERIC else len(GENERIC) * (label_key(word) == "seg")


def identifies_visit(rest: str) -> bool:
    """Whether what follows a case in a name (`2`, `v2_t1`) may be another visit of it."""
    return any(VISIT.fullmatch(word) for word in re.split("[_-]", rest.lower()) if word)


def twins_of(folder: str) -> list[str]:
    """Image folders that a label folder goes with: `a/labelsTr` -> `a/imagesTr`, `a/images`."""
    parent, last = posixpath.split(folder)
    match = LABEL_FOLDER.fullmatch(last.lower())
    tail = (match[2] or "") if match else ""
    tails = dict.fromkeys((tail.capitalize(), tail, ""))
    return [posixpath.join(parent, word + t) for t in tails for word in IMAGE_FOLDERS]
