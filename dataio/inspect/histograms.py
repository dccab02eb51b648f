"""One figure of a corpus's shapes, spacings, intensities, classes and sizes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mim3d.dataio.corpus.manifest import VolumeRecord
from mim3d.dataio.extras import extra
from mim3d.dataio.inspect.summary import class_shares, raw_bytes, stored_bytes

with extra():
    from matplotlib.axes import Axes
    from matplotlib.axis import XAxis, YAxis
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

# Okabe and Ito's palette: told apart by every kind of colour vision.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
AXIS_STYLE = (("z", COLOURS[0], "-"), ("y", COLOURS[1], "--"), ("x", COLOURS[2], ":"))
MOST_CLASSES = 12


def save_histograms(records: Sequence[VolumeRecord], file: Path) -> None:
    """Write the figure as PNG."""
    figure = Figure(figsize=(12.5, 7.0), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3)
    draw_distribution(axes[0, 0], np.array([r.shape for r in records]), "shape", "voxels")
    draw_distribution(axes[0, 1], np.array([r.spacing_mm for r in records]), "spacing", "mm")
    extents = np.array([np.multiply(r.shape, r.spacing_mm) for r in records])
    draw_distribution(axes[0, 2], extents, "field of view", "mm")
    draw_intensities(axes[1, 0], records)
    draw_classes(axes[1, 1], records)
    draw_sizes(axes[1, 2], records)
    figure.suptitle(f"{len(records)} volumes", x=0.01, ha="left", fontsize=11)
    figure.savefig(file)


def plain(axis: Axes, title: str, xlabel: str, ylabel: str) -> None:
    """Titles and only the lines that carry data."""
    axis.set_title(title, fontsize=10, loc="left", fontweight="bold")
    axis.set_xlabel(xlabel, fontsize=9)
    axis.set_ylabel(ylabel, fontsize=9)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def words_only(axis: Axes, text: str) -> None:
    """A panel that has nothing to draw says so, without axes."""
    axis.text(0.5, 0.5, text, ha="center", va="center", transform=axis.transAxes)
    axis.set_axis_off()


def readable_log(axis: XAxis | YAxis) -> None:
    """Ticks like 0.2, 0.5, 1, 2 of what is drawn: powers of ten alone leave short axes without a
    number, and long ones have no room for more."""
    low, high = axis.get_view_interval()
    long = high > 300 * max(low, 1e-30)
    axis.set_major_locator(LogLocator(subs=(1.0,) if long else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def draw_distribution(axis: Axes, values: np.ndarray, title: str, unit: str) -> None:
    """Three outlines, z y x, on common bins; one value gets a bar of its own."""
    plain(axis, title, unit, "volumes")
    low, high = float(values.min()), float(values.max())
    if high - low < 1e-4 * abs(high):
        text = f"all volumes, all axes:\n{high:.4g} {unit}"
        words_only(axis, text)
        return
    pad = 0.02 * (high - low)
    bins = np.linspace(max(low - pad, 0.0), high + pad, 31)  # none of these is negative
    for column, (name, colour, style) in enumerate(AXIS_STYLE):
        axis.hist(
            values[:, column],
            bins=bins.tolist(),
            histtype="step",
            linewidth=1.8,
            linestyle=style,
            color=colour,
            label=name,
        )
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(fontsize=8, frameon=False, title="axis", title_fontsize=8)


def draw_intensities(axis: Axes, records: Sequence[VolumeRecord]) -> None:
    """Each volume's 0.5 to 99.5 % range and foreground mean, volumes sorted by their mean."""
    ordered = sorted(records, key=lambda r: r.foreground.mean)
    low = np.array([r.intensity.p005 for r in ordered])
    high = np.array([r.intensity.p995 for r in ordered])
    mean = np.array([r.foreground.mean for r in ordered])
    place = np.arange(len(ordered))
    axis.vlines(place, low, high, color=COLOURS[4], linewidth=max(0.4, min(6, 220 / len(ordered))))
    axis.plot(place, mean, ".", color="black", markersize=3, label="foreground mean")
    span = max(float(np.abs([low, high]).max()), 1e-9)
    usual = max(float(np.median(np.abs(mean))), 1e-9)
    if span > 50 * usual:
        # A power of ten, or matplotlib would put ticks of lower powers upon each other around 0.
        axis.set_yscale("symlog", linthresh=10.0 ** np.ceil(np.log10(usual)), linscale=1.5)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(fontsize=8, frameon=False, loc="upper left")
    title = "intensity range of each volume, 0.5 to 99.5 %"
    plain(axis, title, "volumes, sorted by foreground mean", "real value")


def draw_classes(axis: Axes, records: Sequence[VolumeRecord]) -> None:
    """Volume of each class in millilitres, one dot per volume, the median as a bar."""
    shares = class_shares(records)
    plain(axis, "labelled classes", "", "millilitres")
    if not shares:
        words_only(axis, "no labels")
        return
    shown = shares[:MOST_CLASSES]
    rng = np.random.default_rng(0)
    for place, share in enumerate(shown):
        millilitres = np.array(
            [
                n * float(np.prod(r.spacing_mm)) / 1000.0
                for r in records
                for label in r.labels
                if label.name == share.label and (n := label.classes.get(share.cls, 0))
            ]
        )
        sideways = place + rng.uniform(-0.22, 0.22, len(millilitres))
        axis.plot(sideways, millilitres, ".", color=COLOURS[place % 7], markersize=3, alpha=0.6)
        axis.hlines(np.median(millilitres), place - 0.3, place + 0.3, color="black", linewidth=1.6)
    names = {share.label for share in shown}
    ticks = [str(s.cls) if len(names) == 1 else f"{s.label} {s.cls}" for s in shown]
    axis.set_xticks(range(len(shown)), ticks, rotation=0 if len(shown) <= 6 else 60)
    axis.set_yscale("log")
    readable_log(axis.yaxis)
    more = f" (first {len(shown)} of {len(shares)})" if len(shares) > len(shown) else ""
    axis.set_xlabel(f"class of {', '.join(sorted(names)[:3])}{more}; bar: median", fontsize=9)


def draw_sizes(axis: Axes, records: Sequence[VolumeRecord]) -> None:
    """How many times smaller than raw each volume is stored, against its raw size."""
    raw = np.array([raw_bytes(r) for r in records], float)
    ratio = raw / np.array([max(stored_bytes(r), 1) for r in records], float)
    dtypes = sorted({r.dtype for r in records})
    for number, dtype in enumerate(dtypes):
        of = np.array([r.dtype == dtype for r in records])
        axis.plot(
            raw[of] / 2**20,
            ratio[of],
            "osD^v<>"[number % 7],
            color=COLOURS[number % 7],
            markersize=4,
            alpha=0.6,
            label=dtype,
            linestyle="none",
        )
    axis.set_xscale("log")
    readable_log(axis.xaxis)
    axis.axhline(1.0, color="grey", linewidth=0.8)
    axis.legend(fontsize=8, frameon=False)
    plain(axis, "compression", "raw MiB", "times smaller than raw")
