"""`mim3d inspect CORPUS`: what is in a corpus, as tables, histograms and a montage."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from mim3d.dataio.corpus.manifest import VolumeRecord
from mim3d.dataio.corpus.quarantine import quarantine_place
from mim3d.dataio.errors import CorpusError, Mim3dError, Rejection
from mim3d.dataio.inspect.doubts import corpus_doubts, subjects_in
from mim3d.dataio.inspect.summary import (
    Summary,
    class_table,
    occurrences,
    summarise,
    summary_table,
    volume_table,
)
from mim3d.dataio.reader.corpus import Corpus, is_address, opened_corpus, quarantined
from mim3d.dataio.reader.shards import Shards
from mim3d.dataio.storage.store import writing
from mim3d.engine.commands.arguments import parse
from mim3d.engine.commands.outcome import Outcome


@dataclass(frozen=True)
class InspectArgs:
    """Arguments of the command."""

    corpus: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CORPUS")]
    """Folder or address of a corpus; a half-written one is shown as far as it goes."""
    out: Path | None = None
    """Folder for montage.png and histograms.png; CORPUS-inspect by default, beside a local one."""
    pictures: bool = True
    """Draw the two PNGs; --no-pictures prints the tables only."""
    volumes: int = 12
    """Volumes in the montage, spread evenly over the corpus."""
    rows: int = 20
    """Volumes and classes listed in the tables."""

    def __post_init__(self) -> None:
        if self.volumes < 1:
            raise Mim3dError(f"volumes {self.volumes}: at least 1 (--no-pictures draws nothing)")
        if self.rows < 0:
            raise Mim3dError(f"rows {self.rows}: 0 or more")


def main(words: list[str]) -> Outcome:
    """Print the tables and draw the pictures."""
    args = parse(
        InspectArgs,
        words,
        "mim3d inspect",
        "Show what a corpus holds: tables here, a montage of mid-slices with labels "
        "and histograms as PNGs.",
    )
    with opened_corpus(args.corpus) as (corpus, shards):
        return show(corpus, shards, args)


def show(corpus: Corpus, shards: Shards, args: InspectArgs) -> Outcome:
    """Tables to the terminal, pictures to files."""
    records = corpus.records
    if not records:
        raise CorpusError(f"{args.corpus}: holds no volume; see {quarantine_place(args.corpus)}")
    rejected = quarantined(args.corpus)
    summary = summarise(records)
    console = Console(width=None if Console().is_terminal else 120)
    by_code = occurrences(r.code for r in rejected)
    print_tables(console, records, summary, rejected, args.rows)
    doubts = show_doubts(console, records)
    pictures: list[str] = []
    if args.pictures:
        pictures, missing = draw(corpus, shards, args)
        console.print("drawn: " + ", ".join(pictures), markup=False, soft_wrap=True)
        if missing:
            console.print(f"no montage: {missing}", markup=False, soft_wrap=True)
    figures = {**asdict(summary), "quarantined": by_code, "pictures": pictures, "doubts": doubts}
    return Outcome(figures, lost=len(doubts))


def show_doubts(console: Console, records: Sequence[VolumeRecord]) -> list[str]:
    """How volumes were grouped, by example, and what may be wrong with it."""
    subjects, doubts = subjects_in(records), list(corpus_doubts(records))
    console.print(f"{subjects.line}:", markup=False)
    for example in subjects.examples:
        console.print(f"  {example}", markup=False, soft_wrap=True)
    for doubt in doubts:
        console.print(f"warning: {doubt}", markup=False, soft_wrap=True)
    return doubts


def print_tables(
    console: Console,
    records: Sequence[VolumeRecord],
    summary: Summary,
    rejected: Sequence[Rejection],
    rows: int,
) -> None:
    """The corpus, its classes, its first volumes and remarks on them, and what was left out."""
    console.print(summary_table(summary, occurrences(r.code for r in rejected)))
    if summary.classes:
        console.print(class_table(summary, rows))
    console.print(volume_table(records, rows))
    for record in [record for record in records if record.warnings][:rows]:
        console.print(f"{record.id}: {'; '.join(record.warnings)}", markup=False, soft_wrap=True)
    for rejection in rejected[:rows]:
        console.print(f"quarantined: {rejection.path}: {rejection.detail}", markup=False)


def draw(corpus: Corpus, shards: Shards, args: InspectArgs) -> tuple[list[str], str]:
    """Write the PNGs; returns their paths, and why a half-written corpus has no montage."""
    from mim3d.dataio.inspect.histograms import save_histograms
    from mim3d.dataio.inspect.montage import save_montage
    from mim3d.dataio.reader.shard_reader import ShardReader

    folder = args.out or picture_folder(args.corpus)
    histograms, montage = folder / "histograms.png", folder / "montage.png"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        save_histograms(corpus.records, histograms)
    try:
        table = corpus.table
    except CorpusError as error:
        return [str(histograms)], str(error)
    reader = ShardReader(table, corpus.root, shards)
    with writing(folder):
        save_montage(corpus.records, table, reader, montage, n_volumes=args.volumes)
    reader.close()
    return [str(histograms), str(montage)], ""


def picture_folder(corpus: str) -> Path:
    """Beside a local corpus; in the current folder for one at an address."""
    name = Path(corpus.rstrip("/").rsplit("/", 1)[-1]).stem or "corpus"
    return (
        Path(f"{name}-inspect") if is_address(corpus) else Path(corpus).with_name(f"{name}-inspect")
    )
