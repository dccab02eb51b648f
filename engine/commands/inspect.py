"""`mim3d inspect CORPUS`: what is in a corpus, as tables, histograms and a montage."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from mim3d.dataio.corpus import Corpus
from mim3d.dataio.errors import CorpusError
from mim3d.dataio.inspection import class_table, counted, summarise, summary_table, volume_table
from mim3d.dataio.manifest import VolumeRecord
from mim3d.dataio.quarantine import QUARANTINE, Rejection, parse_quarantine
from mim3d.engine.outcome import Outcome


@dataclass(frozen=True)
class InspectArgs:
    """Arguments of the command."""

    corpus: Annotated[Path, tyro.conf.Positional]
    """A corpus made by `mim3d convert`; a half-written one is shown as far as it goes."""
    out: Path | None = None
    """Folder for montage.png and histograms.png; CORPUS-inspect by default."""
    pictures: bool = True
    """Draw the two PNGs; --no-pictures prints the tables only."""
    volumes: int = 12
    """Volumes in the montage, spread evenly over the corpus."""
    rows: int = 20
    """Volumes and classes listed in the tables."""


def main(words: list[str]) -> Outcome:
    """Print the tables and draw the pictures."""
    args = tyro.cli(
        InspectArgs,
        args=words,
        prog="mim3d inspect",
        description="Show what a corpus holds: tables here, a montage of mid-slices with labels "
        "and histograms as PNGs.",
    )
    corpus = Corpus.open(args.corpus)
    records = corpus.records
    if not records:
        raise CorpusError(f"{args.corpus}: holds no volume; see {args.corpus / QUARANTINE}")
    rejected = rejections(corpus.root)
    summary = summarise(records)
    console = Console(width=None if Console().is_terminal else 120)
    by_code = counted(r.code for r in rejected)
    console.print(summary_table(summary, by_code))
    if summary.classes:
        console.print(class_table(summary, args.rows))
    console.print(volume_table(records, args.rows))
    for rejection in rejected[: args.rows]:
        console.print(f"quarantined: {rejection.path}: {rejection.detail}", markup=False)
    pictures: list[str] = []
    if args.pictures:
        pictures, missing = draw(corpus, records, args)
        console.print("drawn: " + ", ".join(pictures), markup=False, soft_wrap=True)
        if missing:
            console.print(f"no montage: {missing}", markup=False, soft_wrap=True)
    return Outcome({**asdict(summary), "quarantined": by_code, "pictures": pictures})


def rejections(root: Path) -> list[Rejection]:
    """What the conversion left out; none where it did not finish."""
    file = root / QUARANTINE
    return parse_quarantine(file.read_bytes(), str(file)) if file.is_file() else []


def draw(corpus: Corpus, records: list[VolumeRecord], args: InspectArgs) -> tuple[list[str], str]:
    """Write the PNGs; returns their paths, and why a half-written corpus has no montage."""
    from mim3d.dataio.histograms import save_histograms
    from mim3d.dataio.montage import save_montage
    from mim3d.dataio.shard_reader import ShardReader

    folder = args.out or corpus.root.with_name(corpus.root.stem + "-inspect")
    folder.mkdir(parents=True, exist_ok=True)
    histograms, montage = folder / "histograms.png", folder / "montage.png"
    save_histograms(records, histograms)
    try:
        table = corpus.table
    except CorpusError as error:
        return [str(histograms)], str(error)
    reader = ShardReader(table, corpus.root)
    save_montage(records, table, reader, montage, n_volumes=args.volumes)
    reader.close()
    return [str(histograms), str(montage)], ""
