"""`mim3d merge A B ... DST`: several corpora as one, without copying a voxel."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console

from mim3d.dataio.inspect.doubts import classes_of_parts, corpus_doubts
from mim3d.dataio.subjects.across import SamePerson
from mim3d.dataio.subjects.grouping import counted
from mim3d.engine.commands.arguments import parse
from mim3d.engine.commands.outcome import Outcome

if TYPE_CHECKING:
    from mim3d.dataio.convert.merge import Merged

LISTED = 8


@dataclass(frozen=True)
class MergeArgs:
    """Arguments of the command."""

    corpora: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="CORPUS")]
    """Corpus folders, made with the same options."""
    into: str
    """Folder of the merged corpus, on the same file system; one that exists gets what it lacks."""
    same_subjects: tuple[str, ...] = ()
    """Subjects that several corpora name, and that are one person in all of them (all: each such
    name); without it the same name in two corpora is two people."""
    subjects: str | None = None
    """Table (.csv, .tsv) with columns file and subject, as of `mim3d convert`: a file by its path,
    name or id, or a folder with all below it."""
    accept_doubts: bool = False
    """What is in doubt (whose, or a label) was looked at and is right: it makes no exit 3."""


def main(words: list[str]) -> Outcome:
    """Link, and tell what came from where."""
    args = parse(
        MergeArgs,
        words,
        "mim3d merge",
        "Make one corpus of several by hard links: no voxel is copied, and the parts stay as they "
        "are. Ids and subjects that occur in more than one get the corpus' name in front.",
    )
    from mim3d.dataio.convert.merge import merge
    from mim3d.dataio.sources.subjects import rows_in_doubt, table_of

    table = None if args.subjects is None else table_of(args.subjects)
    person = SamePerson(args.same_subjects, table or no_subject)
    command = shlex.join(["mim3d", "merge", *words])
    done = merge(
        *(args.corpora, args.into), person=person, accept_doubts=args.accept_doubts, command=command
    )
    console = Console(soft_wrap=True, highlight=False)
    volumes = ", ".join(f"{n} volumes of {name}" for name, n in done.volumes.items()) or "no volume"
    console.print(f"{args.into}: {volumes} added, {done.n_known} already there", markup=False)
    for line in (*names_in_words(done), *upkeep_in_words(done, args.into)):
        console.print(line, markup=False)
    doubts = [*kept_apart(done.namesakes.apart), *corpus_doubts(done.records)]
    doubts += classes_of_parts(done.parts)
    if table is not None:
        doubts += rows_in_doubt(table, args.subjects or "", {})
    for line in doubts if args.accept_doubts else ():
        console.print(f"note: {line}", markup=False)
    warnings = [*done.left_out, *([] if args.accept_doubts else doubts)]
    for line in warnings:
        console.print(f"warning: {line}", markup=False)
    figures = {"added": done.volumes, "known": done.n_known, "renamed": list(done.renamed)}
    figures |= {"joined": done.namesakes.joined, "apart": done.namesakes.apart}
    figures |= {name: list(getattr(done, name)) for name in ("mended", "replaced", "absent")}
    figures |= {"left_out": list(done.left_out), "warnings": warnings}
    return Outcome(figures, lost=len(warnings))


def no_subject(path: str, id: str) -> str:
    """What a table that is not given says."""
    del path, id
    return ""


def names_in_words(done: "Merged") -> list[str]:
    """Whose names several corpora have: who is one person and who is not, and ids that changed."""
    lines = []
    whose = {"taken for one person": done.namesakes.joined, "told apart": done.namesakes.apart}
    for what, names in whose.items():
        if names:
            shown = [f"{name}: {', '.join(people)}" for name, people in names.items()]
            lines.append(
                f"{counted(len(shown), 'subject')} of several corpora {what}: {listed(shown)}"
            )
    if done.ids:
        lines.append(f"{counted(len(done.ids), 'id')} changed: {listed(done.ids)}")
    return lines


def upkeep_in_words(done: "Merged", into: str) -> list[str]:
    """What became of volumes that were there before: linked anew, replaced, in no part now."""
    lines = []
    for what, several in (("damaged", done.mended), ("replaced", done.replaced)):
        if several:
            lines.append(f"{counted(len(several), 'volume')} {what}: {listed(several)}")
    if done.absent:
        first = f"mim3d remove {into} --volume {done.absent[0]}"
        lines.append(
            f"{counted(len(done.absent), 'volume')} that the corpora named do not have any more "
            f"stay ({listed(done.absent)}): `{first}` takes one out"
        )
    return lines


def listed(lines: Sequence[str]) -> str:
    """The first of them in one line."""
    return "; ".join(lines[:LISTED]) + (
        f"; ... ({len(lines)} in all)" if len(lines) > LISTED else ""
    )


def kept_apart(apart: Mapping[str, Sequence[str]]) -> list[str]:
    """A line where a name of several corpora was taken for several people."""
    if not apart:
        return []
    name, people = next(iter(apart.items()))
    several = len(apart) > 1
    remedy = f"--same-subjects {shlex.quote(name)}" + (" (or all)" if several else "")
    return [
        f"{counted(len(apart), 'subject')} of the same name in several corpora, taken for several "
        f"people (such as {name}: {' and '.join(people)}): if they are one person, the same "
        f"command with {remedy} makes them one; else --accept-doubts"
    ]
