"""Features of scans: the encoder's own, from files as from a corpus, resumable."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file
from small_run import make_corpus, small_config
from small_trial import Trial, loaded, save

from mim3d.dataio.reader.corpus import Corpus
from mim3d.dataio.reader.shard_reader import ShardReader
from mim3d.dataio.reader.whole_volume import read_volume
from mim3d.engine.commands.cli import main
from mim3d.engine.errors import CheckpointError, ConfigError
from mim3d.engine.finetune.trained import load_network, read_trained
from mim3d.engine.predict.config import EmbedConfig
from mim3d.engine.predict.embed import run_embed
from mim3d.engine.pretrain.pretrain import run_pretrain
from mim3d.engine.runs.encoder_file import load_encoder
from mim3d.engine.runs.files import read_json, write_json


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A pretraining run of a few steps, and its corpus."""
    folder = tmp_path_factory.mktemp("pretrained")
    corpus = make_corpus(folder)
    run_pretrain(small_config(corpus, steps=2), folder / "run")
    return folder / "run", corpus


def pooled(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "pooled.npz") as stored:
        return dict(stored)


def test_tokens_are_the_encoders_over_windows_that_cover_the_volume(
    pretrained: tuple[Path, Path], tmp_path: Path
) -> None:
    run, corpus = pretrained
    run_embed(run, corpus, tmp_path, EmbedConfig(what="tokens"))
    opened, encoder = Corpus.open(corpus), load_encoder(run).eval()
    reader = ShardReader(opened.table, opened.root)
    size = encoder.config.crop_size
    for row, record in enumerate(opened.records):
        image = torch.from_numpy(read_volume(reader, row).image)
        found = load_file(tmp_path / f"{record.id}.safetensors")
        over = [max(a - b, 0) for a, b in zip(size, record.shape, strict=True)]
        pads = [side for n in over[::-1] for side in (n // 2, n - n // 2)]
        image = torch.nn.functional.pad(image, pads, value=float(image.min()))
        seen = np.zeros(image.shape[1:], bool)
        for start, tokens in zip(found["starts"], found["tokens"], strict=True):
            corner = start + np.array(over) // 2
            z, y, x = (slice(a, a + n) for a, n in zip(corner, size, strict=True))
            seen[z, y, x] = True
            with torch.no_grad():
                wanted = encoder(image[None, :, z, y, x])[0]
            assert np.allclose(tokens, wanted.numpy(), atol=1e-5)
        assert seen.all()


def test_pooled_vectors_from_files_and_from_the_corpus(
    pretrained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, corpus = pretrained
    files = corpus.parent / "nifti-4"
    for name, source in (("a", corpus), ("b", files)):
        assert main(["embed", str(run), str(source), str(tmp_path / name)]) == 0
    with (
        np.load(tmp_path / "a" / "pooled.npz") as one,
        np.load(tmp_path / "b" / "pooled.npz") as two,
    ):
        assert one["features"].shape == (4, 24)
        assert np.array_equal(one["features"], two["features"])
        assert one["ids"].tolist() == two["ids"].tolist()
        assert one["subjects"].tolist() == [r.subject for r in Corpus.open(corpus).records]
        features, ids = one["features"], one["ids"].tolist()
    run_embed(run, corpus, tmp_path / "c", EmbedConfig(what="tokens"))
    for id, vector in zip(ids, features, strict=True):
        tokens = load_file(tmp_path / "c" / f"{id}.safetensors")["tokens"]
        assert np.allclose(tokens.mean((0, 1)), vector, atol=1e-5)
        with safe_open(tmp_path / "a" / f"{id}.safetensors", "np") as stored:
            about = {name: json.loads(value) for name, value in stored.metadata().items()}
        assert about["id"] == id
        assert np.array(about["affine"]).shape == (4, 4)
    capsys.readouterr()
    assert main(["embed", str(run), str(corpus), str(tmp_path / "a")]) == 0
    assert "0 scans done, 4 were there already" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="results with what tokens, not pooled"):
        run_embed(run, corpus, tmp_path / "c")


def test_a_fine_tuned_run_embeds_by_its_encoder(trial: Trial, tmp_path: Path) -> None:
    report = run_embed(trial.run, trial.images[0], tmp_path)
    assert (report.n_done, report.width) == (1, 12)
    trained = read_trained(trial.run)
    encoder = load_network(trial.run, trained).get_submodule("encoder")
    corpus = Corpus.open(trial.corpus)
    image = torch.from_numpy(read_volume(ShardReader(corpus.table, corpus.root), 0).image)
    (file,) = tmp_path.glob("*.safetensors")
    vector = load_file(file)["pooled"]
    assert vector.shape == (12,)
    with torch.no_grad():
        first = encoder(image[None, :, :16, :16, :16]).mean((0, 1))
    assert not np.allclose(vector, first.numpy(), atol=1e-4)
    assert np.isfinite(vector).all()


def test_a_volume_smaller_than_a_window_is_padded(trial: Trial, tmp_path: Path) -> None:
    image = loaded(trial.images[0])
    save(np.asarray(image.dataobj)[:9, :40, :11], image.affine, tmp_path / "small.nii.gz")
    report = run_embed(trial.run, tmp_path / "small.nii.gz", tmp_path / "a", EmbedConfig("tokens"))
    assert report.failed == ()
    found = load_file(tmp_path / "a" / "small.safetensors")
    assert found["tokens"].shape[1:] == (8, 12)
    assert (found["starts"].min(0) <= 0).all()


def test_broken_scans_are_listed(pretrained: tuple[Path, Path], tmp_path: Path) -> None:
    run, _ = pretrained
    scans = tmp_path / "scans"
    scans.mkdir()
    (scans / "bad.nii.gz").write_bytes(b"no")
    assert main(["embed", str(run), str(scans), str(tmp_path / "out")]) == 3
    assert (tmp_path / "out" / "failed.jsonl").exists()


def test_an_encoder_of_an_earlier_version_asks_for_its_corpus(
    pretrained: tuple[Path, Path], tmp_path: Path
) -> None:
    run, corpus = pretrained
    for name in ("encoder.safetensors", "encoder.json"):
        shutil.copy(run / name, tmp_path / name)
    card = read_json(tmp_path / "encoder.json")
    del card["scans"]
    write_json(tmp_path / "encoder.json", card)
    weights = tmp_path / "encoder.safetensors"
    with pytest.raises(CheckpointError, match="was pretrained on by --corpus"):
        run_embed(weights, corpus, tmp_path / "a")
    run_embed(weights, corpus, tmp_path / "a", corpus=str(corpus))
    run_embed(run, corpus, tmp_path / "b")
    with (
        np.load(tmp_path / "a" / "pooled.npz") as one,
        np.load(tmp_path / "b" / "pooled.npz") as two,
    ):
        assert np.array_equal(one["features"], two["features"])
