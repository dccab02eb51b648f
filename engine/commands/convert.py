"""`mim3d convert SRC DST`: NIfTI files to a verified corpus."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console

from mim3d.dataio.corpus.conversion import Conversion, Rerun
from mim3d.dataio.corpus.manifest import VolumeRecord
from mim3d.dataio.corpus.quarantine import quarantine_place
from mim3d.dataio.errors import Mim3dError, Rejection
from mim3d.dataio.finite import MOST_WORKERS, refuse_outside
from mim3d.dataio.inspect.doubts import conversion_warnings, corpus_doubts, subjects_in
from mim3d.dataio.inspect.guesses import NEW
from mim3d.dataio.nifti.names import is_image
from mim3d.dataio.sources.options import SourceOptions
from mim3d.dataio.sources.source import Discovery, Source
from mim3d.dataio.subjects.grouping import Grouping, counted, some
from mim3d.engine.commands.arguments import UsageError, parse
from mim3d.engine.commands.outcome import Outcome

if TYPE_CHECKING:
    from mim3d.dataio.convert.forecast import Expected, Forecast, Standing
    from mim3d.dataio.convert.run import ConversionReport

LISTED = 20
ALIASES = {Conversion: {"spacing_mm": "--spacing", "orientation": "--orient"}}
OF_SEVERAL = ("--spacing-mm", "--spacing", "--window")


@dataclass(frozen=True)
class ConvertArgs:
    """Arguments of the command."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")]
    """Folder, glob (in quotes: 'data/**/*.nii.gz'), dataset.json, datalist, CSV, an s3://, gs:// or
    http:// address, or msd:Task04_Hippocampus (a task of the Medical Segmentation Decathlon). A CSV
    or TSV has a row per volume and a header: image (or image_0, image_1 for channels), and if you
    like label or label:NAME, subject, group, split, id; paths begin at its folder or --base."""
    destination: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """Corpus folder or address; one that exists is continued."""
    layout: str = "auto"
    """folder, msd, nnunet, bids, nnssl, csv or dicom; auto looks at the files."""
    workers: int | None = None
    """Processes; all usable CPUs by default."""
    dask: str | None = None
    """Address of a Dask scheduler whose workers share the file system, instead of processes."""
    dry_run: bool = False
    """List what would be converted and skipped, with size and time, and what of DST would be left;
    write nothing. Its exit code is that of the run, as far as headers and DST tell."""
    rerun: Annotated[Rerun, tyro.conf.arg(name="")] = field(default_factory=Rerun)
    telling: Annotated[SourceOptions, tyro.conf.arg(name="")] = field(default_factory=SourceOptions)
    options: Annotated[Conversion, tyro.conf.arg(name="")] = field(default_factory=Conversion)

    def __post_init__(self) -> None:
        refuse_outside(self, "workers", 1, MOST_WORKERS)
        from mim3d.dataio.sources.discover import LAYOUTS

        if self.layout not in LAYOUTS:
            raise Mim3dError(f"layout {self.layout!r}: one of {', '.join(LAYOUTS)}")
        self.options.refuse_doubled_values()


def main(words: list[str]) -> Outcome:
    """Find the sources, convert them (or tell what would happen), report what was lost."""
    args = arguments(words)
    if not args.destination.strip():
        raise Mim3dError("DST is empty; name a folder for the corpus")
    from mim3d.dataio.sources.discover import discover

    found = discover(args.source, args.layout, args.telling)
    if args.dry_run:
        from mim3d.dataio.convert.forecast import forecast, standing

        there = standing(found.sources, args.destination, args.options, args.workers, args.rerun)
        return show_forecast(forecast(there.jobs, args.options), there, args, found)
    from mim3d.dataio.convert.run import convert

    runner = {}
    if args.dask is not None:
        from mim3d.dataio.convert.dask_runner import dask_runner

        runner = {"runner": dask_runner(args.dask)}
    report = convert(
        found.sources,
        args.destination,
        args.options,
        workers=args.workers,
        skipped=found.skipped,
        rerun=args.rerun,
        **runner,
    )
    accepted = args.telling.accept_doubts
    return show_report(report, args.destination, found, args.options, accepted=accepted)


def arguments(words: list[str]) -> ConvertArgs:
    """The arguments in the words; where a shell has opened a glob, the error says how to keep it
    from that."""
    try:
        return parse(
            ConvertArgs,
            apart(words),
            "mim3d convert",
            "Convert NIfTI files into a verified, sharded Zarr corpus. Run it again to go on after "
            "an interruption or to add files; unchanged sources are skipped. The defaults change "
            "no voxel. Exit code 3 tells that sources were quarantined (mim3d/quarantine.jsonl).",
            aliases=ALIASES,
        )
    except UsageError as error:
        files = [word for word in words if is_image(word)]
        if len(files) > 1:
            hint = f"{len(files)} files are named; put a glob in quotes, as in 'data/*.nii.gz'"
            raise UsageError(f"{hint} ({error})") from error
        raise


def apart(words: list[str]) -> list[str]:
    """The words with the values of `--window=LOW,HIGH` and its like as words of their own."""
    found: list[str] = []
    for word in words:
        name, equals, value = word.partition("=")
        several = equals and name in OF_SEVERAL
        found += [name, *value.replace(",", " ").split()] if several else [word]
    return found


def show_report(
    report: "ConversionReport",
    destination: str,
    found: Discovery,
    options: Conversion,
    *,
    accepted: bool,
) -> Outcome:
    """Summary of a finished run; what is told otherwise than before is no warning if `accepted`."""
    console = Console(soft_wrap=True, highlight=False)
    rate = report.voxel_bytes / max(report.seconds, 1e-9) / 1e6
    console.print(
        f"{destination}: {report.n_volumes} volumes ({report.n_converted} converted now, "
        f"{report.n_unchanged} sources unchanged) in {report.seconds:.1f} s; "
        f"{report.bytes_in / 1e6:.1f} MB of files, {report.voxel_bytes / 1e6:.1f} MB of voxels, "
        f"{report.bytes_out / 1e6:.1f} MB stored, {rate:.0f} MB/s"
    )
    show_upkeep(console, report, destination)
    subjects = subjects_in(report.records)
    otherwise = report.told_otherwise
    notes = (*found.notes, *report.notes, *(otherwise if accepted else ()))
    show_subjects(console, subjects, (*notes, *conversion_warnings(report.records)))
    idle = idle_values(options, report.records)
    looked_at = () if accepted else (*otherwise, *idle)
    warnings = all_warnings(found, (*corpus_doubts(report.records), *looked_at))
    show_warnings(console, warnings)
    show_rejections(console, report.rejections, quarantine_place(destination))
    left = ("rejections", "records")
    figures = {name: getattr(report, name) for name in vars(report) if name not in left}
    figures |= {"layout": found.layout, "quarantine": by_code(report.rejections)}
    figures |= {"n_subjects": subjects.n_subjects, "warnings": warnings}
    return Outcome(figures, lost=report.n_quarantined + len(warnings))


def idle_values(options: Conversion, records: Sequence[VolumeRecord]) -> list[str]:
    """A line for each label that --label-values names and no volume has."""
    have = {label.name for record in records for label in record.labels}
    idle = sorted(options.labels_with_values - have)
    return [
        f"--label-values names label {name!r}, which no volume has; its labels are "
        f"{', '.join(sorted(have)) or 'none'}: name one of them {NEW}; else --accept-doubts"
        for name in idle
    ]


def show_upkeep(console: Console, report: "ConversionReport", destination: str) -> None:
    """What became of volumes that were there before."""
    if report.mended:
        console.print(f"{len(report.mended)} damaged volumes made anew:")
        show_some(console, report.mended)
    if report.changed:
        console.print(f"{len(report.changed)} files changed, their volumes were converted anew:")
        show_some(console, report.changed)
    if report.n_removed:
        whose = ", their sources are no more:" if report.pruned else ""
        console.print(f"{report.n_removed} volumes removed{whose}")
        show_some(console, report.pruned)
    show_unlisted(console, report.unlisted, destination)
    if report.gone:
        are = "source is no more, its volume is" if len(report.gone) == 1 else ""
        are = are or "sources are no more, their volumes are"
        kept = "kept (the same command with --prune removes them):"
        console.print(f"{len(report.gone)} {are} {kept}")
        show_some(console, report.gone)


def show_unlisted(console: Console, ids: Sequence[str], destination: str) -> None:
    """Volumes whose sources are there and were not given: left out of a table, or of elsewhere."""
    if ids:
        remedy = f"mim3d remove {destination} --volume {ids[0]}"
        console.print(
            f"{counted(len(ids), 'volume')} of sources that were not given now stay "
            f"({some(ids)}): `{remedy}` takes one out",
            markup=False,
        )


def show_standing(console: Console, there: "Standing", args: ConvertArgs) -> None:
    """What would become of volumes that are there and are of none of the sources."""
    if there.gone:
        would = "would be removed" if args.rerun.prune else "would be kept (--prune removes them)"
        n = counted(len(there.gone), "volume")
        console.print(f"{n} of sources that are no more {would}:", markup=False)
        show_some(console, there.gone)
    show_unlisted(console, there.unlisted, args.destination)


def show_some(console: Console, lines: Sequence[str]) -> None:
    """The first lines, and how many more there are."""
    for line in lines[:LISTED]:
        console.print(f"  {line}", markup=False)
    if len(lines) > LISTED:
        console.print(f"  ... and {len(lines) - LISTED} more")


def show_forecast(
    expected: "Forecast", there: "Standing", args: ConvertArgs, found: Discovery
) -> Outcome:
    """What a dry run found: the first sources as lines, all of them in the figures."""
    from mim3d.dataio.convert.forecast import records_after, volume_count
    from mim3d.dataio.convert.run import usable_cpus

    console = Console(soft_wrap=True, highlight=False)
    workers = args.workers or usable_cpus()
    console.print(f"{found.layout}: what would be converted", markup=False)
    rows = [row_of(item) for item in expected.expected]
    for line in aligned([HEADINGS, *rows[:LISTED]]):
        console.print(line, markup=False)
    if len(rows) > LISTED:
        console.print(f"... and {len(rows) - LISTED} more (--json FILE lists all)")
    n_volumes = volume_count(expected.expected, args.options)
    seconds = expected.seconds(workers)
    how = "measured on a few of them" if expected.is_measured else "typical: only headers were read"
    console.print(
        f"{len(rows)} sources, {n_volumes} volumes, "
        f"{expected.voxel_bytes / 1e6:.1f} MB of voxels -> about "
        f"{expected.stored_bytes / 1e6:.1f} MB in {expected.n_files(args.options)} files and "
        f"folders, about {seconds:.1f} s with {workers} workers "
        f"({how}); nothing was written"
    )
    show_standing(console, there, args)
    records = records_after(there, expected.expected, args.options)
    subjects, accepted = subjects_in(records), args.telling.accept_doubts
    of_before, otherwise = there.in_words(expected.expected)
    notes = (*found.notes, *of_before, *(otherwise if accepted else ()))
    show_subjects(console, subjects, (*notes, *conversion_warnings(records)))
    looked_at = () if accepted else (*otherwise, *idle_values(args.options, records))
    warnings = all_warnings(found, (*corpus_doubts(records), *looked_at))
    show_warnings(console, warnings)
    lost = there.run.writer.lost_after({record.id: record for record in records})
    rejections = sorted({*found.skipped, *there.rejections, *expected.rejections, *lost})
    show_rejections(console, rejections, "")
    figures = {
        "layout": found.layout,
        "sources": len(rows),
        "volumes": n_volumes,
        "voxel_bytes": expected.voxel_bytes,
        "estimated_bytes": expected.stored_bytes,
        "estimated_files": expected.n_files(args.options),
        "estimated_seconds": seconds,
        "found": [facts_of(item) for item in expected.expected],
        "skipped": [vars(rejection) for rejection in rejections],
        "gone": there.gone,
        "unlisted": there.unlisted,
        "subjects": subjects.n_subjects,
        "warnings": warnings,
    }
    # As the run would end: what is left out counts as much before as after.
    return Outcome(figures, lost=len(rejections) + len(warnings))


def all_warnings(found: Discovery, others: Sequence[str]) -> list[str]:
    """Every warning, once."""
    return list(dict.fromkeys((*found.warnings, *others)))


def show_subjects(console: Console, subjects: Grouping, notes: Sequence[str]) -> None:
    """N volumes of M subjects, how names were grouped, and what is worth knowing."""
    console.print(f"{subjects.line}:", markup=False)
    for example in subjects.examples:
        console.print(f"  {example}", markup=False)
    for note in notes:
        console.print(f"note: {note}", markup=False)


HEADINGS = ("id", "x y z", "frames", "dtype", "axes", "Mvoxels", "labels", "subject")


def row_of(item: "Expected") -> tuple[str, ...]:
    """One source's cells, as HEADINGS has them."""
    from mim3d.dataio.convert.forecast import megavoxels

    source: Source = item.source
    return (
        *(
            item.job.id,
            " ".join(map(str, item.shape)),
            str(item.n_frames),
            item.dtype,
            item.orientation,
        ),
        *(f"{megavoxels(item):.1f}", " ".join(source.labels) or "-", source.subject),
    )


def facts_of(item: "Expected") -> dict[str, object]:
    """One source as the figures have it."""
    source = item.source
    return {
        **{"id": item.job.id, "images": source.images, "labels": dict(source.labels)},
        **{"subject": source.subject, "group": source.group, "split": source.split},
        **{"shape": item.shape, "frames": item.n_frames, "dtype": item.dtype},
        **{"axes": item.orientation, "voxel_bytes": item.voxel_bytes},
    }


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines with their columns below each other, whole whatever the terminal's width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def show_warnings(console: Console, warnings: Sequence[str]) -> None:
    """What was taken for something that it may not be."""
    for warning in warnings:
        console.print("[bold yellow]warning[/bold yellow]:", end=" ")
        console.print(warning, markup=False)


def show_rejections(console: Console, rejections: Sequence[Rejection], file: str) -> None:
    """The first rejections in words, and how many of each kind."""
    if not rejections:
        return
    where = f", all in {file}" if file else ""
    codes = ", ".join(f"{n} {code}" for code, n in by_code(rejections).items())
    console.print(f"[bold]{len(rejections)} left out[/bold] ({codes}){where}:")
    for rejection in rejections[:LISTED]:
        console.print(f"  {rejection.path}: {rejection.detail}", markup=False)
    if len(rejections) > LISTED:
        console.print(f"  ... and {len(rejections) - LISTED} more")


def by_code(rejections: Sequence[Rejection]) -> dict[str, int]:
    """Rejections by code, most frequent first."""
    return dict(Counter(rejection.code for rejection in rejections).most_common())
