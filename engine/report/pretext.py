"""Pretraining: loss curves, what each run saw and learned, and what masked models painted."""

from collections.abc import Sequence
from dataclasses import replace

from mim3d.engine.analysis.results import TOLERATED, Study
from mim3d.engine.analysis.words import arm_name, number, on_encoder, pretrained_arm
from mim3d.engine.report.ablation_curves import pretext_charts
from mim3d.engine.report.palette import Palette
from mim3d.engine.report.pictures import reconstructions
from mim3d.engine.report.plots import NARROW, Chart, Drawing, Plotter, arm_dash, style_axes
from mim3d.engine.report.section import Block, Charts, Content, Section, Table
from mim3d.engine.study.config import Row

HALF = (5.2, 3.1)


def pretext_sections(content: Content) -> list[Section]:
    """The pretrainings' section, where there are any."""
    study = content.study
    table = pretraining_table(study)
    if table is None:
        return []
    charts = pretext_figures(content)
    blocks: list[Block] = [Charts(charts, paired=content.ablation is None)] if charts else []
    painted = (
        replace(picture, title=f"Reconstructions: {picture.title}", strip=bool(picture.data))
        for picture in reconstructions(study, content.plotter.folder)
    )
    return [Section("Pretraining", (*blocks, table, *painted))]


def pretext_figures(content: Content) -> tuple[Chart, ...]:
    """Curves of the pretext losses: small multiples where settings have their own."""
    study, ablation, plotter = content.study, content.ablation, content.plotter
    if ablation and (multiples := pretext_charts(study, ablation, plotter)):
        return tuple(multiples)
    encoders = dict.fromkeys(p.get("encoder", "") for p in study.pretraining)
    charts = (pretext_chart(study.pretraining, encoder, plotter) for encoder in encoders)
    return tuple(chart for chart in charts if chart is not None)


def pretext_chart(pretraining: Sequence[Row], encoder: str, plotter: Plotter) -> Chart | None:
    """Pretext losses on an encoder as shares of what knowing nothing gives, against crops seen."""
    own = [p for p in pretraining if p.get("encoder", "") == encoder]
    shown = [p for p in own if p.get("curve") and p.get("floor")]
    if not shown:
        return None

    def draw(figure, palette: Palette) -> None:  # noqa: ANN001
        axes = figure.subplots()
        style_axes(axes, palette, "crops seen", "pretext loss / trivial predictor")
        axes.axhline(1.0, color=palette["ink"], linewidth=0.9)
        named: set[str] = set()
        for entry in shown:
            arm = entry["arm"]
            crops = [step * entry["batch"] for step, _ in entry["curve"]]
            shares = [loss / entry["floor"] for _, loss in entry["curve"]]
            label = None if arm in named else arm_name(arm)
            named.add(arm)
            colour, dash = palette.arm(arm), arm_dash(arm)
            axes.plot(crops, shares, dash, color=colour, linewidth=1.6, label=label)
        axes.margins(x=0)
        axes.legend(loc="upper right", frameon=False, fontsize=8.5, labelcolor=palette["ink"])

    alt = f"Pretext loss{on_encoder(encoder)} over that of a trivial predictor, by crops seen"
    return plotter.chart(
        f"pretext-{encoder}" if encoder else "pretext", alt, HALF, draw, Drawing(NARROW, draw)
    )


def pretraining_table(study: Study) -> Table | None:
    """What each pretraining saw, cost and came to."""
    if not study.pretraining:
        return None
    header = (
        "arm",
        "crops",
        "steps × batch",
        "loss",
        "knowing nothing",
        "ratio",
        "GFLOP/crop",
        "PFLOP",
        "seconds",
        "learned",
    )
    rows = []
    for p in study.pretraining:
        name = pretraining_name(p)
        if p.get("seed") is not None:
            name += f", seed {p['seed']}"
        loss, baseline = p.get("loss"), p.get("floor")
        rows.append(
            (
                name,
                f"{p['crops']:,}" if p["crops"] else "not known",
                f"{p['steps']:,} × {p['batch']}" if p["crops"] else "–",
                number(loss, 3),
                number(baseline, 3),
                number(None if not loss or not baseline else loss / baseline, 2),
                number(p["flops"] / p["crops"] / 1e9 if p["crops"] else None, 2),
                number(p["flops"] / 1e15 if p["crops"] else None, 3),
                number(p["seconds"] if p["crops"] else None, 0),
                "not known" if not p["crops"] else "yes" if p["trained"] else "no",
            )
        )
    note = (
        "Knowing nothing: each hidden patch's mean for masked methods, ln(2b − 1) for NT-Xent. An "
        "arm has learned where its loss over the last fifth is below 0.95 of that, and is compared "
        f"unless more than {100 * TOLERATED:g} % of the pretrainings of its scored seeds did not."
    )
    return Table("What each pretraining saw and learned", header, tuple(rows), note)


def pretraining_name(pretraining: Row) -> str:
    """Arm, encoder and variant in words."""
    variant = str(pretraining.get("variant") or "").replace("_", " ")
    return " ".join(filter(None, [pretrained_arm(pretraining), variant]))
