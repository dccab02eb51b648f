"""Fine-tuning by the one loop: what decays, exact resume, precision, sharding, what is refused."""

import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from small_finetune import VIT, make_labelled_corpus, small_finetune
from small_run import at_step, poison_samples, signal_at

from mim3d.dataio.reader.corpus import Corpus
from mim3d.engine.distributed.config import ParallelConfig
from mim3d.engine.distributed.process_group import Ranks, process_ranks
from mim3d.engine.errors import CheckpointError, ConfigError, DivergedError
from mim3d.engine.finetune.config import FinetuneConfig, identity
from mim3d.engine.finetune.finetune import make_task, run_finetune
from mim3d.engine.finetune.rates import lr_scale
from mim3d.engine.finetune.run_folder import EARLIER_DECAY, FinetuneResult
from mim3d.engine.models.config import SwinConfig
from mim3d.engine.runs.checkpoint import Checkpointer
from mim3d.engine.runs.checkpoint_files import CheckpointFacts
from mim3d.engine.runs.files import read_json, write_json
from mim3d.engine.training.config import DivergenceConfig, LogConfig, OptimConfig, ScheduleConfig
from mim3d.engine.training.metrics import METRICS, read_rows
from mim3d.engine.training.optim import ShardedOptimiser
from mim3d.engine.training.sharding import shard_objective
from mim3d.engine.training.train_step import Stepper


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_labelled_corpus(tmp_path_factory.mktemp("phantom"))


@pytest.fixture
def config(corpus: Path) -> FinetuneConfig:
    return small_finetune(corpus)


def make_optimiser(config: FinetuneConfig, ranks: Ranks) -> ShardedOptimiser:
    task = make_task(config, Corpus.open(config.data.corpus), None, ranks.device)
    optim = OptimConfig(weight_decay=0.1)
    return shard_objective(
        task, optim, config.parallel, ranks, lambda name: lr_scale(config, name)
    ).optimiser


def test_the_encoder_has_a_rate_of_its_own(config: FinetuneConfig) -> None:
    with process_ranks(60.0, "cpu") as ranks:
        slow = make_optimiser(replace(config, encoder_lr_scale=0.25), ranks)
        for parameter in slow.named.values():
            parameter.grad = torch.ones_like(parameter)
        slow.step(1e-3)
        rates = {id(p): g["lr"] for g in slow.inner.param_groups for p in g["params"]}
        assert rates.keys() == {id(piece) for piece in slow.local.values()}
        for name, piece in slow.local.items():
            wanted = 0.25e-3 if name.startswith("net.encoder.") else 1e-3
            assert rates[id(piece)] == pytest.approx(wanted)
        frozen = make_optimiser(replace(config, freeze=True), ranks)
        assert not any(name.startswith("net.encoder.") for name in frozen.named)
    with pytest.raises(ConfigError, match="encoder_lr_scale 0"):
        replace(config, encoder_lr_scale=0.0)


def test_norms_biases_and_positions_are_not_decayed(config: FinetuneConfig, tmp_path: Path) -> None:
    """One step from the same weights and gradients: only what decays depends on the decay."""
    vit = replace(VIT, position="learned")
    config = replace(config, vit=vit, steps=1, eval_every=1, schedule=ScheduleConfig(lr=1e-2))
    nets = {}
    for decay in (0.0, 0.5):
        out = tmp_path / str(decay)
        run_finetune(replace(config, weight_decay=decay), out)
        nets[decay] = torch.load(out / "model.pt", weights_only=True)
    changed = {key for key, one in nets[0.0].items() if not torch.equal(one, nets[0.5][key])}
    matrices = {key for key, value in nets[0.0].items() if value.dim() > 1}
    assert changed == matrices - {"encoder.pos_embed"}
    assert {"encoder.pos_embed", "encoder.norm.weight", "encoder.norm.bias"} <= nets[0.0].keys()


def assert_same_result(one: FinetuneResult, other: FinetuneResult) -> None:
    timeless = [[{**row, "seconds": 0} for row in run.rows] for run in (one, other)]
    assert timeless[0] == timeless[1]
    assert one.cases == other.cases


def interrupt(_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("step", [2, 4])
def test_killed_and_resumed_equals_uninterrupted(
    config: FinetuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    whole = run_finetune(config, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        at_step(step, interrupt, patch.setattr)
        run_finetune(config, tmp_path / "cut")
    assert_same_result(run_finetune(config, tmp_path / "cut"), whole)
    assert not (tmp_path / "cut" / "checkpoints").exists()


def test_a_first_interrupt_saves(
    config: FinetuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        signal_at(3, patch.setattr, signal.SIGINT)
        assert run_finetune(config, tmp_path / "cut").interrupted
    assert (tmp_path / "cut" / "checkpoints" / "step-00000003").is_dir()
    assert run_finetune(config, tmp_path / "cut").rows[-1]["step"] == config.steps


@pytest.mark.parametrize(
    ("precision", "head"), [("fp32", "unetr"), ("bf16", "unetr"), ("fp16", "linear")]
)
def test_told_to_stop_between_scores_and_resumed_is_bitwise_the_same(
    config: FinetuneConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: Literal["fp32", "bf16", "fp16"],
    head: Literal["unetr", "linear"],
) -> None:
    """The mean loss of a row, too, holds steps of both sittings."""
    parallel = ParallelConfig(precision=precision)
    config = replace(config, head=head, steps=6, eval_every=3, parallel=parallel)
    whole = run_finetune(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        signal_at(5, patch.setattr)
        stopped = run_finetune(config, tmp_path / "cut")
    assert stopped.interrupted
    assert [row["step"] for row in stopped.rows] == [0, 3]
    assert_same_result(run_finetune(config, tmp_path / "cut"), whole)
    nets = [torch.load(tmp_path / run / "model.pt", weights_only=True) for run in ("whole", "cut")]
    assert all(torch.equal(value, nets[1][key]) for key, value in nets[0].items())
    losses = [
        [row["loss"] for row in read_rows(tmp_path / run / METRICS)] for run in ("whole", "cut")
    ]
    assert losses[0] == losses[1]


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("head", "change"),
    [
        ("unetr", {"precision": "bf16"}),
        ("linear", {"precision": "fp16"}),
        ("unetr", {"one_rank": "sharded"}),
        ("frozen", {"one_rank": "sharded"}),
        ("unetr", {"recompute": True}),
        ("tokens", {"grad_accum": 2}),
        ("classify", {"precision": "bf16"}),
        pytest.param("unetr", {"precision": "fp16"}, marks=SLOW),
        pytest.param("frozen", {"precision": "bf16"}, marks=SLOW),
        pytest.param("swin", {"precision": "bf16"}, marks=SLOW),
        pytest.param("swin", {"one_rank": "sharded"}, marks=SLOW),
        pytest.param("swin", {"recompute": True}, marks=SLOW),
    ],
)
def test_options_of_the_step_keep_its_course(
    corpus: Path, tmp_path: Path, head: str, change: dict[str, Any]
) -> None:
    shape: dict[str, Any] = {"head": "unetr" if head in ("frozen", "swin") else head}
    shape |= {"freeze": True} if head == "frozen" else {}
    if head == "swin":
        swin = SwinConfig(feature_size=12, depths=(1, 1, 1, 1), heads=(1, 2, 2, 4), window=4)
        shape |= {"swin": swin, "vit": replace(VIT, crop_size=(64, 32, 32))}
    config = small_finetune(corpus, steps=2, **shape)
    plain = run_finetune(config, tmp_path / "plain")
    other = run_finetune(replace(config, parallel=ParallelConfig(**change)), tmp_path / "other")
    tolerance = 2e-2 if "precision" in change else 2e-6
    for mine, theirs in zip(
        read_rows(tmp_path / "other" / METRICS),
        read_rows(tmp_path / "plain" / METRICS),
        strict=True,
    ):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=tolerance)
        assert mine["bad_steps"] == 0
    for mine, theirs in zip(other.rows, plain.rows, strict=True):
        assert mine["score"] == pytest.approx(theirs["score"], abs=5e-3)


def test_a_run_that_an_earlier_version_left_under_way_is_refused(
    config: FinetuneConfig, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    write_json(out / "config.json", identity(config))
    (out / "state.pt").write_bytes(b"")
    with pytest.raises(
        CheckpointError, match=r"state\.pt .*cannot be gone on with\. Delete"
    ) as found:
        run_finetune(config, out)
    assert "\n" not in str(found.value)
    shutil.rmtree(out)  # the remedy
    assert run_finetune(replace(config, steps=1), out).rows


def test_a_result_of_an_earlier_version_is_read_and_says_what_it_decayed(
    config: FinetuneConfig, tmp_path: Path
) -> None:
    new = run_finetune(config, tmp_path)
    assert EARLIER_DECAY not in new.notes
    stored = read_json(tmp_path / "config.json")
    del stored["decayed"]
    write_json(tmp_path / "config.json", stored)
    old = run_finetune(config, tmp_path)
    assert old.rows == new.rows
    assert old.notes == [*new.notes, EARLIER_DECAY]


def test_a_run_whose_gradients_stay_bad_ends_as_diverged_and_its_remedies_work(
    config: FinetuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = LogConfig(every=1, tensorboard=False, max_bad_steps=3)
    config = replace(config, head="linear", steps=8, log=log)
    plain = Stepper.step
    done: list[int] = []

    def step(self: Stepper, lr: float, measure: bool) -> Any:
        done.append(1)
        if len(done) > 3:
            self.optimiser.loss_scale.fill_(float("inf"))
        return plain(self, lr, measure)

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "step", step)
        half = replace(config, parallel=ParallelConfig(precision="fp16"))
        with pytest.raises(DivergedError, match=r"checkpoint of step 2, .* --clip-norm"):
            run_finetune(half, tmp_path / "run")
    gentler = replace(config, schedule=replace(config.schedule, lr=1e-4), clip_norm=0.1)
    result = run_finetune(gentler, tmp_path / "run")
    assert result.rows[-1]["step"] == 8
    history = read_json(tmp_path / "run" / "config.json")["history"]
    assert [(one["at_step"], one["changed"]) for one in history] == [
        (2, "clip_norm"),
        (2, "parallel.precision"),
        (2, "schedule.lr"),
    ]
    with pytest.raises(ConfigError, match=r"schedule\.lr 0\.0001, not 0\.0003"):
        run_finetune(config, tmp_path / "run")


def test_a_checkpoint_that_is_written_later_holds_what_was_known_then(
    config: FinetuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, kept = Checkpointer.save, []

    def save(self: Checkpointer, state: Any, facts: CheckpointFacts) -> None:
        kept.append(facts)
        plain(self, state, facts)

    monkeypatch.setattr(Checkpointer, "save", save)
    run_finetune(replace(config, head="linear", steps=6), tmp_path)
    assert len(kept) > 1
    for facts in kept:
        rows = facts.hooks["validate"]["rows"]
        steps = [row["step"] for row in rows if row["split"] == "validation"]
        assert steps == [step for step in (0, 2, 4, 6) if step <= facts.step]


def test_a_diverging_run_goes_back_with_its_evaluations(
    config: FinetuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = LogConfig(every=1, tensorboard=False, max_bad_steps=2)
    config = replace(config, head="linear", steps=6, log=log, divergence=DivergenceConfig("rewind"))
    poison_samples(range(6, 10), monkeypatch.setattr)  # of steps 4 and 5
    result = run_finetune(config, tmp_path)
    assert [row["step"] for row in result.rows if row["split"] == "validation"] == [0, 2, 4, 6]
    flops = {row["step"]: row["flops"] / result.step_flops for row in result.rows}
    assert flops == {0: 0, 2: 2, 4: 7, 6: 9}
    assert [note for note in result.notes if "went back from step 5 to 2" in note]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_device_that_is_not_there_is_refused(config: FinetuneConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no CUDA device is visible: set --device cpu"):
        run_finetune(replace(config, device="cuda"), tmp_path)
    assert run_finetune(replace(config, device="cpu", steps=1), tmp_path).rows


def test_what_ranks_cannot_share_is_refused(config: FinetuneConfig, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="global_batch 2 must be a multiple of 1 ranks x grad_accum 3"
    ):
        run_finetune(replace(config, parallel=ParallelConfig(grad_accum=3)), tmp_path)
    with pytest.raises(ConfigError, match="profile_step 5 lies past the last of 4 steps"):
        replace(config, log=LogConfig(profile_step=5))
