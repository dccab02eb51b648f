"""`mim3d env`: what to paste into a bug report."""

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mim3d.engine import environment
from mim3d.engine.commands.arguments import parse
from mim3d.engine.commands.outcome import Outcome


@dataclass(frozen=True)
class EnvArgs:
    """Versions, devices, and what is optional and missing. Takes no options but --json."""


def main(words: list[str]) -> Outcome:
    """Print the tables and return the same figures."""
    parse(EnvArgs, words, "mim3d env")
    console = Console()
    console.print(_table("machine", environment.machine()))
    console.print(_table("packages", environment.versions()))
    console.print(_table("torch", environment.torch_build()))
    found = environment.devices()
    if not found:
        console.print("no CUDA device: everything runs on the CPU, kernels as PyTorch references")
    for device in found:
        console.print(_table(device["device"], device))
    console.print(_table("kernels", environment.kernel_backends()))
    parts = environment.optional_parts()
    console.print(_table("optional", {part.name: part.detail for part in parts}))
    return Outcome(environment.as_figures())


def _table(title: str, rows: dict[str, str]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, Text(value))  # Text: '[gpu]' is no markup
    return table
