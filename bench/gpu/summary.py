"""What bench/gpu.sh has reached so far: figures.json with all of it, results.md to read.

    python bench/gpu/summary.py WORK OUT    WORK holds a STAGE.json of each finished stage, and a
                                            STAGE.tail with the last lines of one that failed

Needs the standard library alone, and says "not measured" rather than nothing.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

OURS = "mim3d"
BIG = ("96^3 B64 p16", "192^3 B8 p16")
"""Shapes the loss is held to."""
STEPS = ("step", "feed", "compiled")
CROPS_PER_S = 5700
"""What the paper's model eats on one H200, from chunks resident on the device."""


def main(work: Path, out: Path) -> None:
    """Merge the stages' JSON and write the page beside summary.json."""
    figures = {}
    for file in sorted(work.glob("*.json")):
        try:
            figures[file.stem] = next(iter(json.loads(file.read_text()).values()), {})
        except ValueError:  # cut short with the stage that was writing it
            continue
    (out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    summary = json.loads((out / "summary.json").read_text())
    ends = {file.stem: file.read_text() for file in sorted(work.glob("*.tail"))}
    (out / "results.md").write_text("\n".join(page(summary, figures, ends)) + "\n")


def page(
    summary: Mapping[str, Any], figures: Mapping[str, Any], ends: Mapping[str, str]
) -> list[str]:
    """Lines of results.md: stages, targets, ratios with their intervals, how stages failed."""
    device = next((f["device"] for f in figures.values() if "device" in f), "an unknown device")
    lines = [f"# Results of bench/gpu.sh on {device}", ""]
    if summary.get("cpu_check"):
        lines += ["A check without a GPU, at tiny sizes: nothing here is a GPU's figure.", ""]
    lines += ["| stage | outcome | seconds |", "|---|---|--:|"]
    for name, stage in summary["stages"].items():
        lines.append(f"| {name} | {stage['outcome']} | {stage['seconds']} |")
    lines += ["", "## Targets", "", *(f"- {line}" for line in targets(figures))]
    lines += ["", "## Ratios of the step, with their intervals", ""]
    lines += [f"- {line}" for stage in STEPS for line in ratio_lines(stage, figures)]
    for name, end in ends.items():
        lines += ["", f"## The end of stage {name}", "", "```", end.rstrip(), "```"]
    return [*lines, "", "Tables: kernels.md, roofline.png, profile.txt; everything: figures.json."]


def ratio_lines(stage: str, figures: Mapping[str, Any]) -> list[str]:
    """Ratios that a bench of the step took; unresolved ones are called so."""
    lines = []
    for name, ratio in figures.get(stage, {}).get("ratios", {}).items():
        low, high = ratio["low"], ratio["high"]
        interval = "one round" if low is None else f"{low:.3f} to {high:.3f}"
        verdict = "" if ratio["resolved"] else ", unresolved"
        lines.append(f"{stage}, {name}: {ratio['value']:.3f} ({interval}){verdict}")
    return lines


def targets(figures: Mapping[str, Any]) -> list[str]:
    """A line for each target: what was asked for, what was reached, met or missed."""
    kernels = figures.get("kernels", {})
    checks = figures.get("ready", {}).get("checks", {})
    lines = [f"{name}: {check['outcome']}" for name, check in checks.items()]
    if kernels and not kernels["kernels_figures"]:
        lines.append("On a CPU the references run: nothing below is a kernel's figure.")
    for shape in BIG:
        for kind in ("int16", "float32"):
            table = variants(kernels, f"loss {kind}", shape)
            name = f"loss {kind} {shape}"
            lines += [
                line_of(f"{name}, x eager MAE", ratio(table, ["MAE"]), 10),
                line_of(f"{name}, x best torch.compile", ratio(table, compiled(table)), 2),
                line_of(f"{name}, share of copy bandwidth", share(table), 0.85),
            ]
    for shape in BIG:
        table = variants(kernels, "rows int16", shape)
        lines += [
            line_of(f"gather {shape}, x eager patchify", ratio(table, ["patchify"]), 10),
            line_of(f"gather {shape}, x torch.compile", ratio(table, compiled(table)), 1),
        ]
    lines += loader_lines(figures.get("loader", {}).get("gpu", {}))
    step, feed = figures.get("step", {}), figures.get("feed", {})
    lines.append(step_line(step))
    for name, stage, key in (
        ("crops/s in memory", step, "crops_per_s"),
        ("crops/s with the loader", feed, "crops_per_s"),
        ("MFU (bf16) in memory", step, "mfu_bf16_in_memory"),
        ("MFU (bf16) with the loader", feed, "mfu_bf16"),
        ("rate with the loader over in memory", feed, "loader_over_memory"),
        ("data-stall share", feed, "data_stall_share"),
    ):
        lines.append(line_of(name, stage.get(key), None))
    if kernels:
        lines.append(line_of("copy bandwidth, GB/s", kernels["copy_bytes_per_s"] / 1e9, None))
    return lines


def step_line(step: Mapping[str, Any]) -> str:
    """The step's target; neither met nor missed where the ratio's noise reaches over it."""
    least, name = 1.15, "MAE step, x eager formulation"
    line = line_of(name, step.get("over_eager"), least)
    ratio = step.get("ratios", {}).get("over eager recipe")
    if ratio is None or (ratio["low"] is not None and not ratio["low"] < least <= ratio["high"]):
        return line
    return line.rpartition(": ")[0] + ": unresolved)"


def loader_lines(gpu: Mapping[str, Any]) -> list[str]:
    """The loader's rates on the GPU, and where the device's time goes."""
    rates = gpu.get("rates", {})
    device = rates.get("cache=device", {}).get("crops_per_s")
    lines = [line_of("loader on the GPU, cache=device, crops/s", device, CROPS_PER_S)]
    for name, rate in rates.items():
        shares = ", ".join(f"{stage} {share:.0%}" for stage, share in rate["stages"].items())
        lines.append(f"loader, {name}: {rate['crops_per_s']:.4g} crops/s; {shares}")
    return lines + [f"loader, {name}: {why}" for name, why in gpu.get("not_available", {}).items()]


def variants(kernels: Mapping[str, Any], operation: str, shape: str) -> dict[str, Any]:
    """Rows of one operation and shape by variant."""
    return {
        row["variant"]: row
        for row in kernels.get("rows", [])
        if (row["operation"], row["shape"]) == (operation, shape)
    }


def compiled(table: Mapping[str, Any]) -> list[str]:
    """Variants of torch.compile."""
    return [name for name in table if name.startswith("compiled ")]


def ratio(table: Mapping[str, Any], names: Sequence[str]) -> float | None:
    """Cold time of the fastest of these over ours; None where either is missing."""
    theirs = [table[name]["seconds"] for name in names if name in table]
    if OURS not in table or not theirs:
        return None
    return min(theirs) / table[OURS]["seconds"]


def share(table: Mapping[str, Any]) -> float | None:
    """Our share of the copy bandwidth."""
    return table[OURS]["share"] if OURS in table else None


def line_of(name: str, value: float | None, least: float | None) -> str:
    """One line."""
    if value is None:
        return f"{name}: not measured" + ("" if least is None else f" (at least {least:g})")
    if least is None:
        return f"{name}: {value:.4g}"
    return f"{name}: {value:.4g} (at least {least:g}: {'met' if value >= least else 'MISSED'})"


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
