"""Layout `folder`: every NIfTI file below a folder, or those a glob names.

What labels are is in `label_pairing`, whose the images are in `subjects`.
"""

import posixpath
import re
from collections import Counter
from collections.abc import Iterable

from mim3d.dataio.errors import Rejection
from mim3d.dataio.nifti.names import SIDECARS, data_of, header_of, is_data_of_pair, is_image, stem
from mim3d.dataio.sources.label_name import is_label_folder
from mim3d.dataio.sources.label_pairing import Pairing, pair_labels
from mim3d.dataio.sources.source import Discovery, Source
from mim3d.dataio.sources.subjects import images_below, subject_from
from mim3d.dataio.sources.tree import Tree


def find(tree: Tree, names: Iterable[str] | None = None) -> Discovery:
    """Sources of the given names (all of the tree's by default)."""
    wanted = [n for n in (tree.names if names is None else names) if not hidden(n)]
    images, skipped = images_among(tree, wanted)
    pairing = pair_labels(images)
    skipped += [Rejection(tree.path(n), *told) for n, told in sorted(pairing.skipped.items())]
    labels = pairing.label_files
    kept = [n for n in images if n not in labels]
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
    problems = (*tree.problems, *skipped)
    return Discovery(tuple(sources), problems, "folder", doubts(tree, pairing, kept))


def doubts(tree: Tree, pairing: Pairing, kept: list[str]) -> tuple[str, ...]:
    """A warning where what is called a label is taken for an image."""
    only_labels = is_label_folder(tree.root) and not pairing.labels
    called = kept if only_labels else sorted(pairing.doubtful)
    if not called:
        return ()
    more = f" and {len(called) - 1} more" if len(called) > 1 else ""
    return (
        f"{tree.path(called[0])}{more}: called like a label, but taken for an image, as no image "
        "goes with it by name; leave it out, rename it, or list images and labels in a CSV",
    )


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
