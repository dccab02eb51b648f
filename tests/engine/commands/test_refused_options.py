"""What no command takes: numbers that are none, and addresses where a folder is written."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mim3d.dataio.errors import Mim3dError
from mim3d.dataio.loader.config import LoaderConfig
from mim3d.engine.commands import cli
from mim3d.engine.distributed.config import ParallelConfig
from mim3d.engine.errors import ConfigError
from mim3d.engine.finetune.config import FinetuneConfig
from mim3d.engine.finetune.finetune import run_finetune
from mim3d.engine.finetune.splits import SplitConfig
from mim3d.engine.models.config import MAEConfig, SimCLRConfig, SimMIMConfig, ViTConfig
from mim3d.engine.pretrain.config import PretrainConfig
from mim3d.engine.pretrain.data import DataConfig
from mim3d.engine.pretrain.pretrain import run_pretrain
from mim3d.engine.study.config import FinetunePlan, PretrainPlan, StudyConfig, Variant
from mim3d.engine.training.config import OptimConfig, ScheduleConfig

CONFIGS = (
    *(LoaderConfig(), ParallelConfig(), ViTConfig(), MAEConfig(), SimMIMConfig(), SimCLRConfig()),
    *(OptimConfig(), ScheduleConfig(), DataConfig(), FinetuneConfig(), PretrainConfig()),
    *(PretrainPlan(), PretrainPlan().mae, FinetunePlan(), StudyConfig(), Variant(), SplitConfig()),
)
NUMBERS = [
    (config, field.name)
    for config in CONFIGS
    for field in dataclasses.fields(config)
    if "float" in str(field.type)
]


def test_every_number_is_looked_at():
    names = {name for _, name in NUMBERS}
    assert {"clip_norm", "lr", "timeout_s", "mlp_ratio", "labels", "targets", "mask_ratio"} <= names


@given(
    place=st.sampled_from(NUMBERS),
    number=st.sampled_from([math.nan, math.inf, -math.inf]),
)
def test_a_number_that_is_none_is_refused_by_name(place, number):
    config, name = place
    value = (number,) if isinstance(getattr(config, name), tuple) else number
    with pytest.raises(Mim3dError, match=rf"{name} {number} must be a finite number$"):
        dataclasses.replace(config, **{name: value})


@pytest.mark.parametrize("option", ["--optim.clip-norm=nan", "--schedule.lr=inf"])
def test_the_command_line_says_so_in_one_line(option, tmp_path, capsys):
    words = ["pretrain", "demo-mae", "--out", str(tmp_path / "run"), option]
    assert cli.main(words) == 2
    printed = capsys.readouterr().err.strip()
    assert "must be a finite number" in printed
    assert "\n" not in printed


@pytest.mark.parametrize(
    "words",
    [
        ["pretrain", "demo-mae", "--data.corpus", "c", "--out", "hdfs://bucket/run"],
        ["pretrain", "demo-mae", "--data.corpus", "c", "--nproc", "2", "--out", "https://host/run"],
        ["finetune", "demo", "--data.corpus", "c", "--out", "file://bucket/run"],
        ["compare", "demo", "--data.corpus", "c", "--out", "s3://bucket/run"],
        ["demo", "--out", "s3://bucket/run"],
        ["env", "--json", "S3://bucket/run"],
        ["inspect", "c", "--out", "az://bucket/run"],
    ],
)
def test_an_address_to_write_to_is_refused(words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    printed = capsys.readouterr().err.strip()
    assert f"{words[-1]} is an address" in printed
    assert "name a local path" in printed
    assert "\n" not in printed
    assert not list(tmp_path.iterdir())


def test_from_python_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="hdfs://bucket/run is an address"):
        run_finetune(FinetuneConfig(), "hdfs://bucket/run")
    with pytest.raises(ConfigError, match="is an address"):
        run_pretrain(PretrainConfig(data=DataConfig(corpus="c")), "http://bucket/run")
    assert not list(tmp_path.iterdir())
