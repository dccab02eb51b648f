"""`mim3d merge A B ... DST`: several corpora as one, without copying a voxel."""

from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.console import Console

from mim3d.engine.commands.arguments import parse
from mim3d.engine.commands.outcome import Outcome


@dataclass(frozen=True)
class MergeArgs:
    """Arguments of the command."""

    corpora: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="CORPUS")]
    """Corpus folders, made with the same options."""
    into: str
    """Folder of the merged corpus, on the same file system; one that exists gets what it lacks."""


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

    done = merge(args.corpora, args.into)
    console = Console(soft_wrap=True, highlight=False)
    volumes = ", ".join(f"{n} volumes of {name}" for name, n in done.volumes.items()) or "no volume"
    console.print(f"{args.into}: {volumes} added, {done.n_known} already there", markup=False)
    if done.renamed:
        names = ", ".join(done.renamed[:8]) + (", ..." if len(done.renamed) > 8 else "")
        console.print(
            f"{len(done.renamed)} subjects of several corpora were told apart: {names}",
            markup=False,
        )
    for line in done.left_out:
        console.print(f"warning: {line}", markup=False)
    figures = {"added": done.volumes, "known": done.n_known, "renamed": list(done.renamed)}
    return Outcome(figures | {"left_out": list(done.left_out)}, lost=len(done.left_out))
