"""The command line's frame: exit codes, one-line errors, --json, and help for every command."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mim3d.engine.commands import cli
from mim3d.engine.commands.bench import STAGES
from mim3d.engine.commands.outcome import Outcome


def test_without_words_it_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    shown = capsys.readouterr().out
    assert all(name in shown for name in cli.COMMANDS)
    assert cli.main(["--help"]) == 0


@pytest.mark.parametrize("words", [["--help"], ["pretrain", "demo-mae", "--help"]])
def test_a_reader_that_left_ends_it_without_a_word(words: list[str]) -> None:
    command = [sys.executable, "-P", "-u", "-m", "mim3d", *words]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.close()
        assert running.stderr.read() == ""
    assert running.returncode == cli.READER_LEFT


def test_unknown_command_names_the_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["convrt"]) == 2
    assert "'convrt'" in (error := capsys.readouterr().err)
    assert "convert" in error


@pytest.mark.parametrize("words", [["--json", "f.json", "a"], ["a", "--json=f.json"]])
def test_json_flag_is_taken_out_wherever_it_stands(words: list[str]) -> None:
    assert cli.split_json_flag(words) == (Path("f.json"), ["a"])


def test_json_flag_without_a_file_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["env", "--json"]) == 2
    assert "--json FILE" in capsys.readouterr().err


def test_two_files_for_the_figures_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["env", "--json", "a.json", "--json=b.json"]) == 2
    assert "'a.json' and 'b.json'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("pretrain demo-mae --out r --data.corpus a --data.corpus b", "--data.corpus b"),
        ("finetune demo --corpus a --data.corpus b", "`--corpus a` and `--data.corpus b`"),
        ("convert a b --spacing 1 1 1 --spacing-mm=2,2,2", "count: write one of them alone"),
        ("convert a b --channels x y --channels z", "write --channels x y z"),
        ("convert a b --subject x --subject y", "`--subject x` and `--subject y`"),
        ("remove c --subject x --subject y", "write --subject x y"),
        ("plan demo-mae --gpus 8 --gpus 16", "`--gpus 8` and `--gpus 16`"),
        ("compare demo --arms mae --arms simclr", "write --arms mae simclr"),
        ("verify c --mend --no-mend", "`--mend` and `--no-mend`"),
        ("merge a b --into c --into d", "`--into c` and `--into d`"),
        ("inspect c --rows 1 --rows 2", "`--rows 1` and `--rows 2`"),
        ("export r safetensors f --push a --push b", "`--push a` and `--push b`"),
        ("predict r s d --labels a --labels b", "`--labels a` and `--labels b`"),
        ("demo --data a --data b", "`--data a` and `--data b`"),
        ("bench convert --volumes 2 --volumes 3", "`--volumes 2` and `--volumes 3`"),
    ],
)
def test_no_command_takes_the_last_of_two_values(
    words: str, wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words.split()) == 2
    assert "one option given twice" in (error := capsys.readouterr().err) and wanted in error


def test_user_errors_end_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(name: str, words: list[str]) -> Outcome:
        raise ValueError("corpus.zarr: no manifest; run mim3d convert")

    monkeypatch.setattr(cli, "run_command", fails)
    assert cli.main(["verify", "x"]) == 2
    assert capsys.readouterr().err == "mim3d verify: corpus.zarr: no manifest; run mim3d convert\n"


def test_loss_on_the_way_exits_3_and_still_writes_figures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    outcome = Outcome({"rate": float("nan"), "n": 3, "rows": [{"x": float("inf")}]}, lost=1)
    monkeypatch.setattr(cli, "run_command", lambda name, words: outcome)
    file = tmp_path / "deep" / "figures.json"
    assert cli.main(["convert", "--json", str(file)]) == 3
    assert json.loads(file.read_text()) == {"rate": None, "n": 3, "rows": [{"x": None}]}


def test_env_figures_name_versions_and_optional_parts(tmp_path: Path) -> None:
    file = tmp_path / "env.json"
    assert cli.main(["env", "--json", str(file)]) == 0
    figures = json.loads(file.read_text())
    assert figures["versions"]["torch"] == figures["torch"]["torch"].split("+")[0] or (
        figures["versions"]["torch"] == figures["torch"]["torch"]
    )
    assert "apex" in figures["optional"]
    assert figures["kernels"]["cpu"].startswith(("reference", "triton"))


def test_system_errors_name_their_file_first() -> None:
    assert cli.one_line(OSError(28, "No space left on device", "x.png")) == (
        "x.png: No space left on device"
    )
    assert cli.one_line(ValueError("as it is")) == "as it is"


def test_help_is_plain_and_tells_of_json_and_globs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["convert", "--help"])
    shown = capsys.readouterr().out
    assert "{None}" not in shown and "--json FILE" in shown
    assert "in quotes" in shown and "msd:Task04_Hippocampus" in shown
    framed = [line for line in shown.splitlines() if line.startswith(("│", "|"))]
    assert len({len(line) for line in framed}) <= 1


HEAVY = {"torch", "monai", "matplotlib", "scipy", "nibabel", "triton", "tensorboard"}
"""What takes seconds to load, and no help needs."""


def test_no_help_waits_for_what_it_does_not_need() -> None:
    """One process asks for every command's help, then tells what it had to load."""
    asked = [*cli.COMMANDS, "pretrain demo-simclr", "finetune swinunetr-96", "compare swin"]
    asked += [f"bench {stage}" for stage in STAGES]
    script = f"""
import sys
from mim3d.engine.commands import cli
for words in {[f"{name} --help".split() for name in asked]}:
    try:
        assert cli.main(words) == 0, words
    except SystemExit as ended:
        assert ended.code == 0, words
cli.main(["--help"])
print("loaded:", *sorted({HEAVY} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], capture_output=True, check=False, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded:"


def test_pretrain_without_a_recipe_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["pretrain"])
    shown = capsys.readouterr().out
    assert "usage: mim3d pretrain RECIPE" in shown
    assert re.search(r"(?m)^mae-vit-l-128 +mae +ViT 1024 x 24 +128\^3 +16\^3 +256 +8 GPUs$", shown)
    with pytest.raises(SystemExit):
        cli.main(["pretrain", "--help"])
    help_text = capsys.readouterr().out
    assert re.search(r"(?m)^ *mae-vit-l-128 .* 8 GPUs$", help_text)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_has_help(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "mim3d.engine.commands.cli", name, "--help"],
        capture_output=True,
        check=False,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > 200
