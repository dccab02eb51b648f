"""A study of synthetic curves whose true speed-ups are known, written as a study leaves it."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mim3d.engine.runs.files import read_json, write_json, write_jsonl

SPEEDS = {"scratch": 1.0, "simclr": 1.0, "mae": 1.5}
BUDGET, EVERY, BATCH = 400, 20, 4


def rows_of(
    arm: str,
    seed: int,
    speed: float,
    top: float = 0.8,
    labels: float = 1.0,
    head: str = "unetr",
    variant: str = "",
) -> list[dict[str, Any]]:
    rng = np.random.default_rng([seed, sum(map(ord, arm))])
    rate = 0.008 * speed * math.exp(0.15 * math.sin(seed))
    rows = []
    for step in range(0, BUDGET + 1, EVERY):
        score = top * (1 - math.exp(-rate * step)) + rng.normal(0, 0.004) * (step > 0)
        rows.append(
            {
                "arm": arm,
                "head": head,
                "labels": labels,
                "variant": variant,
                "seed": seed,
                "lr": 3e-4,
                "tuning": False,
                "split": "validation",
                "step": step,
                "crops": step * BATCH,
                "score": max(score, 0.0),
                "dice_by_class": [max(score + 0.02, 0.0), max(score - 0.02, 0.0)],
                "flops": step * 2e9,
                "seconds": step * 0.05,
            }
        )
    rows.append({**rows[-1], "split": "test", "hd95": 2.0 - top})
    return rows


def pretraining_of(arm: str, loss: float, floor: float, variant: str = "") -> dict[str, Any]:
    contrastive = arm.startswith("simclr")
    start = floor * 1.1
    curve = [[k * 20, loss + (start - loss) * math.exp(-k / 8)] for k in range(31)]
    return {
        "arm": arm,
        "variant": variant,
        "seed": None,
        "method": arm,
        "crops": 9600,
        "steps": 300 if contrastive else 600,
        "batch": 32 if contrastive else 16,
        "flops": 9600 * (3.6e9 if contrastive else 1e9),
        "seconds": 60.0,
        "trained": loss < 0.95 * floor,
        "loss": loss,
        "floor": floor,
        "curve": curve,
        "crops_per_s": 160.0,
        "data_stall_share": 0.04,
        "picture": "",
    }


def write_study(
    folder: Path,
    seeds: int = 5,
    speeds: Mapping[str, float] = SPEEDS,
    simclr_loss: float = 2.2,
    synthetic: bool = False,
    tops: Mapping[str, float] | None = None,
    **about: Any,
) -> Path:
    rows: list[dict[str, Any]] = []
    for arm, speed in speeds.items():
        for seed in range(seeds):
            rows += rows_of(arm, seed, speed, (tops or {}).get(arm, 0.8))
    write_jsonl(folder / "results.jsonl", rows)
    write_jsonl(folder / "cases.jsonl", [])
    losses = {"simclr": (simclr_loss, 3.43), "mae": (0.42, 0.71), "simmim": (0.5, 0.71)}
    write_json(
        folder / "pretraining.json",
        [pretraining_of(arm, *losses[arm]) for arm in speeds if arm in losses],
    )
    write_json(
        folder / "study.json",
        {
            "name": "synthetic",
            "version": "0",
            "date": "2026-01-01",
            "synthetic": synthetic,
            "metric": "Dice",
            "arms": list(speeds),
            "batch": BATCH,
            "crop_size": [32, 32, 32],
            "corpus": "60 volumes of 60 subjects",
            "machine": {"processor": "test", "cores": "2"},
            "machine_line": "test machine",
            "settings": {"smoothing": 3, "targets": [0.8, 0.9, 0.95], "primary": 0.9, "tasks": 10},
            "splits": {"train": ["a", "b"], "validation": ["c"]},
            "config": {"seeds": seeds},
            "notes": [],
            **about,
        },
    )
    return folder


def own_pretrainings(folder: Path, seeds: int) -> Path:
    """Give every seed of the study in `folder` a pretraining of its own."""
    entries = read_json(folder / "pretraining.json")
    every = [{**entry, "seed": seed} for entry in entries for seed in range(seeds)]
    write_json(folder / "pretraining.json", every)
    return folder
