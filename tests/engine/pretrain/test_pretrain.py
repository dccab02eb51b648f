"""Runs in this process: what they leave, exact resume, and every fault one process can have."""

import dataclasses
import errno
import json
import os
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import small_run
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from small_run import make_corpus, signal_at, small_config
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from mim3d.dataio.corpus.names import own_file
from mim3d.dataio.errors import CorpusError
from mim3d.engine.errors import CheckpointError, ConfigError, DivergedError, TrainingError
from mim3d.engine.models import masked
from mim3d.engine.models.config import SwinConfig
from mim3d.engine.pretrain import reconstruction
from mim3d.engine.pretrain.pretrain import run_pretrain
from mim3d.engine.runs.encoder_file import load_encoder, load_swin
from mim3d.engine.training import clocks, metrics
from mim3d.engine.training.metrics import read_rows

# What resuming must not change; the rest of a row is time.
EXACT = ("step", "lr", "loss", "patch_mean", "nearest_patch", "grad_norm")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    """An uninterrupted run, to be compared with and copied."""
    out = tmp_path_factory.mktemp("whole") / "run"
    run_pretrain(small_config(corpus), out)
    return out


def exact_rows(out):
    return [{name: row[name] for name in EXACT} for row in read_rows(out / "metrics.jsonl")]


def weights(out):
    return load_file(out / "encoder.safetensors")


def assert_same_run(out, other):
    assert exact_rows(out) == exact_rows(other)
    mine, theirs = weights(out), weights(other)
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert torch.equal(tensor, theirs[name]), name


def steps_saved(out):
    return [int(path.name[-8:]) for path in sorted((out / "checkpoints").iterdir())]


def unfinish(finished, out, *, drop=()):
    """A copy of the finished run as if it had stopped before its end."""
    shutil.copytree(finished, out)
    for name in ("pretext.json", "encoder.safetensors", "encoder.json"):
        (out / name).unlink()
    for step in drop:
        shutil.rmtree(out / "checkpoints" / f"step-{step:08d}")


def test_a_run_leaves_what_it_promises(finished, corpus):
    assert not dist.is_initialized()
    rows = read_rows(finished / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 9))
    wanted = {"loss", "lr", "grad_norm", "crops_per_s", "voxels_per_s", "data_stall_share",
              "mfu_bf16", "flops", "seconds", "stage_forward_s", "stage_backward_s",
              "stage_optimiser_s", "stage_read_s", "stage_decode_s", "host_memory_gb"}  # fmt: skip
    assert wanted <= rows[-1].keys()
    assert steps_saved(finished) == [6, 8] or 3 in steps_saved(finished)
    config = json.loads((finished / "config.json").read_text())
    assert config["method"]["name"] == "mae"
    assert config["data"]["corpus"] == str(corpus)
    found = {name: config["environment"][name] for name in ("device", "world", "precision")}
    assert found == {"device": "cpu", "world": 1, "precision": "float32"}
    assert config["dealt"] == {"held_out": []}
    verdict = json.loads((finished / "pretext.json").read_text())["pretext"]
    assert {"loss", "patch_mean", "nearest_patch", "learned"} <= verdict.keys()
    assert (finished / "pictures" / "step-00000008.png").stat().st_size > 10_000
    encoder = load_encoder(finished)
    assert encoder(torch.zeros(1, 1, 16, 16, 32)).shape == (1, 16, 24)


def test_a_finished_run_is_answered_from_disk(finished, corpus):
    before = (finished / "metrics.jsonl").stat().st_mtime_ns
    result = run_pretrain(small_config(corpus), finished)
    assert result.step == 8
    assert "pretext" in result.figures
    assert (finished / "metrics.jsonl").stat().st_mtime_ns == before
    with pytest.raises(CheckpointError, match=r"seed was 0 and is now 1.*another --out"):
        run_pretrain(small_config(corpus, seed=1), finished)


def test_a_first_interrupt_saves_and_says_how_to_go_on(
    corpus, finished, tmp_path, monkeypatch, capsys
):
    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        signal_at(5, patch.setattr, signal.SIGINT)
        result = run_pretrain(small_config(corpus), tmp_path / "broken")
    assert (result.interrupted, result.step) == (True, 5)
    assert 5 in steps_saved(tmp_path / "broken")
    assert "told to stop: step 5 of 8 is saved" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is before
    run_pretrain(small_config(corpus), tmp_path / "broken")
    assert_same_run(tmp_path / "broken", finished)


def test_an_interrupt_is_left_to_whoever_has_a_handler_of_his_own(corpus, tmp_path, monkeypatch):
    seen = []
    before = signal.signal(signal.SIGINT, lambda *_: seen.append(1))
    try:
        signal_at(5, monkeypatch.setattr, signal.SIGINT)
        assert not run_pretrain(small_config(corpus), tmp_path / "run").interrupted
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [1]


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("method", ["mae", "simmim", "simclr"])
def test_resume_after_sigterm_is_bitwise_exact(
    corpus, finished, tmp_path, monkeypatch, method, asynchronous
):
    before = signal.getsignal(signal.SIGTERM)
    config = small_config(corpus, method)
    saving = dataclasses.replace(config.checkpoint, asynchronous=asynchronous)
    config = dataclasses.replace(config, checkpoint=saving)
    with monkeypatch.context() as patch:
        signal_at(5, patch.setattr)
        result = run_pretrain(config, tmp_path / "broken")
    assert result.interrupted
    assert result.step == 5
    assert signal.getsignal(signal.SIGTERM) is before
    assert not run_pretrain(config, tmp_path / "broken").interrupted
    if method == "mae":
        assert_same_run(tmp_path / "broken", finished)
        return
    run_pretrain(config, tmp_path / "whole")
    for name, tensor in weights(tmp_path / "whole").items():
        assert torch.equal(tensor, weights(tmp_path / "broken")[name])


def test_a_damaged_checkpoint_is_passed_over_loudly(corpus, finished, tmp_path, capsys):
    out = tmp_path / "run"
    unfinish(finished, out)
    shard = next((out / "checkpoints" / "step-00000008").glob("*.distcp"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    run_pretrain(small_config(corpus), out)
    printed = capsys.readouterr().out
    assert "DAMAGED CHECKPOINT step-00000008 PASSED OVER" in printed
    assert shard.name in printed
    assert "going on from the checkpoint of step 6" in printed
    assert_same_run(out, finished)


def test_a_hostile_checkpoint_runs_nothing_and_is_passed_over(corpus, finished, tmp_path, capsys):
    out = tmp_path / "run"
    unfinish(finished, out)
    folder = out / "checkpoints" / "step-00000008"
    proof = tmp_path / "it ran"
    (folder / ".metadata").write_bytes(f"cos\nsystem\n(S'touch \"{proof}\"'\ntR.".encode())
    # Its writer knows how manifests are sealed, so the hashes fit.
    facts, _ = small_run.checkpoint_files.read_facts(folder)
    small_run.checkpoint_files.write_manifest(folder, facts)
    run_pretrain(small_config(corpus), out)
    assert not proof.exists()
    assert "wants to build os.system" in capsys.readouterr().out
    assert_same_run(out, finished)


def test_nothing_whole_left_is_an_error_and_not_a_fresh_start(corpus, finished, tmp_path):
    out = tmp_path / "run"
    unfinish(finished, out)
    for path in (out / "checkpoints").glob("*/.metadata"):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"none of the \d checkpoints.*is whole"):
        run_pretrain(small_config(corpus), out)
    assert not dist.is_initialized()


def test_another_configuration_is_refused_by_name(corpus, finished, tmp_path):
    out = tmp_path / "run"
    unfinish(finished, out)
    with pytest.raises(CheckpointError, match="global_batch was 4 and is now 8"):
        run_pretrain(small_config(corpus, global_batch=8), out)
    with pytest.raises(CheckpointError, match=r"holds a run of 8 steps.* cannot become one of 9"):
        run_pretrain(small_config(corpus, steps=9), out)


def test_logging_and_the_corpus_place_may_change(corpus, finished, tmp_path):
    out = tmp_path / "run"
    unfinish(finished, out, drop=[8])
    moved = tmp_path / "elsewhere.zarr"
    shutil.copytree(corpus, moved)
    config = small_config(moved)
    config = dataclasses.replace(config, log=dataclasses.replace(config.log, every=2))
    run_pretrain(config, out)
    for name, tensor in weights(finished).items():
        assert torch.equal(tensor, weights(out)[name])


def test_a_changed_corpus_is_refused(finished, tmp_path):
    other = make_corpus(tmp_path, subjects=4)
    out = tmp_path / "run"
    unfinish(finished, out)
    manifest = own_file(other, "manifest.jsonl")
    same = manifest.read_bytes()
    run_folder_hash = json.loads(
        (out / "checkpoints" / "step-00000008" / "manifest.json").read_text()
    )["body"]["corpus_sha256"]
    assert run_folder_hash
    grown = make_corpus(tmp_path / "grown", subjects=5)
    assert own_file(grown, "manifest.jsonl").read_bytes() != same
    with pytest.raises(TrainingError, match=r"has changed since step 8.*another --out"):
        run_pretrain(small_config(grown), out)


@pytest.mark.parametrize("bad", [{3}, {3, 4, 5, 6, 7, 8}])
def test_bad_gradients(corpus, tmp_path, monkeypatch, bad):
    monkeypatch.setattr(small_run.Stepper, "step", small_run.Stepper.step)
    small_run.spoil_gradients(bad, rank=0)
    config = small_config(corpus)
    config = dataclasses.replace(config, log=dataclasses.replace(config.log, max_bad_steps=4))
    out = tmp_path / "run"
    if len(bad) == 1:
        assert run_pretrain(config, out).figures["bad_steps"] == 1
        return
    with pytest.raises(DivergedError, match=r"not finite in 4 steps in a row.*no checkpoint is"):
        run_pretrain(config, out)
    kept = torch.cat([t.flatten() for t in healthy_state(out).values()])
    assert kept.isfinite().all()
    assert not dist.is_initialized()


def test_a_row_holds_the_steps_of_both_sittings(corpus, tmp_path, monkeypatch):
    config = changed(small_config(corpus), "log", every=4)
    run_pretrain(config, tmp_path / "whole")
    stopped_at(config, tmp_path / "broken", 7, monkeypatch)
    run_pretrain(config, tmp_path / "broken")
    rows = [exact_rows(tmp_path / run) for run in ("whole", "broken")]
    assert [row["step"] for row in rows[0]] == [1, 4, 8]
    assert rows[0] == rows[1]


def healthy_state(out):
    newest = small_run.checkpoint_files.committed(out / "checkpoints")[0]
    small_run.checkpoint_files.verify(newest)
    metadata = dcp.FileSystemReader(newest).read_metadata()
    state = {
        name: torch.empty(kind.size)
        for name, kind in metadata.state_dict_metadata.items()
        if name.startswith("model.") and isinstance(kind, TensorStorageMetadata)
    }
    dcp.load(state, checkpoint_id=newest, no_dist=True)
    return state


def test_a_checkpoint_without_every_file_is_not_committed(corpus, tmp_path, monkeypatch):
    """As where a node writes its part to a folder of its own."""
    plain = dcp.FileSystemWriter.finish

    def finish(self, metadata, results):
        plain(self, metadata, results)
        (Path(self.path) / "__0_0.distcp").unlink()

    monkeypatch.setattr(dcp.FileSystemWriter, "finish", finish)
    with pytest.raises(CheckpointError, match=r"step 8, was not saved.*lacks __0_0\.distcp"):
        run_pretrain(small_config(corpus), tmp_path / "run")
    assert steps_saved(tmp_path / "run") == []


@pytest.mark.parametrize("always", [False, True])
def test_a_full_disk_while_saving(corpus, finished, tmp_path, monkeypatch, capsys, always):
    """A save that fails is told and the run goes on; the last one must not fail."""
    plain = dcp.FileSystemWriter.write_data

    def write_data(self, plan, planner):
        if always or "tmp-00000003" in str(self.path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return plain(self, plan, planner)

    monkeypatch.setattr(dcp.FileSystemWriter, "write_data", write_data)
    out = tmp_path / "run"
    if always:
        with pytest.raises(CheckpointError, match=r"step 8, was not saved.*No space left"):
            run_pretrain(small_config(corpus), out)
        assert steps_saved(out) == []
        return
    run_pretrain(small_config(corpus), out)
    printed = capsys.readouterr().out
    assert "CHECKPOINT OF STEP 3 WAS NOT SAVED" in printed
    assert "No space left" in printed
    assert steps_saved(out) == [6, 8]
    assert_same_run(out, finished)


def test_gradient_accumulation_is_the_same_step(corpus, finished, tmp_path):
    config = small_config(corpus)
    parallel = dataclasses.replace(config.parallel, grad_accum=2)
    run_pretrain(dataclasses.replace(config, parallel=parallel), tmp_path / "run")
    for mine, theirs in zip(exact_rows(tmp_path / "run"), exact_rows(finished), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)


@pytest.mark.parametrize(
    ("change", "tolerance"),
    [
        ({"recompute": True}, 1e-6),
        ({"precision": "bf16"}, 2e-2),
        pytest.param({"compile": True, "recompute": True}, 1e-5, marks=pytest.mark.slow),
    ],
)
def test_options_of_the_step_keep_its_course(corpus, finished, tmp_path, change, tolerance):
    config = small_config(corpus)
    parallel = dataclasses.replace(config.parallel, **change)
    run_pretrain(dataclasses.replace(config, parallel=parallel), tmp_path / "run")
    for mine, theirs in zip(exact_rows(tmp_path / "run"), exact_rows(finished), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=tolerance)


def test_tensorboard_and_a_profile_on_request(corpus, tmp_path):
    config = small_config(corpus)
    log = dataclasses.replace(config.log, tensorboard=True, profile_step=3, profile_steps=2)
    run_pretrain(dataclasses.replace(config, log=log), tmp_path / "run")
    assert (tmp_path / "run" / "trace-step-00000003.json.gz").stat().st_size > 1000
    events = list((tmp_path / "run" / "tensorboard").glob("events*"))
    assert len(events) == 1
    assert b"grad_norm" in events[0].read_bytes()


@pytest.mark.parametrize("signalled", [False, True])
def test_a_trace_is_written_though_the_run_ends_first(corpus, tmp_path, monkeypatch, signalled):
    config = small_config(corpus)
    log = dataclasses.replace(config.log, profile_step=4 if signalled else 7, profile_steps=50)
    if signalled:
        signal_at(5, monkeypatch.setattr)
    run_pretrain(dataclasses.replace(config, log=log), tmp_path / "run")
    trace = tmp_path / "run" / f"trace-step-0000000{4 if signalled else 7}.json.gz"
    assert trace.stat().st_size > 1000


def changed(config, part, **fields):
    return dataclasses.replace(
        config, **{part: dataclasses.replace(getattr(config, part), **fields)}
    )


def stopped_at(config, out, step, monkeypatch):
    with monkeypatch.context() as patch:
        signal_at(step, patch.setattr)
        assert run_pretrain(config, out).interrupted


@pytest.mark.parametrize(("before", "after"), [("fp16", "fp32"), ("fp32", "fp16")])
def test_another_precision_goes_on_with_gradients_of_the_same_size(
    corpus, finished, tmp_path, monkeypatch, before, after
):
    out = tmp_path / "run"
    config = small_config(corpus)
    stopped_at(changed(config, "parallel", precision=before), out, 5, monkeypatch)
    figures = run_pretrain(changed(config, "parallel", precision=after), out).figures
    assert figures["loss_scale"] == (1.0 if after == "fp32" else 2.0**15)
    for mine, theirs in zip(exact_rows(out), exact_rows(finished), strict=True):
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=0.02)


def test_a_half_type_scores_against_the_voxels_as_they_were_read(corpus, tmp_path, monkeypatch):
    """Rounded to bfloat16, raw CT of 1000 HU would be a target to the nearest 8."""
    seen = []
    plain = masked.masked_channel_losses

    def spy(predicted, volume, *args, **named):
        seen.append((predicted.dtype, volume.dtype))
        return plain(predicted, volume, *args, **named)

    monkeypatch.setattr(masked, "masked_channel_losses", spy)
    run_pretrain(changed(small_config(corpus), "parallel", precision="bf16"), tmp_path / "run")
    assert set(seen) == {(torch.bfloat16, torch.float32)}


def test_with_one_checkpoint_kept_a_damaged_one_costs_no_new_one(
    corpus, finished, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "run"
    unfinish(finished, out)
    shard = next((out / "checkpoints" / "step-00000008").glob("*.distcp"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    config = changed(small_config(corpus), "checkpoint", keep=1, keep_best=False)
    stopped_at(config, out, 7, monkeypatch)
    assert 7 in steps_saved(out)
    run_pretrain(config, out)
    assert "going on from the checkpoint of step 7" in capsys.readouterr().out
    assert_same_run(out, finished)


def test_a_finished_run_answers_for_its_own_settings_and_corpus_only(corpus, tmp_path):
    out = tmp_path / "run"
    config = small_config(corpus, steps=2)
    run_pretrain(changed(config, "data", held_out=0.25, held_out_crops=4), out)
    with pytest.raises(CheckpointError, match=r"data\.held_out was 0\.25 and is now 0\.0"):
        run_pretrain(config, out)
    config = changed(config, "data", held_out=0.25, held_out_crops=4)
    assert run_pretrain(changed(config, "data", corpus="/moved/away.zarr"), out).step == 2
    grown = make_corpus(tmp_path / "grown", subjects=5)
    with pytest.raises(TrainingError, match=r"has changed since step 2.*another --out"):
        run_pretrain(changed(config, "data", corpus=str(grown)), out)


def test_simclr_goes_on_with_the_negatives_it_had(corpus, tmp_path, monkeypatch):
    out, config = tmp_path / "run", small_config(corpus, "simclr")
    stopped_at(config, out, 3, monkeypatch)
    kept = (out / "config.json").read_bytes()
    for count, found in ((2, r"parallel\.grad_accum was 1 and is now 2"), (1, "")):
        run = changed(config, "parallel", grad_accum=count)
        if found:
            with pytest.raises(CheckpointError, match=found):
                run_pretrain(run, out)
            assert (out / "config.json").read_bytes() == kept
        else:
            assert run_pretrain(run, out).step == 8


@pytest.mark.parametrize("name", ["config.json", "pretext.json"])
def test_a_file_cut_short_is_named_with_its_remedy(corpus, finished, tmp_path, name):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    (out / name).write_text("{")
    with pytest.raises(CheckpointError, match=rf"{name}.*delete it"):
        run_pretrain(small_config(corpus), out)
    (out / name).unlink()
    if name == "config.json":
        (out / "pretext.json").unlink()
    assert run_pretrain(small_config(corpus), out).step == 8
    assert_same_run(out, finished)


def test_a_bad_loss_leaves_rows_that_are_json_and_a_fair_verdict(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(small_run.Stepper, "step", small_run.Stepper.step)
    small_run.spoil_gradients({7}, rank=0)
    out = tmp_path / "run"
    figures = run_pretrain(small_config(corpus), out).figures
    text = (out / "metrics.jsonl").read_text() + (out / "pretext.json").read_text()
    assert "NaN" not in text
    assert read_rows(out / "metrics.jsonl")[6]["loss"] is None
    assert figures["pretext"]["rows"] == 1
    assert figures["pretext"]["loss"] == figures["loss"] > 0
    for folder in small_run.checkpoint_files.committed(out / "checkpoints"):
        assert (small_run.checkpoint_files.read_facts(folder)[0].score or 0) > 0


def test_a_full_disk_under_the_rows_is_told_with_its_remedy(corpus, tmp_path, monkeypatch):
    plain = metrics.JsonLines.write

    def write(self, row):
        if row["step"] == 5:
            small_run.full_disk()
        plain(self, row)

    monkeypatch.setattr(metrics.JsonLines, "write", write)
    with pytest.raises(TrainingError, match=r"run cannot be written: No space.*Free space there"):
        run_pretrain(small_config(corpus), tmp_path / "run")
    assert 3 in steps_saved(tmp_path / "run")


def test_what_is_allowed_and_seldom_meant_is_said(corpus, tmp_path, capsys):
    config = changed(small_config(corpus), "schedule", warmup_steps=500)
    run_pretrain(changed(config, "vit", crop_size=(32, 32, 32)), tmp_path / "run")
    printed = capsys.readouterr().out
    assert "schedule.warmup_steps 500 is not below steps 8" in printed
    assert "4 of 4 volumes are smaller than vit.crop_size (32, 32, 32)" in printed


@pytest.mark.parametrize("method", ["simmim", "simclr"])
def test_a_swin_encoder_is_trained_stopped_gone_on_with_and_loaded(
    corpus, tmp_path, monkeypatch, method
):
    config = small_config(corpus, method, steps=4)
    config = changed(config, "vit", crop_size=(32, 32, 32), patch_size=(16, 16, 16))
    swin = SwinConfig(feature_size=12, depths=(1, 1, 1, 1), heads=(1, 2, 3, 4), window=4)
    config = dataclasses.replace(config, swin=swin)
    run_pretrain(config, tmp_path / "whole")
    stopped_at(config, tmp_path / "broken", 2, monkeypatch)
    run_pretrain(config, tmp_path / "broken")
    for name, tensor in weights(tmp_path / "whole").items():
        assert torch.equal(tensor, weights(tmp_path / "broken")[name]), name
    with torch.no_grad():
        tokens = load_swin(tmp_path / "whole")(torch.randn(1, 1, 32, 32, 32))
    assert tokens.shape == (1, 1, 16 * 12)


def test_measuring_is_no_part_of_the_forward_pass(finished):
    """What trivial predictors take stands in a stage of its own."""
    for row in read_rows(finished / "metrics.jsonl"):
        assert row["stage_measure_s"] > 0


def test_pictures_and_scores_are_left_out_of_the_rates(corpus, tmp_path, monkeypatch):
    """Pictures take an hour by the run's clock, so that no machine is slow enough to be one."""
    plain, drawn = reconstruction.draw_reconstruction, []

    def slow(*args):
        drawn.append(1)
        plain(*args)

    clock = SimpleNamespace(perf_counter=lambda: time.perf_counter() + 3600.0 * len(drawn))
    monkeypatch.setattr(clocks, "time", clock)
    monkeypatch.setattr(reconstruction, "draw_reconstruction", slow)
    config = changed(small_config(corpus, steps=4), "log", picture_every=2, held_out_every=2)
    config = changed(config, "data", held_out=0.25, held_out_crops=4)
    run_pretrain(config, tmp_path / "run")
    assert len(drawn) > 1
    assert all(row["step_s"] < 1800 for row in read_rows(tmp_path / "run" / "metrics.jsonl"))


def test_errors_before_the_first_step_leave_nothing(corpus, tmp_path):
    with pytest.raises(ConfigError, match=r"vit.channels is 3, the volumes of .* have 1"):
        run_pretrain(changed(small_config(corpus), "vit", channels=3), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"data.subjects \['nobody'\] are not in"):
        wrong = {"subjects": ("phantom_000", "phantom_001", "nobody"), "held_out": 0.5}
        run_pretrain(changed(small_config(corpus), "data", **wrong), tmp_path / "run")
    with pytest.raises(ConfigError, match="is a Zarr store"):
        run_pretrain(small_config(corpus), corpus)
    with pytest.raises(ConfigError, match="global_batch 4 must be a multiple"):
        config = small_config(corpus)
        parallel = dataclasses.replace(config.parallel, grad_accum=3)
        run_pretrain(dataclasses.replace(config, parallel=parallel), tmp_path / "run")
    with pytest.raises(CorpusError):
        run_pretrain(small_config(tmp_path / "nowhere"), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"--data\.corpus"):
        run_pretrain(small_config(""), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert not dist.is_initialized()
