"""`mim3d export-nifti CORPUS DST`: a corpus back to NIfTI files, bit for bit."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from mim3d.dataio.corpus.manifest import VolumeRecord
from mim3d.dataio.corpus.quarantine import quarantine_place
from mim3d.dataio.errors import CorpusError, Rejection
from mim3d.dataio.progress import progress
from mim3d.engine.commands.arguments import parse
from mim3d.engine.commands.outcome import Outcome
from mim3d.engine.commands.weights.messages import listed


@dataclass(frozen=True)
class ExportNiftiArgs:
    """Arguments of the command."""

    corpus: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CORPUS")]
    """Folder or address of a corpus made by `mim3d convert`."""
    destination: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """Folder for images/ID.nii.gz and labels/NAME/ID.nii.gz; made if missing."""
    ids: tuple[str, ...] = ()
    """Only these volumes; all by default."""
    axes: Literal["original", "stored"] = "original"
    """The source's own axis order and affine, or those of the corpus (RAS+)."""
    compress: bool = True
    """Write .nii.gz (fast gzip); --no-compress writes .nii."""


def main(words: list[str]) -> Outcome:
    """Export, and tell what is not as it was in the sources, and what could not be written."""
    args = parse(
        ExportNiftiArgs,
        words,
        "mim3d export-nifti",
        "Write the volumes and labels of a corpus as NIfTI files: the voxels, affine, "
        "dtype and scaling that were converted, bit for bit. Exit code 3 tells that volumes could "
        "not be written, or that a guess had to be.",
    )
    if "" in words:
        raise CorpusError("DST is empty; name a folder for the files")
    from mim3d.dataio.convert.volume_ids import with_ids
    from mim3d.dataio.inspect.export_nifti import export_corpus, source_folder_above
    from mim3d.dataio.reader.corpus import opened_corpus
    from mim3d.dataio.reader.shard_reader import ShardReader
    from mim3d.dataio.storage.store import writing

    failed: list[Rejection] = []
    with opened_corpus(args.corpus) as (corpus, shards):
        if not corpus.records:
            place = quarantine_place(args.corpus)
            raise CorpusError(f"{args.corpus}: holds no volume; see {place} for what was left out")
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
                failed=failed,
            )
        reader.close()
    if above := source_folder_above(args.destination, records):
        print(
            f"{args.destination} lies below sources: a conversion of {above} takes it for scans; "
            "move it elsewhere before the next one"
        )
    other = [e.id for e in done if not e.in_source_grid]
    guessed = [e.id for e in done if e.is_guessed]
    if failed:
        print(f"{len(failed)} volumes could not be written:")
        listed([f"{each.path}: {each.detail}" for each in failed])
    if guessed:
        print(
            f"warning: the sources of {len(guessed)} volumes (such as {guessed[0]}) have no sform "
            "and no qform: left and right are a guess, which these files state (code 2)"
        )
    print(f"{len(done)} volumes, {sum(len(e.files) for e in done)} files in {args.destination}")
    if other and args.axes == "original":
        print(f"{len(other)} were resampled or cropped and keep the stored grid, e.g. {other[0]}")
    written = {e.id for e in done}
    for line in other_types([record for record in records if record.id in written]):
        print(line)
    figures = {"volumes": len(done), "in_stored_grid": len(other)}
    if failed or guessed:
        figures |= {"failed": [asdict(each) for each in failed], "guessed": guessed}
    return Outcome(figures, len(failed) + len(guessed))


def other_types(records: Sequence[VolumeRecord]) -> list[str]:
    """A line for each type of voxels that the conversion changed, with the largest change."""
    kinds: dict[tuple[str, str], list[VolumeRecord]] = defaultdict(list)
    for record in records:
        if record.source_dtype != record.dtype:
            kinds[record.source_dtype, record.dtype].append(record)
    return [
        f"{len(several)} were {before} in their sources and are {now}, changed by at most "
        f"{max(record.cast_max_error for record in several):.3g}, e.g. {several[0].id}"
        for (before, now), several in kinds.items()
    ]
