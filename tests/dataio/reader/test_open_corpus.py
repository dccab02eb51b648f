"""inspect, export-nifti and verify of a corpus in a bucket: as of the same corpus on disk."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3_server import s3_server, use_s3

from mim3d.bench.corpora import anatomy_like, corpus_of
from mim3d.dataio.errors import CorpusError
from mim3d.dataio.reader.corpus import is_address, opened_corpus, quarantined
from mim3d.dataio.storage.object_store import RemoteStore
from mim3d.dataio.storage.store import LocalStore
from mim3d.engine.commands.cli import main


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Path:
    volumes = [anatomy_like((40, 30, 50), i) for i in range(3)]
    labels = [(v > 500).astype("u1") * 2 for v in volumes]
    return corpus_of(tmp_path_factory.mktemp("open") / "c.zarr", volumes, labels)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server("corpora") as address:
        yield address


@pytest.fixture
def bucket(server, local, monkeypatch) -> str:
    """Address of the same corpus on an S3 server."""
    use_s3(server, monkeypatch)
    here, there = LocalStore(local), RemoteStore("s3://corpora/some/c.zarr")
    for key in here.walk():
        there.replace(key, [here.get(key)])
    return "s3://corpora/some/c.zarr"


def hashes(folder: Path) -> dict[str, str]:
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*")
        if file.is_file()
    }


def test_export_from_a_bucket_is_export_from_disk(bucket, local, tmp_path):
    assert main(["export-nifti", bucket, str(tmp_path / "there")]) == 0
    assert main(["export-nifti", str(local), str(tmp_path / "here")]) == 0
    assert hashes(tmp_path / "there") == hashes(tmp_path / "here")
    assert len(hashes(tmp_path / "there")) == 7
    assert main(["export-nifti", bucket, str(tmp_path / "one"), "--ids", "v0001"]) == 0
    written = {"dataset.json", "images/v0001.nii.gz", "labels/seg/v0001.nii.gz"}
    assert set(hashes(tmp_path / "one")) == written


def test_inspect_of_a_bucket_is_inspect_of_the_disk(bucket, local, tmp_path, capsys):
    assert main(["inspect", bucket, "--out", str(tmp_path / "there")]) == 0
    there = capsys.readouterr().out.replace("there", "here")
    assert main(["inspect", str(local), "--out", str(tmp_path / "here")]) == 0
    assert there == capsys.readouterr().out
    assert hashes(tmp_path / "there") == hashes(tmp_path / "here")
    assert set(hashes(tmp_path / "here")) == {"histograms.png", "montage.png"}


def test_pictures_of_a_remote_corpus_go_to_the_current_folder(bucket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", bucket]) == 0
    assert (tmp_path / "c-inspect" / "montage.png").exists()


def test_verify_of_a_bucket_finds_a_flipped_bit(bucket, local, capsys):
    assert main(["verify", bucket]) == 0
    store = RemoteStore(bucket)
    data = bytearray(store.get("v0001/0/c.0.0.0"))
    data[len(data) // 3] ^= 8
    store.replace("v0001/0/c.0.0.0", [data])
    assert main(["verify", bucket]) == 3
    assert "v0001/0/c.0.0.0: bad-chunk" in capsys.readouterr().out


def test_where_there_is_none_is_told(bucket, tmp_path, capsys):
    assert main(["inspect", "s3://corpora/elsewhere"]) == 2
    assert "no corpus here" in capsys.readouterr().err
    assert main(["export-nifti", bucket + "x", str(tmp_path / "o")]) == 2
    with pytest.raises(CorpusError), opened_corpus(tmp_path / "none"):
        raise AssertionError("it opened")
    assert not (tmp_path / "o").exists()


def test_what_an_address_is(local):
    assert is_address("s3://b/c")
    assert is_address("gs://b/c")
    assert not is_address(local)
    assert quarantined(local) == []
