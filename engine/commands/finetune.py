"""`mim3d finetune`: segmentation or classification from pretrained weights or from scratch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from mim3d.dataio.progress import progress
from mim3d.engine.commands.arguments import parse
from mim3d.engine.commands.outcome import Outcome
from mim3d.engine.errors import ConfigError
from mim3d.engine.finetune.config import RECIPES, FinetuneConfig, idle_fields, input_mismatch


@dataclass(frozen=True)
class FinetuneArgs:
    """Options of `mim3d finetune`."""

    config: Annotated[FinetuneConfig, tyro.conf.arg(name="")] = field(
        default_factory=FinetuneConfig
    )
    out: Path = Path("finetune")
    """Folder of the run; the same command goes on where it stopped."""


def main(words: list[str]) -> Outcome:
    """Run the recipe named by the first word."""
    name, rest = split_recipe(words)
    if name not in RECIPES:
        raise ConfigError(f"no recipe {name!r}; one of: {', '.join(RECIPES)}")
    config = RECIPES[name]()
    args = parse(
        FinetuneArgs,
        rest,
        prog=f"mim3d finetune {name}",
        default=FinetuneArgs(config=config),
        description=description(),
        left_out=idle_fields(config),
    )
    if not args.config.data.corpus:
        raise ConfigError("no corpus: set --data.corpus to a folder that `mim3d convert` wrote")
    from mim3d.engine.finetune.finetune import run_finetune

    with progress(f"finetune {name}", args.config.steps, "steps") as shown:
        for line in input_mismatch(args.config):
            shown.note(line)
        result = run_finetune(args.config, args.out, shown.advance)
    last = result.rows[-1]
    print(f"{last['split']} score {last['score']:.4f} after {last['step']} steps; {args.out}")
    for note in result.notes:
        print(note)
    return Outcome({**last, "run": str(args.out), "notes": result.notes})


def split_recipe(words: list[str]) -> tuple[str, list[str]]:
    """The recipe's name and the options; --help alone needs no name."""
    if words and not words[0].startswith("-"):
        return words[0], words[1:]
    if any(word in {"-h", "--help"} for word in words):
        return "demo", words
    raise ConfigError(f"name a recipe first: mim3d finetune {'|'.join(RECIPES)} [options]")


def description() -> str:
    """What `--help` teaches."""
    lines = "\n".join(f"  {name:16} {(make.__doc__ or '')}" for name, make in RECIPES.items())
    return (
        "Train a head, and the encoder with it, on labelled volumes; score whole volumes at fixed "
        "steps and the test subjects once at the end.\n\n"
        "mim3d finetune RECIPE --data.corpus CORPUS --init RUN --out DIR, where RECIPE is one of:\n"
        f"{lines}\n\nWithout --init the encoder starts from scratch. The encoder's shape "
        "(--vit.*) must be the checkpoint's."
    )
