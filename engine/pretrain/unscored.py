"""Ends a run that scores nothing: every voxel of its crops is one that is to be ignored."""

from torch import Tensor

from mim3d.engine.errors import TrainingError
from mim3d.engine.pretrain.config import PretrainConfig
from mim3d.engine.training.trainer import Hook, Trainer


class Unscored(Hook):
    """Stands before the checkpoints, so that such a run leaves no encoder.

    It looks until a first voxel counts: in the first `log.max_bad_steps` steps, or in all of a
    shorter run. The host reads from the device where a row does.
    """

    doing = "looking for voxels that count"
    name = "unscored"

    def __init__(self, config: PretrainConfig) -> None:
        self.config = config
        self.total: Tensor | None = None
        """Sum of the steps' shares that count, over all ranks."""
        self.steps, self.has_scored = 0, False

    def after_step(self, trainer: Trainer) -> None:
        """A TrainingError after enough steps in which nothing counted."""
        assert trainer.figures is not None
        counted = trainer.figures.counted
        if counted is None or self.has_scored:  # all counts, or some has
            self.has_scored = True
            return
        self.total = counted + (0 if self.total is None else self.total)
        self.steps += 1
        if not trainer.due:
            return
        self.look()
        enough = min(self.config.log.max_bad_steps, trainer.steps)
        if not self.has_scored and self.steps >= enough:
            raise TrainingError(unscored_text(self.config, trainer.step, self.steps))

    def look(self) -> None:
        """Whether something has counted by now."""
        self.has_scored = self.has_scored or (self.total is not None and bool(self.total > 0))

    def state(self) -> dict[str, int]:
        """Steps in which nothing counted, while that is all there were."""
        self.look()
        return {} if self.has_scored else {"steps": self.steps}

    def load_state(self, state: dict[str, int]) -> None:
        """Take up what `state` gave."""
        self.total, self.steps = None, state.get("steps", 0)
        self.has_scored = "steps" not in state


def unscored_text(config: PretrainConfig, step: int, steps: int) -> str:
    """One line: what was found, why it may be so, and what to do."""
    ignored = getattr(config.method, "ignore", ())
    loader = config.data.loader
    causes = []
    if "air" in ignored and loader.normalise.startswith("window:"):
        causes.append(
            f"all that --data.normalise {loader.normalise} clips low counts as air: give a window "
            "that holds the values of tissue, or --data.normalise zscore"
        )
    if "air" in ignored and loader.weighting != "foreground":
        causes.append(
            "crops may show air alone: --data.weighting foreground draws more of volumes that show "
            "more, a larger --global-batch more crops"
        )
    if labels := [word for word in ignored if word.startswith("label:")]:
        causes.append(f"{' and '.join(labels)} may cover them: leave out what does")
    words = f" (--method.ignore {' '.join(ignored)})" if ignored else ""
    return (
        f"nothing was learned: no voxel of the crops of steps {step - steps + 1} to {step} is "
        f"scored{words}: {'; '.join([*causes, ''])}or leave out --method.ignore"
    )
