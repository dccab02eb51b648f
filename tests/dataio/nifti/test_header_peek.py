"""A look at headers: what a conversion would do, without reading the files."""

import nibabel as nib
import numpy as np
import pytest
from s3_server import s3_server, use_s3

from mim3d.dataio.convert.forecast import forecast
from mim3d.dataio.convert.job import Job
from mim3d.dataio.corpus.conversion import Conversion
from mim3d.dataio.errors import SourceError
from mim3d.dataio.nifti import file as header_peek
from mim3d.dataio.nifti import file as nifti_file
from mim3d.dataio.nifti.file import HEAD_BYTES, read_header
from mim3d.dataio.sources.discover import discover
from mim3d.dataio.storage.object_store import RemoteStore
from mim3d.dataio.storage.remote import locate

BUDGET = 1 << 30


@pytest.fixture(scope="module")
def s3_address():
    with s3_server("looks") as address, pytest.MonkeyPatch.context() as patch:
        use_s3(address, patch)
        yield "s3://looks/raw"


def noise(path, *, shape=(60, 60, 60)):
    """A file much longer than what a look may read."""
    voxels = np.random.default_rng(0).integers(-999, 999, shape).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, np.diag([-1, 1, 2, 1])), path)
    return path.read_bytes()


def test_a_dry_run_over_s3_reads_first_bytes_only(s3_address, tmp_path, monkeypatch):
    store = RemoteStore(s3_address)
    whole = noise(tmp_path / "a.nii.gz")
    assert len(whole) > 2 * HEAD_BYTES
    for name, content in {"a.nii.gz": whole, "b.nii": noise(tmp_path / "b.nii")}.items():
        store.replace(name, [content])
    store.replace("short.nii.gz", [noise(tmp_path / "s.nii.gz", shape=(5, 6, 7))])
    store.replace("empty.nii", [b""])
    for module in (nifti_file, header_peek):
        monkeypatch.setattr(module, "read_source_bytes", lambda *a: pytest.fail("read it all"))
    sources = discover(s3_address).sources
    recipe = Conversion()
    kept = [Job(s, s.id, (), "", recipe) for s in sources if s.id != "empty"]
    found = forecast(kept, recipe)
    assert [item.shape for item in found.expected] == [(60, 60, 60)] * 2 + [(5, 6, 7)]
    assert not found.is_measured and 0 < found.stored_bytes < found.voxel_bytes


def test_a_corpus_in_a_bucket_is_no_source(s3_address):
    store = RemoteStore(f"{s3_address}-more")
    for name in ("a.nii", "c/zarr.json", "c/manifest.jsonl", "c/v/0/c/0", "c/v/x.nii", "d/b.nii"):
        store.replace(name, [b"x"])
    found = discover(f"{s3_address}-more")
    assert [s.id for s in found.sources] == ["a", "d_b"] and not found.skipped
    for corpus in ("zarr.json", "manifest.jsonl"):
        store.replace(corpus, [b"x"])
    with pytest.raises(SourceError):
        discover(f"{s3_address}-more")


def test_what_is_wrong_with_a_remote_file_is_told(s3_address):
    locate(s3_address)
    RemoteStore(s3_address).replace("empty.nii", [b""])
    for name, code in {"empty.nii": "empty", "none.nii": "missing"}.items():
        with pytest.raises(SourceError) as caught:
            read_header(f"{s3_address}/{name}", BUDGET)
        assert caught.value.code == code


def test_a_server_without_ranges_is_read_whole(s3_address, tmp_path, monkeypatch):
    import obstore

    RemoteStore(s3_address).replace("a.nii.gz", [noise(tmp_path / "a.nii.gz")])

    def refuse(*args, **kwargs):
        raise obstore.exceptions.GenericError("no ranges here")

    monkeypatch.setattr(obstore, "get_range", refuse)
    assert read_header(f"{s3_address}/a.nii.gz", BUDGET).shape == (60, 60, 60)


def test_a_local_file(tmp_path):
    noise(tmp_path / "a.nii.gz")
    assert read_header(str(tmp_path / "a.nii.gz"), BUDGET).shape == (60, 60, 60)
    for name, code in {"none.nii": "missing", "empty.nii": "empty"}.items():
        (tmp_path / "empty.nii").touch()
        with pytest.raises(SourceError) as caught:
            read_header(str(tmp_path / name), BUDGET)
        assert caught.value.code == code
