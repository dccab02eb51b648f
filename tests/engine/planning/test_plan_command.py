"""`mim3d plan` as one calls it: what it prints, what it refuses, and what it warns of."""

import json
import re

import numpy as np
import pytest
from small_run import make_corpus

from mim3d.bench.corpora import corpus_of
from mim3d.dataio.device.device_fit import DeviceRoom
from mim3d.dataio.errors import Mim3dError
from mim3d.dataio.loader.config import LoaderConfig
from mim3d.dataio.reader.corpus import opened_corpus
from mim3d.engine.commands.arguments import UsageError
from mim3d.engine.commands.plan import main
from mim3d.engine.errors import ConfigError
from mim3d.engine.planning.corpus import CorpusFacts
from mim3d.engine.planning.measured_run import measured_rate
from mim3d.engine.planning.memory import device_cache_gb, keeps_voxels
from mim3d.engine.pretrain.recipes import RECIPES


def told(capsys):
    """What was printed, on one line."""
    return " ".join(capsys.readouterr().out.split())


def test_volumes_kept_on_the_device_are_part_of_its_memory(capsys):
    """The 32 GiB that mae-vit-* keep there are most of it."""
    words = ["mae-vit-b-96", "--vit.depth", "1", "--gpus", "8"]
    figures = main(words).figures
    assert figures["cache_gb"] == pytest.approx(32 * 2**30 / 1e9)
    parts = ("state", "gathered", "accumulated", "activations", "crops", "cache")
    assert figures["memory_gb"] == pytest.approx(sum(figures[f"{name}_gb"] for name in parts))
    assert "volumes kept on the device 34.4" in told(capsys)
    assert main([*words, "--data.cache", "host"]).figures["cache_gb"] == 0


def test_a_cache_on_the_device_takes_the_loaders_share_of_it(capsys):
    """The loader is opened on an empty device, whose DeviceRoom is the rule."""
    words = ["mae-vit-b-96", "--vit.depth", "1", "--gpus", "8"]
    small = main([*words, "--memory-gb", "24"])
    assert small.exit_code == 0
    assert small.figures["cache_gb"] == pytest.approx(DeviceRoom(32 << 30, 24 * 10**9).nbytes / 1e9)
    assert "which take at most 9.6 GB, 40% of the 24 GB that are free" in told(capsys)
    kept = main([*words, "--memory-gb", "24", "--data.cache-bytes", "1000000000"]).figures
    assert kept["cache_gb"] == 1.0


def test_a_device_of_unknown_memory_keeps_what_the_budget_allows(capsys):
    words = ["demo-mae", "--gpus", "1", "--device", "Abacus", "--peak-tflops", "100"]
    outcome = main([*words, "--data.cache", "device", "--data.cache-bytes", "1000000000"])
    assert outcome.exit_code == 0
    assert outcome.figures["cache_gb"] == 1.0
    assert "memory_gb not known" in told(capsys)


@pytest.mark.parametrize("keeps", ["auto", "voxels"])
def test_a_plan_that_is_refused_for_its_cache_names_one_that_fits(keeps):
    words, kept = (
        ["mae-vit-b-96", "--vit.depth", "1", "--gpus", "8"],
        ["--data.device-keeps", keeps],
    )
    rest = main([*words, *kept, "--data.cache", "host"]).figures["memory_gb"]
    words += ["--memory-gb", f"{1.5 * rest:.2f}"]  # with the cache 1.6 times
    with pytest.raises(
        ConfigError, match=r"for volumes kept there, and of the device's"
    ) as refused:
        main([*words, *kept])
    found = re.search(
        r"lower (--data\.cache-bytes) to (\d+) \([\d.]+ GB\)( with (\S+) (auto))?, ",
        str(refused.value),
    )
    assert found is not None
    assert (found[3] is not None) == (keeps == "voxels")
    more = found.group(4, 5) if found[3] else kept
    assert main([*words, found[1], found[2], *more]).exit_code == 0


def test_chunks_are_kept_where_the_loaders_share_is_too_small_for_voxels():
    facts = CorpusFacts(10, 3.0, 1.0, 0.75, 2.0, 8.0, ("int16",), ())
    loader = LoaderConfig(cache="device", cache_bytes=9 * 10**9)
    assert device_cache_gb(loader, facts, 24.0) == 8.0
    assert not keeps_voxels(loader, facts, 16.0)
    assert device_cache_gb(loader, facts, 16.0) == 3.0
    assert device_cache_gb(loader, facts, 5.0) == 2.0


def test_a_runs_rate_is_the_median_of_a_runs_second_half(tmp_path):
    rows = [
        {"step": i, "tflops_per_s": rate, "world": 2}
        for i, rate in enumerate([1, 9, 400, 402, 404])
    ]
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    rate = measured_rate(tmp_path)
    assert rate.flops_per_s == pytest.approx(201e12)
    assert "201 TFLOP/s a device" in rate.basis
    with pytest.raises(ConfigError, match="is missing"):
        measured_rate(tmp_path / "nowhere")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ConfigError, match="no tflops_per_s"):
        measured_rate(tmp_path / "other.json")


def test_the_command(capsys):
    outcome = main(["mae-vit-l-160-p8", "--gpus", "64", "--device", "H100"])
    assert outcome.figures["parameters"] > 300e6
    text = told(capsys)
    assert "assumed" in text
    assert "loader" in text


@pytest.mark.parametrize(
    ("gpus", "accum", "batch"), [(1024, 1, 1024), (7, 1, 21), (8, 1, 16), (3, 2, 18)]
)
def test_a_batch_too_small_for_the_devices_is_raised_and_told(capsys, gpus, accum, batch):
    words = ["demo-mae", "--gpus", str(gpus), "--parallel.grad-accum", str(accum)]
    outcome = main(words)
    assert outcome.figures["global_batch"] == batch
    text = told(capsys)
    assert ("the 16 asked for do not divide" in text) == (batch != 16)
    assert (outcome.exit_code == 3) == (batch != 16)
    if batch != 16:
        found = re.search(r"set (--global-batch) (\d+),", text)
        assert found is not None
        assert main([*words, found[1], found[2]]).exit_code == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_planned_for_1024_devices(name):
    figures = main([name, "--gpus", "1024"]).figures
    assert figures["global_batch"] % 1024 == 0
    assert figures["state_gb"] > 0


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["demo-mae", "--gpus", "2000"], "between 1 and 1024"),
        (["demo-mae", "--gpus", "0"], "between 1 and 1024"),
        (["demo-mae", "--gpus", "1", "--device", "Abacus"], "--peak-tflops"),
        (["demo-mae", "--gpus", "1", "--utilisation", "1.5"], r"must lie in \(0, 1\]"),
        (["btcv-mae", "--gpus", "1", "--memory-gb", "8"], "--parallel.recompute"),
        (["nonsense"], "no recipe 'nonsense'; one of: demo-mae"),
    ],
)
def test_plans_that_cannot_be(words, wanted):
    with pytest.raises(Mim3dError, match=wanted):
        main(words)


def test_a_store_with_latency_is_planned_for_and_its_remedy_suffices(capsys):
    words = ["mae-vit-b-96", "--vit.depth", "1", "--gpus", "8", "--store-latency-ms", "30"]
    assert "store" not in main(words[:5]).figures
    store = main(words).figures["store"]
    assert store["in_flight"] > store["requests"] == 512
    text = told(capsys)
    found = re.search(r"512 give [\d.]+ crops/s: raise (--data\.remote-requests) to (\d+)", text)
    assert found is not None
    enough = main([*words, found[1], found[2]]).figures["store"]
    assert enough["in_flight"] == enough["requests"] == int(found[2])
    assert "raise" not in told(capsys).rsplit("store", 1)[1]
    slower = main([*words, "--store-mb-per-s", "1"]).figures["store"]
    assert slower["in_flight"] > store["in_flight"]


@pytest.mark.parametrize("value", ["nan", "inf", "-1"])
def test_a_latency_that_is_none_is_refused(value):
    with pytest.raises(UsageError, match="store_latency_ms"):
        main(["demo-mae", "--gpus", "1", f"--store-latency-ms={value}"])


def test_a_plan_names_its_devices_and_reads_the_corpus(tmp_path, capsys):
    corpus = make_corpus(tmp_path)
    words = ["mae-vit-b-96", "--gpus", "2", "--device", "H100", "--data.corpus", str(corpus)]
    outcome = main(words)
    text = told(capsys)
    assert "2 x H100, 989.4 TFLOP/s each in bf16" in text
    assert "of the peak (MFU)" in text
    assert "data sheets and the assumptions below" in text
    assert "corpus 4 volumes" in text
    assert "4 of 4 volumes are smaller than the crop" in text
    assert outcome.exit_code == 3
    assert outcome.figures["corpus"]["volumes"] == 4
    with pytest.raises(ConfigError, match=r"vit\.channels is 3"):
        main([*words, "--vit.channels", "3"])


def test_a_plan_counts_the_volumes_that_pretraining_draws_from(tmp_path, capsys):
    """Not the subjects held out, nor those of share 0: their bytes and dtypes do not count."""
    corpus = make_corpus(tmp_path)
    words = ["demo-mae", "--gpus", "1", "--data.corpus", str(corpus)]
    with opened_corpus(corpus) as (opened, _):
        subjects = sorted(record.subject for record in opened.records)
    whole = main(words).figures["corpus"]
    assert (whole["volumes"], whole["of"]) == (4, 0)
    for chosen, n in (
        (["--data.held-out", "0.25"], 3),
        (["--data.held-out-subjects", *subjects[1:]], 1),
        (["--data.subjects", *subjects[:2]], 2),
    ):
        capsys.readouterr()
        found = main([*words, *chosen]).figures["corpus"]
        assert (found["volumes"], found["of"]) == (n, 4)
        assert f"corpus {n} of 4 volumes of" in told(capsys)
        assert found["crops_per_volume"] == whole["crops_per_volume"] * 4 / n
        assert found["stored_gb"] < whole["stored_gb"]
    with pytest.raises(ConfigError, match="leaves 0 to train"):
        main([*words, "--data.held-out-subjects", *subjects])
    with pytest.raises(Mim3dError, match="nobody"):
        main([*words, "--data.subjects", "nobody"])


def test_a_step_shorter_than_its_host_takes_to_start_it_is_bound_by_the_host(tmp_path, capsys):
    words = ["demo-mae", "--gpus", "1", "--parallel.no-cuda-graph"]
    outcome = main(words)
    assert outcome.figures["bound_by"] == "host"
    assert outcome.figures["host_s"] == outcome.figures["step_s"] > 5e-3
    assert "host_us_per_op 6 us" in told(capsys)
    rows = [{"step": step, "tflops_per_s": 0.5, "world": 1} for step in (1, 2, 3)]
    measured = tmp_path / "metrics.jsonl"
    measured.write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome = main([*words, "--calibration", str(measured)])
    flops = outcome.figures["flops_per_step"]
    assert outcome.figures["step_s"] == pytest.approx(flops / 0.5e12)
    assert "host_us" not in told(capsys)


def test_a_network_that_binds_is_said_and_its_remedy_is_faster(capsys):
    """Eight machines that shard over all of them gather weights for longer than they compute."""
    outcome = main(["mae-vit-l-128", "--gpus", "64"])
    assert outcome.exit_code == 3
    figures, text = outcome.figures, told(capsys)
    assert figures["bound_by"] == "network"
    assert figures["network_exposed_s"] > 0.5 * figures["step_s"]
    assert "GB/s are needed, the machine has 40" in text
    found = re.search(r"(--parallel\.replicate) (\d+) makes it ([\d.]+) ms a step", text)
    assert found is not None
    better = main(["mae-vit-l-128", "--gpus", "64", found[1], found[2]]).figures
    assert better["step_s"] * 1e3 == pytest.approx(float(found[3]), rel=0.01)
    assert better["step_s"] < 0.9 * figures["step_s"]


def test_memory_that_lacks_is_warned_of_and_the_least_policy_that_fits_is_named(capsys):
    words = ["mae-vit-l-128-p8", "--vit.depth", "2", "--gpus", "1", "--max-micro-batch", "0"]
    words += ["--data.cache", "host", "--assume", "memory_gb=130"]
    outcome = main(words)
    assert outcome.exit_code == 3
    found = re.search(r"(--parallel\.recompute) (selective|full) is enough", told(capsys))
    assert found is not None
    assert main([*words, found[1], found[2]]).exit_code == 0


def test_a_corpus_of_mixed_dtypes_is_kept_on_the_host_and_counted_there(tmp_path, capsys):
    volumes = [np.full((24, 24, 24), 7, dtype) for dtype in ("int16", "float32", "uint8")]
    corpus = corpus_of(tmp_path / "mixed.zarr", volumes)
    words = ["demo-mae", "--vit.depth", "1", "--gpus", "1", "--data.corpus", str(corpus)]
    outcome = main([*words, "--data.cache", "device"])
    assert outcome.exit_code == 3
    figures, text = outcome.figures, told(capsys)
    assert "data.cache device needs all alike" in text
    assert "3 volumes of float32 and int16 and uint8" in text
    assert figures["cache_gb"] == 0.0
    assert figures["host_cache_gb"] == pytest.approx(figures["corpus"]["stored_gb"])
    # Bytes of a voxel are the mean of four, two and one.
    ratio = figures["loader_gb_per_s"] / (figures["crops_per_s"] * 32**3 / 1e9)
    assert ratio == pytest.approx(7 / 3)


def test_voxels_that_do_not_fit_the_device_are_not_planned_as_chunks(tmp_path, capsys):
    """Volumes end within a chunk, and the device keeps whole ones: 8 of 16^3 each."""
    volumes = [np.full((24, 24, 24), 7 + n, np.int16) for n in range(4)]
    corpus = corpus_of(tmp_path / "corpus.zarr", volumes)
    words = ["demo-mae", "--vit.depth", "1", "--gpus", "1", "--data.corpus", str(corpus)]
    words += ["--data.cache", "device", "--vit.crop-size", "16", "16", "16"]
    less = [*words, "--data.cache-bytes"]
    words += ["--data.device-keeps", "voxels", "--data.cache-bytes"]
    nbytes = 4 * 8 * 16**3 * 2
    outcome = main([*words, str(nbytes - 1)])
    assert outcome.exit_code == 3
    assert outcome.figures["cache_gb"] == nbytes / 1e9
    assert "decoding" not in outcome.figures["device_s"]
    text = told(capsys)
    assert "voxels kept on the device" in text
    found = re.search(r"(--data\.device-keeps) (chunks) keeps less, or raise (\S+) to (\d+)", text)
    assert found is not None
    assert main([*less, str(nbytes - 1), found[1], found[2]]).exit_code == 0
    assert int(found[4]) == nbytes
    assert main([*words, found[4]]).exit_code == 0
    outcome = main([*words, found[4], "--assume", "memory_gb=0.0006"])
    assert "keeps less, or raise" not in told(capsys)


def test_labels_that_are_ignored_lie_on_the_device_beside_the_volumes(tmp_path, capsys):
    labels: list[np.ndarray] = [np.zeros((24, 24, 24), np.uint8) for _ in range(3)]
    for label in labels:
        label[::2] = 1
    words = ["demo-mae", "--vit.depth", "1", "--gpus", "1", "--data.cache", "device"]
    words += ["--vit.crop-size", "16", "16", "16", "--method.ignore", "label:seg", "--data.corpus"]
    volumes = [np.full((24, 24, 24), 7 + n, np.int16) for n in range(3)]
    corpus = corpus_of(tmp_path / "alike.zarr", volumes, labels)
    outcome = main([*words, str(corpus)])
    assert outcome.exit_code == 0
    assert outcome.figures["cache_gb"] == 3 * 8 * 16**3 * (2 + 1) / 1e9
    labels[1] = 300 * labels[1].astype(np.int16)
    corpus = corpus_of(tmp_path / "unlike.zarr", volumes, labels)
    outcome = main([*words, str(corpus)])
    assert outcome.exit_code == 3
    assert outcome.figures["cache_gb"] == 0.0
    assert "needs all alike, and there are labels 'seg' of int16, uint8" in told(capsys)


def test_decoding_on_the_device_takes_as_long_as_voxels_are_wide(tmp_path):
    words = ["demo-mae", "--vit.depth", "1", "--gpus", "1", "--data.device-keeps", "chunks"]
    words += ["--vit.crop-size", "16", "16", "16", "--data.cache", "device", "--data.corpus"]
    seconds = {}
    for dtype in ("int16", "float32"):
        corpus = corpus_of(tmp_path / f"{dtype}.zarr", [np.full((24, 24, 24), 7, dtype)])
        seconds[dtype] = main([*words, str(corpus)]).figures["device_s"]["decoding"]
    assert seconds["float32"] == pytest.approx(2 * seconds["int16"])


def test_every_line_fits_eighty_columns_and_names_what_is_assumed(capsys):
    main(["openmind-primus-m-mae", "--gpus", "8"])
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert "2.00 M in the run" in printed
    assert "with augmentation" in printed
    assert "read_gvoxels_per_core" in printed
    main(["openmind-primus-m-mae", "--gpus", "8", "--assume", "read_gvoxels_per_core=0.001"])
    printed = capsys.readouterr().out
    assert "as given by --assume" in printed
    assert "warning:      cores of a rank for the loader" in printed


@pytest.mark.parametrize("words", [["--assume"], ["--assume", "--gpus", "1"], ["--assume="]])
def test_an_assumption_without_a_value_is_refused(words):
    with pytest.raises((ConfigError, UsageError), match=r"--assume .*NAME=") as told:
        main(["demo-mae", *words])
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        ("nonsense=1", "no such constant; one of product_share"),
        ("launch_us=nan", "must be a positive number"),
        ("launch_us=0", "must be a positive number"),
        ("launch_us", "write NAME=NUMBER"),
    ],
)
def test_assumptions_that_are_none(word, wanted):
    with pytest.raises(ConfigError, match=wanted):
        main(["demo-mae", "--gpus", "1", "--assume", word])


def test_one_pair_a_device_is_not_followed_and_two_are(capsys):
    words = ["demo-simclr", "--gpus", "1024", "--global-batch"]
    outcome = main([*words, "1024"])
    assert outcome.exit_code == 3
    assert outcome.figures["step_s"] is None
    assert "take fewer --gpus or a larger --global-batch" in " ".join(told(capsys).split())
    assert main([*words, "2048"]).figures["step_s"] > 0
    assert main(["demo-simclr", "--gpus", "4", "--global-batch", "1024"]).figures["step_s"] > 0
