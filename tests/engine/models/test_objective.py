"""What an objective or a task lacks is refused where it is made, not at the first step."""

import pytest

from mim3d.dataio.loader.batch import Batch
from mim3d.engine.finetune.task import Task
from mim3d.engine.models.masked import MaskedMethod
from mim3d.engine.models.objective import Objective, StepOutput


class WithoutScores(Task):
    """A task that can train and cannot be scored."""

    def loss(self, batch: Batch):
        """A loss."""
        return batch.image.mean()


@pytest.mark.parametrize(
    ("kind", "missing"),
    [
        (Objective, "forward"),
        (MaskedMethod, "predict"),
        (WithoutScores, "evaluation.*notes.*score.*volumes"),
    ],
)
def test_a_missing_method_is_refused_at_construction(kind: type, missing: str) -> None:
    with pytest.raises(TypeError, match=f"abstract method.*{missing}"):
        kind()


def test_what_is_whole_is_made() -> None:
    class Mean(Objective):
        """The least there can be."""

        def forward(self, batch: Batch, share: float = 1.0, measure: bool = False) -> StepOutput:
            """The mean voxel."""
            return StepOutput(batch.image.mean() * share, {})

    assert not Mean.__abstractmethods__
    assert list(Mean().parameters()) == []
