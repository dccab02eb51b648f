"""Sources with their subjects: as the user declares them, else by what tables and names say."""

import posixpath
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mim3d.dataio.errors import SourceError
from mim3d.dataio.labels.label_map import merge, read_label_map, read_text
from mim3d.dataio.nifti.names import identifies_no_case, stem
from mim3d.dataio.sources.channels import stacked
from mim3d.dataio.sources.options import SourceOptions
from mim3d.dataio.sources.source import Discovery, Source
from mim3d.dataio.sources.table import SUBJECT_COLUMNS, read_table
from mim3d.dataio.sources.tree import plain_path
from mim3d.dataio.subjects.declared import ACCEPTED, DECLARED, ByTable, by_pattern
from mim3d.dataio.subjects.grouping import Grouping, Scan, counted, grouping, some
from mim3d.dataio.subjects.inferred import InferredSubject, infer_subjects, without_shared_folders
from mim3d.dataio.subjects.spelling import composed

MERGED = "seg"
FILE_COLUMNS = ("file", "path", "image", "image_path", "filename", "name", "id", "folder")


def with_subject(source: Source, inferred: InferredSubject) -> Source:
    """The source with an inferred subject, unless its own was declared."""
    if source.subject:
        return replace(source, subject_from=source.subject_from or DECLARED)
    return replace(
        source, subject=inferred.subject, subject_from=inferred.rule, doubt=inferred.doubt
    )


def named_by_path(names: Sequence[str], sources: Sequence[Source]) -> list[Source]:
    """Sources of a table with the subjects and ids that it left to their (first images') names.

    Names are taken as they are; where files of several folders are called alike, or tell no case
    (`t1.nii`), the folder belongs to the name.
    """
    short = without_shared_folders(names)
    inferred = infer_subjects(short, short=True)
    alike: dict[str, set[str]] = defaultdict(set)
    for name in short:
        alike[stem(name)].add(posixpath.dirname(name))
    found = []
    for name, subject, source in zip(short, inferred, sources, strict=True):
        whole = stem(name)
        is_unclear = source.id == whole and (identifies_no_case(whole) or len(alike[whole]) > 1)
        by_path = re.sub("/+", "_", posixpath.join(posixpath.dirname(name), whole))
        found.append(
            with_subject(replace(source, id=by_path if is_unclear else source.id), subject)
        )
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
    """A path relative to the root it is below, else whole; accents as people type them."""
    path, root = composed(path), composed(root)
    return path[len(root) + 1 :] if root and path.startswith(root.rstrip("/") + "/") else path


def with_options(found: Discovery, options: SourceOptions) -> Discovery:
    """The sources as the options have them, and a warning of what they leave out."""
    if options.channels:
        found = stacked(found, options.channels, found.root)
    warnings = list(found.warnings)
    sources = list(found.sources)
    if options.subject is not None or options.subjects is not None:
        subject_of = (
            by_pattern(options.subject) if options.subject else table_of(options.subjects or "")
        )
        subjects = [subject_of(below(s.images[0], found.root), s.id) for s in sources]
        option = "--subject" if options.subject else "--subjects"
        warnings += left_out(sources, subjects, option, found.root)
        if isinstance(subject_of, ByTable):
            people = {below(s.images[0], found.root): s.subject or s.id for s in sources}
            warnings += rows_in_doubt(subject_of, options.subjects or "", people)
        sources = [
            replace(source, subject=subject, subject_from=DECLARED, doubt="", is_declared=True)
            if subject
            else source
            for source, subject in zip(sources, subjects, strict=True)
        ]
    if options.merge_labels:
        sources = with_merged_labels(sources, options.merge_labels, warnings)
    if options.ignore_label is not None:
        value = options.ignore_label
        sources = [replace(s, ignore=dict.fromkeys(s.labels, value)) for s in sources]
    if options.dataset:
        sources = [of_dataset(source, options.dataset) for source in sources]
    sources = [replace(s, subject=composed(s.subject), group=composed(s.group)) for s in sources]
    if options.accept_doubts:
        sources = [
            replace(s, subject_from=ACCEPTED, doubt="", is_declared=s.tells_subject)
            for s in sources
        ]
    notes = found.notes
    if options.accept_doubts:
        notes, warnings = (*notes, *warnings), []
    return replace(found, sources=tuple(sources), warnings=tuple(warnings), notes=notes)


def with_merged_labels(sources: Sequence[Source], file: str, warnings: list[str]) -> list[Source]:
    """Sources whose masks per organ are one label by the map; `warnings` gets what it lacks."""
    classes = read_label_map(file)
    found = {name for source in sources for name in source.labels}
    if not found & classes.keys():
        some_found = ", ".join(sorted(found)[:4]) or "none"
        problem = f"names none of the labels found ({some_found})"
        raise SourceError("bad-map", file, f"{problem}; its names are those of the mask files")
    if missing := sorted(classes.keys() - found):
        rows = f"{counted(len(missing), 'mask')} of {file} (such as {missing[0]})"
        warnings.append(f"{rows} are nowhere: mend the name or remove it")
    masked = [source.labels for source in sources if source.labels.keys() & classes.keys()]
    if hidden := [own[MERGED] for own in masked if MERGED in own and MERGED not in classes]:
        rows = f"{counted(len(hidden), 'label')} {MERGED!r} (such as {hidden[0]})"
        warnings.append(
            f"{rows} left out, as the label that {file} makes has this name: give the file another "
            "name; else --accept-doubts"
        )
    names = {number: name for name, number in classes.items()}
    merged = []
    for source in sources:
        labels = merge(source.labels, classes, MERGED)
        class_names = {**source.class_names, MERGED: names} if labels != source.labels else {}
        merged.append(replace(source, labels=labels, class_names=class_names or source.class_names))
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
        problem = f"tells the subject of none of {counted(len(sources), 'file')} such as {first}"
        raise SourceError("no-subject", option, f"{problem}; it is matched against such paths")
    return [
        f"{option} tells no subject of {counted(len(missing), 'volume')} (such as {first}), which "
        f"keep the one by name ({missing[0].subject}): extend it"
    ]


def rows_in_doubt(table: ByTable, file: str, people: Mapping[str, str]) -> list[str]:
    """Warnings of a table's rows that name no file, say otherwise than others of theirs, or name
    several people's files (subjects by path)."""
    found = []
    if table.unused:
        rows = counted(len(table.unused), "row")
        found.append(
            f"{rows} of {file} (such as {table.unused[0]}) name no file: mend or remove them"
        )
    if table.overruled:
        key, by = next(iter(table.overruled.items()))
        found.append(
            f"{counted(len(table.overruled), 'row')} of {file} (such as {key}: "
            f"{table.subjects[key]}) name only files of rows that say otherwise (such as {by}: "
            f"{table.subjects[by]}), which stand: remove one, or --accept-doubts"
        )
    if joined := table.joined(people):
        key, paths = next(iter(joined.items()))
        found.append(
            f"{counted(len(joined), 'row')} of {file} (such as {key}) name several files or folders"
            f" ({some(paths)}), and make them one person's: write more of their path in a row for "
            "each, or --accept-doubts"
        )
    return found


def of_dataset(source: Source, dataset: str) -> Source:
    """The source as one of a named data set."""
    subject = f"{dataset}/{source.subject or source.id}"
    return replace(source, subject=subject, group=source.group or dataset, is_declared=True)


def table_of(file: str) -> ByTable:
    """Subjects by file of a table; SourceError where it has not both columns or contradicts."""
    path = plain_path(str(Path(file).expanduser()))
    rows, names = read_table(read_text(path), path)
    subject = next((n for n in SUBJECT_COLUMNS if n in names), "")
    key = next((n for n in FILE_COLUMNS if n in names), "")
    if not subject or not key:
        problem = f"its columns are {', '.join(names) or '(none)'}; it needs `file` and `subject`"
        raise SourceError("no-subject-column", path, problem)
    subjects: dict[str, str] = {}
    for row in rows:
        file, person = composed(row[key]).removeprefix("./").rstrip("/"), composed(row[subject])
        if file and person and subjects.setdefault(file, person) != person:
            problem = f"says {file} is {subjects[file]}'s and {person}'s; leave one"
            raise SourceError("two-subjects", path, problem)
    return ByTable(subjects)
