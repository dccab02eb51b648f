"""`mim3d finetune`: segmentation or classification from pretrained weights or from scratch."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from mim3d.engine.commands.arguments import parse, values_of
from mim3d.engine.commands.launching import LaunchArgs, is_first
from mim3d.engine.commands.outcome import Outcome
from mim3d.engine.commands.weights.messages import class_table
from mim3d.engine.errors import EXIT_USER_ERROR, ConfigError
from mim3d.engine.finetune.config import RECIPES, FinetuneConfig, idle_fields, input_mismatch
from mim3d.engine.models.config import ALSO_SWINS, ViTConfig
from mim3d.engine.runs.address import place_text
from mim3d.engine.runs.files import as_address
from mim3d.engine.runs.own_parts import refuse_missing_plugins

if TYPE_CHECKING:
    from mim3d.engine.finetune.run_folder import FinetuneResult


@dataclass(frozen=True)
class FinetuneArgs(LaunchArgs):
    """Options of `mim3d finetune`."""

    config: Annotated[FinetuneConfig, tyro.conf.arg(name="")] = field(
        default_factory=FinetuneConfig
    )
    out: Path = Path("finetune")
    """Folder of the run, or s3://BUCKET/RUN (gs://, az://); the same command goes on where it
    stopped."""


def main(words: list[str]) -> Outcome:
    """Run the recipe named by the first word."""
    refuse_missing_plugins(values_of(["--out"], words))
    name, rest = split_recipe(words)
    if name not in RECIPES:
        raise ConfigError(f"no recipe {name!r}; one of: {', '.join(RECIPES)}")
    config = shaped_by_weights(RECIPES[name](), rest)
    args = parse(
        FinetuneArgs,
        rest,
        prog=f"mim3d finetune {name}",
        default=FinetuneArgs(config=config),
        description=description(),
        left_out=idle_fields(config),
        aliases={ViTConfig: ALSO_SWINS} if config.swin is not None else {},
        addresses=("out",),
    )
    if not args.config.data.corpus:
        raise ConfigError("no corpus: set --data.corpus to a folder that `mim3d convert` wrote")
    if args.launches:
        return launched(args, words)
    from mim3d.engine.distributed.first_failure import PeerError
    from mim3d.engine.finetune.finetune import run_finetune

    if is_first():
        for line in input_mismatch(args.config):
            print(line)
    try:
        result = run_finetune(args.config, args.out, title=f"finetune {name}", staging=args.staging)
    except PeerError:
        raise SystemExit(EXIT_USER_ERROR) from None
    if is_first():
        show_result(result, args)
    lost = len(result.doubts) + len(result.warnings)
    return Outcome(figures_of(result, args.out), lost, writes_json=is_first())


def shaped_by_weights(config: FinetuneConfig, words: Sequence[str]) -> FinetuneConfig:
    """The recipe with the shape of the encoder that --init names, which options then change."""
    source = next(iter(values_of(["--init"], words)), "")
    if not source or any(word in {"-h", "--help"} for word in words):
        return config
    from mim3d.engine.transfer.shape import encoder_shape, in_words

    shape = encoder_shape(source, config.vit, config.encoder.backbone)
    if is_first():
        for line in [in_words(source, shape), *shape.guesses]:
            print(line)
    return replace(config, vit=shape.vit, swin=shape.swin, resenc=shape.resenc)


def launched(args: FinetuneArgs, words: Sequence[str]) -> Outcome:
    """Run as ranks of this machine; the figures are those that the run's folder tells."""
    from mim3d.engine.bucket.place import place_of
    from mim3d.engine.finetune.run_folder import RESULT, read_result

    folder = place_of(args.out, args.staging).folder
    args.config.parallel.micro_batch(args.config.global_batch, args.nproc)  # told once
    args.launch(["finetune", *words], args.config.parallel.timeout_s)
    if not (folder / RESULT).exists():  # the ranks were told to stop, and have said so
        return Outcome({"run": place_text(args.out), "interrupted": True, "nproc": args.nproc})
    result = read_result(folder)
    return Outcome(
        {**figures_of(result, args.out), "nproc": args.nproc},
        len(result.doubts) + len(result.warnings),
    )


def show_result(result: "FinetuneResult", args: FinetuneArgs) -> None:
    """Say what a finished run came to, and what can be done with its network."""
    if result.interrupted:
        return
    last, where = result.rows[-1], place_text(args.out)
    for line in class_lines(last):
        print(line)
    print(f"{last['split']} score {last['score']:.4f} after {last['step']} steps; {where}")
    for note in result.notes:
        print(note)
    for line in result.warnings:
        print(f"warning: {line}")
    print(f"next, with new scans in the place of the corpus: {predict_command(args)}")


def class_lines(row: Mapping[str, Any]) -> list[str]:
    """The last evaluation class by class; nothing of a regression."""
    names = row.get("class_names")
    if not names:
        return []
    titles = {"Dice": "dice_by_class", "HD95 mm": "hd95_by_class", "recall": "recall_by_class"}
    columns = {title: row[field] for title, field in titles.items() if field in row}
    named = {title: dict(zip(names, column, strict=False)) for title, column in columns.items()}
    return class_table(named).splitlines()


def predict_command(args: FinetuneArgs) -> str:
    """The command that predicts the run's own corpus."""
    predictions = "predictions" if as_address(args.out) else str(args.out / "predictions")
    words = ["mim3d", "predict", place_text(args.out), args.config.data.corpus, predictions]
    return shlex.join(words)


def figures_of(result: "FinetuneResult", out: Path) -> dict[str, Any]:
    """What `--json` writes of a run: its last evaluation."""
    last = result.rows[-1] if result.rows else {}
    return {
        **last,
        "run": place_text(out),
        "notes": result.notes,
        "warnings": result.warnings,
        "interrupted": result.interrupted,
    }


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
        "(--vit.*) is that of --init; another --vit.crop-size, --vit.channels or --vit.patch-size "
        "has its weights fitted, and that is told. On several GPUs: --nproc N here, or torchrun "
        "--no-python --nproc-per-node N mim3d finetune ..., or srun; Ctrl-C, SIGTERM or SIGUSR1 "
        "saves (a second Ctrl-C ends at once)."
    )
