"""`mim3d bench STAGE`: throughput of a stage beside its peers, as ratios measured in one run."""

import importlib
import sys
from typing import NoReturn

from mim3d.engine.commands.arguments import parse
from mim3d.engine.commands.outcome import Outcome

STAGES = {
    "convert": "NIfTI -> Zarr against a nibabel + zarr-python script and the unavoidable work",
    "loader": "crops per second against blosc2, tensorstore, MONAI and a memory map; with --remote "
    "from a store with latency",
    "views": "pairs of augmented views on a CPU against DALI's and MONAI's",
    "spatial": "crops turned and zoomed within their volumes on a CPU, against nnssl's way",
    "kernels": "fused kernels against eager recipes and torch.compile, with the roofline",
    "optim": "an optimiser update: ours, torch's AdamW, apex where it is built",
    "step": "the whole training step: crops/s, MFU, data stall, share outside the model",
}
MODULES = {"optim": "step.optim", "views": "loader.views", "spatial": "loader.spatial"}
"""Stages that are not `stage` of a folder of their own."""
OPTIONS = {
    "convert": "convert.options.ConvertBench",
    "loader": "loader.options.LoaderBench",
    "kernels": "kernels.options.KernelsBench",
    "optim": "step.options.OptimBench",
    "step": "step.options.StepBench",
    "views": "loader.options.ViewsBench",
    "spatial": "loader.options.SpatialBench",
}
"""What each stage is asked for; its help needs nothing else of the stage."""
QUICK = {
    "convert": "--volumes 2 --copies 2 --entries 1000 --rounds 2",
    "loader": "--volumes 8 --crops 16 --rounds 2",
    "kernels": "--size tiny --rounds 2",
    "optim": "--steps 2 --rounds 2",
    "step": "--steps 2 --rounds 2 --warmup 1",
    "views": "--crop 32 --batches 1 --rounds 2",
    "spatial": "--crop 32 --side 48 --crops 4 --rounds 2",
}
"""Small work, to see that every stage runs; its figures are compared with nothing."""
HELP = (
    "usage: mim3d bench STAGE [options]     (mim3d bench STAGE --help tells them)\n\n"
    + "\n".join(f"  {name:<8}  {does}" for name, does in STAGES.items())
    + "\n  all       each of them in turn, with the same options\n\n"
    "--quick makes the work small: whether a stage runs, in a minute, with figures of no meaning.\n"
    "Every stage takes --peers to run what a user would pick instead in the same process, and\n"
    "--json FILE for the figures. Timings are ratios within one run; nothing asserts them."
)


def main(words: list[str]) -> Outcome:
    """Run one stage, or all of them in turn; figures come back under the stage's name."""
    if not words or words[0] in {"-h", "--help"}:
        print(HELP)
        return Outcome()
    stage, options = words[0], words[1:]
    if stage != "all" and stage not in STAGES:
        raise ValueError(f"bench {stage!r} is not a stage; one of: {', '.join(STAGES)}, all")
    figures: dict[str, object] = {}
    lost = 0
    for name in STAGES if stage == "all" else [stage]:
        print(f"== bench {name}: {STAGES[name]}", file=sys.stderr, flush=True)
        outcome = run_stage(name, quick(name, options))
        figures[name], lost = dict(outcome.figures), lost + outcome.lost
    return Outcome(figures, lost)


def quick(stage: str, options: list[str]) -> list[str]:
    """The stage's options, and those that make it quick and are not given."""
    if "--quick" not in options:
        return options
    given = {word.partition("=")[0] for word in options}
    pairs = zip(*[iter(QUICK[stage].split())] * 2, strict=True)
    small = [word for option, value in pairs if option not in given for word in (option, value)]
    return [*small, *(word for word in options if word != "--quick")]


def run_stage(name: str, options: list[str]) -> Outcome:
    """Import the stage lazily: nothing but this command reaches into `bench`."""
    if options in (["-h"], ["--help"]):
        show_help(name)
    if name == "loader" and "--remote" in options:
        name, options = "remote", [word for word in options if word != "--remote"]
    module = importlib.import_module(f"mim3d.bench.{MODULES.get(name, f'{name}.stage')}")
    return module.main(options)


def show_help(name: str) -> NoReturn:
    """Print a stage's options and leave, without what the stage itself loads."""
    module, _, kind = OPTIONS[name].rpartition(".")
    options = getattr(importlib.import_module(f"mim3d.bench.{module}"), kind)
    parse(options, ["--help"], f"mim3d bench {name}", options.__doc__)
    raise SystemExit(0)
