"""Code blocks of README and docs, and a small world in which they run as they stand.

A block is ```sh or ```python; one that no test can run says why in a comment before it:
`<!-- needs: gpus -->`, `network` or `cluster`. In the small world `nifti/` is a drawn cohort,
`mim3d` takes a few steps only, `make` tells what it would do (-n) and `pip` checks the extras.
"""

import os
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(
    r"(?:<!-- needs: (?P<needs>[\w, ]+) -->\n\s*)?"
    r"^(?P<pad> *)```(?P<kind>\w*)[^\n]*\n(?P<text>.*?)^ *```$",
    re.DOTALL | re.MULTILINE,
)
NEEDS = {"gpus", "network", "cluster"}
FEW_STEPS = {
    "pretrain": "--steps 3 --schedule.warmup-steps 1 --log.every 1 --log.picture-every 0",
    "finetune": "--steps 2 --eval-every 2 --schedule.warmup-steps 1",
}
SHIMS = {
    "mim3d": f"""
        words=("$@"); extra=""
        case "$1 ${{*: -1}}" in *--help) ;; pretrain\\ *) extra="{FEW_STEPS["pretrain"]}" ;;
            finetune\\ *) extra="{FEW_STEPS["finetune"]}" ;; esac
        for i in "${{!words[@]}}"; do  # an option may be given once
            case "$extra ${{words[i]}}" in ?*\\ --steps) unset "words[i]" "words[i+1]" ;; esac
        done
        exec {sys.executable} -P -m mim3d "${{words[@]}}" $extra""",
    "make": f'exec /usr/bin/env -i PATH=/usr/bin:/bin make -n -C {ROOT} "$@"',
    "python3": f"""
        [ "$2" = venv ] && exec {sys.executable} "$@" --without-pip
        exec {sys.executable} -P "$@\"""",
    "python": f'exec {sys.executable} -P "$@"',
    "pip": f'exec {sys.executable} -P {__file__} "$@"',
}


@dataclass(frozen=True)
class Block:
    """One code block: its language, text, and what it needs that tests have not."""

    kind: str
    text: str
    needs: str
    line: int


def blocks(page: Path) -> list[Block]:
    """Code blocks of a page in order."""
    text = page.read_text()
    return [
        Block(
            found["kind"],
            re.sub(rf"^{found['pad']}", "", found["text"], flags=re.MULTILINE),
            found["needs"] or "",
            text[: found.start("text")].count("\n") + 1,
        )
        for found in FENCE.finditer(text)
    ]


def runnable(page: Path) -> list[Block]:
    """Blocks that a test runs."""
    return [b for b in blocks(page) if b.kind in {"sh", "python"} and not b.needs]


def environment(shims: Path) -> dict[str, str]:
    """Variables of the small world, its commands first on PATH."""
    shims.mkdir(exist_ok=True)
    for name, text in SHIMS.items():
        (shims / name).write_text(f"#!/bin/bash\n{text}\n")
        (shims / name).chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{shims}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }


def run(block: Block, world: Path) -> subprocess.CompletedProcess[str]:
    """Run one block in the small world."""
    command = ["bash", "-euo", "pipefail", "-c", block.text]
    if block.kind == "python":
        command = [sys.executable, "-P", "-c", block.text]
    return subprocess.run(
        command,
        cwd=world,
        env=environment(world / ".bin"),
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )


def pip(words: list[str]) -> str:
    """What is wrong with a `pip install` line: an extra that is not ours, another sub-command."""
    extras = set(
        tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    )
    if words[:1] != ["install"]:
        return f"pip {words[:1]} is not known here"
    for word in words[1:]:
        found = re.fullmatch(r"(\.|mim3d)\[([\w,-]+)\]", word)
        if found and not set(found[2].split(",")) <= extras:
            return f"{word}: the extras are {', '.join(sorted(extras))}"
    return ""


if __name__ == "__main__":
    sys.exit(pip(sys.argv[1:]) or 0)
