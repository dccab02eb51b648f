"""The study's report: one HTML file that needs nothing else, built from results alone."""

import base64
import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from mim3d.engine.ablation_charts import ablation_charts
from mim3d.engine.json_file import write_text
from mim3d.engine.report_charts import curves_chart, pretext_chart, ratios_chart, reaches_chart
from mim3d.engine.report_rates import rates_table
from mim3d.engine.report_tables import (
    Table,
    classes_table,
    ledger_table,
    overview_table,
    pretraining_table,
    reaches_table,
    speedup_table,
    throughput_table,
)
from mim3d.engine.speedup import CLAIM_PAIRS, MIN_PAIRS
from mim3d.engine.study_pictures import draw_segmentations, load_slices
from mim3d.engine.study_plots import Chart
from mim3d.engine.study_results import SCRATCH, Study
from mim3d.engine.study_summary import GroupSummary, summarise
from mim3d.engine.verdict import arm_name, gate_statements, headline, secondary_statements

REPORT, FIGURES = "report.html", "figures"


@dataclass(frozen=True)
class Picture:
    """A PNG inside the page."""

    title: str
    data: str
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """One group of cells: its charts, tables and segmentations."""

    title: str
    charts: tuple[Chart, ...]
    tables: tuple[Table, ...]
    pictures: tuple[Picture, ...]


def build_report(folder: Path) -> Path:
    """Write report.html and its PNGs from the results in `folder`."""
    study = Study.load(folder)
    groups = summarise(study)
    page = render(study, groups, folder / FIGURES)
    report = folder / REPORT
    write_text(report, page)
    return report


def render(study: Study, groups: list[GroupSummary], figures: Path) -> str:
    """The page as text."""
    from jinja2 import Environment

    templates = files("mim3d.engine") / "templates"
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((templates / "report.html.j2").read_text("utf-8"))
    chart = pretext_chart(study.pretraining, figures)
    return template.render(
        css=(templates / "report.css").read_text("utf-8"),
        about=study.about,
        headline=headline(study, groups),
        gates=gate_statements(study),
        findings=secondary_statements(study, groups),
        facts=facts(study, groups),
        sections=[section(study, g, i, figures) for i, g in enumerate(shown_groups(groups))],
        ablations=ablation_charts(study, groups, figures),
        pretext=chart,
        pretraining=pretraining_table(study),
        reconstructions=reconstructions(study),
        overview=overview_table(study, groups),
        rates=rates_table(study),
        throughput=throughput_table(study, groups),
        limits=limits(study, groups),
        configuration=json.dumps(study.about.get("config", {}), indent=1),
        machine=study.about.get("machine", {}),
        splits=study.about.get("splits", {}),
        notes=study.about.get("notes", []),
    )


def shown_groups(groups: list[GroupSummary]) -> list[GroupSummary]:
    """Groups with a section of their own: variants of an ablation share its charts instead."""
    whole = [group for group in groups if not group.group.variant]
    return whole or groups[:1]


def facts(study: Study, groups: list[GroupSummary]) -> list[tuple[str, str]]:
    """The strip below the headline: what was run, in numbers."""
    rows = study.scored
    seeds = sorted({row["seed"] for row in rows})
    arms = list(dict.fromkeys(arm for group in groups for arm in study.arms(group.group)))
    crops = [p["crops"] for p in study.pretraining if p["crops"]]
    last = max(row["step"] for row in rows)
    found = [
        ("corpus", study.about.get("corpus", "")),
        ("arms", ", ".join(map(arm_name, arms))),
        ("seeds", ", ".join(map(str, seeds))),
        (
            "fine-tuning",
            f"{last:,} steps × {study.about['batch']} crops",
        ),
    ]
    if crops:
        shown = f"{min(crops):,}" if min(crops) == max(crops) else f"{min(crops):,}–{max(crops):,}"
        found.append(("pretraining", f"{shown} crops per arm"))
    found.append(("machine", str(study.about.get("machine_line", ""))))
    return found


def section(study: Study, group: GroupSummary, index: int, figures: Path) -> Section:
    """Everything about one group."""
    charts = [curves_chart(study, group, index, figures)]
    charts.append(reaches_chart(study, group, index, figures))
    ratios = ratios_chart(study, group, index, figures)
    tables = [reaches_table(group)]
    if group.comparisons:
        tables += [speedup_table(group), ledger_table(study, group)]
    by_class = classes_table(study, group)
    return Section(
        group.group.title,
        tuple(charts) + ((ratios,) if ratios else ()),
        (*tables, by_class) if by_class else tuple(tables),
        tuple(segmentations(study, group, index, figures)),
    )


def segmentations(study: Study, group: GroupSummary, index: int, figures: Path) -> list[Picture]:
    """The first seed's predictions of every arm beside the truth."""
    arms = {}
    for arm in group.arms:
        rows = study.select(group.group, arm.arm, "validation")
        paths = [study.folder / row["pictures"] for row in rows if row.get("pictures")]
        if paths and paths[0].exists():
            arms[arm.arm] = load_slices(paths[0])
    if not arms:
        return []
    file = figures / f"segmentations-{index}.png"
    draw_segmentations(file, arms, {arm: arm_name(arm) for arm in arms})
    return [embedded(file, "Validation cases, first seed, last step")]


def reconstructions(study: Study) -> list[Picture]:
    """What each masked model painted, one picture per arm."""
    found = []
    for pretraining in study.pretraining:
        name = pretraining.get("picture")
        if name and (study.folder / name).exists() and pretraining.get("seed") in (None, 0):
            title = " ".join(
                filter(None, [arm_name(pretraining["arm"]), pretraining.get("variant")])
            )
            caption = "Crops of the pretraining set: input, masked input, reconstruction."
            if pretraining.get("normalised"):
                caption += (
                    " The model predicts patches of zero mean and unit deviation; each is given "
                    "its true mean and deviation back, as in MAE's own pictures."
                )
            found.append(embedded(study.folder / name, title, caption))
    return found


def embedded(file: Path, title: str, caption: str = "") -> Picture:
    """A PNG as a data URI."""
    data = base64.b64encode(file.read_bytes()).decode()
    return Picture(title, f"data:image/png;base64,{data}", caption)


def limits(study: Study, groups: list[GroupSummary]) -> list[str]:
    """What this study cannot show, said before somebody else does."""
    seeds = len({row["seed"] for row in study.scored})
    found = []
    if study.about.get("synthetic"):
        found.append("The images are generated, not acquired: nothing here is about anatomy.")
    if seeds < MIN_PAIRS:
        found.append(
            f"{seeds} seed{'s' if seeds > 1 else ''}: no interval is supported below {MIN_PAIRS}."
        )
    elif seeds < CLAIM_PAIRS:
        found.append(
            f"{seeds} seeds: bootstrap intervals of fewer than {CLAIM_PAIRS} pairs are too narrow."
        )
    if all(p.get("seed") is None for p in study.pretraining) and study.pretraining:
        found.append(
            "Each arm was pretrained once: seeds vary the fine-tuning, not the pretraining."
        )
    unknown = [arm_name(p["arm"]) for p in study.pretraining if not p["crops"]]
    if unknown:
        found.append(
            f"What the pretraining of {', '.join(unknown)} cost and learned is not known: its "
            "ledgers count fine-tuning alone."
        )
    if not any(arm.arm == SCRATCH for group in groups for arm in group.arms):
        found.append("No scratch arm was run: targets are shares of the first arm's best score.")
    found.append(
        "Only the headline comparison at the primary target was fixed beforehand; all other "
        "ratios and p values are exploratory and not corrected for their number."
    )
    found.append("One corpus, one encoder size: other data and models may answer otherwise.")
    return found


def figures_of(report: Path) -> dict[str, Any]:
    """The report's main numbers, for --json."""
    study = Study.load(report.parent)
    groups = summarise(study)
    return {
        "report": str(report),
        "headline": headline(study, groups).whole,
        "groups": {g.group.title: group_figures(g) for g in groups},
        "pretraining": [
            {key: p.get(key) for key in ("arm", "variant", "loss", "floor", "trained", "crops")}
            for p in study.pretraining
        ],
    }


def group_figures(group: GroupSummary) -> dict[str, Any]:
    """Ratios and final scores of one group."""
    return {
        "targets": {str(target.share): target.score for target in group.targets},
        "final": {arm.arm: dict(arm.final) for arm in group.arms},
        "speedup": {
            f"{c.first}/{c.second}": {
                str(share): {
                    "ratio": found.ratio,
                    "bound": found.bound,
                    "low": found.low,
                    "high": found.high,
                    "pairs": found.pairs,
                    "complete": found.complete,
                }
                for share, found in c.at.items()
            }
            for c in group.comparisons
        },
    }
