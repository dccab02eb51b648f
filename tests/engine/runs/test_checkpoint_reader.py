import pickle

import pytest
import torch
import torch.distributed.checkpoint as dcp

from mim3d.engine.errors import CheckpointError
from mim3d.engine.runs.checkpoint_reader import SafeReader, load_tensors, read_metadata

RAN = []


def note_that_it_ran(*_):
    RAN.append(True)


class Bomb:
    def __reduce__(self):
        return note_that_it_ran, ("boom",)


@pytest.fixture
def folder(tmp_path):
    state = {"model.w": torch.arange(12.0).reshape(3, 4), "optim.n": torch.tensor(3.0)}
    dcp.save(state, checkpoint_id=tmp_path / "c", no_dist=True)
    return tmp_path / "c"


def metadata_of(folder):
    return pickle.loads((folder / ".metadata").read_bytes())


def rewrite(folder, metadata):
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def refused(folder, why):
    with pytest.raises(CheckpointError, match=why), (folder / ".metadata").open("rb") as stream:
        read_metadata(stream, folder)
    assert not RAN


def test_our_own_checkpoints_load(folder):
    state = {"model.w": torch.zeros(3, 4), "optim.n": torch.tensor(0.0)}
    dcp.load(state, storage_reader=SafeReader(folder), no_dist=True)
    assert torch.equal(state["model.w"], torch.arange(12.0).reshape(3, 4))
    assert state["optim.n"] == 3.0


def test_a_hostile_pickle_runs_nothing(folder):
    rewrite(folder, Bomb())
    refused(folder, "wants to build .*note_that_it_ran")


def test_a_bomb_inside_true_metadata_runs_nothing(folder):
    metadata = metadata_of(folder)
    metadata.planner_data = {"x": Bomb()}
    rewrite(folder, metadata)
    refused(folder, "wants to build")


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "torch.load"])
def test_functions_of_other_modules_are_refused(folder, name):
    module, function = name.rsplit(".", 1)
    (folder / ".metadata").write_bytes(f"c{module}\n{function}\n(S'x'\ntR.".encode())
    refused(folder, f"wants to build {name}")


def test_values_stored_as_pickled_bytes_are_refused(folder):
    dcp.save({"model.w": torch.zeros(2), "hidden": Bomb()}, checkpoint_id=folder, no_dist=True)
    RAN.clear()
    refused(folder, "wants to build .*BytesStorageMetadata")


def test_entries_that_are_no_tensors_are_refused(folder):
    metadata = metadata_of(folder)
    metadata.state_dict_metadata["hidden"] = "pickled elsewhere"
    rewrite(folder, metadata)
    refused(folder, "hidden is not stored as a tensor")


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("../../etc/passwd", "points to another place"),
        ("/etc/passwd", "points to another place"),
        ("absent.distcp", r"lacks absent\.distcp, which a rank wrote elsewhere"),
    ],
)
def test_files_outside_the_checkpoint_are_refused(folder, target, why):
    metadata = metadata_of(folder)
    for info in metadata.storage_data.values():
        info.relative_path = target
    rewrite(folder, metadata)
    refused(folder, why)


@pytest.mark.parametrize("content", [b"", b"not a pickle", pickle.dumps([1, 2])])
def test_rubbish_is_told(folder, content):
    (folder / ".metadata").write_bytes(content)
    refused(folder, "is not DCP metadata")


def test_keys_and_shapes_must_fit(folder):
    with pytest.raises(CheckpointError, match=r"lacks \['model.b'\] and has \['model.w'\]"):
        load_tensors(folder, {"model.b": torch.zeros(3, 4), "optim.n": torch.tensor(0.0)})
    with pytest.raises(
        CheckpointError, match=r"model.w has shape \(3, 4\), the model wants \(4, 3\)"
    ):
        load_tensors(folder, {"model.w": torch.zeros(4, 3), "optim.n": torch.tensor(0.0)})
