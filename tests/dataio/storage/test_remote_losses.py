"""A volume of a bucket whose manifest line is lost is kept there, under another name."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from s3_server import make_bucket, s3_server, use_s3

from mim3d.bench.corpora import anatomy_like
from mim3d.dataio.corpus.manifest import intact_records, manifest_bytes
from mim3d.dataio.corpus.names import MANIFEST, own_key
from mim3d.dataio.storage.object_store import RemoteStore
from mim3d.engine.commands.cli import main

pytest.importorskip("obstore")
pytest.importorskip("moto.server")


def test_a_volume_without_its_line_is_kept_in_the_bucket(tmp_path, monkeypatch, capsys):
    raw = tmp_path / "raw"
    raw.mkdir()
    for i in range(2):
        voxels = anatomy_like((20, 18, 16), i)
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), raw / f"P{i}.nii.gz")
    with s3_server() as address:
        use_s3(address, monkeypatch)
        make_bucket(address, "losses")
        corpus = "s3://losses/c"
        words = ["convert", str(raw), corpus, "--workers", "1"]
        assert main(words) == 0
        store = RemoteStore(corpus)
        key = own_key(store, MANIFEST)
        records, _ = intact_records(store.get(key))
        store.replace(key, [manifest_bytes(records[:1])])
        whole = {k.removeprefix("P1/"): store.get(k) for k in store.sizes("P1")}
        away = (raw / "P1.nii.gz").rename(tmp_path / "P1.nii.gz")
        assert main(words) == 3
        assert "it is kept as P1--lost" in capsys.readouterr().out
        kept = {k.removeprefix("P1--lost/"): store.get(k) for k in store.sizes("P1--lost")}
        assert kept == whole and not store.sizes("P1")
        assert main(["verify", corpus]) == 3
        Path(away).rename(raw / "P1.nii.gz")
        assert main(words) == 0 and not store.sizes("P1--lost")
        assert main(["verify", corpus]) == 0
