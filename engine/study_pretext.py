"""What a study keeps of each pretraining: cost, loss curve, verdict, picture."""

import shutil
from pathlib import Path
from typing import Any

from mim3d.engine.json_file import read_json, read_jsonl
from mim3d.engine.study_plan import Pretraining

CURVE_POINTS = 80


def pretraining_row(wanted: Pretraining, out: Path) -> dict[str, Any]:
    """The entry of a pretraining that the study ran; its last picture is copied beside."""
    folder = out / "pretrain" / wanted.key
    row = run_row(folder)
    return {
        "arm": wanted.arm,
        "variant": wanted.variant.name,
        "seed": wanted.seed,
        **row,
        "picture": keep_picture(folder, out / "pictures" / f"{wanted.key}.png", out),
    }


def external_row(arm: str, given: Path) -> dict[str, Any]:
    """The entry of an arm given by path: its own verdict where it is a run, else none is known."""
    row = run_row(given) if (given / "pretext.json").exists() else unknown_run()
    return {"arm": arm, "variant": "", "seed": None, **row, "picture": ""}


def run_row(folder: Path) -> dict[str, Any]:
    """Figures of a finished run's folder."""
    config, result = read_json(folder / "config.json"), read_json(folder / "pretext.json")
    metrics = read_jsonl(folder / "metrics.jsonl")
    verdict = result.get("pretext", result)
    batch, steps = config["global_batch"], config["steps"]
    every = max(1, len(metrics) // CURVE_POINTS)
    rates = sorted(row["crops_per_s"] for row in metrics if row.get("crops_per_s"))
    stalls = [row["data_stall_share"] for row in metrics if "data_stall_share" in row]
    return {
        "method": config["method"].get("name", ""),
        "crops": batch * steps,
        "steps": steps,
        "batch": batch,
        "flops": result.get("flops", 0.0),
        "seconds": result.get("seconds", 0.0),
        "normalised": bool(config["method"].get("normalise_target")),
        "trained": bool(verdict["learned"]),
        "loss": verdict.get("loss"),
        "floor": verdict.get("floor"),
        "nearest_patch": verdict.get("nearest_patch"),
        "curve": [[row["step"], row["loss"]] for row in metrics[::every] if "loss" in row],
        "crops_per_s": rates[len(rates) // 2] if rates else None,
        "data_stall_share": sum(stalls) / len(stalls) if stalls else None,
    }


def unknown_run() -> dict[str, Any]:
    """Figures of an encoder file without its run: nothing is known of its cost or verdict."""
    return {
        "method": "given",
        "crops": 0,
        "steps": 0,
        "batch": 0,
        "flops": 0.0,
        "seconds": 0.0,
        "trained": True,
        "loss": None,
        "floor": None,
        "curve": [],
        "crops_per_s": None,
        "data_stall_share": None,
    }


def keep_picture(folder: Path, copy: Path, out: Path) -> str:
    """Copy the run's last picture; its path within the study, empty where there is none."""
    found = sorted((folder / "pictures").glob("*.png"))
    if not found:
        return ""
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(found[-1], copy)
    return str(copy.relative_to(out))
