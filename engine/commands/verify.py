"""`mim3d verify CORPUS`: every hash and checksum of a corpus."""

from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.console import Console

from mim3d.dataio.convert.run import usable_cpus
from mim3d.dataio.errors import Mim3dError
from mim3d.dataio.inspect.verify import verify
from mim3d.engine.commands.arguments import parse
from mim3d.engine.commands.outcome import Outcome

LISTED = 50


@dataclass(frozen=True)
class VerifyArgs:
    """Arguments of the command."""

    corpus: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CORPUS")]
    """Corpus folder or address."""
    sources: bool = False
    """Also read the source files and compare them with what was converted."""
    workers: int | None = None
    """Threads; all usable CPUs by default."""

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise Mim3dError(f"workers {self.workers}: at least 1")


def main(words: list[str]) -> Outcome:
    """Check everything; exit 3 if anything is not what was written."""
    args = parse(
        VerifyArgs,
        words,
        "mim3d verify",
        "Read a whole corpus and compare it with its manifest: hashes of shards and "
        "metadata, checksums of chunks and tables, files that belong to nothing. Changes nothing.",
    )
    found = verify(args.corpus, workers=args.workers or usable_cpus(), sources=args.sources)
    console = Console(soft_wrap=True, highlight=False)
    console.print(
        f"{args.corpus}: {found.n_volumes} volumes, {found.n_chunks} chunks, "
        f"{found.nbytes / 1e6:.1f} MB read: "
        + (f"[bold]{len(found.problems)} problems[/bold]" if found.problems else "all intact")
    )
    for problem in found.problems[:LISTED]:
        console.print(f"  {problem.where}: {problem.code}: {problem.detail}", markup=False)
    if len(found.problems) > LISTED:
        console.print(f"  ... and {len(found.problems) - LISTED} more")
    figures = {
        "volumes": found.n_volumes,
        "chunks": found.n_chunks,
        "bytes": found.nbytes,
        "problems": [vars(problem) for problem in found.problems],
    }
    return Outcome(figures, lost=len(found.problems))
