import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mim3d.engine.errors import CheckpointError
from mim3d.engine.runs import checkpoint_files as files
from mim3d.engine.runs.checkpoint_files import CheckpointFacts


def facts(step, score=None, bad=0):
    loader = {"step": step, "sample": 8 * step}
    return CheckpointFacts(step, "c" * 64, "d" * 64, loader, 2, score, bad_in_row=bad)


def make(root, step, score=None, bad=0):
    folder = files.tmp_folder(root, step)
    folder.mkdir(parents=True)
    (folder / "__0_0.distcp").write_bytes(bytes(range(256)) * 4)
    (folder / ".metadata").write_bytes(b"metadata")
    return files.commit(root, facts(step, score, bad))


def test_a_commit_is_whole_and_verifies(tmp_path):
    folder = make(tmp_path, 600, 0.5)
    assert folder.name == "step-00000600"
    assert files.committed(tmp_path) == [folder]
    assert files.verify(folder) == facts(600, 0.5)
    assert not list(tmp_path.glob("tmp-*"))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_flipped_bit_is_found(tmp_path_factory, data):
    folder = make(tmp_path_factory.mktemp("run"), 1)
    path = folder / data.draw(st.sampled_from(["__0_0.distcp", ".metadata", files.SEAL]))
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) * 8 - 1))
    content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)
    try:
        found = files.verify(folder)
    except CheckpointError as error:
        assert folder.name in str(error)
    else:
        # White space of the manifest carries nothing.
        assert path.name == files.SEAL
        assert found == facts(1)


@pytest.mark.parametrize("damage", ["short", "missing", "foreign", "no manifest", "format"])
def test_other_damage_is_told(tmp_path, damage):
    folder = make(tmp_path, 1)
    shard = folder / "__0_0.distcp"
    if damage == "short":
        shard.write_bytes(shard.read_bytes()[:-1])
        wanted = "1023 bytes, its manifest says 1024"
    elif damage == "missing":
        shard.unlink()
        wanted = "files missing .'__0_0.distcp'."
    elif damage == "foreign":
        (folder / "extra.py").write_text("x")
        wanted = "not in the manifest .'extra.py'."
    elif damage == "no manifest":
        (folder / files.SEAL).unlink()
        wanted = "manifest.json cannot be read"
    else:
        sealed = json.loads((folder / files.SEAL).read_text())
        sealed["body"]["format"] = 99
        sealed["sha256"] = files.json_sha256(sealed["body"])
        (folder / files.SEAL).write_text(json.dumps(sealed))
        wanted = "another format than 1"
    with pytest.raises(CheckpointError, match=wanted):
        files.verify(folder)


def test_pruning_keeps_the_newest_and_the_best(tmp_path):
    scores = {100: 0.9, 200: 0.3, 300: 0.5, 400: 0.4}
    for step, score in scores.items():
        make(tmp_path, step, score)
    files.prune(tmp_path, keep=2, keep_best=True, step=400)
    assert [path.name[-3:] for path in files.committed(tmp_path)] == ["400", "300", "200"]
    files.prune(tmp_path, keep=1, keep_best=False, step=400)
    assert [path.name[-3:] for path in files.committed(tmp_path)] == ["400"]


def test_pruning_always_keeps_a_healthy_one_and_none_other_is_the_best(tmp_path):
    for step, bad in {100: 0, 200: 0, 300: 4, 400: 104}.items():
        make(tmp_path, step, 1.0 / step, bad)
    files.prune(tmp_path, keep=1, keep_best=True, step=400)
    assert [path.name[-3:] for path in files.committed(tmp_path)] == ["400", "200"]


def test_a_loss_that_is_no_number_is_never_the_best(tmp_path):
    for step, score in {100: 0.3, 200: float("nan"), 300: 0.5}.items():
        make(tmp_path, step, score)
    files.prune(tmp_path, keep=1, keep_best=True, step=300)
    assert [path.name[-3:] for path in files.committed(tmp_path)] == ["300", "100"]


def test_a_damaged_later_checkpoint_takes_nobodys_place(tmp_path):
    """The run was resumed before step 300 and has just saved step 200."""
    for step in (100, 200, 300):
        make(tmp_path, step, 1.0 / step)
    files.prune(tmp_path, keep=1, keep_best=False, step=200)
    assert [path.name[-3:] for path in files.committed(tmp_path)] == ["300", "200"]


def test_left_overs_of_a_crash_are_swept_and_never_read(tmp_path):
    kept = make(tmp_path, 5)
    for name in ("tmp-00000006", "tmp-old-step-00000004"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__0_0.distcp").write_bytes(b"half")
    assert files.committed(tmp_path) == [kept]
    files.sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [kept.name]


def test_the_same_step_again_replaces_it(tmp_path):
    make(tmp_path, 5, 0.1)
    make(tmp_path, 5, 0.2)
    assert files.verify(files.committed(tmp_path)[0]).score == 0.2


def test_a_checkpoint_under_another_steps_name_is_not_taken_for_it(tmp_path):
    """What is verified must be what is loaded, and that is found by its step."""
    folder = make(tmp_path, 5).rename(tmp_path / "step-00000009")
    with pytest.raises(CheckpointError, match="holds step 5: it was renamed"):
        files.verify(folder)


@pytest.mark.parametrize("expected", [["__0_0.distcp"], {"__0_0.distcp": {"bytes": 1}}, None])
def test_a_sealed_manifest_of_another_form_is_refused(tmp_path, expected):
    folder = make(tmp_path, 5)
    sealed = json.loads((folder / files.SEAL).read_text())
    sealed["body"]["files"] = expected
    sealed["sha256"] = files.json_sha256(sealed["body"])
    (folder / files.SEAL).write_text(json.dumps(sealed))
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        files.verify(folder)
