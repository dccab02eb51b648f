"""`mim3d pretrain RECIPE --data.corpus CORPUS --out RUN`."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from mim3d.engine.commands.arguments import parse, values_of
from mim3d.engine.commands.launching import LaunchArgs, is_first
from mim3d.engine.commands.outcome import Outcome
from mim3d.engine.errors import EXIT_USER_ERROR
from mim3d.engine.models.config import ALSO_SWINS, ViTConfig
from mim3d.engine.pretrain.config import PretrainConfig
from mim3d.engine.pretrain.recipes import idle_fields, recipe, recipe_table
from mim3d.engine.runs.address import inside, place_text
from mim3d.engine.runs.files import as_address
from mim3d.engine.runs.own_parts import refuse_missing_plugins

if TYPE_CHECKING:
    from mim3d.engine.pretrain.run_folder import PretrainResult

DESCRIPTION = """Pretrain an encoder by MAE, SimMIM or SimCLR on a corpus.

  {recipes}

Every field below starts at the recipe's value. A RUN that holds checkpoints of the same
configuration is gone on with; Ctrl-C, SIGTERM or SIGUSR1 saves, and exits 0 (a second Ctrl-C ends
at once). On several GPUs: --nproc N here, or torchrun --no-python --nproc-per-node N mim3d
pretrain ..., or srun.
"""


@dataclass(frozen=True)
class PretrainArgs(LaunchArgs):
    """A run: its configuration, where it goes, and on how many processes."""

    config: Annotated[PretrainConfig, tyro.conf.arg(name="")]
    out: Path
    """Folder of the run, or s3://BUCKET/RUN (gs://, az://)."""


def main(words: list[str]) -> Outcome:
    """Run the command."""
    if not words:
        print(f"usage: mim3d pretrain RECIPE --data.corpus CORPUS --out RUN\n\n{recipe_table()}")
        raise SystemExit(EXIT_USER_ERROR)
    if words[0] in {"-h", "--help"}:
        words = ["demo-mae", "--help"]
    refuse_missing_plugins(values_of(["--out"], words))
    config = recipe(words[0])
    args = arguments(words[0], config, words[1:])
    if args.launches:
        return launched(args, words)
    from mim3d.engine.distributed.first_failure import PeerError
    from mim3d.engine.pretrain.pretrain import run_pretrain

    try:
        result = run_pretrain(args.config, args.out, args.staging)
    except PeerError:
        raise SystemExit(EXIT_USER_ERROR) from None
    figures = figures_of(result)
    if is_first() and not result.interrupted:
        for line in last_words(result, args):
            print(line)
    return Outcome(figures, lost_in(figures), writes_json=is_first())


def launched(args: PretrainArgs, words: Sequence[str]) -> Outcome:
    """Run as ranks of this machine; the figures are those that the run's folder tells."""
    from mim3d.engine.bucket.place import place_of
    from mim3d.engine.pretrain.run_folder import finished_result

    place = place_of(args.out, args.staging)
    # Of a bucket the ranks ask: what stands in the folder may be of an earlier run there.
    done = finished_result(place.folder, args.config) if place.is_here else None
    if done is None:
        args.config.micro_batch(args.nproc)  # told once, not by every rank
        args.launch(["pretrain", *words], args.config.parallel.timeout_s)
        done = finished_result(place.folder, args.config)
    if done is None:  # the ranks were told to stop themselves, and have said so
        return Outcome({"run": place.where, "interrupted": True, "nproc": args.nproc})
    figures = {**figures_of(replace(done, run=place.where)), "nproc": args.nproc}
    return Outcome(figures, lost_in(figures))


def lost_in(figures: Mapping[str, Any]) -> int:
    """How much of what was asked is in doubt."""
    return len(figures.get("start_doubts", [])) + len(figures.get("probe_doubts", []))


def last_words(result: "PretrainResult", args: PretrainArgs) -> list[str]:
    """The loss beside those of the trivial predictors, where the encoder is, and what is next."""
    from mim3d.engine.runs.encoder_file import WEIGHTS

    verdict = result.figures.get("pretext") or {}
    scored = {"loss": verdict, "held-out loss": verdict.get("held_out") or {}}
    lines = [loss_line(name, v, args) for name, v in scored.items() if v.get("loss") is not None]
    if not lines and "counted" in result.figures:
        lines.append("loss none: no voxel of the last rows counts (--method.ignore)")
    lines.append(f"encoder: {inside(args.out, WEIGHTS)}")
    probe = result.figures.get("probe") or {}
    if probe.get("encoder"):
        lines.append(
            f"best by the probe ({probe['by']} {probe['best']:.4f} at step {probe['best_step']}): "
            f"{inside(probe['encoder'], WEIGHTS)}"
        )
    lines += [f"warning: probe: {line}" for line in result.figures.get("probe_doubts", [])]
    return [*lines, f"next: {next_command(args)}"]


def loss_line(name: str, verdict: Mapping[str, Any], args: PretrainArgs) -> str:
    """A loss against predictors that know nothing, and what that says."""
    names = {"patch_mean": "each patch's mean", "nearest_patch": "the nearest visible patch"}
    names["chance"] = "chance"
    others = [f"{label} {verdict[key]:.4f}" for key, label in names.items() if verdict.get(key)]
    against = f" ({', '.join(others)})" if others else ""
    given = [label for key, label in names.items() if verdict.get(key) is not None]
    said = judgement(verdict, given[0] if given else "")
    if verdict.get("constant"):
        whose = "held-out crops" if name.startswith("held-out") else "last rows' crops"
        return f"{name} {verdict['loss']:.4f}: the {whose} are constant, so no verdict{ways(args)}"
    if some := verdict.get("constant_rows"):
        rows = f"{some} of the last {verdict['rows']} rows"
        said += f"; the crops of {rows} are constant{ways(args)}"
    return f"{name} {verdict['loss']:.4f}{against}: {said}"


def judgement(verdict: Mapping[str, Any], floor: str) -> str:
    """What a loss says beside that of the predictor `floor`, empty where there is none."""
    from mim3d.engine.pretrain.verdict import CLEARLY

    if not floor:
        return "there is nothing to compare it with, so no verdict"
    if verdict.get("learned"):
        return "it was learned"
    floor_loss = verdict.get("patch_mean", verdict.get("chance"))
    behind = ", ".join(map(str, verdict.get("behind") or []))
    if behind and verdict["loss"] < CLEARLY * floor_loss:
        return f"NOT better than {floor} in channels {behind} (of 0 and up): these are not learned"
    return f"NOT clearly better than {floor}: nothing learned"


def ways(args: PretrainArgs) -> str:
    """Options against crops of air, of those that are not taken yet."""
    config, found = args.config, []
    if "air" not in getattr(config.method, "ignore", ("air",)):
        found.append("--method.ignore air scores none of it")
    if config.data.loader.weighting != "foreground":
        found.append("--data.weighting foreground draws more of volumes with less of it")
    return f" (where they are air, {'; '.join(found)})" if found else ""


def next_command(args: PretrainArgs) -> str:
    """Fine-tuning where the corpus has a label and a recipe has this encoder, else its features."""
    from mim3d.dataio.reader.corpus import opened_corpus
    from mim3d.engine.finetune.config import RECIPES

    config, corpus = args.config, args.config.data.corpus
    with opened_corpus(corpus) as (opened, _):
        found = {label.name for record in opened.records for label in record.labels}
    ignored = {word.removeprefix("label:") for word in getattr(config.method, "ignore", ())}
    labels = sorted(found - ignored)  # a mask of what is to be ignored is no target
    fitting = [name for name, make in RECIPES.items() if make().encoder == config.encoder]
    if not labels or not fitting:
        features = "features" if as_address(args.out) else str(args.out / "features")
        return shlex.join(["mim3d", "embed", place_text(args.out), corpus, features])
    label = [] if "seg" in labels else ["--data.label", labels[0]]
    out = place_text(args.out.with_name(f"{args.out.name}-finetuned"))
    words = ["mim3d", "finetune", fitting[0], "--data.corpus", corpus]
    return shlex.join([*words, "--init", place_text(args.out), *label, "--out", out])


def figures_of(result: "PretrainResult") -> dict[str, Any]:
    """What `--json` writes of a run."""
    return {
        "run": str(result.run),
        "step": result.step,
        "interrupted": result.interrupted,
        **result.figures,
    }


def arguments(name: str, config: PretrainConfig, words: Sequence[str]) -> PretrainArgs:
    """The arguments: every field that the recipe heeds can be set."""
    return parse(
        PretrainArgs,
        words,
        default=PretrainArgs(config, tyro.MISSING),
        prog=f"mim3d pretrain {name}",
        description=DESCRIPTION.format(recipes=recipe_table().replace("\n", "\n  ")),
        left_out=idle_fields(config),
        aliases={ViTConfig: ALSO_SWINS} if config.swin is not None else {},
        addresses=("out",),
    )
