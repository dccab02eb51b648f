"""Sources with their people: by what a person told, else by what tables and names say."""

import posixpath
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from mim3d.dataio.errors import SourceError
from mim3d.dataio.labels.label_map import merge, read_label_map
from mim3d.dataio.nifti.names import stem, tells_no_case
from mim3d.dataio.sources.channels import stacked
from mim3d.dataio.sources.options import SourceOptions
from mim3d.dataio.sources.source import Discovery, Source
from mim3d.dataio.sources.table import SUBJECT_COLUMNS, read_table
from mim3d.dataio.sources.tree import plain_path
from mim3d.dataio.subjects.grouping import Grouping, Scan, counted, grouping
from mim3d.dataio.subjects.people import Person, people_of, without_shared_folders
from mim3d.dataio.subjects.told import ByTable, by_pattern

MERGED = "seg"
TOLD, ACCEPTED = "told", "accepted"
FILE_COLUMNS = ("file", "path", "image", "image_path", "filename", "name", "id", "folder")


def with_person(source: Source, person: Person) -> Source:
    """The source with its person, unless its subject was told."""
    if source.subject:
        return replace(source, subject_from=source.subject_from or TOLD)
    return replace(source, subject=person.subject, subject_from=person.rule, doubt=person.doubt)


def named_by_path(names: Sequence[str], sources: Sequence[Source]) -> list[Source]:
    """Sources of a table with the subjects and ids that it left to their (first images') names.

    Names are taken as they are; where files of several folders are called alike, or tell no case
    (`t1.nii`), the folder belongs to the name.
    """
    short = without_shared_folders(names)
    people = people_of(short, short=True)
    alike: dict[str, set[str]] = defaultdict(set)
    for name in short:
        alike[stem(name)].add(posixpath.dirname(name))
    found = []
    for name, person, source in zip(short, people, sources, strict=True):
        whole = stem(name)
        is_unclear = source.id == whole and (tells_no_case(whole) or len(alike[whole]) > 1)
        by_path = re.sub("/+", "_", posixpath.join(posixpath.dirname(name), whole))
        found.append(with_person(replace(source, id=by_path if is_unclear else source.id), person))
    return found


def scans_of(sources: Iterable[Source], root: str = "") -> list[Scan]:
    """What grouping needs of sources; paths are shown as below the root."""
    return [
        Scan(s.subject or s.id, below(s.images[0], root), s.subject_from, s.doubt, s.group)
        for s in sources
    ]


def grouped(found: Discovery) -> Grouping:
    """The people of what was found."""
    return grouping(scans_of(found.sources, found.root))


def below(path: str, root: str) -> str:
    """A path relative to the root it is below, else as it is."""
    return path[len(root) + 1 :] if root and path.startswith(root.rstrip("/") + "/") else path


def as_told(found: Discovery, options: SourceOptions) -> Discovery:
    """The sources with the subjects that the options tell, and a warning of what they leave out."""
    if options.channels:
        found = stacked(found, options.channels, found.root)
    warnings = list(found.warnings)
    sources = list(found.sources)
    if options.subject is not None or options.subjects is not None:
        tell = by_pattern(options.subject) if options.subject else table_of(options.subjects or "")
        subjects = [tell(below(s.images[0], found.root), s.id) for s in sources]
        option = "--subject" if options.subject else "--subjects"
        warnings += left_out(sources, subjects, option, found.root)
        if isinstance(tell, ByTable) and tell.unused:
            rows = f"{counted(len(tell.unused), 'row')} of {options.subjects}"
            warnings.append(f"{rows} (such as {tell.unused[0]}) name no file: mend or remove them")
        sources = [
            replace(source, subject=subject, subject_from=TOLD, doubt="") if subject else source
            for source, subject in zip(sources, subjects, strict=True)
        ]
    if options.merge_labels:
        sources = with_merged_labels(sources, options.merge_labels, warnings)
    if options.ignore_label is not None:
        value = options.ignore_label
        sources = [replace(s, ignore=dict.fromkeys(s.labels, value)) for s in sources]
    if options.dataset:
        sources = [of_dataset(source, options.dataset) for source in sources]
    if options.accept_doubts:
        sources = [replace(source, subject_from=ACCEPTED, doubt="") for source in sources]
    notes = found.notes
    if options.accept_doubts:
        notes, warnings = (*notes, *warnings), []
    return replace(found, sources=tuple(sources), warnings=tuple(warnings), notes=notes)


def with_merged_labels(sources: Sequence[Source], file: str, warnings: list[str]) -> list[Source]:
    """Sources whose masks per organ are one label by the map; what the map does not say is told."""
    classes = read_label_map(file)
    found = {name for source in sources for name in source.labels}
    if not found & classes.keys():
        some_found = ", ".join(sorted(found)[:4]) or "none"
        told = f"names none of the labels found ({some_found})"
        raise SourceError("bad-map", file, f"{told}; its names are those of the mask files")
    if missing := sorted(classes.keys() - found):
        rows = f"{counted(len(missing), 'mask')} of {file} (such as {missing[0]})"
        warnings.append(f"{rows} are nowhere: mend the name or remove it")
    names = {number: name for name, number in classes.items()}
    merged = []
    for source in sources:
        labels = merge(source.labels, classes, MERGED)
        told = {**source.class_names, MERGED: names} if labels != source.labels else {}
        merged.append(replace(source, labels=labels, class_names=told or source.class_names))
    return merged


def left_out(
    sources: Sequence[Source], subjects: Sequence[str], option: str, root: str
) -> list[str]:
    """A warning of files that an option tells no subject of; SourceError where it tells none."""
    missing = [s for s, subject in zip(sources, subjects, strict=True) if not subject]
    if not missing:
        return []
    first = below(missing[0].images[0], root)
    if len(missing) == len(sources):
        told = f"tells the subject of none of {counted(len(sources), 'file')} such as {first}"
        raise SourceError("no-subject", option, f"{told}; it is matched against such paths")
    return [
        f"{option} tells no subject of {counted(len(missing), 'volume')} (such as {first}), which "
        f"keep the one by name ({missing[0].subject}): extend it"
    ]


def of_dataset(source: Source, dataset: str) -> Source:
    """The source as one of a named data set."""
    subject = f"{dataset}/{source.subject or source.id}"
    return replace(source, subject=subject, group=source.group or dataset)


def table_of(file: str) -> ByTable:
    """Subjects by file of a table; SourceError where it has not both columns or contradicts."""
    path = plain_path(str(Path(file).expanduser()))
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise SourceError("unreadable", path, f"cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise SourceError("not-text", path, "is not UTF-8 text; save it as UTF-8") from error
    rows, names = read_table(text, path)
    subject = next((n for n in SUBJECT_COLUMNS if n in names), "")
    key = next((n for n in FILE_COLUMNS if n in names), "")
    if not subject or not key:
        told = f"its columns are {', '.join(names) or '(none)'}; it needs `file` and `subject`"
        raise SourceError("no-subject-column", path, told)
    subjects: dict[str, str] = {}
    for row in rows:
        file, person = row[key].removeprefix("./").rstrip("/"), row[subject]
        if file and person and subjects.setdefault(file, person) != person:
            told = f"says {file} is {subjects[file]}'s and {person}'s; leave one"
            raise SourceError("two-subjects", path, told)
    return ByTable(subjects)
