"""Dockerfile, Kubernetes and torchx examples, rendered: what they would run is what mim3d takes."""

import json
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml

from mim3d.engine.commands.cli import main

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
INSTRUCTIONS = {"FROM", "ARG", "RUN", "ENV", "WORKDIR", "COPY", "USER", "ENTRYPOINT", "CMD"}


def instructions() -> list[tuple[str, str]]:
    """Dockerfile as (instruction, rest), continued lines joined."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if line.strip()]
    text = "\n".join(line for line in lines if not line.startswith("#"))
    joined = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in joined]


def test_the_dockerfile_parses() -> None:
    stages: set[str] = set()
    for word, rest in instructions():
        assert word in INSTRUCTIONS, word
        if word == "FROM":
            image, *named = rest.split(" AS ")
            assert re.fullmatch(r"[\w.-]+:[\w.-]+", image), "an image without a tag changes"
            stages.update(named)
        elif word == "RUN":
            done = subprocess.run(["bash", "-n", "-c", rest], capture_output=True, check=False)
            assert done.returncode == 0, rest
        elif word == "COPY":
            stage, sources = re.fullmatch(r"(?:--from=(\S+) )?(.*) \S+", rest).groups()  # pyright: ignore
            if stage:
                assert stage in stages
            else:
                assert all((ROOT / source).exists() for source in sources.split())
        elif word in {"ENTRYPOINT", "CMD"}:
            assert isinstance(json.loads(rest), list)
    assert instructions()[-3] == ("WORKDIR", "/home/mim3d")
    assert [rest for word, rest in instructions() if word == "USER"] == ["mim3d"]


def test_the_dockerfile_installs_extras_that_exist_from_the_constraints() -> None:
    found = dict(rest.split("=", 1) for word, rest in instructions() if word == "ARG")
    assert set(found["EXTRAS"].split(",")) <= set(EXTRAS)
    installs = [rest for word, rest in instructions() if "pip install" in rest]
    assert installs
    assert all("-c constraints.txt" in rest for rest in installs)


def test_the_dockerignore_keeps_what_the_build_needs() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    for needed in ("pyproject.toml", "README.md", "LICENSE", "engine", ".ci", "constraints.txt"):
        assert needed not in ignored


def kubernetes() -> dict[str, Any]:
    documents = yaml.safe_load_all((ROOT / "examples/pretrain.k8s.yaml").read_text())
    return {document["kind"]: document for document in documents}


def rendered(container: dict[str, Any]) -> list[str]:
    """Command and arguments as Kubernetes expands $(NAME)."""
    values = {entry["name"]: entry["value"] for entry in container["env"]}
    words = [*container["command"], *container["args"]]
    return [re.sub(r"\$\((\w+)\)", lambda found: values[found[1]], word) for word in words]


def test_the_job_is_consistent() -> None:
    job, service = kubernetes()["Job"], kubernetes()["Service"]
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    name = job["metadata"]["name"]
    words = rendered(container)
    assert f"--nnodes={spec['completions']}" in words
    assert spec["completions"] == spec["parallelism"]
    assert spec["completionMode"] == "Indexed"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": name}
    assert f"--rdzv-endpoint={name}-0.{pod['subdomain']}:29500" in words
    assert f"--nproc-per-node={container['resources']['limits']['nvidia.com/gpu']}" in words
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    assert not [word for word in words if "$(" in word]


def test_mim3d_takes_what_the_job_runs(capsys) -> None:
    (container,) = kubernetes()["Job"]["spec"]["template"]["spec"]["containers"]
    words = rendered(container)
    taken_by_mim3d(words[words.index("mim3d") + 1 :], capsys)


def test_mim3d_takes_what_the_torchx_component_runs(monkeypatch, capsys) -> None:
    found: dict[str, Any] = {}
    for name in ("torchx", "torchx.components", "torchx.components.dist", "torchx.specs"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["torchx.components.dist"].ddp = lambda *words, **options: found.update(  # pyright: ignore
        options, words=words
    )
    sys.modules["torchx.specs"].AppDef = SimpleNamespace  # pyright: ignore
    component = runpy.run_path(str(ROOT / "examples/torchx_pretrain.py"))["pretrain"]
    component("--seed", "3", recipe="demo-mae", corpus="/data/c.zarr", run="/r", j="2x8", gpu=8)
    assert found["j"] == "2x8"
    assert found["words"][-4:] == ("--parallel.replicate", "2", "--seed", "3")
    taken_by_mim3d(list(found["words"]), capsys)
    own = ("--parallel.replicate", "1")
    component(*own, recipe="demo-mae", corpus="/data/c.zarr", run="/r", j="2x8", gpu=8)
    assert found["words"][-2:] == own and found["words"].count("--parallel.replicate") == 1
    taken_by_mim3d(list(found["words"]), capsys)


def taken_by_mim3d(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The command line is understood: what it lacks on this machine is the corpus alone."""
    assert main(words) == 2
    error = capsys.readouterr().err
    corpus = words[words.index("--data.corpus") + 1]
    assert f"mim3d pretrain: {corpus}" in error, error
