"""The loader bench at a tiny size: every contestant runs and label maps are left out."""

import numpy as np
import pytest
from nibabel.nifti1 import Nifti1Image

from mim3d.bench.corpora import anatomy_like, corpus_of
from mim3d.bench.gpu import caches
from mim3d.bench.gpu.caches import WAYS, GpuBench, gpu_table, measure_gpu
from mim3d.bench.loader.stage import main
from mim3d.dataio.device.device_reader import STAGES
from mim3d.dataio.errors import Mim3dError


@pytest.mark.slow
def test_real_files_are_measured_and_label_maps_left_out(tmp_path, capsys):
    image = anatomy_like((97, 112, 100), 0)
    Nifti1Image(image.T, np.eye(4)).to_filename(tmp_path / "mr.nii.gz")
    np.save(tmp_path / "labels.npy", (image > 500).astype(np.uint8))
    np.save(tmp_path / "small.npy", image[:50])
    (tmp_path / "cut.nii.gz").write_bytes((tmp_path / "mr.nii.gz").read_bytes()[:5000])
    (tmp_path / "none.nii").write_bytes(bytes(352))
    options = ["--data", str(tmp_path), "--rounds", "1", "--crops", "8", "--work", str(tmp_path)]
    figures = main(options).figures
    assert figures["volumes"] == [{"shape": [97, 112, 100], "dtype": "int16"}]
    rates = figures["rates"]
    assert rates["mim3d reader, snap 16"]["per_cpu_s"] > 0
    assert rates["mim3d loader, normalised + flips"]["per_cpu_s"] > 0
    assert figures["loader_over_reader"]["mim3d loader"] > 0
    assert figures["stages"]["mim3d loader"]["decode_s"] > 0
    assert figures["reader_over"]["mim3d reader, snap 16"] == 1
    assert figures["ratios"]["mim3d loader"]["resolved"] is False  # of one round
    assert figures["chunks_per_crop"]["decoded"] == figures["chunks_per_crop"]["touched"] > 200
    told, complaints = capsys.readouterr()
    assert "cut.nii.gz: left out" in complaints
    assert "none.nii: left out" in complaints
    assert "mim3d loader, bf16" in told
    assert "unresolved: one round tells nothing" in told


def test_a_folder_without_volumes_is_told(tmp_path):
    with pytest.raises(ValueError, match="no image of at least"):
        main(["--data", str(tmp_path)])


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    volumes = [anatomy_like((64, 48, 48), seed) for seed in range(2)]
    return corpus_of(tmp_path_factory.mktemp("gpu") / "c.zarr", volumes)


def test_every_way_to_the_device_is_measured_over_whole_rounds(small):
    bench = GpuBench(micro_batch=4, threads=2, prefetch=2, rounds=2, round_s=0.1)
    figures = measure_gpu(small, (32, 32, 32), "cpu", bench, refuse=False)
    assert list(figures["rates"]) == list(WAYS)
    device, none = figures["rates"]["cache=device"], figures["rates"]["cache=none"]
    assert device["hits"] > 0.9  # warm before a round began, but for rare chunks
    assert 0 < device["chunks_per_crop"] <= 8  # a snapped crop's own
    assert 0 < sum(device["stages"][stage] for stage in STAGES) <= 1.01
    assert device["gb_per_s"] == pytest.approx(device["crops_per_s"] * 4 * 32**3 / 1e9)
    assert none["hits"] is None
    assert len(device["rounds"]) == 2
    assert min(device["rounds"]) <= device["crops_per_s"] <= max(device["rounds"])
    assert "cache=device, bf16" in gpu_table(figures)
    assert "chunks that a crop touches" in gpu_table(figures)


def test_rates_that_shared_chunks_flatter_are_refused(small):
    bench = GpuBench(micro_batch=16, threads=1, prefetch=1, rounds=1, round_s=0.05)
    figures = measure_gpu(small, (32, 32, 32), "cpu", bench)
    assert set(figures["rates"]) == set(WAYS) - {"cache=device", "cache=device, bf16"}
    assert "REFUSED, crops share the rest; take more volumes" in gpu_table(figures)


def test_a_way_that_needs_what_is_not_installed_is_told(small, monkeypatch):
    def refuse(*_arguments, **_options):
        raise Mim3dError("the loader runs on NVIDIA DALI, which is not installed")

    monkeypatch.setattr(caches, "Loader", refuse)
    figures = measure_gpu(small, (32, 32, 32), "cpu", GpuBench())
    assert figures["rates"] == {}
    assert set(figures["not_available"]) == set(WAYS)
    assert "cache=host: the loader runs on NVIDIA DALI" in gpu_table(figures)
