"""One fine-tuning run: constant rate after warm-up, scored at fixed steps, on one rank or many.

    run_finetune(config, out) -> FinetuneResult

For one seed every arm sees the same crops in the same order, the same decoder weights and the
same evaluations; only the encoder's weights differ. Seconds and FLOPs are of training alone.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from pathlib import Path

import torch

from mim3d.dataio.inspect.doubts import subjects_in
from mim3d.dataio.labels.sides import pairs_of_sides
from mim3d.dataio.loader.loader import Loader, LoaderConfig
from mim3d.dataio.reader.corpus import Corpus, opened_corpus
from mim3d.dataio.reader.shards import Shards
from mim3d.dataio.subjects.grouping import counted
from mim3d.dataio.transforms.augment import augmentation
from mim3d.engine.arithmetic.precision import choose_precision
from mim3d.engine.bucket.place import place_of
from mim3d.engine.distributed.parallel import stays_whole
from mim3d.engine.distributed.process_group import Ranks, first_decides
from mim3d.engine.distributed.shared import refuse_other_corpora
from mim3d.engine.distributed.stop import stop_on_signal
from mim3d.engine.errors import ConfigError
from mim3d.engine.finetune.classification import ClassificationTask
from mim3d.engine.finetune.config import (
    WHOLE_VOLUME,
    FinetuneConfig,
    beside_identity,
    identity,
    identity_of,
    input_mismatch,
)
from mim3d.engine.finetune.network import step_flops
from mim3d.engine.finetune.rates import HeadFirst, is_held, lr_scale
from mim3d.engine.finetune.regression import RegressionTask
from mim3d.engine.finetune.run_folder import (
    CONFIG,
    MODEL,
    PICTURES,
    RESULT,
    SPLITS,
    FinetuneResult,
    claim,
    read_result,
)
from mim3d.engine.finetune.segmentation import SegmentationTask
from mim3d.engine.finetune.splits import Splits, labelled_subset, make_splits
from mim3d.engine.finetune.targets import called_otherwise, read_targets, read_values
from mim3d.engine.finetune.task import Task
from mim3d.engine.finetune.trained import describe, write_trained
from mim3d.engine.finetune.validation import Validate, WholeNetwork, autocast
from mim3d.engine.runs.checkpoint_files import CHECKPOINTS, committed
from mim3d.engine.runs.config import CheckpointConfig
from mim3d.engine.runs.files import json_sha256, read_json, write_json
from mim3d.engine.runs.history import change_line, earlier_hashes
from mim3d.engine.runs.tensor_files import save_pickled
from mim3d.engine.training.checkpoints import RunIdentity
from mim3d.engine.training.config import OptimConfig
from mim3d.engine.training.corpus import corpus_fit, corpus_sha256
from mim3d.engine.training.divergence import Remedies
from mim3d.engine.training.metrics import rate_basis
from mim3d.engine.training.run import Run, RunSettings, Sitting
from mim3d.engine.training.run_context import explain_full_disk, run_ranks, shown_progress
from mim3d.engine.training.run_state import full_weights
from mim3d.engine.training.sharding import shard_objective
from mim3d.engine.transfer.seen import keep_trained_on, seen_lines
from mim3d.engine.transfer.start_report import Start


def run_finetune(
    config: FinetuneConfig,
    out: str | Path,
    *,
    title: str = "finetune",
    keep_model: bool = True,
    staging: str = "",
) -> FinetuneResult:
    """Train, or go on where a run with the same configuration stopped; a finished one is read.

    `out` is a folder, or the address of one in a bucket, which is made in the folder `staging`.
    Of many ranks one raises what went wrong, and the others PeerError.
    """
    place = place_of(out, staging)
    out = place.folder
    refuse_augment(config.augment)
    with ExitStack() as stack:
        ranks = stack.enter_context(run_ranks(config.parallel, config.device, config.seed))
        stack.enter_context(place.opened(ranks))
        place.claim(ranks, stack)
        claimed = first_decides(ranks, lambda: claim(config, out))
        place.share(ranks)
        if not claimed.finished:
            stop = stack.enter_context(stop_on_signal(ranks))
            corpus, shards = stack.enter_context(opened_corpus(config.data.corpus))
            refuse_other_corpora(config.data.corpus, corpus_sha256(corpus), ranks)
            splits = resolve_splits(config, corpus)
            loader = stack.enter_context(open_loader(config, ranks, splits))
            corpus_fit(corpus.table, config.vit, loader.sampler.volumes)
            shown = stack.enter_context(shown_progress(title, config.steps, ranks))
            stack.enter_context(explain_full_disk(out))
            for record in claimed.changed:
                shown.note(change_line(record))
            for note in (*claimed.remarks, *target_notes(config)):
                shown.note(note)
            task = make_task(config, corpus, shards, ranks.device, splits.train)
            if not committed(out / CHECKPOINTS):
                for line in opening_lines(config, task, splits):
                    shown.note(line)
            sitting = Sitting(out, ranks, loader, shown, stop, place.shelf(shown.note))
            result = train(config, task, splits, sitting, keep_model)
            first_decides(ranks, place.leave)
            if result.interrupted:
                return result
        return first_decides(ranks, lambda: read_result(out))


def train(
    config: FinetuneConfig, task: Task, splits: Splits, sitting: Sitting, keep_model: bool
) -> FinetuneResult:
    """One sitting: to the end, with its files on disk, or until a signal."""
    out, ranks = sitting.out, sitting.ranks
    flops = step_flops(config, task.net)
    task.dtype = choose_precision(config.parallel.precision, ranks.device)
    in_place = stays_whole(config.parallel, ranks.world) and task.dtype == torch.float32
    network = WholeNetwork(task.net, in_place)
    optim = OptimConfig(weight_decay=config.weight_decay, beta2=0.999, clip_norm=config.clip_norm)
    part = shard_objective(
        *(task, optim, config.parallel, ranks),
        lr_scale=lambda name: lr_scale(config, name),
        held=lambda name: is_held(config, name),
    )
    validate = Validate(task, network, splits, config, flops, ranks, sitting.shown)
    hooks = [HeadFirst(config.head_steps), validate] if config.head_steps else [validate]
    with closing(Run(sitting, part, settings_of(config, flops, sitting), before=hooks)) as run:
        finished = run.go()
        result = FinetuneResult(
            validate.rows,
            validate.cases,
            flops,
            run.trainer.clock.seconds,
            notes=[
                *seen_before(config, task.corpus, splits),
                *notes_of(config, task, splits),
                *validate.notes,
                *run.checkpoints.rewinds.lines(),
            ],
            subjects={name: list(getattr(splits, name)) for name in SPLITS},
            interrupted=not finished,
            doubts=[doubt for start in task.starts for doubt in start.doubts],
            warnings=[*untaught(task, splits), *target_doubts(config, task.corpus)],
        )
        if finished:
            leave(task, network, splits, sitting, keep_model)
            if keep_model and ranks.first:
                trained = describe(config, sitting.loader.corpus, splits.train, task.dtype)
                write_trained(out, trained)
                own = set(splits.train)
                seen = [one for one in task.corpus.records if one.subject in own]
                keep_trained_on(out, seen, config.init)
            run.checkpoints.finish()
    if finished and ranks.first:
        write_json(out / RESULT, asdict(result))
        sitting.shelf.clear()
    return result


def leave(
    task: Task, network: WholeNetwork, splits: Splits, sitting: Sitting, keep_model: bool
) -> None:
    """Draw a few validation cases and keep the network; every rank takes part."""
    out, ranks = sitting.out, sitting.ranks
    with network.gathered() as net, autocast(ranks.device, task.dtype):
        if ranks.first:
            task.save_pictures(net, splits.validation, out / PICTURES)
    weights = full_weights(task.net) if keep_model else {}
    if ranks.first and keep_model:
        save_pickled(weights, out / MODEL)


def settings_of(config: FinetuneConfig, flops: float, sitting: Sitting) -> RunSettings:
    """What the loop must know; checkpoints are written where there are scores."""
    z, y, x = config.vit.crop_size
    evaluated = frozenset(config.evaluation_steps)
    history = read_json(sitting.out / CONFIG).get("history", [])
    known = identity(config)
    return RunSettings(
        steps=config.steps,
        schedule=config.schedule,
        log=config.log,
        checkpoint=CheckpointConfig(every=config.eval_every, keep_best=False),
        identity=RunIdentity(
            json_sha256(known),
            config.data.corpus,
            corpus_sha256(sitting.loader.corpus),
            earlier_hashes(history, {**beside_identity(config), **known}, identity_of),
        ),
        basis=rate_basis(
            config.global_batch,
            z * y * x * config.vit.channels,
            flops / config.global_batch,
            sitting.ranks,
        ),
        about=known,
        divergence=config.divergence,
        remedies=Remedies(clip_norm="--clip-norm"),
        save_after=lambda step: step in evaluated,
        head_steps=config.head_steps,
    )


def opening_lines(config: FinetuneConfig, task: Task, splits: Splits) -> list[str]:
    """What is told before the first step: what became of weights, classes that are not taught, and
    who was seen by the weights."""
    found = [line for start in task.starts for line in start.lines()]
    found += [*untaught(task, splits), *target_doubts(config, task.corpus)]
    found += [*task.notes(splits.train, "training")]
    return [*found, *flipped_sides(config, task.names), *seen_before(config, task.corpus, splits)]


def untaught(task: Task, splits: Splits) -> list[str]:
    """A line for each class that is scored and that no subject trained on has."""
    have = task.classes_among(splits.train)
    scored = {name: task.classes_among(getattr(splits, name)) for name in ("validation", "test")}
    return [
        f"{title} is scored ({' and '.join(n for n in scored if title in scored[n])}), and none of "
        f"the {len(splits.train)} subjects trained on has it: it cannot be learned, and lowers the "
        "score. Name subjects that have it by --train (with --validation and --test), or deal "
        "others by --data.split.seed or more --labels"
        for title in sorted(scored["validation"] | scored["test"])
        if title not in have
    ]


def fitted(starts: Sequence[Start]) -> list[str]:
    """What of the weights was resized to this run's patches, crops and channels."""
    return [
        f"{start.source}: resized to fit: {', '.join(start.resized)}"
        for start in starts
        if start.resized
    ]


def flipped_sides(config: FinetuneConfig, names: Sequence[str]) -> list[str]:
    """A loud line where classes differ by their side and crops are flipped, which keeps the class.

    It costs no exit code: the run does what was asked, and may be meant so, for the left and right
    ventricle of a heart are told apart in a mirror too.
    """
    pairs = pairs_of_sides(names)
    if not pairs or not augmentation(config.augment).flip:
        return []
    rest = len(pairs) - 1
    more = f" (and {counted(rest, 'more such pair')})" if rest else ""
    upright = "spatial-upright" if config.augment.startswith("spatial") else "upright"
    return [
        f"CLASSES {pairs[0][0]!r} AND {pairs[0][1]!r}{more} DIFFER BY THEIR SIDE, AND CROPS ARE "
        f"FLIPPED: what lies left is taught as right and the other way round. Set --augment "
        f"{upright}, which flips none (now {config.augment}), unless their shape tells them apart"
    ]


def seen_before(config: FinetuneConfig, corpus: Corpus, splits: Splits) -> list[str]:
    """Loud lines where subjects that are scored were pretrained on."""
    if not config.init:
        return []
    return [
        line
        for split in ("test", "validation")
        for line in seen_lines(config.init, corpus.records, getattr(splits, split), split)
    ]


def notes_of(config: FinetuneConfig, task: Task, splits: Splits) -> list[str]:
    """What a reader must know of the subjects: who is left out, which classes a split lacks."""
    found = [
        *fitted(task.starts),
        *input_mismatch(config),
        *target_notes(config),
        *flipped_sides(config, task.names),
        *splits.notes,
        *task.notes(splits.train, "training"),
    ]
    for split in ("validation", "test"):
        if subjects := getattr(splits, split):
            found += task.notes(subjects, split)
    return found


def make_task(
    config: FinetuneConfig,
    corpus: Corpus,
    shards: Shards | None,
    device: torch.device,
    train: Sequence[str] = (),
) -> Task:
    """Segmentation, or for head classify and regress a task of whole volumes.

    `train` are the subjects that are trained on, whose targets decide weights and scales.
    """
    if config.head == "classify":
        return ClassificationTask(config, corpus, device, shards, train)
    if config.head == "regress":
        return RegressionTask(config, corpus, device, shards, train)
    return SegmentationTask(config, corpus, device, shards)


def resolve_splits(config: FinetuneConfig, corpus: Corpus) -> Splits:
    """Named subjects, or those `config.data.split` deals; of the training ones, `config.labels`."""
    data = config.data
    if config.train:
        splits = Splits(config.train, config.validation, config.test, (), (), ())
    else:
        splits = make_splits(corpus.records, data.label, data.split, dealt_by(config))
    train = labelled_subset(splits.train, config.labels, config.seed)
    notes = (*splits.notes, *subjects_in(corpus.records).doubts)
    return replace(splits, train=train, notes=notes)


def dealt_by(config: FinetuneConfig) -> Mapping[str, str] | None:
    """Class of each subject with a target, or quarter of its number; None for segmentation."""
    if config.head == "classify":
        return read_targets(Path(config.data.targets)).by_subject
    if config.head == "regress":
        return read_values(Path(config.data.targets)).bins()
    return None


def target_doubts(config: FinetuneConfig, corpus: Corpus) -> list[str]:
    """What may be wrong with the table of targets."""
    if config.head not in WHOLE_VOLUME:
        return []
    file, known = config.data.targets, {record.subject for record in corpus.records}
    table = (read_targets if config.head == "classify" else read_values)(Path(file))
    return [*table.doubts, *called_otherwise(file, table.by_subject, known, config.data.corpus)]


def target_notes(config: FinetuneConfig) -> tuple[str, ...]:
    """What was mended in the table of targets, or left out."""
    if config.head not in WHOLE_VOLUME:
        return ()
    read = read_targets if config.head == "classify" else read_values
    return read(Path(config.data.targets)).notes


def open_loader(config: FinetuneConfig, ranks: Ranks, splits: Splits) -> Loader:
    """The rank's loader over the training subjects."""
    return Loader(
        config.data.corpus,
        loader_config(config, config.parallel.micro_batch(config.global_batch, ranks.world)),
        rank=ranks.rank,
        world=ranks.world,
        device=str(ranks.device),
        subjects=splits.train,
    )


def refuse_augment(name: str) -> None:
    """An error that lists the names where none is `name`, or where it is of two views.

    Asked before training alone: a trained network is used without its augmentation.
    """
    if augmentation(name).per_view:
        raise ConfigError(
            f"augment {name!r} draws two views of a crop, and fine-tuning has one: take "
            "segmentation or upright"
        )


def loader_config(config: FinetuneConfig, micro_batch: int) -> LoaderConfig:
    """Labelled crops of the encoder's size, any start (few volumes make no case for snapping)."""
    segments = config.head not in WHOLE_VOLUME
    return LoaderConfig(
        crop_size=config.vit.crop_size,
        micro_batch=micro_batch,
        label=config.data.label if segments else None,
        seed=config.seed,
        snap=1,
        foreground_fraction=config.foreground_fraction if segments else 0.0,
        normalise=config.data.normalise,
        augment=config.augment,
        artefacts=config.artefacts,
        cache="auto",
        threads=config.threads,
    )
