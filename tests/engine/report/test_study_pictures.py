"""Pictures of segmentations: cases named, Dice told, classes in a legend."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mim3d.engine.analysis.results import Study
from mim3d.engine.analysis.summary import summarise
from mim3d.engine.report.pictures import (
    KEPT,
    Column,
    draw_segmentations,
    evenly_chosen,
    load_slices,
    reconstructions,
    segmentations,
)
from mim3d.engine.runs.files import write_json, write_jsonl


def slices(volumes: tuple[str, ...] = ("case_007", "case_012")) -> dict[str, np.ndarray]:
    rng, found = np.random.default_rng(0), {}
    for index, volume in enumerate(volumes):
        truth = np.zeros((20, 24), np.uint8)
        truth[5:12, 5:12], truth[5:12, 12:16] = 1, 2
        found[f"{index}.image"] = rng.normal(size=(20, 24)).astype(np.float16)
        found[f"{index}.truth"] = truth
        found[f"{index}.prediction"] = np.roll(truth, 1, 0)
        found[f"{index}.volume"] = np.array(volume)
    return found


def words_of(figure: Any) -> str:
    from matplotlib.text import Text

    return " ".join(text.get_text() for text in figure.findobj(Text))


def test_cases_dice_and_classes_are_written_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    kept: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (kept.append(self), save(self, *a, **k))
    )
    columns = [Column("MAE", slices(), {"case_007": 0.714}), Column("scratch", slices(), {})]
    draw_segmentations(tmp_path / "s.png", columns)
    found = words_of(kept[0])
    for words in ("case_007", "case_012", "Dice 0.71", "class 1", "class 2", "MAE", "scratch"):
        assert words in found
    assert found.count("Dice") == 1  # the others' is not known


def study_of(folder: Path, pictures: bool) -> Study:
    row = {"arm": "mae", "head": "unetr", "labels": 1.0, "variant": "", "tuning": False}
    row |= {"split": "validation", "crops": 0, "flops": 0.0, "seconds": 0.0}
    rows = [row | {"seed": s, "step": t, "score": 0.5} for s in (3, 4) for t in (0, 20)]
    if pictures:
        np.savez_compressed(folder / "p.npz", allow_pickle=False, **slices())
        rows = [row | {"pictures": "p.npz"} for row in rows]
    write_jsonl(folder / "results.jsonl", rows)
    case = row | {"seed": 3, "volume": "case_007", "dice": [0.7, None]}
    write_jsonl(folder / "cases.jsonl", [case, case | {"seed": 4, "dice": [0.1, 0.1]}])
    write_json(folder / "study.json", {"arms": ["mae"], "batch": 4, "name": "x"})
    return Study.load(folder)


def test_pictures_outlive_their_cells(tmp_path: Path) -> None:
    study, figures = study_of(tmp_path, pictures=True), tmp_path / "figures"
    (group,) = summarise(study)
    (drawn,) = segmentations(study, group, 0, figures)
    assert drawn.data.startswith("data:image/png")
    assert str(load_slices(tmp_path / "p.npz")["0.volume"]) == "case_007"
    (tmp_path / "p.npz").unlink()
    (kept,) = segmentations(study, group, 0, figures)
    assert kept.data == drawn.data
    assert kept.caption.startswith(KEPT)
    (figures / "segmentations-0.png").unlink()
    (none,) = segmentations(study, group, 0, figures)
    assert (none.data, none.caption[:10]) == ("", "No picture")


def test_reconstructions_are_kept_beside_the_figures(tmp_path: Path) -> None:
    study = study_of(tmp_path, pictures=False)
    picture = tmp_path / "pictures" / "mae.png"
    entries = [
        {"arm": "mae", "variant": f"mask_ratio 0.{k}", "seed": None, "picture": "pictures/mae.png"}
        for k in range(9)
    ]
    study.pretraining.extend(entries)
    assert [p.data for p in reconstructions(study, tmp_path / "figures")] == [""] * 4
    picture.parent.mkdir()
    picture.write_bytes(b"png")
    found = reconstructions(study, tmp_path / "figures")
    assert [p.title for p in found] == [f"MAE, mask ratio 0.{k}" for k in (0, 3, 5, 8)]
    picture.unlink()
    again = reconstructions(study, tmp_path / "figures")
    assert [p.data for p in again] == [p.data for p in found]
    assert again[0].caption.startswith(KEPT)


def test_evenly_chosen() -> None:
    assert evenly_chosen([1, 2], 4) == [1, 2]
    assert evenly_chosen(list(range(15)), 6) == [0, 3, 6, 8, 11, 14]
