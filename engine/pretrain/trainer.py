"""The training loop of a run: what is made once, what happens each step, how it ends."""

import time
from pathlib import Path

import torch
from torch.distributed.fsdp import register_fsdp_forward_method

from mim3d.dataio.loader.batch import Batch
from mim3d.dataio.loader.loader import Loader
from mim3d.dataio.progress import Progress
from mim3d.engine.distributed.parallel import (
    choose_precision,
    communication_seconds,
    make_mesh,
    shard_group,
    shard_model,
)
from mim3d.engine.distributed.process_group import Ranks
from mim3d.engine.distributed.stop import StopWatch
from mim3d.engine.errors import TrainingError
from mim3d.engine.models.build import method_name
from mim3d.engine.pretrain.config import PretrainConfig, config_identity, config_sha256
from mim3d.engine.pretrain.held_out import HeldOut, judge_pretext
from mim3d.engine.pretrain.reconstruction import draw_reconstruction, first_crops, reconstruction
from mim3d.engine.pretrain.recorder import Recorder
from mim3d.engine.pretrain.run_folder import (
    CHECKPOINTS,
    METRICS,
    RESULT,
    PretrainResult,
    corpus_sha256,
    refuse_changed_corpus,
)
from mim3d.engine.runs.checkpoint import Checkpointer
from mim3d.engine.runs.checkpoint_files import CheckpointFacts
from mim3d.engine.runs.encoder_file import save_encoder
from mim3d.engine.runs.files import write_json
from mim3d.engine.training.metrics import Row, read_rows
from mim3d.engine.training.optim import ShardedOptimiser
from mim3d.engine.training.profiler import ProfileWindow
from mim3d.engine.training.run_state import full_weights, restore_rng, rng_state, run_state
from mim3d.engine.training.schedule import lr_at
from mim3d.engine.training.train_step import StepFigures, Stepper


class Training:
    """One run in progress."""

    def __init__(
        self,
        config: PretrainConfig,
        out: Path,
        ranks: Ranks,
        loader: Loader,
        shown: Progress,
        held_out: HeldOut | None = None,
    ) -> None:
        self.config, self.out, self.ranks = config, out, ranks
        self.loader, self.shown, self.held_out = loader, shown, held_out
        self.config_hash = config_sha256(config_identity(config))
        self.corpus_hash = corpus_sha256(loader.corpus)
        self.module = config.build().to(ranks.device)
        mesh = make_mesh(ranks.device, ranks.world, config.parallel.replicate)
        dtype = choose_precision(config.parallel.precision, ranks.device)
        self.model = shard_model(self.module, mesh, config.parallel, dtype)
        if hasattr(self.module, "reconstruct"):
            register_fsdp_forward_method(self.module, "reconstruct")
        self.optimiser = ShardedOptimiser(
            self.module.named_parameters(),
            config.optim,
            shard_group(mesh),
            scaled=dtype == torch.float16,
        )
        self.checkpoints = Checkpointer(out / CHECKPOINTS, config.checkpoint, ranks, shown.note)
        self.stepper = Stepper(
            self.model, self.optimiser, loader, ranks, config.parallel.grad_accum
        )
        self.step = 0
        self.seconds_before = 0.0
        self.saved_step = -1
        self.picture_batch: Batch | None = None
        self.state = run_state(self.module, self.optimiser)
        self._resume()
        self.recorder = Recorder(config, out, ranks, self.step)
        self.communication_s = communication_seconds(self.module, mesh, config.parallel, dtype)

    def _resume(self) -> None:
        rng = rng_state(self.ranks)
        facts = self.checkpoints.restore({**self.state, **rng}, self.config_hash)
        if facts is None:
            return
        refuse_changed_corpus(
            self.config.data.corpus, facts.corpus_sha256, self.corpus_hash, facts.step
        )
        self.optimiser.after_load()
        if facts.world == self.ranks.world:
            restore_rng(rng, self.ranks)
        self.loader.load_state_dict(facts.loader)
        self.step = self.saved_step = facts.step
        self.seconds_before = facts.seconds
        self.shown.advance(facts.step, "resumed")
        self.shown.note(f"going on from the checkpoint of step {facts.step}")

    def run(self, watch: StopWatch) -> PretrainResult:
        """Steps until the end or a signal, then what a run leaves behind."""
        config = self.config
        self.began = time.monotonic()
        self.recorder.open_window()
        profiler = ProfileWindow(
            config.log, self.out, self.ranks, config.steps, lambda: self._settle(watch)
        )
        while self.step < config.steps:
            if watch.agreed():
                profiler.close()
                return self._interrupted()
            with profiler.window(self.step):
                self._one_step()
            if self.step % config.checkpoint.every == 0 and self.step < config.steps:
                self.save()
        return self._finish()

    def _settle(self, watch: StopWatch) -> None:
        watch.settle()
        self.checkpoints.settle()

    def _one_step(self) -> None:
        config = self.config
        due = self.step == 0 or (self.step + 1) % config.log.every == 0
        due = due or self.step + 1 == config.steps or self._scores_after(self.step + 1)
        lr = lr_at(config.schedule, self.step, config.steps)
        figures = self.stepper.step(lr, measure=due)
        self.step += 1
        self.recorder.count(figures.waited)
        if self.picture_batch is None:
            assert self.stepper.last_batch is not None
            self.picture_batch = first_crops(self.stepper.last_batch)
        if due:
            self._log(figures, lr)
        else:
            self.shown.advance()
        if config.log.picture_every and self.step % config.log.picture_every == 0:
            self.draw(f"step-{self.step:08d}.png")

    def _scores_after(self, step: int) -> bool:
        every = self.config.log.held_out_every
        asked = step == self.config.steps or (every > 0 and step % every == 0)
        return self.held_out is not None and asked

    def _held_out_figures(self) -> Row:
        """The pretext's loss on held-out subjects, where this step is one that scores."""
        if self.held_out is None or not self._scores_after(self.step):
            return {}
        began = time.perf_counter()
        figures = self.held_out.score(self.model)
        self.recorder.pause(time.perf_counter() - began)
        if self.held_out.picture_batch is not None:
            batch = first_crops(self.held_out.picture_batch)
            self.draw(f"held-out-{self.step:08d}.png", batch)
        return figures

    def _log(self, figures: StepFigures, lr: float) -> None:
        read = self.stepper.read(figures, self.recorder.window.steps)
        row: Row = {"step": self.step, "lr": lr, **read, "seconds": self.seconds}
        stages = self.stepper.clock.read()
        row |= self._held_out_figures()
        if self.ranks.world > 1:
            stages["communication_alone"] = self.communication_s
        self.recorder.write(row, stages, self.loader.metrics())
        self.shown.advance(1, f"loss {read['loss']:.4f}")
        if read["bad_in_row"] >= self.config.log.max_bad_steps:
            self.checkpoints.wait()
            raise TrainingError(
                f"the gradient was not finite in {read['bad_in_row']:.0f} steps in a row, up to "
                f"step {self.step}; none of them changed the weights. The last checkpoint in "
                f"{self.out / CHECKPOINTS} is healthy: lower --schedule.lr, set --optim.clip-norm, "
                "or use --parallel.precision bf16 or fp32, then go on with a copy of it"
            )

    @property
    def seconds(self) -> float:
        """Training time of the run, earlier sittings included."""
        return self.seconds_before + time.monotonic() - self.began

    def save(self) -> None:
        """Begin to write a checkpoint of the present step."""
        if self.step == self.saved_step:
            return
        facts = CheckpointFacts(
            step=self.step,
            config_sha256=self.config_hash,
            corpus_sha256=self.corpus_hash,
            loader=dict(self.loader.state_dict()),
            world=self.ranks.world,
            score=self.recorder.mean_loss_since_save(),
            seconds=self.seconds,
        )
        self.checkpoints.save({**self.state, **rng_state(self.ranks)}, facts)
        self.saved_step = self.step

    def _interrupted(self) -> PretrainResult:
        self.save()
        self.checkpoints.finish()
        self.shown.note(
            f"told to stop: step {self.step} of {self.config.steps} is saved in {self.out}. "
            "Run the same command again to go on"
        )
        return PretrainResult(self.out, self.step, self.recorder.last, interrupted=True)

    def _finish(self) -> PretrainResult:
        self.save()
        self.draw(f"step-{self.step:08d}.png")
        weights = full_weights(self.module.get_submodule("encoder"))
        self.checkpoints.finish()
        figures = dict(self.recorder.last)
        if self.ranks.first:
            figures = self._leave(weights)
        return PretrainResult(self.out, self.step, figures)

    def _leave(self, weights: dict[str, torch.Tensor]) -> Row:
        """The encoder file and the verdict; the first rank's work."""
        provenance = {
            "method": method_name(self.config.method),
            "step": self.step,
            "normalise": self.config.data.normalise,
            "corpus_sha256": self.corpus_hash,
            "config_sha256": self.config_hash,
        }
        save_encoder(self.out, self.config.vit, weights, provenance, self.config.swin)
        rows = read_rows(self.out / METRICS)
        figures = {**(rows[-1] if rows else {}), "pretext": judge_pretext(rows)}
        write_json(self.out / RESULT, figures)
        return figures

    def draw(self, name: str, batch: Batch | None = None) -> None:
        """A picture of a batch (this sitting's first crops), painted by the present weights.

        All ranks take part. The rates of the rows leave it out.
        """
        batch = batch or self.picture_batch
        if batch is None or not hasattr(self.module, "reconstruct"):
            return
        began = time.perf_counter()
        masked, painted = reconstruction(self.module, batch)
        if self.ranks.first:
            draw_reconstruction(
                self.out / "pictures" / name,
                batch.image,
                masked,
                painted,
                f"{method_name(self.config.method)}, step {self.step}",
            )
        self.recorder.pause(time.perf_counter() - began)

    def close(self) -> None:
        """Release writers; a save under way is finished."""
        self.recorder.close()
        self.checkpoints.shut()
