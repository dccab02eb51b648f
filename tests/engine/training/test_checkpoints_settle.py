"""A checkpoint is begun only once the loader's device has said that its batches were sound."""

from types import SimpleNamespace

import pytest

from mim3d.dataio.errors import ChunkError
from mim3d.engine.training.checkpoints import Checkpoints


def test_nothing_is_saved_of_what_was_learned_from_voxels_that_did_not_decode() -> None:
    def settle() -> None:
        raise ChunkError("could not decode 1 streams")

    # Whatever else a save would touch is not there.
    hook = SimpleNamespace(loader=SimpleNamespace(settle=settle), saved_step=-1)
    with pytest.raises(ChunkError, match="1 streams"):
        Checkpoints.save(hook, SimpleNamespace(step=1))  # type: ignore[arg-type]
    assert hook.saved_step == -1
