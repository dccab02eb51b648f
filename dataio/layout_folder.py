"""Layout `folder`: every NIfTI file below a folder, or those a glob names.

What labels are is in `label_pairing`. The subject is the folder that holds a subject's few
images, else what the file name tells.
"""

import posixpath
import re
from collections import Counter
from collections.abc import Iterable

from mim3d.dataio.discovery import Discovery
from mim3d.dataio.label_pairing import MOST_IMAGES_OF_A_SUBJECT, pair_labels
from mim3d.dataio.nifti_name import (
    SIDECARS,
    data_of,
    header_of,
    is_data_of_pair,
    is_image,
    stem,
    subject_of,
)
from mim3d.dataio.quarantine import Rejection
from mim3d.dataio.source import Source
from mim3d.dataio.tree import Tree

PLAIN_FOLDER = re.compile(
    r"(images?(tr|ts)?|nifti|nii|data|raw|anat|ses-\w+|scans?)", re.IGNORECASE
)


def find(tree: Tree, names: Iterable[str] | None = None) -> Discovery:
    """Sources of the given names (all of the tree's by default)."""
    wanted = [n for n in (tree.names if names is None else names) if not hidden(n)]
    images, skipped = images_among(tree, wanted)
    pairing = pair_labels(images)
    why = "stands in a label folder, but no image is named like it"
    skipped += [Rejection(tree.path(n), "label-without-image", why) for n in pairing.orphans]
    kept = [n for n in images if n not in pairing.label_files]
    crowd = images_below(kept)
    sources = [
        Source(
            id=re.sub("/+", "_", posixpath.join(posixpath.dirname(name), stem(name))),
            images=(tree.path(name),),
            labels={k: tree.path(v) for k, v in pairing.labels.get(name, {}).items()},
            subject=subject_from(name, crowd),
        )
        for name in kept
    ]
    return Discovery(tuple(sources), (*tree.problems, *skipped), "folder")


def hidden(name: str) -> bool:
    """Whether any part of the name starts with a dot (`.git`, `._resource.nii.gz`)."""
    return any(part.startswith(".") for part in name.split("/"))


def images_among(tree: Tree, names: list[str]) -> tuple[list[str], list[Rejection]]:
    """NIfTI files, pairs checked; other data is told once per folder and suffix."""
    known, images, skipped = set(names), [], []
    foreign: dict[tuple[str, str], int] = Counter()
    for name in names:
        if is_image(name):
            voxels = data_of(name)
            if voxels is not None and voxels not in known and not tree.has(voxels):
                why = f"is a header without its {posixpath.basename(voxels)}"
                skipped.append(Rejection(tree.path(name), "missing-img", why))
            else:
                images.append(name)
        elif is_data_of_pair(name):
            if header_of(name) not in known and not tree.has(header_of(name)):
                why = f"holds voxels without their {posixpath.basename(header_of(name))}"
                skipped.append(Rejection(tree.path(name), "missing-hdr", why))
        elif not name.lower().endswith(SIDECARS):
            foreign[posixpath.dirname(name), suffix_of(name)] += 1
    for (folder, suffix), count in foreign.items():
        why = f"{count} file(s) `{suffix}` are not NIfTI; convert DICOM with dcm2niix"
        skipped.append(Rejection(tree.path(folder), "not-nifti", why))
    return images, skipped


def suffix_of(name: str) -> str:
    """Suffix of a file's name, or `(no suffix)`."""
    return posixpath.splitext(name)[1].lower() or "(no suffix)"


def images_below(names: list[str]) -> Counter[str]:
    """Number of images in each folder and in all below it."""
    crowd: Counter[str] = Counter()
    for name in names:
        while name := posixpath.dirname(name):
            crowd[name] += 1
    return crowd


def subject_from(name: str, crowd: Counter[str]) -> str:
    """Subject of an image: its folder if that holds one person's few images, else by file name."""
    folder = posixpath.dirname(name)
    while folder and PLAIN_FOLDER.fullmatch(posixpath.basename(folder)):
        folder = posixpath.dirname(folder)
    by_name = subject_of(stem(name))
    in_path = subject_of(name)
    if in_path.startswith("sub-"):
        return in_path
    if not folder:
        return by_name
    return folder if crowd[folder] <= MOST_IMAGES_OF_A_SUBJECT else f"{folder}/{by_name}"
