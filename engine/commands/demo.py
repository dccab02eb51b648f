"""`mim3d demo`: the main job, whole, on a phantom cohort or on your own NIfTI files."""

import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mim3d.dataio.corpus.quarantine import quarantine_place
from mim3d.dataio.finite import refuse_outside
from mim3d.dataio.progress import progress
from mim3d.dataio.reader.corpus import Corpus, opened_corpus
from mim3d.engine.commands.arguments import parse
from mim3d.engine.commands.outcome import Outcome
from mim3d.engine.errors import ConfigError
from mim3d.engine.finetune.splits import make_splits
from mim3d.engine.runs.files import read_json, refuse_address
from mim3d.engine.study.config import StudyConfig
from mim3d.engine.study.recipes import demo as demo_study

if TYPE_CHECKING:
    from mim3d.dataio.convert.run import ConversionReport

DESCRIPTION = """NIfTI -> corpus -> MAE and SimCLR pretraining -> fine-tuning -> convergence report.

Without --data it draws a synthetic cohort; about five minutes on two CPU cores. Interrupted, it
goes on where it stopped. Its two seeds are too few to test anything, and the report says so.
"""


def main(words: list[str]) -> Outcome:
    """Run the demo; exit code 3 where files were left out."""
    config = parse(DemoConfig, words, "mim3d demo", DESCRIPTION)
    from mim3d.dataio.storage.store import writing

    with writing(config.folder):
        result = run_demo(config)
    conversion = asdict(result.conversion)
    return Outcome(
        {"report": str(result.report), "convert": conversion, "study": result.figures},
        lost=result.conversion.n_quarantined + len(result.figures["failed"]),
    )


MARKER = "demo.json"
MOST_SHOWN = 5


@dataclass(frozen=True)
class DemoConfig:
    """What the demo works on; everything else is the study recipe `demo`."""

    data: str = ""
    """Labelled NIfTI files in any layout `mim3d convert` knows, or msd:Task04_Hippocampus; empty
    draws a phantom cohort."""
    out: str = ""
    """Folder for everything; demo, or demo-NAME with data of your own."""
    label: str = ""
    """Label to segment; the corpus's only one where not named."""
    subjects: int = 60
    """Subjects of the phantom cohort."""
    seeds: int = 2
    """Fine-tuning seeds of each arm."""

    def __post_init__(self) -> None:
        refuse_address(self.out)
        refuse_outside(self, "subjects", 8, 100_000, kind=ConfigError)
        refuse_outside(self, "seeds", 1, 1000, kind=ConfigError)

    @property
    def folder(self) -> Path:
        """Where everything goes: each data set has a folder of its own."""
        if self.out:
            return Path(self.out)
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(self.data).name).strip("-")
        return Path(f"demo-{name}" if name else "demo")


@dataclass(frozen=True)
class DemoResult:
    """The study's report and figures beside what converting lost."""

    conversion: "ConversionReport"
    report: Path
    figures: dict[str, Any]


def run_demo(config: DemoConfig) -> DemoResult:
    """Run every stage, each told in one line; raises Mim3dError where a stage cannot go on."""
    from mim3d.engine.analysis.figures import figures_of
    from mim3d.engine.report.report import build_report
    from mim3d.engine.study.run import run_study

    folder = config.folder
    claim(config, folder)
    source = config.data or str(draw_cohort(config, folder / "phantom"))
    say(2, f"NIfTI -> {folder / 'corpus.zarr'}")
    conversion = convert_source(source, folder / "corpus.zarr")
    say(3, "pretraining, then fine-tuning of every arm and seed")
    study = run_study(study_config(config, folder / "corpus.zarr"), folder)
    report = build_report(study.folder)
    say(4, f"report: {report}")
    spent = {"seconds": study.seconds, "failed": study.failed}
    return DemoResult(conversion, report, figures_of(report) | spent)


def claim(config: DemoConfig, folder: Path) -> None:
    """Mark the folder as this data's, so that two data sets never end up in one corpus."""
    wanted = config.data or f"phantom of {config.subjects} subjects"
    marker = folder / MARKER
    if marker.exists():
        found = read_json(marker).get("data")
        if found != wanted:
            raise ConfigError(
                f"{folder} holds the demo on {found!r}, not {wanted!r}: name another --out"
            )
        return
    if config.data:
        from mim3d.dataio.sources.discover import discover

        discover(config.data)  # raises before anything is written
    folder.mkdir(parents=True, exist_ok=True)
    marker.write_text(json.dumps({"data": wanted}) + "\n")


def draw_cohort(config: DemoConfig, folder: Path) -> Path:
    """Write the phantom cohort, or find it written."""
    from mim3d.dataio.sources.phantom import make_cohort

    say(1, f"drawing {config.subjects} synthetic subjects in {folder}")
    with progress("draw", config.subjects, "subjects") as shown:
        return make_cohort(folder, config.subjects, advance=lambda: shown.advance(1))


def convert_source(source: str, corpus: Path) -> "ConversionReport":
    """Convert what can be converted and tell what was left out, a line a file."""
    from mim3d.dataio.convert.run import convert
    from mim3d.dataio.sources.discover import discover

    found = discover(source)
    report = convert(found.sources, str(corpus), skipped=found.skipped)
    for rejection in report.rejections[:MOST_SHOWN]:
        print(f"  left out: {rejection.path}: {rejection.detail}", flush=True)
    if report.n_quarantined > MOST_SHOWN:
        print(f"  ... {report.n_quarantined} in all: {quarantine_place(corpus)}", flush=True)
    return report


def study_config(config: DemoConfig, corpus: Path) -> StudyConfig:
    """The study recipe `demo` on this corpus; your own data and small cohorts use every label."""
    study = demo_study()
    with opened_corpus(corpus) as (opened, _):
        label = config.label or only_label(opened)
        train = make_splits(opened.records, label, study.data.split).train
    few = not config.data and len(train) > max(study.labels)
    return replace(
        study,
        seeds=tuple(range(config.seeds)),
        labels=study.labels if few else (1.0,),
        synthetic=not config.data,
        data=replace(study.data, corpus=str(corpus), label=label),
    )


def only_label(corpus: Corpus) -> str:
    """The corpus's only label name; a ConfigError where there is none, or a choice."""
    names = sorted({label.name for record in corpus.records for label in record.labels})
    if len(names) != 1:
        has = f"the labels {', '.join(names)}: name one with --label" if names else (
            "no labels, and fine-tuning needs some: use a layout that carries them "
            "(imagesTr/ + labelsTr/, dataset.json or a CSV with image,label columns)"
        )  # fmt: skip
        raise ConfigError(f"{corpus.root} has {has}")
    return names[0]


def say(stage: int, text: str) -> None:
    """One line a stage."""
    print(f"[{stage}/4] {text}", flush=True)
