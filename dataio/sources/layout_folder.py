"""Layout `folder`: every NIfTI file below a folder, or those a glob names.

What labels are is in `labels`, whose the images are in `subjects`.
"""

import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace

from mim3d.dataio.errors import Rejection
from mim3d.dataio.labels.grids import on_its_grid
from mim3d.dataio.labels.pairing import Pairing, pair_labels
from mim3d.dataio.labels.words import is_label_folder
from mim3d.dataio.nifti.names import (
    DETACHED,
    SIDECARS,
    data_of,
    header_of,
    is_data_of_pair,
    is_image,
    stem,
)
from mim3d.dataio.sources.source import Discovery, Source
from mim3d.dataio.sources.tree import Tree
from mim3d.dataio.subjects.inferred import infer_subjects

DICOM = "if they are DICOM, name the folder as SRC with --layout dicom (or use dcm2niix)"
REMEDIES = {
    ".dcm": DICOM,
    ".ima": DICOM,
    "(no suffix)": DICOM,
    ".bz2": "unpack them with bunzip2",
    ".zst": "unpack them with `zstd -d`",
    ".zip": "unpack them",
    ".tar": "unpack them",
    ".tgz": "unpack them",
    ".gz": "unpack or rename them: only .nii.gz, .hdr.gz and .img.gz are read",
    ".mnc": "convert them with mnc2nii",
    ".par": "convert them with dcm2niix, which reads Philips PAR/REC",
    ".rec": "convert them with dcm2niix, which reads Philips PAR/REC",
    ".npy": "save them as NIfTI with their affine",
    ".npz": "save them as NIfTI with their affine",
    ".h5": "save them as NIfTI with their affine",
    ".mat": "save them as NIfTI with their affine",
    ".mif": "convert them with mrconvert",
    ".mif.gz": "convert them with mrconvert",
    ".head": "convert them with 3dAFNItoNIFTI",
    ".brik": "convert them with 3dAFNItoNIFTI",
}
"""What to do with files of other suffixes."""


def find(tree: Tree, names: Iterable[str] | None = None) -> Discovery:
    """Sources of the given names (all of the tree's by default)."""
    wanted = [n for n in (tree.names if names is None else names) if not hidden(n)]
    images, skipped = images_among(tree, wanted)
    pairing = pair_labels(images)
    keep_to_grids(tree, pairing)
    skipped += [Rejection(tree.path(n), *reason) for n, reason in sorted(pairing.skipped.items())]
    labels = pairing.label_files
    kept = [n for n in images if n not in labels]
    inferred = infer_subjects(kept, tree.root)
    sources = [
        Source(
            id=re.sub("/+", "_", posixpath.join(posixpath.dirname(name), stem(name))),
            images=(tree.path(name),),
            labels={k: tree.path(v) for k, v in pairing.labels.get(name, {}).items()},
            subject=found.subject,
            subject_from=found.rule,
            doubt=found.doubt,
        )
        for name, found in zip(kept, inferred, strict=True)
    ]
    problems = (*tree.problems, *skipped)
    return Discovery(tuple(sources), problems, "folder", doubts(tree, pairing, kept))


def keep_to_grids(tree: Tree, pairing: Pairing) -> None:
    """Of several images that share a label by name, only those on whose grid it is keep it.

    Where none is, all do: the conversion tells what sets them apart.
    """
    owners: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for image, found in pairing.labels.items():
        for key, label in found.items():
            owners[label].append((image, key))
    for label, several in owners.items():
        if len(several) < 2:
            continue
        fitting = on_its_grid(tree.path(label), [tree.path(image) for image, _ in several])
        for i, (image, key) in enumerate(several):
            if fitting and i not in fitting:
                del pairing.labels[image][key]


def doubts(tree: Tree, pairing: Pairing, kept: list[str]) -> tuple[str, ...]:
    """A warning where what is called a label is taken for an image."""
    found = probabilities(tree, kept)
    only_labels = is_label_folder(tree.root) and not pairing.labels
    called = kept if only_labels else sorted(pairing.doubtful)
    if not called:
        return found
    more = more_than_one(called)
    return (
        f"{tree.path(called[0])}{more}: called like a label, but taken for an image, as no image "
        "goes with it by name; leave it out, rename it, list images and labels in a CSV, or "
        "--accept-doubts",
        *found,
    )


PROBABILITY = re.compile(
    r"(?:^|[_.-])(?:prob(?:s|seg|map|maps|ability|abilities)?|pve|pveseg|posteriors?|softmax|logits"
    r"|heatmap|atropos)(?:[_.-]?\d+)?(?:$|[_.-])",
    re.IGNORECASE,
)
OF_SPM = re.compile(r"(?:m?w?|r)c[1-6](.+)")


def probabilities(tree: Tree, kept: list[str]) -> tuple[str, ...]:
    """A warning where images are called like probability maps: `T1_pve_0`, SPM's `c1T1`."""
    stems = {(posixpath.dirname(name), stem(name)) for name in kept}
    of_spm = {name: OF_SPM.fullmatch(stem(name)) for name in kept}
    called = [
        name
        for name in kept
        if PROBABILITY.search(stem(name))
        or ((match := of_spm[name]) and (posixpath.dirname(name), match[1]) in stems)
    ]
    if not called:
        return ()
    more = more_than_one(called)
    return (
        f"{tree.path(called[0])}{more}: called like a probability map, but taken for an image; "
        "leave it out, list the images in a CSV, or --accept-doubts",
    )


def more_than_one(names: list[str]) -> str:
    """` and 2 more` of three names."""
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


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
        elif not name.lower().endswith(SIDECARS) and not is_detached(name, known):
            foreign[posixpath.dirname(name), suffix_of(name)] += 1
    for (folder, suffix), count in foreign.items():
        remedy = REMEDIES.get(suffix, "convert them, or move them away")
        why = f"{count} file(s) `{suffix}` are not NIfTI; {remedy}"
        skipped.append(Rejection(tree.path(folder), "not-nifti", why))
    return images, skipped


def is_detached(name: str, known: set[str]) -> bool:
    """Whether a file holds the voxels of a detached header beside it (`a.raw` of `a.mhd`)."""
    return any(
        name.lower().endswith(end) and name[: -len(end)] + header in known
        for end, header in DETACHED.items()
    )


def suffix_of(name: str) -> str:
    """Suffix of a file's name, or `(no suffix)`."""
    return posixpath.splitext(name)[1].lower() or "(no suffix)"


def with_untaken(tree: Tree, found: Discovery, *, whole_folders: bool = False) -> Discovery:
    """What was found, and a line for each folder of images that are no source's and not told of.

    With `whole_folders`, only of folders of which nothing at all was taken or told.
    """
    known = {path for source in found.sources for path in source.paths}
    known |= {skip.path for skip in found.skipped}
    images = [name for name in tree.names if is_image(name) and not hidden(name)]
    rest = [name for name in images if tree.path(name) not in known]
    if whole_folders:
        used = {posixpath.dirname(path) for path in known}
        rest = [name for name in rest if posixpath.dirname(tree.path(name)) not in used]
    reason = f"not part of the {found.layout} data set; `--layout folder` reads all there is"
    skipped = [
        Rejection(tree.path(folder), "not-listed", f"{n} file(s) are {reason}")
        for folder, n in sorted(Counter(map(posixpath.dirname, rest)).items())
    ]
    return replace(found, skipped=(*found.skipped, *skipped))
