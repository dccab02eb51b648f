"""`mim3d verify CORPUS`: every hash and checksum of a corpus."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console

from mim3d.dataio.errors import Mim3dError
from mim3d.dataio.finite import MOST_WORKERS, refuse_outside
from mim3d.engine.commands.arguments import parse
from mim3d.engine.commands.outcome import Outcome

if TYPE_CHECKING:
    from mim3d.dataio.convert.run import ConversionReport
    from mim3d.dataio.inspect.verify import Verification

LISTED = 50


@dataclass(frozen=True)
class VerifyArgs:
    """Arguments of the command."""

    corpus: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CORPUS")]
    """Corpus folder or address."""
    sources: bool = False
    """Also read the source files and compare them with what was converted."""
    mend: bool = False
    """Make what is damaged anew: volumes from their sources, the table and zarr.json from the
    rest; then check again."""
    accept_losses: bool = False
    """Mend also what becomes less or other by it: without a label whose file is gone, from a file
    that took the place of the one a volume was made of."""
    workers: int | None = None
    """Threads; all usable CPUs by default."""

    def __post_init__(self) -> None:
        refuse_outside(self, "workers", 1, MOST_WORKERS)
        if self.accept_losses and not self.mend:
            raise Mim3dError("--accept-losses says how to mend: give --mend too")


def main(words: list[str]) -> Outcome:
    """Check everything; exit 3 if anything is not what was written."""
    args = parse(
        VerifyArgs,
        words,
        "mim3d verify",
        "Read a whole corpus and compare it with its manifest: hashes of shards and "
        "metadata, checksums of chunks and tables, files that belong to nothing. Changes nothing, "
        "unless asked to mend.",
    )
    from mim3d.dataio.convert.run import usable_cpus
    from mim3d.dataio.convert.upkeep import mend
    from mim3d.dataio.inspect.verify import verify

    workers = args.workers or usable_cpus()
    console = Console(soft_wrap=True, highlight=False)
    found = verify(args.corpus, workers=workers, sources=args.sources)
    show(console, args.corpus, found)
    lost = 0
    if args.mend and found.problems:
        report = mend(
            args.corpus,
            found.volumes,
            workers=args.workers,
            accept_losses=args.accept_losses,
        )
        lost = show_mended(console, report, accepted=args.accept_losses)
        found = verify(args.corpus, workers=workers, sources=args.sources)
        show(console, args.corpus, found)
    figures = {
        "volumes": found.n_volumes,
        "chunks": found.n_chunks,
        "bytes": found.nbytes,
        "problems": [vars(problem) for problem in found.problems],
    }
    return Outcome(figures, lost=len(found.problems) + lost)


def show(console: Console, corpus: str, found: "Verification") -> None:
    """What was found, its first problems in words."""
    console.print(
        f"{corpus}: {found.n_volumes} volumes, {found.n_chunks} chunks, "
        f"{found.nbytes / 1e6:.1f} MB read: "
        + (f"[bold]{len(found.problems)} problems[/bold]" if found.problems else "all intact")
    )
    for problem in found.problems[:LISTED]:
        detail = problem.detail.replace("verify CORPUS", f"verify {corpus}")
        console.print(f"  {problem.where}: {problem.code}: {detail}", markup=False)
    if len(found.problems) > LISTED:
        console.print(f"  ... and {len(found.problems) - LISTED} more")


def show_mended(console: Console, report: "ConversionReport", *, accepted: bool) -> int:
    """What was made anew, and what could not be; the number of losses that nobody accepted."""
    console.print(f"{len(report.mended)} volumes made anew", markup=False)
    for path in report.changed:
        console.print(f"  from another file than before: {path}", markup=False)
    whole = [each for each in report.rejections if each.code in ("damaged", "lost")]
    parts = [each for each in report.rejections if each not in whole]
    for rejection in whole:
        console.print(f"  not mended: {rejection.detail}", markup=False)
    for rejection in parts:
        console.print(f"  left out: {rejection.path}: {rejection.detail}", markup=False)
    return len(whole) + (0 if accepted else len(parts))
