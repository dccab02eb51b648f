"""The example of a pretext task in one file: trained, resumed, exported, and not without it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_run import make_corpus

from mim3d.engine.runs.encoder_file import load_encoder

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "turns_plugin.py"
SMALL = """--vit.crop-size 16 16 16 --steps 6 --global-batch 4 --log.every 1 --checkpoint.every 2
    --schedule.warmup-steps 1 --data.held-out 0.25 --data.held-out-crops 4
    --data.augment none""".split()  # noqa: SIM905  read as words of a command


def mim3d(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The command, in a process of its own."""
    command = [sys.executable, "-P", "-m", "mim3d.engine.commands.cli", *words]
    clean = {name: value for name, value in os.environ.items() if name != "MIM3D_PLUGINS"}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env=clean | variables
    )


def test_the_example_is_short() -> None:
    assert len(EXAMPLE.read_text().splitlines()) < 60


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.mark.slow
def test_a_task_of_ones_own_trains_resumes_and_is_exported(corpus, tmp_path):
    begin = ["pretrain", "demo-turns", "--data.corpus", str(corpus), *SMALL]
    plugin = ["--plugin", str(EXAMPLE)]
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    done = mim3d(*begin, "--out", str(whole), *plugin)
    assert done.returncode == 0, done.stderr
    stored = json.loads((whole / "config.json").read_text())
    assert stored["method"] == {"hidden": 192, "name": "turns"}
    assert [(p["name"], p["module"]) for p in stored["plugins"]] == [("turns", "turns_plugin")]
    rows = (whole / "metrics.jsonl").read_text().splitlines()
    assert "chance" in json.loads((whole / "pretext.json").read_text())["pretext"]

    # Ended at step 4, gone on with: the same weights to the bit.
    done = mim3d(*begin, "--out", str(parted), *plugin, "--checkpoint.keep", "9")
    assert done.returncode == 0, done.stderr
    (parted / "pretext.json").unlink()
    for late in parted.glob("checkpoints/step-*6"):
        for file in sorted(late.rglob("*"), reverse=True):
            file.unlink()
        late.rmdir()
    (parted / "encoder.safetensors").unlink()
    without = mim3d(*begin, "--out", str(parted))
    assert without.returncode == 2
    assert without.stderr.count("\n") == 1
    remedy = without.stderr.strip().rpartition(": add ")[2].split()
    assert remedy == plugin
    done = mim3d(*begin, "--out", str(parted), *remedy)
    assert done.returncode == 0, done.stderr
    assert len((parted / "metrics.jsonl").read_text().splitlines()) == len(rows)
    first, second = load_encoder(whole).state_dict(), load_encoder(parted).state_dict()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())

    # The encoder is a plain one: it is exported, and loaded, without the plugin.
    target = tmp_path / "encoder.safetensors"
    done = mim3d("export", str(whole), "safetensors", str(target))
    assert done.returncode == 0, done.stderr
    card = json.loads(target.with_suffix(".json").read_text())
    assert (card["method"], card["kind"]) == ("turns", "vit")
    assert load_encoder(target).config.crop_size == (16, 16, 16)


@pytest.mark.slow
def test_ranks_that_a_command_starts_have_the_plugin(corpus, tmp_path):
    words = ["pretrain", "demo-turns", "--data.corpus", str(corpus), "--out", str(tmp_path / "run")]
    done = mim3d(*words, *SMALL, "--plugin", str(EXAMPLE), "--nproc", "2")
    assert done.returncode == 0, done.stderr
    assert (
        json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["world"] == 2
    )


def test_options_of_ones_own_are_listed() -> None:
    done = mim3d("pretrain", "demo-turns", "--help", "--plugin", str(EXAMPLE))
    assert done.returncode == 0, done.stderr
    assert "--method.hidden" in done.stdout
    assert "demo-turns" in done.stdout
    assert "picture-every" not in done.stdout  # it paints nothing


def test_errors_are_one_line(tmp_path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("import torch\nraise RuntimeError('x')\n")
    for words, message in (
        (["pretrain", "demo-turns"], "no recipe 'demo-turns'; one of: demo-mae"),
        (["pretrain", "demo-mae", "--plugin"], "--plugin needs a file name"),
        (["pretrain", "demo-mae", f"--plugin={broken}"], "RuntimeError: x (broken.py line 2)"),
        (["pretrain", "demo-mae", "--out", str(tmp_path), "--data.augment", "own"], "is none of"),
    ):
        done = mim3d(*words)
        assert done.returncode == 2
        assert message in done.stderr
        assert done.stderr.count("\n") == 1


def test_help_loads_no_torch() -> None:
    code = (
        "import sys; from mim3d.engine.commands.cli import main\n"
        "try: main(['pretrain', '--help'])\nexcept SystemExit: pass\n"
        "print([name for name in ('torch', 'monai') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
