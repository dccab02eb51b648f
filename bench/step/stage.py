"""`mim3d bench step`: the whole training step, what bounds it, and the eager recipe beside it."""

import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from mim3d.bench.other_work import OtherWork
from mim3d.bench.sharing import sharing_of
from mim3d.bench.step.calibrate import calibrate
from mim3d.bench.step.contestants import corpus_to_read, make_contestants, open_loader
from mim3d.bench.step.options import StepBench, chosen_config, default_recipe
from mim3d.bench.step.profile import write_profile
from mim3d.bench.step.rounds import measure
from mim3d.bench.step.sweep import figures_of_sweep, run_sweep, text_of
from mim3d.bench.step.table import figures_of, table, without_loader
from mim3d.engine.commands.arguments import parse
from mim3d.engine.commands.outcome import Outcome
from mim3d.engine.distributed.process_group import Ranks, process_ranks
from mim3d.engine.pretrain.config import PretrainConfig


def main(words: list[str]) -> Outcome:
    """Run the bench and print its table."""
    options = parse(StepBench, words, "mim3d bench step", StepBench.__doc__)
    with ExitStack() as stack:
        ranks = stack.enter_context(process_ranks(600.0))
        if options.calibrate is not None:
            return calibrate(options, ranks, options.calibrate)
        config = chosen_config(options, ranks)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mim3d-bench-")))
        loader = None
        if options.sweep:
            return sweep(options, config, ranks, folder)
        if options.loader:
            root = corpus_to_read(options, config, folder)
            loader = stack.enter_context(open_loader(root, config, ranks))
        contestants = make_contestants(options, config, ranks, loader)
        with OtherWork() as other:
            times = measure(options, contestants, ranks.device)
        sharing = None if loader is None else sharing_of(loader, [next(loader) for _ in range(4)])
        if options.profile is not None and ranks.first:
            runs = {name: one.run for name, one in contestants.items()}
            write_profile(runs, options.profile, ranks.device)
    if sharing is not None and sharing.flatters and options.corpus is None:
        times = without_loader(times)
    figures = figures_of(times, config, ranks) | {"others_cpu_share": other.share}
    if sharing is not None:
        figures["chunks_per_crop"] = asdict(sharing) | {"flatters": sharing.flatters}
    if ranks.first:
        print(table(times, figures, sharing, other))
    return Outcome(figures)


def sweep(options: StepBench, config: PretrainConfig, ranks: Ranks, folder: Path) -> Outcome:
    """Try settings, print them and the recommended ones."""
    result = run_sweep(options, config, ranks, corpus_to_read(options, config, folder))
    print(text_of(result, options.recipe or default_recipe(ranks)))
    return Outcome(figures_of_sweep(result))
