"""`mim3d export-nifti CORPUS DST`: a corpus back to NIfTI files, bit for bit."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from mim3d.dataio.progress import progress
from mim3d.engine.commands.arguments import parse
from mim3d.engine.commands.outcome import Outcome


@dataclass(frozen=True)
class ExportNiftiArgs:
    """Arguments of the command."""

    corpus: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CORPUS")]
    """Folder or address of a corpus made by `mim3d convert`."""
    destination: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """Folder to write images/ID.nii.gz and labels/NAME/ID.nii.gz into; made if missing."""
    ids: tuple[str, ...] = ()
    """Only these volumes; all by default."""
    axes: Literal["original", "stored"] = "original"
    """The source's own axis order and affine, or those of the corpus (RAS+)."""
    compress: bool = True
    """Write .nii.gz (fast gzip); --no-compress writes .nii."""


def main(words: list[str]) -> Outcome:
    """Export, and count the volumes that could not go back to their source's grid."""
    args = parse(
        ExportNiftiArgs,
        words,
        "mim3d export-nifti",
        "Write the volumes and labels of a corpus as NIfTI files: the voxels, affine, "
        "dtype and scaling that were converted, bit for bit.",
    )
    from mim3d.dataio.convert.volume_ids import with_ids
    from mim3d.dataio.inspect.export_nifti import export_corpus
    from mim3d.dataio.reader.corpus import opened_corpus
    from mim3d.dataio.reader.shard_reader import ShardReader
    from mim3d.dataio.storage.store import writing

    with opened_corpus(args.corpus) as (corpus, shards):
        records = with_ids({each.id: each for each in corpus.records}, args.ids, args.corpus)
        reader = ShardReader(corpus.table, corpus.root, shards)
        with writing(args.destination), progress("export", len(records), "volumes") as shown:
            done = export_corpus(
                records,
                corpus.table,
                reader,
                args.destination,
                axes=args.axes,
                compress=args.compress,
                advance=shown.advance,
            )
        reader.close()
    other = [e.id for e in done if not e.in_source_grid]
    print(f"{len(done)} volumes, {sum(len(e.files) for e in done)} files in {args.destination}")
    if other and args.axes == "original":
        print(f"{len(other)} were resampled or cropped and keep the stored grid, e.g. {other[0]}")
    return Outcome({"volumes": len(done), "in_stored_grid": len(other)})
