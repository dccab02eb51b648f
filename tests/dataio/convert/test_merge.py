"""Several corpora as one: no voxel copied, the parts untouched, samples those of one corpus."""

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from mim3d.bench.corpora import anatomy_like
from mim3d.dataio.convert.merge import merge
from mim3d.dataio.convert.run import convert
from mim3d.dataio.corpus.conversion import Conversion
from mim3d.dataio.corpus.seen_files import SEEN
from mim3d.dataio.errors import CorpusError
from mim3d.dataio.inspect.verify import verify
from mim3d.dataio.loader.loader import Loader, LoaderConfig
from mim3d.dataio.reader.corpus import Corpus
from mim3d.dataio.sources.source import Source
from mim3d.engine.commands.cli import main

CONFIG = LoaderConfig(crop_size=(16, 16, 16), micro_batch=4, seed=3)


def made(folder: Path, name: str, seeds: range, recipe: Conversion | None = None) -> Path:
    sources = []
    for i in seeds:
        (folder / name).mkdir(parents=True, exist_ok=True)
        volume = anatomy_like((30, 26, 28), i)
        path, label = folder / name / f"v{i}.nii.gz", folder / name / f"l{i}.nii.gz"
        nib.save(nib.Nifti1Image(volume, np.eye(4)), path)
        nib.save(nib.Nifti1Image((volume > 500).astype(np.uint8), np.eye(4)), label)
        labels = {"seg": str(label)} if i % 2 else {}
        sources.append(Source(f"v{i}", (str(path),), labels, subject=f"p{i}"))
    convert(sources, folder / f"{name}.zarr", recipe, workers=1)
    return folder / f"{name}.zarr"


@pytest.fixture
def parts(tmp_path) -> tuple[Path, Path]:
    """Two corpora; v2 of subject p2 is in both, and is another scan in each."""
    a, b = made(tmp_path, "a", range(3)), made(tmp_path, "b", range(2, 5))
    return a, b


def content(root: Path) -> dict[str, bytes]:
    files = (f for f in root.rglob("*") if f.is_file() and f.name != SEEN)
    return {str(f.relative_to(root)): f.read_bytes() for f in files}


def test_merged_by_links(parts, tmp_path, capsys):
    before = [content(part) for part in parts]
    assert main(["merge", *map(str, parts), "--into", str(tmp_path / "all.zarr")]) == 0
    out = capsys.readouterr().out
    assert "3 volumes of a, 3 volumes of b added" in out and "told apart: p2" in out
    corpus = Corpus.open(tmp_path / "all.zarr")
    assert [(r.id, r.subject, r.group) for r in corpus.records] == [
        ("a_v2", "a/p2", "a"),
        ("b_v2", "b/p2", "b"),
        ("v0", "p0", "a"),
        ("v1", "p1", "a"),
        ("v3", "p3", "b"),
        ("v4", "p4", "b"),
    ]
    assert verify(corpus.root).problems == ()
    shard = corpus.root / "v1/labels.seg/c.0.0.0"
    assert shard.samefile(parts[0] / "v1/labels.seg/c.0.0.0")
    assert [content(part) for part in parts] == before
    assert main(["merge", *map(str, parts), "--into", str(tmp_path / "all.zarr")]) == 0
    assert "no volume added, 6 already there" in capsys.readouterr().out


def test_samples_are_those_of_one_corpus_at_any_world_size(parts, tmp_path):
    merge([parts[0], made(tmp_path, "rest", range(3, 5))], tmp_path / "all.zarr")
    half = replace(CONFIG, micro_batch=2)
    with (
        Loader(made(tmp_path, "one", range(5)), CONFIG) as one,
        Loader(tmp_path / "all.zarr", CONFIG) as merged,
        Loader(tmp_path / "all.zarr", half, rank=0, world=2) as first,
        Loader(tmp_path / "all.zarr", half, rank=1, world=2) as second,
    ):
        for _ in range(3):
            wanted = next(one).image
            assert torch.equal(next(merged).image, wanted)
            assert torch.equal(torch.cat([next(first).image, next(second).image]), wanted)


def test_what_happens_to_a_part_later_does_not_reach_the_whole(parts, tmp_path):
    merge(parts, tmp_path / "all.zarr")
    whole = content(tmp_path / "all.zarr")
    path = tmp_path / "a" / "v1.nii.gz"
    nib.save(nib.Nifti1Image(anatomy_like((30, 26, 28), 99), np.eye(4)), path)
    convert([Source("v1", (str(path),), subject="p1")], parts[0], workers=1)
    assert main(["remove", str(parts[1]), "--subject", "p3"]) == 0
    assert content(tmp_path / "all.zarr") == whole and verify(tmp_path / "all.zarr").problems == ()


def test_what_cannot_be_merged_is_told(parts, tmp_path, monkeypatch, capsys):
    other = made(tmp_path, "other", range(1), Conversion(chunk=8))
    with pytest.raises(CorpusError, match="chunk 16 and 8"):
        merge([parts[0], other], tmp_path / "x.zarr")
    assert main(["merge", str(parts[0]), "--into", str(tmp_path / "x.zarr")]) == 2
    assert main(["merge", str(parts[0]), "s3://b/c", "--into", str(tmp_path / "x.zarr")]) == 2
    assert main(["merge", str(parts[0]), str(tmp_path / "no"), "--into", "x.zarr"]) == 2
    (parts[0] / "v1/0/c.0.0.0").unlink()
    with pytest.raises(CorpusError, match=f"`mim3d verify {parts[0]} --mend`"):
        merge(parts, tmp_path / "x.zarr")
    assert main(["verify", str(parts[0]), "--mend"]) == 0
    merge(parts, tmp_path / "x.zarr")
    assert verify(tmp_path / "x.zarr").problems == ()

    def link(source, target):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("mim3d.dataio.convert.merge.os.link", link)
    with pytest.raises(CorpusError, match="on the same file system"):
        merge(parts, tmp_path / "y.zarr")
