"""When a run is saved, and how it goes on: the hook around the `Checkpointer`."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

from mim3d.dataio.loader.loader import Loader
from mim3d.engine.distributed.process_group import Ranks
from mim3d.engine.runs.checkpoint import Checkpointer
from mim3d.engine.runs.checkpoint_files import LOSS, CheckpointFacts
from mim3d.engine.runs.checkpoint_reader import State
from mim3d.engine.training.corpus import BEGIN_ANEW, refuse_changed_corpus
from mim3d.engine.training.log import Log
from mim3d.engine.training.rewinds import Rewinds
from mim3d.engine.training.run_state import (
    hook_tensors,
    restore_hooks,
    restore_rng,
    rng_state,
    run_state,
)
from mim3d.engine.training.sharding import ShardedObjective
from mim3d.engine.training.trainer import Hook, Judgement, Trainer


@dataclass(frozen=True)
class RunIdentity:
    """What a checkpoint must belong to, to be gone on with."""

    config_sha256: str
    """Of what decides what is learned."""
    corpus: str
    """Folder or address, for people."""
    corpus_sha256: str
    """Of its manifest."""
    earlier: tuple[str, ...] = ()
    """Other hashes of configurations that the run had before it was lengthened."""
    accept_corpus: bool = False
    """Go on though the corpus is another one, at the same place in the order of samples."""
    corpus_remedy: str = BEGIN_ANEW
    """What to do about another corpus, besides restoring it."""


class Checkpoints(Hook):
    """Saves a run after the steps that `save_after` names, when told to stop, and at its end.

    Stands after the hooks whose state it saves.
    """

    doing = "saving a checkpoint"

    def __init__(
        self,
        checkpointer: Checkpointer,
        sharded: ShardedObjective,
        loader: Loader,
        log: Log,
        identity: RunIdentity,
        save_after: Callable[[int], bool],
        rewinds: Rewinds,
    ) -> None:
        self.checkpointer, self.optimiser, self.loader = checkpointer, sharded.optimiser, loader
        self.log, self.identity, self.save_after = log, identity, save_after
        self.rewinds = rewinds
        self.state_tensors: State = run_state(sharded.module, sharded.optimiser)
        self.saved_step = -1

    @property
    def ranks(self) -> Ranks:
        """Who saves."""
        return self.checkpointer.ranks

    def restore(self, trainer: Trainer) -> None:
        """Take up the newest whole checkpoint, where there is one."""
        identity = self.identity
        facts = self.checkpointer.choose(self.known, self.rewinds.lead_to)
        if facts is None:
            return
        if not identity.accept_corpus:
            refuse_changed_corpus(
                identity.corpus,
                facts.corpus_sha256,
                identity.corpus_sha256,
                facts.step,
                identity.corpus_remedy,
            )
        if self.rewinds.since(facts):
            self.checkpointer.discard_after(facts.step)
        self.take_up(trainer, facts)
        trainer.seconds_before = facts.seconds
        self.log.shown.move(facts.step, "resumed")
        scaled = ""
        if len(self.rewinds):
            scaled = (
                f"; the run has gone back {len(self.rewinds)} times, its rate is "
                f"{self.rewinds.lr_scale:g} of the schedule's"
            )
        self.log.shown.note(f"going on from the checkpoint of step {facts.step}{scaled}")

    @property
    def known(self) -> tuple[str, ...]:
        """Hashes of the configurations that the run has had, today's first."""
        return (self.identity.config_sha256, *self.identity.earlier)

    def healthy_before(self, step: int) -> CheckpointFacts | None:
        """Of the newest whole checkpoint of an earlier step, saved while gradients were finite."""
        return self.checkpointer.choose(
            self.known,
            lambda facts: (
                not facts.bad_in_row and facts.step < step and self.rewinds.lead_to(facts)
            ),
        )

    def take_up(self, trainer: Trainer, facts: CheckpointFacts) -> None:
        """Load a checkpoint that was chosen, into all that it holds."""
        own = {**rng_state(self.ranks), **hook_tensors(trainer.hooks, self.ranks)}
        self.checkpointer.load({**self.state_tensors, **own}, facts)
        self.optimiser.after_load()
        for hook in trainer.hooks:
            hook.load_state(facts.hooks.get(hook.name, {}))
        if facts.world == self.ranks.world:
            restore_rng(own, self.ranks)
            restore_hooks(own, trainer.hooks, self.ranks)
        self.loader.load_state_dict(self.place_of(facts))
        trainer.step = self.saved_step = facts.step
        trainer.lr_scale, trainer.redone = self.rewinds.lr_scale, self.rewinds.redone

    def place_of(self, facts: CheckpointFacts) -> dict[str, int]:
        """The loader's state; of another, accepted corpus its place in the order alone.

        Where the run has gone back to it, past the samples that are skipped.
        """
        stored = dict(facts.loader)
        for rewind in self.rewinds.since(facts):
            stored["sample"] = rewind.sample
        if facts.corpus_sha256 == self.identity.corpus_sha256:
            return stored
        place = {name: stored[name] for name in ("sample", "step")}
        return {**self.loader.state_dict(), **place}

    def after_step(self, trainer: Trainer) -> None:
        """Save, where it is time or the step is the best; the last step is saved at the end."""
        is_best = trainer.judgement is not None and trainer.judgement.is_best
        if trainer.finished:
            return
        if is_best or (self.save_after(trainer.step) and self.checkpointer.is_free(trainer.step)):
            self.save(trainer)

    def end(self, trainer: Trainer) -> None:
        """Save the last step, or that after which the run was told to stop."""
        self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Begin to write a checkpoint of the present step."""
        if trainer.step == self.saved_step:
            return
        self.loader.settle()  # nothing is saved that was learned from voxels a device got wrong
        bad_in_row = int(self.optimiser.bad_in_row)
        loss = self.log.mean_loss_since_save()
        judged = trainer.judgement or Judgement(LOSS, loss)
        facts = CheckpointFacts(
            step=trainer.step,
            config_sha256=self.identity.config_sha256,
            corpus_sha256=self.identity.corpus_sha256,
            loader=dict(self.loader.state_dict()),
            world=self.ranks.world,
            score=judged.error,
            score_of=judged.by,
            seconds=trainer.clock.seconds,
            # A copy: they are written while the run goes on, and hooks add to their lists.
            hooks={hook.name: deepcopy(kept) for hook in trainer.hooks if (kept := hook.state())},
            bad_in_row=bad_in_row,
        )
        own = {**rng_state(self.ranks), **hook_tensors(trainer.hooks, self.ranks)}
        self.checkpointer.save({**self.state_tensors, **own}, facts)
        self.saved_step = trainer.step

    def finish(self) -> None:
        """Wait for the last save; a CheckpointError where it failed."""
        self.checkpointer.finish()

    def close(self) -> None:
        """Let a save under way end."""
        self.checkpointer.close()
