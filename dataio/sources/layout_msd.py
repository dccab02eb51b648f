"""Layout `msd`: a Medical Segmentation Decathlon dataset.json, or any MONAI datalist.

Both are a JSON object of lists named `training`, `validation`, `test` (or `testing`); an entry is
a path or an object with `image` (one path or one per channel) and `label` (also paths by name). A
bare list is read as `training`. Without a dataset.json, files of imagesTr and labelsTr are paired
by name.
"""

import posixpath
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mim3d.dataio.errors import Rejection, SourceError
from mim3d.dataio.nifti.names import stem
from mim3d.dataio.sources import layout_folder, layout_nnunet
from mim3d.dataio.sources.class_names import classes_of, modalities_of, with_names
from mim3d.dataio.sources.source import Discovery, Source
from mim3d.dataio.sources.subjects import named_by_path
from mim3d.dataio.sources.tree import Tree, read_json

SPLITS = {"training": "train", "validation": "val", "test": "test", "testing": "test"}
SUBJECT_KEYS = ("subject", "subject_id", "patient", "patient_id")


def find(tree: Tree, file: str = "dataset.json") -> Discovery:
    """Sources of the datalist `file`, whose paths are relative to the tree."""
    content = read_json(tree, file)
    sections = read_sections(tree, file, content)
    described = content if isinstance(content, dict) else {}
    classes, ignore = classes_of(described)
    channels = modalities_of(described)
    sources: list[Source] = []
    names: list[str] = []
    skipped: list[Rejection] = []
    for section, entries in sections.items():
        for number, entry in enumerate(entries, 1):
            found = read_entry(tree, entry, section, skipped)
            if found is not None:
                sources.append(found)
                names.append(first_image(entry))
            elif not isinstance(entry, str | dict):
                why = f"entry {number} of `{section}` is {entry!r}, not a path or an object"
                skipped.append(Rejection(tree.path(file), "bad-entry", why))
    sources = [with_names(source, channels, classes, ignore) for source in sources]
    return Discovery(tuple(named_by_path(names, sources)), tuple(skipped), "msd")


def first_image(entry: object) -> str:
    """The first image that an entry names."""
    return as_paths(entry.get("image") if isinstance(entry, dict) else entry)[0]


def read_sections(tree: Tree, file: str, content: Any) -> dict[str, list[Any]]:
    """Lists of the datalist by section name; SourceError where there are none."""
    if isinstance(content, list):
        content = {"training": content}
    sections = {k: content[k] for k in SPLITS if isinstance(content, dict) and content.get(k)}
    lists = {k: v for k, v in sections.items() if isinstance(v, list)}
    if not lists:
        wanted = ", ".join(f"`{name}`" for name in SPLITS)
        raise SourceError("no-entries", tree.path(file), f"has no list named {wanted}")
    return lists


def read_entry(tree: Tree, entry: object, section: str, skipped: list[Rejection]) -> Source | None:
    """One source; what is missing goes to `skipped`, and a missing label does not cost the image.

    Numeric labels (classes of a classification list) name no file and are left to that list.
    """
    fields: Mapping[str, Any] = entry if isinstance(entry, dict) else {"image": entry}
    images = as_paths(fields.get("image"))
    if not images:
        if isinstance(entry, dict):
            skipped.append(
                Rejection(tree.root, "bad-entry", f"{section} entry {entry} has no image")
            )
        return None
    absent = [i for i in images if not tree.has(i)]
    if absent:
        why = f"is listed under `{section}` but is not there"
        skipped.append(Rejection(tree.path(absent[0]), "missing-image", why))
        return None
    labels = {}
    for given, label in labels_of(fields.get("label")):
        name = given or ("seg" if not labels else stem(label))
        if name in labels:
            why = f"is a second label {name!r} of {images[0]}; rename it"
            skipped.append(Rejection(tree.path(label), "ambiguous-label", why))
        elif tree.has(label):
            labels[name] = tree.path(label)
        else:
            why = f"is the label of {images[0]} but is not there"
            skipped.append(Rejection(tree.path(label), "missing-label", why))
    subject = next((str(fields[k]) for k in SUBJECT_KEYS if fields.get(k) not in (None, "")), "")
    return Source(
        id=str(fields.get("id") or stem(images[0])),
        images=tuple(tree.path(i) for i in images),
        labels=labels,
        subject=subject,
        group=str(fields.get("group") or ""),
        split=SPLITS[section],
    )


def labels_of(value: object) -> list[tuple[str, str]]:
    """(name, path) of every label: of an object of paths by name, else of paths without names."""
    if isinstance(value, dict):
        return [(str(name), path) for name, one in value.items() for path in as_paths(one)]
    return [("", path) for path in as_paths(value)]


def as_paths(value: object) -> list[str]:
    """A path or a list of paths as a list, `./` removed; anything else is no path."""
    several = value if isinstance(value, list | tuple) else [value]
    texts = [v.strip() for v in several if isinstance(v, str) and v.strip()]
    return [t.removeprefix("./") for t in texts] if len(texts) == len(several) else []


def find_without_json(tree: Tree) -> Discovery:
    """Sources of imagesTr, labelsTr and imagesTs paired by name; of channels, a case each."""
    if ending := layout_nnunet.ending_of_channels(tree.names):
        return layout_nnunet.find_without_json(tree, ending)
    inside = [n for n in tree.names if is_of_the_layout(n)]
    found = layout_folder.find(tree, inside)
    sources, skipped = [], list(found.skipped)
    for source in found.sources:
        folder = posixpath.basename(posixpath.dirname(source.images[0]))
        if not folder.startswith("images"):
            sources.append(source)
            continue
        if not source.labels and folder == "imagesTr":
            why = f"has no label in labelsTr called like {posixpath.basename(source.images[0])}"
            skipped.append(Rejection(source.images[0], "missing-label", why))
        split = {"imagesTr": "train", "imagesTs": "test"}.get(folder, "val")
        sources.append(replace(source, id=stem(source.images[0]), split=split))
    return replace(found, sources=tuple(sources), skipped=tuple(skipped), layout="msd")


def is_of_the_layout(name: str) -> bool:
    """Whether a file is in a folder of images or labels of a split."""
    top = name.split("/", 1)[0] if "/" in name else ""
    return bool(re.fullmatch(r"images(Tr|Ts|Va|Val)", top) or layout_nnunet.LABELS.fullmatch(top))
