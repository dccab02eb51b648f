"""`mim3d compare`: the convergence study, its ablations, and their report."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from mim3d.engine.commands.arguments import parse, refuse_without_value
from mim3d.engine.commands.outcome import Outcome
from mim3d.engine.errors import ConfigError
from mim3d.engine.models.config import ALSO_SWINS, ViTConfig
from mim3d.engine.study.arms import differences, with_own_decoders
from mim3d.engine.study.config import STUDY, StudyConfig
from mim3d.engine.study.recipes import STUDIES, idle_fields, study
from mim3d.engine.study.variation import NAMES, varied


@dataclass(frozen=True)
class StudyArgs:
    """Options of `mim3d compare`."""

    config: Annotated[StudyConfig, tyro.conf.arg(name="")] = field(default_factory=StudyConfig)
    out: Path = Path("study")
    """Folder of the study; the same command goes on with what is missing."""
    vary: tuple[str, ...] = ()
    """NAME=VALUE,VALUE of one or two settings: every combination instead of the study's own."""
    dask: str = ""
    """Address of a Dask scheduler, tcp://HOST:8786, whose workers (one thread each, `dask cuda
    worker` for GPUs) see the same files: every run goes to one of them."""
    report: bool = False
    """Only draw the report, from what is in --out: also of a study that was stopped half-way."""


def main(words: list[str]) -> Outcome:
    """Run the study named by the first word, or draw its report again."""
    name, rest = split_study(words)
    config = study(name)
    args = parse(
        StudyArgs,
        rest,
        prog=f"mim3d compare {name or 'STUDY'}",
        default=StudyArgs(config=config),
        description=description(),
        left_out=idle_fields(config),
        aliases={ViTConfig: ALSO_SWINS} if config.swin is not None else {},
    )
    refuse_without_value("--vary", args.vary, rest)
    from mim3d.dataio.storage.store import writing
    from mim3d.engine.analysis.figures import figures_of
    from mim3d.engine.report.report import build_report
    from mim3d.engine.runs.files import read_json

    failed, spent = {}, {}
    with writing(args.out):
        if args.report:
            from mim3d.engine.study.gather import gather

            gather(args.out)
        else:
            from mim3d.engine.study.run import run_study

            asked, chosen = with_own_decoders(args.config, config)
            for line in filter(None, [chosen, *differences(asked)]):
                print(line, flush=True)
            result = run_study(varied(asked, args.vary), args.out, args.dask)
            failed, spent = result.failed, {"seconds": result.seconds, "failed": result.failed}
        report = build_report(args.out)
    figures, about = figures_of(report), read_json(args.out / STUDY)
    warnings = [*about.get("left_out", []), *about.get("doubts", [])]
    if args.report and (lost := about.get("failed")):
        runs = "1 run" if len(lost) == 1 else f"{len(lost)} runs"
        warnings.append(f"{runs} ended in an error, the first: {lost[0]['error']}")
    for warning in warnings:
        print(f"warning: {warning}")
    print(figures["headline"])
    print(f"report: {report}")
    return Outcome(figures | spent, lost=len(failed) + len(warnings))


def split_study(words: list[str]) -> tuple[str, list[str]]:
    """The study's name and the options; `--report` alone and --help need no name."""
    if words and not words[0].startswith("-"):
        return words[0], words[1:]
    if any(word in {"-h", "--help", "--report"} for word in words):
        return "demo", words
    raise ConfigError(f"name a study first: mim3d compare {'|'.join(STUDIES)} [options]")


def description() -> str:
    """What `--help` teaches."""
    firsts = {name: (make.__doc__ or "").splitlines()[0] for name, make in STUDIES.items()}
    lines = "\n".join(f"  {name:12} {first}" for name, first in firsts.items())
    return (
        "Pretrain every arm on the same crops, fine-tune it from the same seeds, and report who "
        "converges faster, by how much, and at what cost.\n\n"
        f"mim3d compare STUDY --data.corpus CORPUS --out DIR, where STUDY is one of:\n{lines}\n\n"
        "Make an ablation of your own from any of them: --arms mae --vary crops=6000,24000,96000 "
        f"mask_ratio=0.3,0.6 (settings: {', '.join(NAMES)}). "
        "Any encoder joins as a further arm: --arms scratch mae mine=/path/to/run. Every arm on "
        "several encoders: --encoders vit primus resenc swin. Interrupted, "
        "the same command goes on; --report draws the report again from the results alone."
    )
