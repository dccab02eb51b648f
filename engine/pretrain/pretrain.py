"""A pretraining run from configuration to encoder file, on one rank or many.

    run_pretrain(config, out) -> PretrainResult

An `out` that holds checkpoints of the same configuration is gone on with; one that holds the
finished run is answered from disk.
"""

from collections.abc import Collection, Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from mim3d.dataio.loader.loader import Loader
from mim3d.dataio.reader.voxel_weights import VoxelWeights
from mim3d.engine.arithmetic.attention import attention_of
from mim3d.engine.arithmetic.float8 import refuse_float8
from mim3d.engine.arithmetic.precision import choose_precision
from mim3d.engine.bucket.place import place_of
from mim3d.engine.distributed.config import DeviceKind
from mim3d.engine.distributed.process_group import Ranks, first_decides
from mim3d.engine.distributed.shared import refuse_other_corpora
from mim3d.engine.distributed.stop import stop_on_signal
from mim3d.engine.errors import ConfigError
from mim3d.engine.models.config import method_name
from mim3d.engine.models.flops import run_flops
from mim3d.engine.models.objective import Objective
from mim3d.engine.pretrain.config import (
    PretrainConfig,
    config_dict,
    config_identity,
    identity_of,
)
from mim3d.engine.pretrain.data import Subjects, choose_subjects
from mim3d.engine.pretrain.held_out import HeldOut, HeldOutScores
from mim3d.engine.pretrain.lengthening import corpus_remedy
from mim3d.engine.pretrain.reconstruction import Pictures
from mim3d.engine.pretrain.run_folder import (
    CONFIG,
    RESULT,
    Opening,
    PretrainResult,
    finished_result,
    open_run,
    parts_of,
    stored_config,
)
from mim3d.engine.pretrain.unscored import Unscored
from mim3d.engine.pretrain.verdict import judge_pretext
from mim3d.engine.probe.best import BEST, leave_best
from mim3d.engine.probe.probe import Probe, ProbeSetting
from mim3d.engine.probe.remarks import probe_remarks
from mim3d.engine.runs.address import inside
from mim3d.engine.runs.checkpoint_files import CHECKPOINTS, committed
from mim3d.engine.runs.encoder_file import STATISTICS, save_encoder
from mim3d.engine.runs.files import json_sha256, read_json, write_json
from mim3d.engine.runs.history import change_line, earlier_hashes
from mim3d.engine.runs.own_parts import changed_parts
from mim3d.engine.runs.scan_recipe import scan_recipe
from mim3d.engine.training.checkpoints import RunIdentity
from mim3d.engine.training.corpus import CorpusFit, corpus_fit, corpus_sha256
from mim3d.engine.training.divergence import Remedies
from mim3d.engine.training.metrics import METRICS, Row, rate_basis, read_rows
from mim3d.engine.training.rewinds import Rewinds
from mim3d.engine.training.run import Run, RunSettings, Sitting
from mim3d.engine.training.run_context import explain_full_disk, run_ranks, shown_progress
from mim3d.engine.training.run_state import full_weights
from mim3d.engine.training.sharding import shard_objective
from mim3d.engine.training.trainer import Hook
from mim3d.engine.transfer.seen import keep_trained_on
from mim3d.engine.transfer.start import StartRequest, start_from
from mim3d.engine.transfer.start_report import Start


def run_pretrain(
    config: PretrainConfig, out: str | Path, staging: str = "", device: DeviceKind = "auto"
) -> PretrainResult:
    """Train to `config.steps`, or until a signal; leaves the process group as it was found.

    `out` is a folder, or the address of one in a bucket, which is made in the folder `staging`.
    `device` is where it is computed: auto takes a GPU where there is one.

    Raises CorpusError, ConfigError, CheckpointError or TrainingError, each with its remedy; of
    many ranks one does, and the others raise PeerError.
    """
    place = place_of(out, staging)
    out = place.folder
    if place.is_here and (done := finished_result(out, config)) is not None:
        return done
    with ExitStack() as stack:
        ranks = stack.enter_context(run_ranks(config.parallel, device, config.seed))
        config = config.for_ranks(ranks.world)
        stack.enter_context(place.opened(ranks))
        if not place.is_here:
            done = first_decides(ranks, lambda: finished_result(out, config))
            if done is not None:
                return replace(done, run=place.where)
        subjects = subjects_of(config, first_decides(ranks, lambda: stored_config(out)))
        loader = stack.enter_context(open_loader(config, ranks, subjects.train))
        fit = corpus_fit(loader.corpus.table, config.vit, loader.sampler.volumes)
        held_out = None
        if subjects.held_out:
            held_out = stack.enter_context(closing(HeldOut(config, ranks, subjects.held_out)))
        probe = None
        if config.probe.is_on:
            shape, normalise = config.encoder, config.data.loader.normalise
            probe = stack.enter_context(
                closing(ProbeSetting(config.probe, shape, normalise, ranks))
            )
        module = config.build()
        begins = first_decides(ranks, lambda: not committed(out / CHECKPOINTS))
        start = start_from(module, start_request(config)) if config.init and begins else None
        attention = attention_of(
            module,
            config.parallel.attention,
            choose_precision(config.parallel.precision, ranks.device),
            ranks.device,
        )
        if config.parallel.precision == "fp8":
            refuse_float8(module, ranks.device)
        opening = Opening(subjects.held_out, corpus_sha256(loader.corpus), start, attention)
        refuse_other_corpora(config.data.corpus, opening.corpus_sha256, ranks)
        place.claim(ranks, stack)
        before = first_decides(ranks, lambda: stored_config(out).get("plugins", []))
        changed = first_decides(ranks, lambda: open_run(out, config, ranks, opening))
        place.share(ranks)
        stop = stack.enter_context(stop_on_signal(ranks))
        title = f"pretrain {method_name(config.method)}"
        shown = stack.enter_context(shown_progress(title, config.steps, ranks))
        stack.enter_context(explain_full_disk(out))
        about = remarks(config, fit, loader.weights) + list(loader.notes)
        for remark in [*about, *(start.lines() if start else [])]:
            shown.note(remark)
        if ranks.first:
            table, records = loader.corpus.table, loader.corpus.records
            drawn = {table.volume_id(int(row)) for row in loader.sampler.volumes}
            keep_trained_on(out, [one for one in records if one.id in drawn], config.init)
            if probe is not None:
                normalise = config.data.loader.normalise
                for line in probe_remarks(out, loader.corpus, probe.cohort, normalise):
                    shown.note(line)
        for line in [*map(change_line, changed), *changed_parts(before, parts_of(config))]:
            shown.note(line)
        sitting = Sitting(out, ranks, loader, shown, stop, place.shelf(shown.note))
        result = train(config, module, sitting, held_out, probe)
        first_decides(ranks, place.leave)
        return result if place.is_here else replace(result, run=place.where)


def subjects_of(config: PretrainConfig, stored: Mapping[str, Any]) -> Subjects:
    """Who trains and who is held out, of a corpus that must be named.

    Of a corpus that changed under a run, whose configuration is `stored`, those stay held out who
    were: none of them may train.
    """
    if not config.data.corpus:
        raise ConfigError("no corpus: set --data.corpus to a folder that `mim3d convert` wrote")
    data = config.data
    if config.accept_corpus and data.held_out:
        dealt = stored.get("dealt", {}).get("held_out", [])
        if dealt:
            data = replace(data, held_out=0.0, held_out_subjects=tuple(dealt))
    return choose_subjects(data, config.seed)


def open_loader(
    config: PretrainConfig, ranks: Ranks, subjects: Collection[str] | None = None
) -> Loader:
    """The rank's loader; made before the run's folder, so a wrong corpus leaves nothing behind."""
    data = config.data
    micro_batch = config.micro_batch(ranks.world)
    return Loader(
        data.corpus,
        data.loader_config(config.vit, config.method, micro_batch, config.seed),
        rank=ranks.rank,
        world=ranks.world,
        device=ranks.device,
        subjects=subjects,
    )


def start_request(config: PretrainConfig) -> StartRequest:
    """What `config` asks of the weights that it starts from."""
    return StartRequest(
        config.init,
        config.vit,
        config.swin,
        config.data.loader.normalise,
        config.init_axes,
        config.init_channels,
        config.resenc,
    )


def remarks(
    config: PretrainConfig, fit: CorpusFit, weights: VoxelWeights | None = None
) -> list[str]:
    """What is allowed and seldom meant."""
    found: list[str] = []
    schedule = config.schedule
    if schedule.warmup_steps >= config.steps:
        found.append(
            f"schedule.warmup_steps {schedule.warmup_steps} is not below steps {config.steps}: the "
            f"rate never reaches schedule.lr {schedule.lr:g} nor falls; set --schedule.warmup-steps"
        )
    if fit.padded:
        counts = weights is None or not weights.padding
        found.append(
            f"{fit.padded} of {fit.volumes} volumes are smaller than vit.crop_size "
            f"{config.vit.crop_size} on some axis: their crops are padded, and padding is "
            + ("learned (--method.ignore padding leaves it out)" if counts else "not scored")
        )
    found += [] if weights is None else weights.remarks(fit.volumes)
    if fit.lacking:
        found.append(
            f"{fit.lacking} of {fit.volumes} volumes lack a channel (it is one value everywhere): "
            "it comes as 0, and nothing is learned from it"
        )
    if config.max_micro_batch and config.parallel.grad_accum > 1:
        found.append(
            f"a step is {config.parallel.grad_accum} micro-batches of a rank, of at most "
            f"{config.max_micro_batch} crops (max_micro_batch): raise it where there is more memory"
        )
    if config.parallel.compile:
        found.append(
            "blocks are compiled first (parallel.compile): the first step takes longer, on a large "
            "model minutes; --parallel.no-compile begins at once"
        )
    return found


def train(
    config: PretrainConfig,
    module: Objective,
    sitting: Sitting,
    held_out: HeldOut | None,
    setting: ProbeSetting | None,
) -> PretrainResult:
    """One sitting: to the end, with the encoder's file and the verdict, or until a signal."""
    ranks, log = sitting.ranks, config.log
    part = shard_objective(module.to(ranks.device), config.optim, config.parallel, ranks)
    pictures = Pictures(
        part.module, sitting.out, ranks, log.picture_every, method_name(config.method)
    )
    scores = (
        [HeldOutScores(held_out, part.module, log.held_out_every, pictures)] if held_out else []
    )
    settings = settings_of(config, sitting)
    step_flops = settings.basis.flops_per_crop * config.global_batch
    probe = Probe(setting, part.module, step_flops, sitting.shown) if setting else None
    before: list[Hook] = [*([probe] if probe else []), *scores]
    after = [Unscored(config), pictures]
    with closing(Run(sitting, part, settings, before=before, after=after)) as run:
        if not run.go():
            return PretrainResult(sitting.out, run.trainer.step, run.log.last, interrupted=True)
        weights = full_weights(part.module.get_submodule("encoder"))
        run.checkpoints.finish()
    figures, step = dict(run.log.last), run.trainer.step
    if ranks.first:
        figures = leave(config, sitting, settings.identity, weights, step, probe)
    return PretrainResult(sitting.out, step, figures)


def settings_of(config: PretrainConfig, sitting: Sitting) -> RunSettings:
    """What the loop must know."""
    z, y, x = config.vit.crop_size
    return RunSettings(
        steps=config.steps,
        schedule=config.schedule,
        log=config.log,
        checkpoint=config.checkpoint,
        identity=RunIdentity(
            json_sha256(config_identity(config)),
            config.data.corpus,
            corpus_sha256(sitting.loader.corpus),
            earlier_hashes(
                stored_config(sitting.out).get("history", []), config_dict(config), identity_of
            ),
            config.accept_corpus,
            corpus_remedy(sitting.out),
        ),
        basis=rate_basis(
            config.global_batch,
            z * y * x * config.vit.channels,
            run_flops(config.method, config.vit, config.backbone),
            sitting.ranks,
        ),
        about=config_dict(config),
        divergence=config.divergence,
        remedies=Remedies(),
        save_after=lambda step: step % config.checkpoint.every == 0,
    )


def leave(
    config: PretrainConfig,
    sitting: Sitting,
    identity: RunIdentity,
    weights: dict[str, Tensor],
    step: int,
    probe: Probe | None,
) -> Row:
    """Write the encoder's file and the verdict; the first rank's work."""
    out, normalise = sitting.out, config.data.loader.normalise
    stored = read_json(out / CONFIG)
    scans = scan_recipe(sitting.loader.corpus, normalise, config.vit.channels)
    provenance = {
        "method": method_name(config.method),
        "step": step,
        "normalise": normalise,
        "statistics": STATISTICS,
        "scans": scans.plain(),
        "corpus_sha256": identity.corpus_sha256,
        "config_sha256": identity.config_sha256,
        **{name: stored[name] for name in ("start", "history", "plugins") if stored.get(name)},
        **({"rewinds": lines} if (lines := Rewinds(out).lines()) else {}),
    }
    save_encoder(out, config.vit, weights, provenance, config.backbone)
    rows = read_rows(out / METRICS)
    figures = {**(rows[-1] if rows else {}), "pretext": judge_pretext(rows)}
    if doubts := Start(**stored["start"]).doubts if stored.get("start") else []:
        figures["start_doubts"] = doubts
    if probe is not None:
        figures |= probed(config, probe, sitting, provenance)
    write_json(out / RESULT, figures)
    return figures


def probed(
    config: PretrainConfig, probe: Probe, sitting: Sitting, provenance: Mapping[str, Any]
) -> Row:
    """What a run's result tells of its probe, whose best encoder is written."""
    course, out = probe.course, sitting.out
    lack = leave_best(out, sitting.shelf, config.encoder, course, provenance)
    if lack:
        sitting.shown.note(lack)
    found = {"by": config.probe.by, "best": course.best, "best_step": course.best_step}
    early = {"stopped_early": probe.config.patience} if probe.enough() else {}
    doubts = {"probe_doubts": list(held)} if (held := probe.setting.cohort.doubts) else {}
    encoder = "" if lack else inside(sitting.shelf.run, BEST)
    return {"probe": {**found, "encoder": encoder}, **early, **doubts}
