"""A damaged corpus: whatever was damaged, doing what the message says makes it whole again."""

import re
import shlex
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mim3d.bench.corpora import anatomy_like
from mim3d.dataio.convert.run import convert
from mim3d.dataio.convert.upkeep import mend
from mim3d.dataio.corpus.conversion import Conversion, Rerun
from mim3d.dataio.corpus.history import HISTORY
from mim3d.dataio.corpus.names import MANIFEST, OWN, TABLE, own_file
from mim3d.dataio.corpus.quarantine import QUARANTINE
from mim3d.dataio.corpus.seen_files import SEEN
from mim3d.dataio.errors import CorpusError, Mim3dError
from mim3d.dataio.inspect.verify import verify
from mim3d.dataio.loader.config import LoaderConfig
from mim3d.dataio.loader.loader import Loader
from mim3d.dataio.reader.corpus import Corpus
from mim3d.dataio.reader.shard_reader import ShardReader
from mim3d.dataio.sources.discover import discover
from mim3d.dataio.sources.options import SourceOptions
from mim3d.dataio.sources.source import Source
from mim3d.engine.commands.cli import main

CONFIG = LoaderConfig(crop_size=(16, 16, 16), micro_batch=4, seed=1)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Sources of three volumes, two of them labelled, and the corpus of them."""
    folder = tmp_path_factory.mktemp("mend")
    for i in range(3):
        volume = anatomy_like((30, 26, 28), i)
        (folder / "raw").mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(volume, np.eye(4)), folder / f"raw/v{i}.nii.gz")
        if i:
            label = (volume > 500).astype(np.uint8)
            nib.save(nib.Nifti1Image(label, np.eye(4)), folder / f"raw/v{i}_seg.nii.gz")
    assert (
        main(
            [
                "convert",
                str(folder / "raw"),
                str(folder / "c.zarr"),
                "--workers",
                "1",
                "--accept-doubts",
            ]
        )
        == 0
    )
    return folder


@pytest.fixture
def copy(place, tmp_path) -> Path:
    return shutil.copytree(place / "c.zarr", tmp_path / "c.zarr")


def sources_of(raw: Path) -> list[Source]:
    """What the command converts when doubts of whose the scans are were accepted."""
    options = SourceOptions(accept_doubts=True)
    return list(discover(str(raw), options=options).sources)


def content(root: Path) -> dict[str, bytes]:
    return {
        file.relative_to(root).as_posix(): file.read_bytes()
        for file in sorted(root.rglob("*"))
        if file.is_file() and file.name != SEEN
    }


def read_all(root: Path) -> None:
    """Read everything a corpus has, as loading, inspecting and exporting do."""
    corpus = Corpus.open(root)
    reader = ShardReader(corpus.table, corpus.root)
    for row in range(len(corpus.table.arrays)):
        reader.read_box(row, (0, 0, 0), reader.array(row).shape)
    _ = corpus.records, corpus.table.points


def follow(advice: str, root: Path, raw: Path) -> None:
    """Do what a message says: the first command that stands in it."""
    command = re.search(r"`mim3d (convert|verify)( [^`]*)?`", advice)
    assert command, f"no remedy in: {advice}"
    if command[1] == "convert":
        words = ["convert", str(raw), str(root), "--workers", "1", "--accept-doubts"]
    else:
        given = shlex.split(command[2])
        words = ["verify", *(str(root) if word == "CORPUS" else word for word in given)]
        assert words[1] == str(root) and "--mend" in words
    assert main(words) == 0


def damaged(data: st.DataObject, file: Path) -> None:
    """Flip a bit, cut the file off, or delete it."""
    whole = file.read_bytes()
    way = data.draw(st.sampled_from(["flip", "flip", "cut", "delete"]))
    if way == "flip" and whole:
        bit = data.draw(st.integers(0, 8 * len(whole) - 1))
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
    elif way == "cut" and whole:
        file.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    else:
        file.unlink()


def check_verify(place: Path, scratch: Path, data: st.DataObject) -> None:
    """Damage something, verify, do what is advised: the corpus is what it was."""
    root = shutil.copytree(place / "c.zarr", scratch / "c.zarr")
    whole = content(root)
    file = root / data.draw(st.sampled_from(sorted(whole)))
    damaged(data, file)
    problems = verify(root).problems
    if content(root) != whole:
        assert problems, f"damage to {file} is not found"
    if problems:
        manifest = [p for p in problems if p.where == MANIFEST]
        follow((manifest or problems)[0].detail, root, place / "raw")
    assert verify(root).problems == () and content(root) == whole
    read_all(root)
    shutil.rmtree(scratch)


def check_reading(place: Path, scratch: Path, data: st.DataObject) -> None:
    """Damage something, read everything; where that raises, do what is advised."""
    root = shutil.copytree(place / "c.zarr", scratch / "c.zarr")
    whole = content(root)
    damaged(data, root / data.draw(st.sampled_from(sorted(whole))))
    try:
        read_all(root)
    except Mim3dError as error:
        follow(str(error), root, place / "raw")
        assert verify(root).problems == () and content(root) == whole
        read_all(root)
    shutil.rmtree(scratch)


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_whatever_verify_names_is_mended_by_what_it_advises(place, tmp_path_factory, data):
    check_verify(place, tmp_path_factory.mktemp("c"), data)


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_whatever_reading_refuses_is_mended_by_what_it_advises(place, tmp_path_factory, data):
    check_reading(place, tmp_path_factory.mktemp("c"), data)


@pytest.mark.slow
@pytest.mark.parametrize("check", [check_verify, check_reading])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_many_damages_are_mended_by_what_is_advised(place, tmp_path_factory, check, data):
    check(place, tmp_path_factory.mktemp("c"), data)


@pytest.mark.parametrize("left", ["none", "nothing", "a line torn", "a line changed"])
def test_beside_a_damaged_manifest_every_remedy_is_the_one_that_works(place, copy, left):
    """--mend goes by the manifest, and refuses where that is damaged."""
    whole, manifest = content(copy), copy / "mim3d" / MANIFEST
    text = manifest.read_bytes()
    changed = {"nothing": b"", "a line torn": text[:-9], "a line changed": text.replace(b"1", b"2")}
    manifest.write_bytes(changed[left]) if left in changed else manifest.unlink()
    shard = copy / "v1/0/c.0.0.0"
    shard.write_bytes(shard.read_bytes()[:-1])
    problems = verify(copy).problems
    assert {MANIFEST} < {problem.where for problem in problems}
    for problem in problems:
        assert "--mend" not in problem.detail, problem
    assert main(["verify", str(copy), "--mend"]) == 2
    follow(problems[0].detail, copy, place / "raw")
    assert verify(copy).problems == () and content(copy) == whole


@pytest.mark.parametrize("key", ["v1/0/zarr.json", "v1/labels.seg/zarr.json"])
@pytest.mark.parametrize("way", ["convert", "mend"])
def test_damaged_metadata_is_found_by_a_plain_rerun(place, copy, key, way):
    whole = content(copy)
    data = bytearray((copy / key).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / key).write_bytes(data)
    if way == "convert":
        report = convert(sources_of(place / "raw"), copy, workers=1)
        assert (report.n_converted, report.n_unchanged) == (1, 2)
    else:
        report = mend(copy)
    assert len(report.mended) == 1 and content(copy) == whole


def test_a_flipped_voxel_is_found_by_convert_verify_alone(place, copy, capsys):
    whole = content(copy)
    shard = copy / "v2/0/c.0.0.0"
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    words = ["convert", str(place / "raw"), str(copy), "--workers", "1", "--accept-doubts"]
    assert main(words) == 0 and content(copy) != whole
    assert main([*words, "--verify"]) == 0 and content(copy) == whole
    assert "1 damaged volumes made anew" in capsys.readouterr().out


@pytest.mark.parametrize("how", ["cut", "folder", "shard"])
def test_a_damaged_volume_leaves_the_old_table_while_it_is_made_anew(place, copy, how, monkeypatch):
    """What once deleted the table and then failed: a shard cut short."""
    shard = copy / "v1/0/c.0.0.0"
    whole, table = content(copy), own_file(copy, TABLE).read_bytes()
    if how == "cut":
        shard.write_bytes(shard.read_bytes()[:-100])
    elif how == "folder":
        shutil.rmtree(copy / "v1")
    else:
        shard.unlink()
    seen = []

    def runner(jobs, workers):
        from mim3d.dataio.convert.pool import run_jobs

        for result in run_jobs(jobs, workers):
            seen.append(own_file(copy, TABLE).read_bytes() == table)
            yield result

    convert(sources_of(place / "raw"), copy, workers=1, runner=runner)
    assert seen == [True] * 3 and content(copy) == whole


def test_deleted_by_hand_with_its_source_gone(place, copy, tmp_path):
    """The rest opens; the volume is told as lost, once, and is no more."""
    moved = Source("v9", (str(tmp_path / "v9.nii.gz"),))
    shutil.copy(place / "raw/v0.nii.gz", tmp_path / "v9.nii.gz")
    convert([moved], copy, workers=1)
    Path(moved.images[0]).unlink()
    shutil.rmtree(copy / "v9")
    with pytest.raises(CorpusError, match=r"v9/0.* --mend"), Loader(copy, CONFIG) as loader:
        for _ in range(20):
            next(loader)
    sources = sources_of(place / "raw")
    report = convert(sources, copy, workers=1)
    assert [r.code for r in report.rejections] == ["lost"]
    assert (report.n_volumes, report.n_unchanged) == (3, 3)
    assert convert(sources, copy, workers=1).rejections == ()
    assert verify(copy).problems == () and content(copy) == content(place / "c.zarr")
    with Loader(copy, CONFIG) as loader:
        next(loader)


def test_damaged_with_its_source_gone_keeps_what_is_left(place, copy, tmp_path, capsys):
    shutil.copy(place / "raw/v0.nii.gz", tmp_path / "v9.nii.gz")
    convert([Source("v9", (str(tmp_path / "v9.nii.gz"),))], copy, workers=1)
    source = (tmp_path / "v9.nii.gz").read_bytes()
    (tmp_path / "v9.nii.gz").unlink()
    shard = copy / "v9/0/c.0.0.0"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    for _ in range(2):
        report = convert(sources_of(place / "raw"), copy, workers=1)
        (found,) = report.rejections
        assert found.code == "damaged" and "bring that back" in found.detail
        assert report.n_volumes == 4
    assert main(["verify", str(copy), "--mend"]) == 3
    assert "not mended: volume v9 is damaged" in capsys.readouterr().out
    read_one = ShardReader(Corpus.open(copy).table, copy).read_box
    with pytest.raises(CorpusError, match="--mend"):
        read_one(Corpus.open(copy).table.index("v9") and 5, (0, 0, 0), (9, 9, 9))
    (tmp_path / "v9.nii.gz").write_bytes(source)
    assert main(["verify", str(copy), "--mend"]) == 0
    assert shard.read_bytes() == whole


def test_the_table_is_made_anew_though_a_volume_is_beyond_mending(place, copy, tmp_path):
    shutil.copy(place / "raw/v0.nii.gz", tmp_path / "v9.nii.gz")
    convert([Source("v9", (str(tmp_path / "v9.nii.gz"),))], copy, workers=1)
    (tmp_path / "v9.nii.gz").unlink()
    (copy / "v9/0/c.0.0.0").write_bytes(b"short")
    own_file(copy, TABLE).unlink()
    report = mend(copy)
    assert [r.code for r in report.rejections] == ["damaged"]
    table = Corpus.open(copy).table
    ShardReader(table, copy).read_box(0, (0, 0, 0), (9, 9, 9))
    with pytest.raises(CorpusError, match="v9/0"):
        ShardReader(table, copy).read_box(
            int(table.volumes["image"][table.index("v9")]), (0, 0, 0), (9, 9, 9)
        )


def test_what_an_interrupted_conversion_left_is_mended(place, copy):
    whole = content(copy)
    shutil.copytree(copy / "v1", copy / "v7")
    own_file(copy, QUARANTINE).unlink()
    assert {p.code for p in verify(copy).problems} == {"orphan", "missing"}
    mend(copy)
    assert content(copy) == whole
    (copy / "notes.txt").write_text("mine")
    (found,) = verify(copy).problems
    assert "move it elsewhere" in found.detail
    mend(copy)
    assert (copy / "notes.txt").exists()


def test_a_lost_root_is_known_from_the_table(place, copy):
    whole = content(copy)
    (copy / "zarr.json").unlink()
    with pytest.raises(CorpusError, match=f"`mim3d verify {copy} --mend`"):
        Corpus.open(copy)
    mend(copy)
    assert content(copy) == whole
    (copy / "zarr.json").unlink()
    with pytest.raises(CorpusError, match="other options"):
        convert(sources_of(place / "raw"), copy, Conversion(chunk=32), workers=1)
    own_file(copy, TABLE).unlink()
    (copy / "zarr.json").unlink()
    with pytest.raises(CorpusError, match="same `mim3d convert`"):
        mend(copy)


def test_a_rerun_reads_only_what_changed(place, tmp_path, monkeypatch):
    from mim3d.dataio.convert import job as kept

    raw, read = shutil.copytree(place / "raw", tmp_path / "raw"), []
    original = kept.source_hash
    monkeypatch.setattr(
        kept, "source_hash", lambda p, b: read.append(Path(p).name) or original(p, b)
    )
    monkeypatch.setattr("mim3d.dataio.corpus.seen_files.SETTLED_NS", 0)

    def run(**options) -> list[str]:
        read.clear()
        sources = sources_of(raw)
        report = convert(sources, tmp_path / "c", workers=1, rerun=Rerun(**options))
        assert report.n_volumes == 3
        return sorted(read)

    assert run() == [] and run() == []
    (raw / "v1.nii.gz").touch()
    assert run() == ["v1.nii.gz"] and run() == []
    everything = sorted(file.name for file in raw.iterdir())
    assert run(rehash=True) == everything and run() == []
    own_file(tmp_path / "c", SEEN).write_bytes(b"not a line\n")
    assert run() == everything and run() == []
    shutil.copy(raw / "v2.nii.gz", raw / "v1.nii.gz")  # other voxels, another size or time
    run()
    assert len({r.source_hash for r in Corpus.open(tmp_path / "c").records}) == 2


def test_a_file_changed_within_a_tick_of_the_clock_is_read_again(place, tmp_path, monkeypatch):
    monkeypatch.setattr("mim3d.dataio.corpus.seen_files.SETTLED_NS", 10**18)
    shutil.copytree(place / "raw", tmp_path / "raw")
    convert(discover(str(tmp_path / "raw")).sources, tmp_path / "c", workers=1)
    assert own_file(tmp_path / "c", SEEN).read_bytes() == b""


def test_sources_that_are_gone_are_named_and_pruned_on_request(place, tmp_path, capsys):
    raw = shutil.copytree(place / "raw", tmp_path / "raw")
    words = ["convert", str(raw), str(tmp_path / "c"), "--workers", "1", "--accept-doubts"]
    main(words)
    (raw / "v0.nii.gz").unlink()
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "1 source is no more" in printed and "the same command with --prune" in printed
    assert str(raw / "v0.nii.gz") in printed
    assert len(Corpus.open(tmp_path / "c").records) == 3
    assert main([*words, "--prune"]) == 0
    assert "1 volumes removed" in capsys.readouterr().out
    assert [r.id for r in Corpus.open(tmp_path / "c").records] == ["v1", "v2"]
    assert verify(tmp_path / "c").problems == () and not (tmp_path / "c/v0").exists()
    convert(sources_of(raw), tmp_path / "fresh", workers=1)
    pruned, fresh = content(tmp_path / "c"), content(tmp_path / "fresh")
    assert b"pruned" in pruned.pop(f"{OWN}/{HISTORY}")
    for files in (pruned, fresh):
        del files[f"{OWN}/{TABLE}"]  # which repeats the history
    assert pruned == fresh


def test_pruning_by_the_wrong_folder_removes_nothing(place, tmp_path):
    raw = shutil.copytree(place / "raw", tmp_path / "raw")
    convert(sources_of(raw), tmp_path / "c", workers=1)
    raw.rename(tmp_path / "unmounted")
    sources = [Source("x", (str(place / "raw/v1_seg.nii.gz"),))]
    with pytest.raises(CorpusError, match="none of the sources given is in the corpus") as refused:
        convert(sources, tmp_path / "c", workers=1, rerun=Rerun(prune=True))
    assert len(Corpus.open(tmp_path / "c").records) == 3
    assert f"({raw}/v0.nii.gz is of it)" in str(refused.value)
    remedy = re.findall(r"`mim3d (remove [^`]*)`", str(refused.value))[0]
    assert main(shlex.split(remedy)) == 0
    assert [r.id for r in Corpus.open(tmp_path / "c").records] == ["v1", "v2"]


@pytest.mark.parametrize("bad", ["other grid", "gone"])
def test_a_label_that_became_bad_is_kept_until_its_loss_is_accepted(place, tmp_path, capsys, bad):
    """By the words of the message; and a label brought onto the grid joins the volume again."""
    raw = shutil.copytree(place / "raw", tmp_path / "raw")
    words = ["convert", str(raw), str(tmp_path / "c"), "--workers", "1", "--accept-doubts"]
    assert main(words) == 0
    label = raw / "v1_seg.nii.gz"
    whole, before = label.read_bytes(), Corpus.open(tmp_path / "c").records[1].labels
    label.unlink()
    if bad == "other grid":
        nib.save(nib.Nifti1Image(np.ones((4, 5, 6), np.uint8), np.eye(4)), label)
    assert main(words) == 3 and Corpus.open(tmp_path / "c").records[1].labels == before
    remedy = re.findall(r"keeps the volume it has \((\S+) converts", capsys.readouterr().out)[0]
    main([*words, remedy])
    assert before and Corpus.open(tmp_path / "c").records[1].labels == ()
    assert verify(tmp_path / "c").problems == ()
    main(words)
    assert Corpus.open(tmp_path / "c").records[1].labels == ()
    label.write_bytes(whole)
    assert main(words) == 0 and Corpus.open(tmp_path / "c").records[1].labels == before
