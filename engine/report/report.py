"""The study's report: one HTML file that needs nothing else, built from results alone."""

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from mim3d.engine.analysis.ablation import Ablation, ablation_statement, read_ablation
from mim3d.engine.analysis.results import Study
from mim3d.engine.analysis.speedup import CLAIM_PAIRS, MIN_PAIRS
from mim3d.engine.analysis.summary import GroupSummary, summarise
from mim3d.engine.analysis.verdict import (
    Statement,
    fixed_beforehand,
    headline,
    lost_statement,
    secondary_statements,
)
from mim3d.engine.analysis.words import arm_name
from mim3d.engine.errors import ConfigError
from mim3d.engine.report.ablation_charts import ablation_charts, scale_in_words
from mim3d.engine.report.ablation_curves import curves_charts, pretext_charts
from mim3d.engine.report.charts import curves_chart, pretext_chart, ratios_chart, reaches_chart
from mim3d.engine.report.facts import facts, flat, gates, leak_limits, leaks, subjects_in_words
from mim3d.engine.report.pictures import (
    Picture,
    ablation_segmentations,
    reconstructions,
    segmentations,
)
from mim3d.engine.report.plots import Chart, deal_colours
from mim3d.engine.report.rates import rates_table
from mim3d.engine.report.scores import final_table
from mim3d.engine.report.tables import (
    Table,
    ablation_table,
    ledger_table,
    overview_table,
    pretraining_table,
    reaches_table,
    speedup_table,
    throughput_table,
)
from mim3d.engine.runs.files import write_text
from mim3d.engine.study.config import SCRATCH

REPORT, FIGURES = "report.html", "figures"


@dataclass(frozen=True)
class Section:
    """One group of cells: its charts, tables and segmentations."""

    title: str
    charts: tuple[Chart, ...]
    tables: tuple[Table, ...]
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class AblationSection:
    """Charts, small multiples, table and pictures of an ablation, and how to read the colours."""

    title: str
    charts: tuple[Chart, ...]
    curves: tuple[Chart, ...]
    table: Table
    pictures: tuple[Picture, ...]
    note: str


def build_report(folder: Path) -> Path:
    """Write report.html and its PNGs from the results in `folder`."""
    study = Study.load(folder)
    if not study.scored:
        raise ConfigError(
            f"{folder} holds no scored run yet, only {len(study.rows)} evaluations of runs that "
            "tune the learning rate: let the same command go on without --report"
        )
    groups = summarise(study)
    page = render(study, groups, folder / FIGURES)
    report = folder / REPORT
    write_text(report, page)
    return report


def render(study: Study, groups: list[GroupSummary], figures: Path) -> str:
    """The page as text."""
    from jinja2 import Environment

    templates = files("mim3d.engine.report") / "templates"
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((templates / "report.html.j2").read_text("utf-8"))
    deal_colours(study.about.get("arms", []))
    ablation = read_ablation(study, groups)
    shown = shown_groups(groups, ablation)
    return template.render(
        css=(templates / "report.css").read_text("utf-8"),
        about=study.about,
        leaks=leaks(study),
        headline=first_statement(study, groups, ablation),
        gates=gates(study),
        findings=further_statements(study, groups, ablation),
        facts=facts(study, groups),
        sections=[section(study, g, i, figures) for i, g in enumerate(shown)],
        ablation=ablation_section(study, ablation, figures, bool(shown)) if ablation else None,
        pretext=pretext_figures(study, ablation, figures),
        pretraining=pretraining_table(study),
        reconstructions=reconstructions(study, figures),
        overview=overview_table(study, groups),
        rates=rates_table(study),
        throughput=throughput_table(study, groups),
        limits=limits(study, groups),
        configuration=flat(study.about.get("config", {})),
        machine=study.about.get("machine", {}),
        splits={
            name: (len(names), subjects_in_words(names))
            for name, names in study.about.get("splits", {}).items()
        },
        notes=study.about.get("notes", []),
    )


def first_statement(
    study: Study, groups: list[GroupSummary], ablation: Ablation | None
) -> Statement:
    """The headline: of an ablation what its settings gave, else who converged faster."""
    return ablation_statement(study, ablation) if ablation else headline(study, groups)


def further_statements(
    study: Study, groups: list[GroupSummary], ablation: Ablation | None
) -> list[Statement]:
    """What else was found; of an ablation only what is missing, for its settings have a table."""
    if ablation is None:
        return secondary_statements(study, groups)
    lost = (lost_statement(group, arm) for group in groups for arm in group.arms)
    return [statement for statement in lost if statement is not None]


def shown_groups(groups: list[GroupSummary], ablation: Ablation | None) -> list[GroupSummary]:
    """Groups with a section of their own: of an ablation those in which arms are compared."""
    if ablation is None:
        return groups
    return [group for group in groups if group.comparisons]


def ablation_section(
    study: Study, ablation: Ablation, figures: Path, others: bool
) -> AblationSection:
    """Everything about an ablation; pictures only where no group's section has them (`others`)."""
    metric = str(study.about.get("metric", "Dice"))
    return AblationSection(
        f"Ablation: {study.about.get('ablation', '')}",
        tuple(ablation_charts(study, ablation, figures)),
        tuple(curves_charts(study, ablation, figures)),
        ablation_table(ablation, metric),
        () if others else tuple(ablation_segmentations(study, ablation, figures)),
        scale_in_words(ablation, metric),
    )


def pretext_figures(study: Study, ablation: Ablation | None, figures: Path) -> list[Chart]:
    """Curves of the pretext losses: small multiples where settings have their own."""
    multiples = pretext_charts(study, ablation, figures) if ablation else []
    shared = pretext_chart(study.pretraining, figures) if not multiples else None
    return multiples or ([shared] if shared else [])


def section(study: Study, group: GroupSummary, index: int, figures: Path) -> Section:
    """Everything about one group."""
    drawn = (
        curves_chart(study, group, index, figures),
        reaches_chart(study, group, index, figures),
        ratios_chart(study, group, index, figures),
    )
    tables = [reaches_table(group)]
    if group.comparisons:
        tables += [speedup_table(group), ledger_table(study, group)]
    scores = final_table(study, group)
    return Section(
        group.group.title,
        tuple(chart for chart in drawn if chart is not None),
        (*tables, scores) if scores else tuple(tables),
        tuple(segmentations(study, group, index, figures)),
    )


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
            f"{seeds} seeds: a claim would want {CLAIM_PAIRS}. Of so few pairs t intervals lean on "
            "logarithms of ratios being about normal, and bootstrap intervals are too narrow."
        )
    if all(p.get("seed") is None for p in study.pretraining) and study.pretraining:
        found.append(
            "Each arm was pretrained once: seeds vary the fine-tuning, not the pretraining."
        )
    unknown = [arm_name(p["arm"]) for p in study.pretraining if not p["crops"]]
    if unknown:
        found.append(
            f"What the pretraining of {', '.join(unknown)} cost and learned is not known: "
            "ledgers with pretraining are a dash."
        )
    scratch = any(arm.arm == SCRATCH for group in groups for arm in group.arms)
    if not scratch and not study.about.get("ablation"):
        found.append("No scratch arm was run: targets are shares of the first arm's best score.")
    found.append(fixed_beforehand(study))
    found.append(validation_limit(study))
    found += leak_limits(study)
    found.append("One corpus, one encoder size: other data and models may answer otherwise.")
    return found


def validation_limit(study: Study) -> str:
    """What the validation subjects were used for, besides being scored."""
    tuned = any(row.get("tuning") for row in study.rows)
    chose = "chose the learning rates and also " if tuned else ""
    told = f"The validation subjects {chose}make the curves that speed-ups are read off"
    if any(row["split"] == "test" for row in study.scored):
        return f"{told}; final scores are of test subjects, which nothing was chosen by."
    return f"{told}, and the final scores too: no test subjects were scored."
