"""Whose image a file is, told by folders and names: a person is one subject over all visits."""

import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

from mim3d.dataio.nifti.names import MODALITIES, stem, subject_of, tells_no_case
from mim3d.dataio.sources.folder_images import MOST_IMAGES_OF_A_SUBJECT
from mim3d.dataio.sources.source import Source

PLAIN_FOLDER = re.compile(
    r"(images?|imgs?|volumes?|vols?|nifti|nii|data|raw|anat|func|dwi|perf|scans?)(tr|ts|val)?",
    re.IGNORECASE,
)
VISIT_FOLDER = re.compile(
    r"(ses|sess|session|visit|timepoint|tp|followup|follow[-_]up|fu|month|week|year)[-_ ]?\w*"
    r"|baseline|bl|m\d{1,3}|\d{4}-\d\d-\d\d.*",
    re.IGNORECASE,
)


def images_below(names: Sequence[str]) -> Counter[str]:
    """Number of images in each folder and in all below it."""
    crowd: Counter[str] = Counter()
    for name in names:
        while name := posixpath.dirname(name):
            crowd[name] += 1
    return crowd


def subject_from(name: str, crowd: Counter[str]) -> str:
    """Subject of an image: its folder if that holds one person's few images, else by file name.

    Folders that tell a visit or a kind of image (`visit1`, `ses-2`, `anat`, `t1`) are no person.
    """
    in_path = subject_of(name)
    if in_path.startswith("sub-"):
        return in_path
    folder, visits = person_folder(name)
    by_name = named_subject(name, visits)
    if not folder:
        return by_name
    whole = crowd[folder] <= MOST_IMAGES_OF_A_SUBJECT or tells_no_case(stem(name))
    return folder if whole else f"{folder}/{by_name}"


def person_folder(name: str) -> tuple[str, list[str]]:
    """The innermost folder that is no visit and no kind of image; the visits passed on the way."""
    folder, visits = posixpath.dirname(name), []
    while folder:
        last = posixpath.basename(folder)
        if VISIT_FOLDER.fullmatch(last):
            visits.append(last)
        elif not (PLAIN_FOLDER.fullmatch(last) or last.lower() in MODALITIES):
            break
        folder = posixpath.dirname(folder)
    return folder, visits


def named_subject(name: str, visits: Sequence[str]) -> str:
    """Subject by the file's name, without the visit that a folder tells as well."""
    told = subject_of(stem(name))
    for visit in visits:
        short = re.sub(rf"[-_]{re.escape(visit)}$", "", told, flags=re.IGNORECASE)
        told = short or told
    return told


def named_by_path(names: Sequence[str], sources: Sequence[Source]) -> list[Source]:
    """Sources of a table with the subjects and ids that it left to their (first images') names.

    Names are taken as they are; where files of several folders are called alike, or tell no case
    (`t1.nii`), the folder belongs to the name.
    """
    short = without_shared_folders(names)
    people = [person_folder(name) for name in short]
    told = [named_subject(name, visits) for name, (_, visits) in zip(short, people, strict=True)]
    alike: dict[str, set[str]] = defaultdict(set)
    homes: dict[str, set[str]] = defaultdict(set)
    for name, subject, (folder, _) in zip(short, told, people, strict=True):
        alike[stem(name)].add(posixpath.dirname(name))
        homes[subject].add(folder)
    found = []
    for name, subject, (folder, _), source in zip(short, told, people, sources, strict=True):
        whole, in_path = stem(name), subject_of(name)
        vague = tells_no_case(whole)
        if in_path.startswith("sub-"):
            derived = in_path
        elif folder and vague:
            derived = folder
        else:
            derived = f"{folder}/{subject}" if folder and len(homes[subject]) > 1 else subject
        is_unclear = source.id == whole and (vague or len(alike[whole]) > 1)
        by_path = re.sub("/+", "_", posixpath.join(posixpath.dirname(name), whole))
        id = by_path if is_unclear else source.id
        found.append(replace(source, id=id, subject=source.subject or derived))
    return found


def without_shared_folders(names: Sequence[str]) -> list[str]:
    """Names without the leading folders all have in common, where any is not within the table's
    own folder: absolute paths would make subjects of where the data lie.
    """
    if not any(name.startswith(("/", "..")) or "://" in name for name in names):
        return list(names)
    folders = [name.split("/")[:-1] for name in names]
    low, high = min(folders), max(folders)
    differ = (i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b)
    n_shared = next(differ, min(len(low), len(high)))
    return ["/".join(name.split("/")[n_shared:]) for name in names]
