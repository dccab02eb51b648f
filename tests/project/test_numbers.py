"""Every numeric option of every command: refused in one line, or listed here with its meaning."""

import ast
import dataclasses
import importlib
import math
import re
import typing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mim3d.dataio.errors import Mim3dError
from mim3d.engine.commands import cli
from mim3d.engine.models.config import MAEConfig
from mim3d.engine.pretrain.config import PretrainConfig

ROOT = Path(__file__).parents[2]
ENDS = ("Config", "Args", "Plan", "Options", "Conversion", "Variant", "Bench")
"""How the classes whose fields are options are named."""
NO_OPTIONS = {"BoxPlan", "ReadPlan", "ViewPlan", "Plan", "GpuBench"}
"""Of these names, but filled by the program."""
NEEDED: dict[str, dict[str, Any]] = {
    "ConvertArgs": {"source": "a", "destination": "b"},
    "VerifyArgs": {"corpus": "c"},
    "InspectArgs": {"corpus": "c"},
    "PlanArgs": {"config": PretrainConfig()},
    "PretrainArgs": {"config": PretrainConfig(), "out": Path("run")},
    "ArmPlan": {"method": MAEConfig(), "lr": 1e-3, "global_batch": 2},
}
MEANT = {
    # none of it
    "zero": """
        foreground_fraction node_rotation weight_decay clip_norm overlap validation test held_out
        decoder_depth registers drop_path layer_scale seed seeds tuning_seeds warmup_steps beta1
        beta2 final_share decay_share profile_step max_restarts rows min_block_parameters workers
        ignore_label peak_tflops utilisation memory_gb copies entries warm latency_ms seconds
        global_batch:StepBench warmup head_steps momentum store_latency_ms store_mb_per_s
        max_micro_batch patience:ProbeConfig side:SpatialBench
    """,
    "negative": "ignore_label seed:LoaderConfig overlap:PredictConfig",
    # as much as there is, or as long as one waits; only numbers that size nothing are without end
    "huge": """
        byte_budget cache_bytes remote_bytes remote_requests micro_batch nodes volumes rows
        max_restarts replicate grad_accum min_block_parameters encoder_lr_scale labels steps
        global_batch weight_decay clip_norm eval_every validation test block temperature
        layer_scale held_out_crops every keep lr crops tasks eps warmup_steps max_rewinds
        profile_step profile_steps max_bad_steps ignore_label peak_tflops utilisation memory_gb
        rounds copies entries warm latency_ms mb_per_s seconds warmup batch batches store_latency_ms
        store_mb_per_s max_micro_batch ridge:ProbeConfig
    """,
}  # fmt: skip


def option_classes() -> list[Any]:
    """Every dataclass of such a name, found in the source."""
    found = []
    for room in ("dataio", "engine", "bench"):
        for file in sorted((ROOT / room).rglob("*.py")):
            names = [
                node.name
                for node in ast.walk(ast.parse(file.read_text()))
                if isinstance(node, ast.ClassDef) and node.name.endswith(ENDS)
            ]
            if names:
                place = ".".join(file.relative_to(ROOT).with_suffix("").parts)
                module = importlib.import_module(f"mim3d.{place}")
                found += [getattr(module, name) for name in names if name not in NO_OPTIONS]
    return [kind for kind in found if dataclasses.is_dataclass(kind)]


def numeric_fields(kind: type) -> list[tuple[type, str, str]]:
    """Class, field and `int` or `float` of its options that are numbers."""
    hints = typing.get_type_hints(kind)
    found = []
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        words = set(re.findall(r"\w+", str(hints[field.name])))
        if "Literal" not in words and words & {"int", "float"}:
            found.append((kind, field.name, "float" if "float" in words else "int"))
    return found


CLASSES = option_classes()
FIELDS = [found for kind in CLASSES for found in numeric_fields(kind)]
SPECIAL = {
    "float": {"zero": 0.0, "negative": -1.0, "huge": 1e300},
    "int": {"zero": 0, "negative": -1, "huge": 10**30},
}


def with_number(kind: type, name: str, number: float) -> object:
    """An instance with that number in the field, in every place of a tuple."""
    start = kind(**NEEDED.get(kind.__name__, {}))
    before = getattr(start, name)
    if isinstance(before, tuple):
        changed: object = (number,) * max(len(before), 1)
    else:
        hint = str(typing.get_type_hints(kind)[name]).split("|")[0]
        places = hint.count("float") + hint.count("int")
        changed = (number,) * places if "tuple" in hint else number
    return dataclasses.replace(start, **{name: changed})  # type: ignore[type-var]


def is_meant(kind: type, name: str, what: str) -> bool:
    """Whether the table above gives the value a meaning."""
    words = MEANT[what].split()
    return name in words or f"{name}:{kind.__name__}" in words


def label(found: object) -> str:
    return found.__name__ if isinstance(found, type) else str(found)


def test_all_commands_are_looked_at():
    names = {kind.__name__ for kind in CLASSES}
    assert {"ConvertArgs", "Conversion", "PlanArgs", "FinetuneConfig", "StudyConfig"} <= names
    assert {"ConvertBench", "KernelsBench", "LoaderBench", "StepBench", "RemoteBench"} <= names
    assert len(FIELDS) > 130


@pytest.mark.parametrize(("kind", "name", "sort"), FIELDS, ids=label)
@pytest.mark.parametrize("what", ["zero", "negative", "huge"])
def test_a_number_is_refused_in_one_line_or_has_a_meaning(kind, name, sort, what):
    try:
        with_number(kind, name, SPECIAL[sort][what])
    except Mim3dError as error:
        assert "\n" not in str(error)
    else:
        assert is_meant(kind, name, what), f"what does {what} {name} of {kind.__name__} mean?"


@given(
    field=st.sampled_from([found for found in FIELDS if found[2] == "float"]),
    number=st.sampled_from([math.nan, math.inf, -math.inf]),
)
def test_what_is_no_number_is_refused_by_name(field, number):
    kind, name, _ = field
    with pytest.raises(Mim3dError, match=name.removesuffix("_mm")) as caught:
        with_number(kind, name, number)
    assert "\n" not in str(caught.value)


@given(
    field=st.sampled_from(FIELDS),
    number=st.one_of(
        st.integers(-(10**6), 10**40), st.floats(allow_nan=False, allow_infinity=False)
    ),
)
def test_no_number_is_told_in_another_way_than_ours(field, number):
    """A construction never fails by an error that the command line would not put into a line."""
    kind, name, sort = field
    try:
        with_number(kind, name, int(number) if sort == "int" else float(number))
    except Mim3dError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    "words",
    [
        "convert a b --workers 1000000",
        "verify c --workers 0",
        "plan demo-mae --memory-gb nan",
        "plan demo-mae --utilisation -1",
        "plan demo-mae --gpus 0",
        "bench loader --rounds 0",
        "bench step --steps -1",
        "bench kernels --seconds nan",
        "bench convert --volumes 0",
        "compare demo --finetune.steps 0",
        "compare demo --finetune.lr 0.001 nan",
        "compare demo --workers -1",
        "finetune demo --data.corpus c --out d --labels 0",
        "finetune demo --data.corpus c --out d --threads 0",
        "pretrain demo-mae --data.corpus c --out d --parallel.timeout-s 1e300",
        "pretrain demo-mae --data.corpus c --out d --vit.depth 1000000000",
        "pretrain demo-mae --data.corpus c --out d --nproc 1000000",
        "demo --subjects 1000000000000",
    ],
)
def test_the_command_line_refuses_them(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words.split()) == 2
    printed = capsys.readouterr().err.strip()
    if words.startswith("bench"):
        printed = printed.partition("\n")[2]  # below the stage's title
    option = words.split()[-2].lstrip("-").split(".")[-1].replace("-", "_")
    assert option in printed or option.replace("_", "-") in printed or "finetune.lr" in printed
    assert "must be" in printed
    assert "\n" not in printed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError("Unable to allocate 8 EiB"), "out of memory (Unable to allocate 8 EiB); low"),
        (RuntimeError("CUDA out of memory. Tried\nmore"), "out of memory (CUDA out of memory. Tr"),
        (RuntimeError("can't start new thread"), "out of memory (can't start new thread); lower"),
        (OverflowError("int too large"), "a number is larger than can be computed with (int too"),
        (OSError(28, "No space left on device", "a/b"), "a/b: No space left on device"),
        (RuntimeError("shapes differ"), ""),
    ],
)
def test_what_a_machine_cannot_is_one_line_and_our_mistakes_are_not(error, line):
    found = cli.one_line(error)
    assert found.startswith(line)
    assert bool(found) == bool(line)
    assert "\n" not in found
