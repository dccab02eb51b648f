"""`mim3d convert SRC DST`: NIfTI files to a verified corpus."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from mim3d.dataio.conversion import Conversion
from mim3d.dataio.convert import ConversionReport, convert, usable_cpus
from mim3d.dataio.discover import discover
from mim3d.dataio.forecast import Forecast, forecast, megavoxels, volume_count
from mim3d.dataio.quarantine import Rejection
from mim3d.engine.outcome import Outcome

LISTED = 20
ALIASES = {"--spacing": "--spacing-mm", "--orient": "--orientation"}


@dataclass(frozen=True)
class ConvertArgs:
    """Arguments of the command."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")]
    """Folder, glob, dataset.json, datalist, CSV or s3://, gs://, http:// address."""
    destination: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """Corpus folder or address; one that exists is continued."""
    layout: str = "auto"
    """folder, msd, nnunet, bids, nnssl or csv; auto looks at the files."""
    workers: int | None = None
    """Processes; all usable CPUs by default."""
    dask: str | None = None
    """Address of a Dask scheduler whose workers share the file system, instead of processes."""
    dry_run: bool = False
    """List what would be converted and skipped, with size and time; write nothing."""
    options: Annotated[Conversion, tyro.conf.arg(name="")] = field(default_factory=Conversion)


def main(words: list[str]) -> Outcome:
    """Find the sources, convert them (or tell what would happen), report what was lost."""
    args = tyro.cli(
        ConvertArgs,
        args=[ALIASES.get(word, word) for word in words],
        prog="mim3d convert",
        description="Convert NIfTI files into a verified, sharded Zarr corpus. Run it again to go "
        "on after an interruption or to add files; unchanged sources are skipped. The defaults "
        "change no voxel. Exit code 3 tells that sources were quarantined (quarantine.jsonl).",
    )
    found = discover(args.source, args.layout)
    skipped = tuple(Rejection(s.path, s.code, s.detail) for s in found.skipped)
    if args.dry_run:
        expected = forecast(found.sources, args.options)
        return show_forecast(expected, skipped, args, found.layout)
    runner = {}
    if args.dask is not None:
        from mim3d.dataio.dask_runner import dask_runner

        runner = {"runner": dask_runner(args.dask)}
    report = convert(
        found.sources,
        args.destination,
        args.options,
        workers=args.workers,
        skipped=skipped,
        **runner,
    )
    return show_report(report, args.destination, found.layout)


def show_report(report: ConversionReport, destination: str, layout: str) -> Outcome:
    """Summary of a finished run."""
    console = Console(soft_wrap=True, highlight=False)
    rate = report.voxel_bytes / max(report.seconds, 1e-9) / 1e6
    console.print(
        f"{destination}: {report.n_volumes} volumes ({report.n_converted} converted now, "
        f"{report.n_unchanged} sources unchanged) in {report.seconds:.1f} s; "
        f"{report.bytes_in / 1e6:.1f} MB of files, {report.voxel_bytes / 1e6:.1f} MB of voxels, "
        f"{report.bytes_out / 1e6:.1f} MB stored, {rate:.0f} MB/s"
    )
    show_rejections(console, report.rejections, f"{destination}/quarantine.jsonl")
    figures = {
        name: getattr(report, name) for name in report.__dataclass_fields__ if name != "rejections"
    }
    figures |= {"layout": layout, "quarantine": counted(report.rejections)}
    return Outcome(figures, lost=report.n_quarantined)


def show_forecast(
    expected: Forecast, skipped: Sequence[Rejection], args: ConvertArgs, layout: str
) -> Outcome:
    """Table of a dry run."""
    console = Console(soft_wrap=True, highlight=False)
    workers = args.workers or usable_cpus()
    table = Table(title=f"{layout}: what would be converted", title_justify="left")
    for name in ("id", "x y z", "frames", "dtype", "axes", "Mvoxels", "labels", "subject"):
        table.add_column(name)
    for item in expected.expected[:LISTED]:
        source = item.source
        table.add_row(
            source.id, " ".join(map(str, item.shape)), str(item.n_frames), item.dtype,
            item.orientation, f"{megavoxels(item):.1f}", " ".join(source.labels), source.subject,
        )  # fmt: skip
    console.print(table)
    if len(expected.expected) > LISTED:
        console.print(f"... and {len(expected.expected) - LISTED} more")
    n_volumes = volume_count(expected.expected, args.options)
    seconds = expected.seconds(workers)
    console.print(
        f"{len(expected.expected)} sources, {n_volumes} volumes, "
        f"{expected.voxel_bytes / 1e6:.1f} MB of voxels -> about "
        f"{expected.stored_bytes / 1e6:.1f} MB, about {seconds:.1f} s with {workers} workers "
        "(measured on a few of them); nothing was written"
    )
    rejections = (*skipped, *expected.rejections)
    show_rejections(console, rejections, "")
    figures = {
        "layout": layout,
        "sources": len(expected.expected),
        "volumes": n_volumes,
        "voxel_bytes": expected.voxel_bytes,
        "estimated_bytes": expected.stored_bytes,
        "estimated_seconds": seconds,
        "skipped": [vars(rejection) for rejection in rejections],
    }
    return Outcome(figures, lost=0)


def show_rejections(console: Console, rejections: Sequence[Rejection], file: str) -> None:
    """The first rejections in words, and how many of each kind."""
    if not rejections:
        return
    where = f", all in {file}" if file else ""
    told = ", ".join(f"{n} {code}" for code, n in counted(rejections).items())
    console.print(f"[bold]{len(rejections)} left out[/bold] ({told}){where}:")
    for rejection in rejections[:LISTED]:
        console.print(f"  {rejection.path}: {rejection.detail}", markup=False)
    if len(rejections) > LISTED:
        console.print(f"  ... and {len(rejections) - LISTED} more")


def counted(rejections: Sequence[Rejection]) -> dict[str, int]:
    """Rejections by code, most frequent first."""
    return dict(Counter(rejection.code for rejection in rejections).most_common())
