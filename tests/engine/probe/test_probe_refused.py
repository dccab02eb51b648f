"""What cannot be probed is refused in one line before anything is written; remedies work."""

import dataclasses
import shlex

import pytest
from small_run import make_corpus, small_config

from mim3d.dataio.convert.run import convert
from mim3d.dataio.corpus.conversion import Conversion
from mim3d.dataio.errors import CorpusError
from mim3d.dataio.reader.corpus import Corpus
from mim3d.dataio.sources.discover import discover
from mim3d.engine.commands import cli
from mim3d.engine.errors import ConfigError
from mim3d.engine.models.config import ViTConfig
from mim3d.engine.pretrain.pretrain import run_pretrain
from mim3d.engine.probe.cohort import chosen_subjects, opened_cohort
from mim3d.engine.probe.config import ProbeConfig

VIT = ViTConfig((16, 16, 16), (8, 8, 8), width=12, depth=1, heads=1)


def refusal(corpus, vit=VIT, **probe):
    """The one line that a cohort is refused in."""
    with pytest.raises((ConfigError, CorpusError)) as error:
        taken(corpus, vit, **probe)
    message = str(error.value)
    assert "\n" not in message
    return message


def taken(corpus, vit=VIT, **probe):
    """Subjects that are learned from, and scored."""
    with opened_cohort(ProbeConfig(corpus=str(corpus), **probe), vit) as cohort:
        return cohort.count(False), cohort.count(True)


def table(folder, rows):
    file = folder / "table.csv"
    file.write_text("\n".join(["subject,target", *rows]) + "\n")
    return str(file)


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({"patience": 3}, "probe.patience 3 says nothing"),
        ({"targets": "t.csv"}, "probe.targets 't.csv' says nothing"),
        (
            {"targets": "t.csv", "patience": 3},
            "probe.targets 't.csv' and probe.patience 3 say nothing",
        ),
    ],
)
def test_options_without_a_corpus_are_refused_by_the_names_of_those_given(given, names):
    with pytest.raises(ConfigError) as error:
        ProbeConfig(**given)
    assert str(error.value) == f"{names} without --probe.corpus"
    assert ProbeConfig(corpus="x", **given).is_on


def test_too_few_subjects_asked_for(labelled, tmp_path):
    for subjects in (1, 0, -3):
        with pytest.raises(ConfigError, match=f"probe.subjects {subjects} must be at least 2: the"):
            ProbeConfig(subjects=subjects)
    assert taken(labelled, subjects=2) == (1, 1)
    targets = table(tmp_path, [f"phantom_{i:03d},{'ab'[i % 2]}" for i in range(8)])
    message = refusal(labelled, targets=targets, subjects=3)
    assert "probe.subjects 3 is too few for 2 classes" in message
    assert message.endswith("set --probe.subjects 4 or more")
    assert taken(labelled, targets=targets, subjects=4) == (2, 2)


def test_options_that_ask_nothing():
    with pytest.raises(ConfigError, match=r"probe\.test 1\.0 must be a share"):
        ProbeConfig(test=1.0)
    with pytest.raises(ConfigError, match=r"probe\.every 0"):
        ProbeConfig(every=0)
    with pytest.raises(ConfigError, match=r"probe\.ridge 0"):
        ProbeConfig(ridge=0.0)


def test_one_class_only(labelled, tmp_path):
    rows = [f"phantom_{i:03d},same" for i in range(8)]
    assert "two classes are needed" in refusal(labelled, targets=table(tmp_path, rows))
    mixed = [f"phantom_{i:03d},{'a' if i % 2 else 'b'}" for i in range(8)]
    assert taken(labelled, targets=table(tmp_path, mixed)) == (4, 4)


def test_a_class_of_one_subject(labelled, tmp_path):
    rows = [f"phantom_{i:03d},{'rare' if i == 3 else 'b' if i % 2 else 'c'}" for i in range(8)]
    message = refusal(labelled, targets=table(tmp_path, rows))
    assert "class 'rare' has 1 of the subjects" in message
    without = [row for row in rows if "rare" not in row]
    assert sum(taken(labelled, targets=table(tmp_path, without))) == 7


def test_a_table_of_strangers(labelled, tmp_path):
    message = refusal(labelled, targets=table(tmp_path, ["x,a", "y,b"]))
    assert "names no subject" in message
    assert "phantom_000" in message


def test_a_label_that_is_not_there(labelled):
    message = refusal(labelled, label="tumour")
    assert "it has seg: set --probe.label" in message
    assert taken(labelled, label="seg") == (5, 3)


def test_too_few_subjects(tmp_path):
    corpus = make_corpus(tmp_path, subjects=1)
    assert "has 1 subject with the label 'seg', and 2 are needed" in refusal(corpus)


def test_shares_that_leave_nobody_to_learn_from(labelled, classes):
    assert "leaves none to learn from: set a smaller --probe.test" in refusal(labelled, test=0.99)
    message = refusal(labelled, test=0.9, targets=str(classes))
    assert "leaves no" in message
    assert "set a smaller --probe.test" in message
    assert taken(labelled, test=0.5, targets=str(classes)) == (4, 4)


def test_another_number_of_channels(labelled):
    vit = dataclasses.replace(VIT, channels=2)
    message = refusal(labelled, vit)
    assert "have 1 channels, and the encoder takes 2 (vit.channels)" in message


def test_crops_larger_than_all_volumes(labelled):
    message = refusal(labelled, dataclasses.replace(VIT, crop_size=(96, 96, 96)))
    assert "fills even half of a crop of vit.crop_size (96, 96, 96)" in message
    assert "--vit.crop-size" in message
    assert taken(labelled, VIT) == (5, 3)


def test_of_many_subjects_the_seed_chooses_of_each_class_as_many():
    classes = {f"s{i}": "ab"[i % 10 == 0] for i in range(100)}
    config = ProbeConfig(corpus="x", subjects=12)
    chosen = chosen_subjects(classes, config)
    assert [classes[name] for name in chosen] == ["a", "b"] * 6
    assert chosen == chosen_subjects(dict(reversed(classes.items())), config)
    assert chosen != chosen_subjects(classes, dataclasses.replace(config, seed=1))


def test_one_class_among_the_patches(labelled, tmp_path, probed):
    with pytest.raises(ConfigError, match=r"are of one class: set another --probe\.seed"):
        run_pretrain(probed(foreground=1.0, windows=1), tmp_path / "run")


def test_a_wrong_probe_leaves_nothing_behind(labelled, tmp_path, probed):
    with pytest.raises(ConfigError, match="tumour"):
        run_pretrain(probed(label="tumour"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def words(corpus, out, *more, probe=None, shape="--vit.crop-size 16 16 16"):
    size = f"{shape} --vit.width 12 --vit.depth 1 --vit.heads 1 --steps 2"
    model = "--method.decoder-width 24 --method.decoder-depth 1 --method.decoder-heads 2"
    rest = f"--global-batch 2 --data.corpus {corpus} --probe.corpus {probe or corpus} --out {out}"
    return [*shlex.split(f"demo-mae {size} {model} {rest}"), *more]


def test_subjects_that_are_trained_on_are_told_and_can_be_held_out(labelled, tmp_path, capsys):
    assert cli.main(["pretrain", *words(labelled, tmp_path / "run", "--probe.every", "1")]) == 0
    said = capsys.readouterr().out
    assert "8 OF 8 PROBE SUBJECTS ARE PRETRAINED ON" in said
    assert "best by the probe (linear" in said
    assert str(tmp_path / "run" / "best" / "encoder.safetensors") in said
    assert "% of the training's arithmetic" in said
    held = [f"phantom_{i:03d}" for i in range(4)]
    options = ["--data.held-out-subjects", *held]
    assert cli.main(["pretrain", *words(labelled, tmp_path / "held", *options)]) == 0
    assert "4 OF 8 PROBE SUBJECTS" in capsys.readouterr().out


def test_a_corpus_that_was_converted_otherwise_is_told(labelled, tmp_path, capsys):
    cohort = labelled.parent / "nifti-8"
    other = tmp_path / "other.zarr"
    convert(discover(str(cohort)).sources, other, Conversion(spacing_mm=(2.0, 2.0, 2.0)), workers=1)
    shape = "--vit.crop-size 8 8 8 --vit.patch-size 4 4 4"
    given = words(labelled, tmp_path / "run", probe=other, shape=shape)
    assert cli.main(["pretrain", *given]) == 0
    said = capsys.readouterr().out
    assert "was converted with spacing_mm (2.0, 2.0, 2.0), that of pretraining with None" in said
    assert len(Corpus.open(other).records) == 8
    alike = words(labelled, tmp_path / "alike")
    assert cli.main(["pretrain", *alike]) == 0
    assert "was converted with" not in capsys.readouterr().out


def test_a_probe_of_the_swin_and_of_volumes(labelled, tmp_path, classes):
    config = small_config(labelled, "swin")
    probe = ProbeConfig(corpus=str(labelled), targets=str(classes), every=8, windows=1)
    result = run_pretrain(dataclasses.replace(config, probe=probe), tmp_path / "run")
    assert 0.0 <= result.figures["probe_knn"] <= 1.0


def test_odd_classes_and_names_in_capitals_end_with_3_and_the_remedies_with_0(
    labelled, tmp_path, capsys
):
    def run(name, rows):
        more = ["--probe.targets", table(tmp_path, rows)]
        return cli.main(["pretrain", *words(labelled, tmp_path / name, *more)])

    rows = [f"phantom_{i:03d},{'ab'[i % 2]}" for i in range(6)]
    odd = [*rows, "phantom_006,unknown", "phantom_007,unknown"]
    assert run("odd", odd) == 3
    out = capsys.readouterr().out
    assert "warning: probe: class 'unknown' of table.csv may mean that nothing is known" in out
    assert run("odd", odd) == 3  # finished before, and told again
    assert run("none", [*rows, "phantom_006,", "phantom_007,"]) == 0
    assert "2 subjects of" in (out := capsys.readouterr().out) and "have no target" in out
    assert run("capitals", [*rows, "Phantom_006,a"]) == 3
    out = capsys.readouterr().out
    assert "(such as 'Phantom_006', there 'phantom_006')" in out
    assert run("mended", [*rows, "phantom_006,a"]) == 0
