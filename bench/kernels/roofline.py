"""The roofline of `mim3d bench kernels`: bytes per second against bytes, under two roofs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np

mpl.use("Agg")
COLOURS = {"mim3d": "#0b6e4f", "compiled": "#c77700", "eager": "#8a8f98"}
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "h", "p", "d", "8", "H")


def draw_roofline(
    rows: Sequence[Mapping[str, Any]], copy_bytes_per_s: float, launch_s: float, title: str,
    file: Path,
) -> None:  # fmt: skip
    """Write a PNG: each point is one variant of one operation.

    x: bytes the operation cannot avoid; y: those bytes over the time it took. The flat roof is the
    copy bandwidth measured in the same run, the sloped one what a single launch costs.
    """
    figure, axes = plt.subplots(figsize=(10, 6), layout="constrained")
    sizes = [row["needed_bytes"] for row in rows]
    span = np.geomspace(min(sizes) / 2, max(sizes) * 2, 200)
    roof = span / (launch_s + span / copy_bytes_per_s)
    axes.plot(span, roof / 1e9, color="black", lw=1.5)
    axes.fill_between(span, roof / 1e9, roof.max() * 3 / 1e9, color="black", alpha=0.05, lw=0)
    note = f"copy {copy_bytes_per_s / 1e9:,.0f} GB/s, launch {launch_s * 1e6:.1f} µs"
    axes.annotate(note, (span[-1], roof[-1] / 1e9), ha="right", va="bottom", fontsize=9)
    operations = list(dict.fromkeys(row["operation"] for row in rows))
    for row in rows:
        axes.scatter(
            row["needed_bytes"], row["needed_bytes"] / row["seconds"] / 1e9, s=46,
            color=COLOURS[family(row["variant"])], alpha=0.85, edgecolors="white",
            lw=0.6, zorder=3 + (family(row["variant"]) == "mim3d"),
            marker=MARKERS[operations.index(row["operation"]) % len(MARKERS)],
        )  # fmt: skip
    axes.set(
        xscale="log", yscale="log", xlabel="bytes that must move", title=title,
        ylabel="those bytes / time, GB/s",
    )  # fmt: skip
    axes.grid(True, which="major", alpha=0.25)
    handles = [
        plt.Line2D([], [], ls="", marker="o", color=colour, label=name)
        for name, colour in COLOURS.items()
    ] + [
        plt.Line2D([], [], ls="", marker=MARKERS[i % len(MARKERS)], color="black", label=name)
        for i, name in enumerate(operations)
    ]
    axes.legend(handles=handles, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=140)
    plt.close(figure)


def family(variant: str) -> str:
    """Colour group of a variant."""
    if variant.startswith("mim3d"):
        return "mim3d"
    return "compiled" if variant.startswith("compiled") else "eager"
