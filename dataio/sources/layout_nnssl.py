"""Layout `nnssl`: pretrain_data.json, a collection of data sets, subjects, sessions and images.

Format: MIC-DKFZ/nnssl, data/raw_dataset.py (Collection, Dataset, Subject, Session, Image,
AssociatedMasks). Paths may begin with `$VARIABLE`, as nnssl writes them.
"""

import json
import os
import posixpath
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mim3d.dataio.errors import Rejection, SourceError
from mim3d.dataio.nifti.names import is_image, stem
from mim3d.dataio.sources.source import Discovery, Source
from mim3d.dataio.sources.tree import Tree
from mim3d.dataio.subjects.declared import DECLARED

FILE = "pretrain_data.json"


def find(tree: Tree, file: str = FILE) -> Discovery:
    """Sources of the collection; each image is one, its associated masks are its labels."""
    try:
        collection = json.loads(tree.read_text(file))
        datasets = collection["datasets"]
        entries = list(images_of(datasets))
    except SourceError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        detail = f"is not an nnssl collection ({type(error).__name__}: {error})"
        raise SourceError("bad-json", tree.path(file), detail) from error
    skipped: list[Rejection] = []
    sources = [source for keys, image in entries if (source := read(tree, keys, image, skipped))]
    return Discovery(tuple(sources), tuple(skipped), "nnssl")


def images_of(datasets: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str, str], Any]]:
    """Every image entry with its (dataset, subject, session)."""
    for dataset, content in datasets.items():
        for subject, person in content["subjects"].items():
            for session, visit in person["sessions"].items():
                for image in visit["images"]:
                    yield (str(dataset), str(subject), str(session)), image


def read(
    tree: Tree, keys: tuple[str, str, str], image: Any, skipped: list[Rejection]
) -> Source | None:
    """One source; entries that name no readable NIfTI file are skipped with the reason."""
    dataset, subject, session = keys
    entry = str(image.get("image_path") or "") if isinstance(image, dict) else ""
    if not entry:
        why = f"an image of {dataset}/{subject}/{session} has no image_path"
        skipped.append(Rejection(tree.path(FILE), "bad-entry", why))
        return None
    path = existing(tree, entry, "missing-image", skipped)
    if path is None:
        return None
    masks = image.get("associated_masks")
    masks = masks if isinstance(masks, dict) else {}
    found = {
        str(name): existing(tree, str(mask), "missing-label", skipped)
        for name, mask in sorted(masks.items())
        if mask
    }
    person = f"{dataset}_{subject}"
    name = stem(str(image.get("name") or entry))
    return Source(
        id=f"{person}_{session}_{name}",
        images=(path,),
        labels={name: mask for name, mask in found.items() if mask is not None},
        subject=person,
        subject_from=DECLARED,
        group=dataset,
        session=session,
        channel_names=(modality,) if (modality := str(image.get("modality") or "")) else (),
    )


def existing(tree: Tree, entry: str, code: str, skipped: list[Rejection]) -> str | None:
    """Path of an entry with `$VARIABLE` resolved, or None with the reason kept."""
    path = resolved(tree, entry)
    if path is None:
        variable = entry.split("/", 1)[0]
        why = f"{variable} is not set; export it as nnssl needs it"
        skipped.append(Rejection(entry, "unset-variable", why))
        return None
    if not is_image(path):
        skipped.append(Rejection(tree.path(path), "not-nifti", "is not .nii, .nii.gz or .hdr"))
        return None
    if not tree.has(path):
        skipped.append(Rejection(tree.path(path), code, "is listed but is not there"))
        return None
    return tree.path(path)


def resolved(tree: Tree, entry: str) -> str | None:
    """Path with its leading `$VARIABLE` replaced; `$nnssl_raw` defaults to the folder above."""
    match = re.match(r"\$(\w+)/?(.*)", entry, re.DOTALL)
    if match is None:
        return entry
    base = os.environ.get(match[1])
    if base is None and match[1] == "nnssl_raw":
        base = posixpath.dirname(posixpath.normpath(tree.root))
    return None if base is None else posixpath.join(base, match[2])
