"""What a file's name says: whether it is a NIfTI image, its stem, and its words."""

import posixpath
import re

SUFFIXES = (".nii.gz", ".nii", ".hdr.gz", ".hdr")  # a pair is named by its header
CONTAINERS = (".mgz", ".mgh", ".mha", ".mhd", ".nrrd", ".nhdr")  # see `containers`
DETACHED = {".raw": ".mhd", ".zraw": ".mhd", ".raw.gz": ".nhdr"}
DATA_SUFFIXES = {".img": ".hdr", ".img.gz": ".hdr.gz"}
SIDECARS = (
    *(".json", ".jsonl", ".csv", ".tsv", ".txt", ".md", ".rst", ".pdf", ".html", ".xml"),
    *(".yaml", ".yml", ".bval", ".bvec", ".png", ".jpg", ".jpeg", ".py", ".sh", ".log", ".sha256"),
    *(".doc", ".docx", ".xls", ".xlsx", ".ppt", ".pptx", ".odt", ".ods"),
)
MODALITIES_TEXT = """
t1 t1w t1c t1ce ct1 t1n t1gd t2 t2w t2f t2star flair dwi adc pt ir mprage mp2rage suv ctres hbv
t2spir t1dual cect ncct pd pdw swi ct cta mr mra pet suvr bold asl
"""
MODALITIES = frozenset(MODALITIES_TEXT.split())
IMAGE_WORDS = frozenset(
    {"image", "images", "imaging", "img", "volume", "vol", "scan", "case", "data", "orig", "raw"}
)
PLAIN_WORDS = MODALITIES | IMAGE_WORDS
AFTER_DOT = PLAIN_WORDS | {"seg", "segmentation", "label", "labels", "mask", "gt", "roi"}


def is_image(name: str) -> bool:
    """Whether the name is that of a NIfTI file, of a pair's header, or of another container."""
    return name.lower().endswith((*SUFFIXES, *CONTAINERS))


def is_data_of_pair(name: str) -> bool:
    """Whether the name is that of a pair's voxel file."""
    return name.lower().endswith(tuple(DATA_SUFFIXES))


def header_of(name: str) -> str:
    """Header's name of a pair's voxel file."""
    for data, header in DATA_SUFFIXES.items():
        if name.lower().endswith(data):
            return name[: -len(data)] + header
    raise ValueError(f"{name} is not the voxel file of a NIfTI pair (.img, .img.gz)")


def data_of(name: str) -> str | None:
    """Voxel file's name of a pair's header; None where the file holds its own voxels."""
    for data, header in DATA_SUFFIXES.items():
        if name.lower().endswith(header):
            return name[: -len(header)] + data
    return None


def stem(name: str) -> str:
    """Last part of a path without its suffix."""
    base = posixpath.basename(name)
    if base.lower().endswith(".seg.nrrd"):  # 3D Slicer's segmentations
        return base[: -len(".seg.nrrd")] + "_seg"
    for suffix in (*SUFFIXES, *DATA_SUFFIXES, *CONTAINERS):
        if base.lower().endswith(suffix):
            return base[: -len(suffix)]
    return base


def without_last_word(name: str) -> tuple[str, str]:
    """Split `case_seg` into `case` and `seg` at the last `_` or `-`; ("", name) without one.

    At the last `.` before a word of images or labels: `1.label`.
    """
    dotted = re.fullmatch(r"(.*[^_.-])\.([A-Za-z]+)", name)
    if dotted and dotted[2].lower() in AFTER_DOT:
        return dotted[1], dotted[2].lower()
    match = re.fullmatch(r"(.*[^_-])[_-]+([^_-]+)", name)
    return (match[1], match[2].lower()) if match else ("", name.lower())


def cases_of(name: str) -> list[str]:
    """A stem and what is left of it word by word, while its last word tells the kind of image.

    `p1_t1` -> `p1_t1`, `p1`; `p1_0000` (an nnU-Net channel) -> `p1_0000`, `p1`; `t1` -> `t1`, ``.
    """
    found = [name]
    while name:
        rest, word = without_last_word(name)
        if word not in PLAIN_WORDS and not (rest and re.fullmatch(r"00\d\d", word)):
            break
        found.append(rest)
        name = rest
    return found


def identifies_no_case(name: str) -> bool:
    """Whether a stem is of modality words alone (`t1`, `imaging`): its folder names the case."""
    return cases_of(name)[-1] == ""
