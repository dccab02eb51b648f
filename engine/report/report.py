"""The study's report: one HTML file that needs nothing else, built from results alone."""

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

from mim3d.engine.analysis.ablation import read_ablation
from mim3d.engine.analysis.results import Study
from mim3d.engine.analysis.summary import GroupSummary, summarise
from mim3d.engine.errors import ConfigError
from mim3d.engine.report.ablation import ablation_sections
from mim3d.engine.report.cost import cost_sections
from mim3d.engine.report.finetuning import finetuning_sections
from mim3d.engine.report.headline import headline_sections
from mim3d.engine.report.palette import colours_of_others
from mim3d.engine.report.plots import Plotter
from mim3d.engine.report.pretext import pretext_sections
from mim3d.engine.report.provenance import provenance_sections
from mim3d.engine.report.rates import rates_sections
from mim3d.engine.report.section import Content, Section
from mim3d.engine.report.speedup import speedup_sections
from mim3d.engine.runs.files import write_text

REPORT, FIGURES = "report.html", "figures"
SECTIONS: tuple[Callable[[Content], list[Section]], ...] = (
    headline_sections,
    speedup_sections,
    ablation_sections,
    finetuning_sections,
    pretext_sections,
    rates_sections,
    cost_sections,
    provenance_sections,
)
"""What makes the sections of a page, in their order."""


def build_report(folder: Path) -> Path:
    """Write report.html and its PNGs from the results in `folder`."""
    study = Study.load(folder)
    if not study.scored:
        raise ConfigError(
            f"{folder} holds no scored run yet, only {len(study.rows)} evaluations of runs that "
            "tune the learning rate: let the same command go on without --report"
        )
    page = render(study, summarise(study), folder / FIGURES)
    report = folder / REPORT
    write_text(report, page)
    return report


def render(study: Study, groups: list[GroupSummary], figures: Path) -> str:
    """The page as text."""
    from jinja2 import Environment

    templates = files("mim3d.engine.report") / "templates"
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((templates / "report.html.j2").read_text("utf-8"))
    plotter = Plotter(figures, colours_of_others(study.about.get("arms", [])))
    content = Content(study, groups, read_ablation(study, groups), plotter)
    header, *sections = (section for make in SECTIONS for section in make(content))
    return template.render(
        css=(templates / "report.css").read_text("utf-8"),
        name=study.about.get("name", ""),
        header=header,
        sections=sections,
    )
