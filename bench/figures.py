"""Tables of README and docs, written from the JSON under `results/`.

    python -m mim3d.bench.figures          # write them again
    python -m mim3d.bench.figures --check  # or only say where text and JSON differ

A table stands between `<!-- figures NAME -->` and `<!-- end figures -->`; nobody edits it by hand.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from mim3d.bench.reports import figures

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"
CONVERT = "2026-11-25-convert-cpu/convert.json"
REAL_CONVERT = {
    "real, 2 to 17 MB": "2026-11-30-convert-real/whole-volumes.json",
    "and 23 CT of 1 MB": "2026-11-30-convert-real/with-small-ct.json",
}
PEERS = {
    "script": "a nibabel + zarr-python script",
    "zarrs": "the same through zarrs",
    "tensorstore": "through tensorstore",
    "nifti-zarr": "nifti-zarr",
    "blosc2-zstd8": "blosc2 zstd-8, as nnU-Net stores",
}
LOADER = {
    "generated": "2026-11-30-loader-cpu/loader.json",
    "real": "2026-11-26-loader-cpu/loader-real.json",
}
SPATIAL = "2026-11-30-spatial-cpu/spatial-160.json"
VIEWS = {side: f"2026-11-30-views-cpu/views-{side}.json" for side in (32, 96)}
STUDY = "2026-11-25-hippocampus-stronger-control"
TEN_SEEDS = f"{STUDY}/ten-seeds"
FEW_LABELS = "2026-11-26-hippocampus-few-labels"
PER_SEED = {
    "hippocampi of 170 people": "2026-12-01-hippocampus-by-person",
    "head-and-neck CT of 202 people": "2026-11-30-head-neck-ct",
}
BLOCK = re.compile(r"(<!-- figures (\S+) -->\n).*?(<!-- end figures -->)", re.DOTALL)


def convert_table() -> str:
    """Conversion on a CPU: CPU time of others over ours, on generated and on real volumes."""
    found = [read(file)["convert"] for file in (CONVERT, *REAL_CONVERT.values())]
    rows = [
        (f"{label} over mim3d", *(over(one, job) for one in found)) for job, label in PEERS.items()
    ]
    rows += [
        (label, *(cell(one) for one in found))
        for label, cell in (
            ("mim3d over inflating and encoding alone", over_floor),
            ("the same, where the yardstick encodes by the compiled loop too", over_compiled),
            ("peak memory over the largest volume", peak),
        )
    ]
    generated = found[0]
    ratios, table = generated["ratios"], generated["chunk_table"]
    none = ["–"] * len(REAL_CONVERT)
    rows += [
        ("two workers over one", times(ratios["two_workers_speed"]), *none),
        (f"opening a corpus of {table['n']:,} volumes", f"{table['open_s']:.2f} s", *none),
        ("memory it takes, per rank", f"{table['private_mb']:.1f} MB", *none),
    ]
    return markdown(["CPU time, `.nii.gz` to lz4 chunks of 16³", "generated", *REAL_CONVERT], rows)


def over(figures: Any, job: str) -> str:
    """CPU time of another converter over ours; a dash where it was not run."""
    jobs = figures["jobs"]
    return times(jobs[job]["cpu_s"] / jobs["mim3d"]["cpu_s"]) if job in jobs else "–"


def over_floor(figures: Any) -> str:
    """Ours over what cannot be left out."""
    return times(figures["ratios"]["mim3d_over_floor_cpu"])


def over_compiled(figures: Any) -> str:
    """The same with the compiled encoder in the yardstick."""
    floor, ours = figures["floor_s"], figures["jobs"]["mim3d"]["cpu_s"]
    return times(ours / (floor["libdeflate"] + floor["encode_compiled"]))


def peak(figures: Any) -> str:
    """Memory at its height over that of the largest volume."""
    return times(figures["ratios"]["peak_over_largest_volume"])


def loader_table() -> str:
    """Crops per CPU-second against what one would use instead."""
    loaders = {kind: read(file)["loader"] for kind, file in LOADER.items()}
    rates = [
        ("crops read", "mim3d reader, snap 16"),
        ("crops read in bfloat16", "mim3d reader, bf16"),
        ("crops through the loader", "mim3d loader"),
        ("crops through the loader, with z-score and flips", "mim3d loader, normalised + flips"),
    ]
    over = [
        ("over blosc2 zstd-8, as nnU-Net and nnssl store", "blosc2 zstd-8 (nnU-Net, nnssl)"),
        ("over blosc2 lz4", "blosc2 lz4"),
        ("over tensorstore on the same corpus", "tensorstore, same corpus"),
        ("over MONAI's CacheDataset", "MONAI CacheDataset"),
        ("over an uncompressed memory map", "npy memmap"),
    ]
    rows = [
        (name, *(f"{loaders[kind]['rates'][key]['per_cpu_s']:.0f}" for kind in LOADER))
        for name, key in rates
    ]
    rows += [
        (f"reader {name}", *(times(loaders[kind]["reader_over"][key]) for kind in LOADER))
        for name, key in over
    ]
    return markdown(["96³ crops per CPU-second", "generated volumes", "real volumes"], rows)


ARMS = {
    "SimMIM": "simmim",
    "MAE": "mae",
    "SimMIM, SimCLR's FLOPs": "simmim-flops",
    "MAE, SimCLR's FLOPs": "mae-flops",
}


def views_table() -> str:
    """Pairs of views a CPU-second, and how many times the peers'."""
    found = {side: read(file)["views"] for side, file in VIEWS.items()}
    rows = [("pairs", *(f"{median(one['per_cpu_s']['ours']):.0f}" for one in found.values()))]
    for name, label in (
        ("DALI on a CPU", "DALI's graph on a CPU"),
        ("MONAI", "MONAI's transforms"),
    ):
        ratios = (one["ratios"][f"ours over {name}"]["value"] for one in found.values())
        rows.append((f"ours over {label}", *map(times, ratios)))
    return markdown(["pairs of augmented views per CPU-second", "32³", "96³"], rows)


def spatial_table() -> str:
    """Turned crops a CPU-second, and how many times the others'."""
    found = read(SPATIAL)["spatial"]
    rows = []
    for name, rates in found["per_cpu_s"].items():
        over = found["ratios"].get(f"mim3d over {name}")
        rows.append((name, f"{median(rates):.1f}", times(over["value"]) if over else "1×"))
    return markdown([f"crops of {found['crop']}³", "per CPU-second", "mim3d over it"], rows)


def study_table() -> str:
    """Steps to 90 % of scratch's best Dice: SimCLR's over the masked arms'."""
    columns = {
        "UNETR, 10 seeds": (TEN_SEEDS, "UNETR decoder, all labels"),
        "linear decoder, 5 seeds": (STUDY, "linear decoder, all labels"),
        "UNETR, 8 labelled volumes": (FEW_LABELS, "UNETR decoder, 8 labelled subjects"),
        "linear, 8 labelled volumes": (FEW_LABELS, "linear decoder, 8 labelled subjects"),
    }
    groups = [study(folder)["groups"][group] for folder, group in columns.values()]
    rows = [
        (name, *(ratio(group["speedup"].get(f"{arm}/simclr")) for group in groups))
        for name, arm in ARMS.items()
    ]
    return markdown(["times as fast as SimCLR (95 % interval)", *columns], rows)


def per_seed_table() -> str:
    """Studies with a pretraining for each seed, under UNETR with all labels: steps to 90 %,
    SimCLR's over the masked arms', and final Dice."""
    arms = {"SimCLR": "simclr", "MAE": "mae", "SimMIM": "simmim"}
    rows = []
    for name, folder in PER_SEED.items():
        group = study(folder)["groups"]["UNETR decoder, all labels"]
        ratios = [group["speedup"][f"{arms[title]}/simclr"] for title in ("MAE", "SimMIM")]
        finals = [group["final"][arm].values() for arm in ("scratch", *arms.values())]
        rows.append((name, *map(ratio, ratios), *map(mean, finals)))
    head = ["ten pretrainings an arm, UNETR, all labels", "MAE over SimCLR", "SimMIM over SimCLR"]
    return markdown([*head, "Dice: scratch", *arms], rows)


def dice_table() -> str:
    """Final Dice on test subjects, mean over seeds."""
    groups = study(STUDY)["groups"]
    arms = ["scratch", "simclr", "mae", "simmim", "mae-flops", "simmim-flops"]
    rows = []
    for title, group in groups.items():
        final = [group["final"].get(arm, {}).values() for arm in arms]
        rows.append((title.split(" decoder")[0], *(mean(scores) for scores in final)))
    names = ["scratch", "SimCLR", "MAE", "SimMIM", "MAE, equal FLOPs", "SimMIM, equal FLOPs"]
    return markdown(["decoder", *names], rows)


TABLES: dict[str, Callable[[], str]] = {
    "convert": convert_table,
    "loader": loader_table,
    "views": views_table,
    "spatial": spatial_table,
    "study": study_table,
    "per-seed": per_seed_table,
    "dice": dice_table,
}


@cache
def read(file: str) -> Any:
    """JSON of a file under `results/`."""
    return json.loads((RESULTS / file).read_text())


@cache
def study(folder: str) -> dict[str, Any]:
    """A kept study's numbers, from its rows."""
    with TemporaryDirectory() as out:
        return figures(RESULTS / folder, Path(out))


def times(value: float) -> str:
    """`18.1×`, `0.94×`."""
    return f"{value:.1f}×" if value >= 10 else f"{value:.2f}×"


def ratio(row: dict[str, Any] | None) -> str:
    """A ratio at 90 % with its interval; a bound is told as one, with the end that it supports."""
    if row is None:
        return "–"
    at = row["0.9"]
    bound = {"exact": "", "at least": "at least ", "at most": "at most "}[at["bound"]]
    low, high = at["low"], at["high"]
    if low is None:
        return f"{bound}{at['ratio']:.2f} (up to {high:.2f})"
    if high is None:
        return f"{bound}{at['ratio']:.2f} (from {low:.2f})"
    return f"{bound}{at['ratio']:.2f} ({low:.2f} to {high:.2f})"


def mean(scores: Iterable[float]) -> str:
    """Mean over seeds, three digits."""
    found = list(scores)
    return f"{sum(found) / len(found):.3f}" if found else "–"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table: words to the left, numbers to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def rewritten(text: str) -> str:
    """The text with every table of figures as the JSON has it now."""
    return BLOCK.sub(lambda found: found[1] + TABLES[found[2]]() + found[3], text)


def pages() -> list[Path]:
    """Texts that may hold tables of figures."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def main(words: Sequence[str] | None = None) -> int:
    """Write the tables again, or with --check tell which page is behind (exit code 1)."""
    parser = argparse.ArgumentParser(prog="python -m mim3d.bench.figures", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 where text differs")
    check = parser.parse_args(words).check
    behind = [page for page in pages() if rewritten(page.read_text()) != page.read_text()]
    for page in behind:
        print(f"{page.relative_to(ROOT)}: {'differs from' if check else 'written from'} the JSON")
        if not check:
            page.write_text(rewritten(page.read_text()))
    return int(check and bool(behind))


if __name__ == "__main__":
    sys.exit(main())
