"""Layout `bids`: `sub-XX[/ses-YY]/anat/sub-XX_ses-YY_T1w.nii.gz` with labels in derivatives.

A file is a label where its suffix is `dseg`, `mask`, `roi` or `probseg`; it belongs to the image of
the same subject, session and entities. Where several images fit, `space-T1w` or a suffix kept in
the name (`..._T1w_label-lesion_mask`) decides; otherwise the label is skipped, never guessed.
"""

import posixpath
from collections import defaultdict
from dataclasses import dataclass

from mim3d.dataio.errors import Rejection, SourceError
from mim3d.dataio.nifti.names import is_image, stem
from mim3d.dataio.sources.source import Discovery, Source
from mim3d.dataio.sources.tree import Tree

LABEL_SUFFIXES = {"dseg", "mask", "roi", "probseg"}
OF_THE_LABEL = {"label", "desc", "space", "res", "den", "atlas", "seg", "method"}
NATIVE_SPACES = {"orig", "individual", "native", "scanner"}


@dataclass(frozen=True)
class BidsName:
    """A BIDS file name taken apart; `hints` are words before the suffix that are no entity."""

    file: str
    entities: tuple[tuple[str, str], ...]
    hints: tuple[str, ...]
    suffix: str

    @property
    def subject(self) -> str:
        """`sub-XX`."""
        return "sub-" + dict(self.entities)["sub"]

    @property
    def own(self) -> frozenset[tuple[str, str]]:
        """Entities that an image and its label share."""
        return frozenset((k, v) for k, v in self.entities if k not in OF_THE_LABEL)

    @property
    def label_name(self) -> str:
        """Name of a label: its label and desc entities, `seg` for a plain dseg."""
        told = dict(self.entities)
        parts = [told[k] for k in ("label", "desc") if k in told]
        return "_".join(parts) or ("seg" if self.suffix == "dseg" else self.suffix)


def parse(file: str) -> BidsName | None:
    """Take a file name apart; None where it is no BIDS name (`sub-XX_..._suffix`)."""
    words = stem(file).split("_")
    pairs = [tuple(w.split("-", 1)) for w in words[:-1] if "-" in w]
    entities = tuple((k, v) for k, v in pairs if k and v)
    if not entities or entities[0][0] != "sub" or "-" in words[-1]:
        return None
    hints = tuple(w for w in words[:-1] if "-" not in w)
    return BidsName(file, entities, hints, words[-1])


def find(tree: Tree) -> Discovery:
    """Sources of every raw image, with the labels of the raw tree and of `derivatives`."""
    images: list[BidsName] = []
    labels: list[BidsName] = []
    skipped = list(tree.problems)
    for name in tree.names:
        top = name.split("/", 1)[0]
        if not is_image(name) or not (top.startswith("sub-") or top == "derivatives"):
            continue
        parsed = parse(name)
        if parsed is None:
            skipped.append(Rejection(tree.path(name), "bad-name", "is not named sub-XX_..._suffix"))
        elif parsed.suffix in LABEL_SUFFIXES:
            labels.append(parsed)
        elif top != "derivatives":
            images.append(parsed)
    if not images:
        raise SourceError("no-images", tree.root, "has no sub-XX/**/sub-XX_*.nii[.gz] image")
    owned = attach(tree, images, labels, skipped)
    return Discovery(tuple(source(tree, i, owned[i.file]) for i in images), tuple(skipped), "bids")


def attach(
    tree: Tree, images: list[BidsName], labels: list[BidsName], skipped: list[Rejection]
) -> dict[str, dict[str, str]]:
    """Labels of each image file by name."""
    by_subject: dict[str, list[BidsName]] = defaultdict(list)
    for image in images:
        by_subject[image.subject].append(image)
    owned: dict[str, dict[str, str]] = defaultdict(dict)
    for label in labels:
        owners = owners_of(label, by_subject[label.subject])
        if len(owners) == 1:
            names = owned[owners[0].file]
            name = label.label_name
            names[name if name not in names else unused(name, label, names)] = label.file
        else:
            code = "ambiguous-label" if owners else "label-without-image"
            told = ", ".join(posixpath.basename(o.file) for o in owners[:4])
            why = f"may belong to {told}" if owners else "fits no image of its subject and session"
            skipped.append(Rejection(tree.path(label.file), code, why))
    return owned


def owners_of(label: BidsName, images: list[BidsName]) -> list[BidsName]:
    """Images that a label fits, narrowed by its space and by suffixes kept in its name."""
    space = dict(label.entities).get("space", "")
    fitting = [i for i in images if i.own == label.own] or [i for i in images if i.own >= label.own]
    if label.hints:
        return [i for i in fitting if i.suffix in label.hints]
    if space and space not in NATIVE_SPACES:
        return [i for i in fitting if space in {i.suffix, dict(i.entities).get("space")}]
    return fitting


def unused(name: str, label: BidsName, taken: dict[str, str]) -> str:
    """A name that no other label of the image has: with the pipeline's, then with a number."""
    pipeline = label.file.split("/")[1] if label.file.startswith("derivatives/") else "raw"
    candidate, number = f"{name}_{pipeline}", 2
    while candidate in taken:
        candidate, number = f"{name}_{pipeline}_{number}", number + 1
    return candidate


def source(tree: Tree, image: BidsName, labels: dict[str, str]) -> Source:
    """One image of one subject and session."""
    return Source(
        id=stem(image.file),
        images=(tree.path(image.file),),
        labels={name: tree.path(file) for name, file in labels.items()},
        subject=image.subject,
    )
