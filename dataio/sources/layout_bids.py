"""Layout `bids`: `sub-XX[/ses-YY]/anat/sub-XX_ses-YY_T1w.nii.gz` with labels in derivatives.

A data set is what stands around its `sub-XX` folders: below the root, in `rawdata/`, or in folders
of several data sets, whose `sub-01` are different people. A file is a label where its suffix says
so (`dseg`, `mask`, `msk`, `label-SC_seg`, ...); it belongs to the image of the same subject,
session and entities. Where several fit, `space-T1w`, a suffix kept in the name
(`..._T1w_label-lesion_mask`), its folder (`anat`) and at last its grid decide; otherwise it is left
out, never guessed.
"""

import posixpath
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from mim3d.dataio.errors import Rejection, SourceError
from mim3d.dataio.labels.grids import on_its_grid
from mim3d.dataio.labels.words import is_label_word
from mim3d.dataio.nifti.names import is_image, stem
from mim3d.dataio.sources.source import Discovery, Source
from mim3d.dataio.sources.tree import Tree
from mim3d.dataio.subjects.inferred import is_passage

PLAIN_SUFFIXES = {"dseg", "seg", "segmentation", "msk", "label", "labels", "gt"}
OF_THE_LABEL = {"label", "desc", "space", "res", "den", "atlas", "seg", "method", "model", "thresh"}
NATIVE_SPACES = {"orig", "individual", "native", "scanner"}
SUBJECT = re.compile(r"sub-[A-Za-z0-9]+")
RAW = ("rawdata", "raw", "sourcedata")


@dataclass(frozen=True)
class BidsName:
    """A BIDS file name taken apart; `hints` are words before the suffix that are no entity.

    `dataset` is the folder of its data set, empty for the root.
    """

    file: str
    entities: tuple[tuple[str, str], ...]
    hints: tuple[str, ...]
    suffix: str
    dataset: str = ""

    @property
    def subject(self) -> str:
        """`sub-XX`, after the folders that tell its data set from others."""
        place = [part for part in self.dataset.split("/") if part and not is_passage(part)]
        return "/".join([*place, "sub-" + dict(self.entities)["sub"]])

    @property
    def own(self) -> frozenset[tuple[str, str]]:
        """Entities that an image and its label share."""
        return frozenset((k, v) for k, v in self.entities if k not in OF_THE_LABEL)

    @property
    def space(self) -> str:
        """The space told, empty where it is the scanner's."""
        space = dict(self.entities).get("space", "")
        return "" if space in NATIVE_SPACES else space

    @property
    def is_label(self) -> bool:
        """Whether the suffix tells a label."""
        return is_label_word(self.suffix)

    @property
    def label_name(self) -> str:
        """Name of a label: its label, seg and desc entities, `seg` for a plain dseg."""
        entities = dict(self.entities)
        parts = [entities[k] for k in ("label", "seg", "desc") if k in entities]
        return "_".join(parts) or ("seg" if self.suffix in PLAIN_SUFFIXES else self.suffix)


def parse(file: str, dataset: str = "") -> BidsName | None:
    """Take a file name apart; None where it is no BIDS name (`sub-XX_..._suffix`)."""
    *words, suffix = stem(file).split("_")
    kind, dash, which = suffix.partition("-")
    if dash and is_label_word(kind):  # the spinal cord toolbox's `_seg-manual`
        words, suffix = [*words, f"desc-{which}"], kind
    pairs = [tuple(w.split("-", 1)) for w in words if "-" in w]
    entities = tuple((k, v) for k, v in pairs if k and v)
    if not entities or entities[0][0] != "sub" or "-" in suffix:
        return None
    hints = tuple(w for w in words if "-" not in w)
    return BidsName(file, entities, hints, suffix, dataset)


def place_in(file: str) -> tuple[str, str] | None:
    """Data set and kind ("raw", "derivatives", "sourcedata") of a file below a `sub-XX` folder."""
    parts = file.split("/")[:-1]
    at = next((i for i, part in enumerate(parts) if SUBJECT.fullmatch(part)), None)
    if at is None:
        return None
    above = parts[:at]
    if "derivatives" in above:
        return "/".join(without_raw(above[: above.index("derivatives")])), "derivatives"
    kind = "sourcedata" if "sourcedata" in above else "raw"
    return "/".join(without_raw(above)), kind


def without_raw(folders: list[str]) -> list[str]:
    """Folders above a subject without a last `rawdata`."""
    return folders[:-1] if folders and folders[-1] in RAW else folders


def bids_files(names: Iterable[str]) -> list[str]:
    """Images and labels that stand in a `sub-XX` folder and are called so."""
    return [n for n in names if is_image(n) and place_in(n) and parse(n)]


@dataclass
class Dataset:
    """The files of one data set."""

    raw: list[BidsName] = field(default_factory=list)
    derived: list[BidsName] = field(default_factory=list)
    labels: list[BidsName] = field(default_factory=list)
    copies: list[BidsName] = field(default_factory=list)
    maps: list[BidsName] = field(default_factory=list)

    def add(self, name: BidsName, kind: str) -> None:
        """File a name by what it is and where it stands."""
        if name.suffix in ("probseg", "probsegmentation"):
            self.maps.append(name)
        elif name.is_label:
            self.labels.append(name)
        else:
            of_kind = {"raw": self.raw, "derivatives": self.derived, "sourcedata": self.copies}
            of_kind[kind].append(name)

    @property
    def images(self) -> list[BidsName]:
        """Raw images; where there are none, what the pipelines made of them."""
        return self.raw or self.copies or self.derived

    @property
    def left(self) -> list[BidsName]:
        """Other images: made from the raw ones, their copies, and probability maps."""
        used = {name.file for name in self.images}
        return [n for n in (*self.derived, *self.copies, *self.maps) if n.file not in used]


def find(tree: Tree, names: Iterable[str] | None = None) -> Discovery:
    """Sources of every raw image, with the labels of the raw tree and of `derivatives`."""
    datasets: dict[str, Dataset] = defaultdict(Dataset)
    skipped = list(tree.problems)
    for name in tree.names if names is None else names:
        place = place_in(name) if is_image(name) else None
        if place is None or any(part.startswith(".") for part in name.split("/")):
            continue
        parsed = parse(name, place[0])
        if parsed is None:
            skipped.append(Rejection(tree.path(name), "bad-name", "is not named sub-XX_..._suffix"))
        else:
            datasets[place[0]].add(parsed, place[1])
    if not any(dataset.images for dataset in datasets.values()):
        raise SourceError("no-images", tree.root, "has no sub-XX/**/sub-XX_*.nii[.gz] image")
    sources = []
    for dataset in datasets.values():
        owned = attach(tree, dataset.images, dataset.labels, skipped)
        sources += [source(tree, image, owned[image.file]) for image in dataset.images]
    return Discovery(tuple(sources), tuple(skipped), "bids", notes=notes_on(datasets))


def notes_on(datasets: dict[str, Dataset]) -> tuple[str, ...]:
    """What of the data sets is not converted, though nothing is wrong with it."""
    left = [name.file for dataset in datasets.values() for name in dataset.left]
    if not left:
        return ()
    return (
        f"{len(left)} files are left out that were made from the raw images, are copies of them or "
        f"probability maps (such as {left[0]}); name their folder as SRC to convert those",
    )


def attach(
    tree: Tree, images: list[BidsName], labels: list[BidsName], skipped: list[Rejection]
) -> dict[str, dict[str, str]]:
    """Labels of each image file by name."""
    by_subject: dict[str, list[BidsName]] = defaultdict(list)
    for image in images:
        by_subject[image.subject].append(image)
    pairs: list[tuple[BidsName, BidsName]] = []
    for label in labels:
        fitting = owners_of(label, by_subject[label.subject])
        owners = fitting if len(fitting) == 1 else sharing_grid(tree, label, fitting)
        pairs += [(owner, label) for owner in owners]
        if not owners:
            code = "ambiguous-label" if fitting else "label-without-image"
            names = ", ".join(posixpath.basename(o.file) for o in fitting[:4])
            why = (
                f"may belong to {names} and is on the grid of none; name it like its image"
                if fitting
                else "fits no image of its subject and session"
            )
            skipped.append(Rejection(tree.path(label.file), code, why))
    first = first_pipelines(pairs)
    owned: dict[str, dict[str, str]] = defaultdict(dict)
    for owner, label in pairs:
        names, name = owned[owner.file], label.label_name
        is_other = first.get(name, pipeline(label)) != pipeline(label)
        names[unused(name, label, names) if is_other or name in names else name] = label.file
    return owned


def first_pipelines(pairs: Iterable[tuple[BidsName, BidsName]]) -> dict[str, str]:
    """By name of labels that an image has of several pipelines (raters), the one whose label is
    called so on every image: a name means the same wherever one of them is missing."""
    found: dict[str, str] = {}
    of_image: dict[tuple[str, str], str] = {}
    for owner, label in pairs:
        earlier = of_image.setdefault((owner.file, label.label_name), pipeline(label))
        if earlier != pipeline(label):
            found[label.label_name] = min(found.get(label.label_name, earlier), earlier)
    return found


def sharing_grid(tree: Tree, label: BidsName, images: list[BidsName]) -> list[BidsName]:
    """Those of several images that have the label's voxels."""
    paths = [tree.path(image.file) for image in images]
    return [images[i] for i in on_its_grid(tree.path(label.file), paths)] if images else []


def owners_of(label: BidsName, images: list[BidsName]) -> list[BidsName]:
    """Images that a label fits, narrowed by its space and by suffixes kept in its name."""
    fitting = [i for i in images if i.own == label.own] or [i for i in images if i.own >= label.own]
    if label.hints:
        return [i for i in fitting if i.suffix in label.hints]
    if label.space:
        return [i for i in fitting if label.space in {i.suffix, i.space}]
    native = [i for i in fitting if not i.space] or fitting
    beside = [i for i in native if kind_folder(i) == kind_folder(label)]
    return beside or native


def kind_folder(name: BidsName) -> str:
    """`anat`, `dwi`, ...: the last folder above a file."""
    return posixpath.basename(posixpath.dirname(name.file))


def unused(name: str, label: BidsName, taken: dict[str, str]) -> str:
    """A name that no other label of the image has: with the pipeline's, then with a number."""
    candidate, number = f"{name}_{pipeline(label)}", 2
    while candidate in taken:
        candidate, number = f"{name}_{pipeline(label)}_{number}", number + 1
    return candidate


def pipeline(label: BidsName) -> str:
    """The folder below `derivatives` that a file is of, else `raw`."""
    parts = label.file.split("/")
    at = parts.index("derivatives") + 1 if "derivatives" in parts else 0
    return parts[at] if at and not SUBJECT.fullmatch(parts[at]) else "raw"


def source(tree: Tree, image: BidsName, labels: dict[str, str]) -> Source:
    """One image of one subject and session."""
    place = posixpath.dirname(image.subject)
    return Source(
        id="_".join(filter(None, [place.replace("/", "_"), stem(image.file)])),
        images=(tree.path(image.file),),
        labels={name: tree.path(file) for name, file in labels.items()},
        subject=image.subject,
        group=place,
        subject_from="BIDS names",
        channel_names=(image.suffix,),
        session=dict(image.entities).get("ses", ""),
    )
