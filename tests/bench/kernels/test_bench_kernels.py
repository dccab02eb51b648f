"""The kernel bench: recipes compute what ours do; pytest-benchmark keeps what our clocks say."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from mim3d.bench import timing
from mim3d.bench.kernels import recipes
from mim3d.bench.kernels.cases import OURS, Case, Operation, Shape, operations
from mim3d.bench.kernels.runs import Session
from mim3d.bench.kernels.stage import main, notes, rows_of
from mim3d.engine.errors import ConfigError
from mim3d.kernels.decoder_tokens import decoder_tokens
from mim3d.kernels.masked_loss import masked_voxel_loss
from mim3d.kernels.masking import patch_masks
from mim3d.kernels.patch_rows import gather_patch_rows

PATCH, GRID = (2, 4, 2), (3, 2, 4)
TINY = Shape(1, 32, 16)


@pytest.fixture
def batch():
    torch.manual_seed(0)
    volume = (torch.randn(2, 1, 6, 8, 8) * 40).to(torch.int16)
    return volume, patch_masks(0, torch.arange(2), 24, 6)


def test_losses_are_the_ones_the_kernels_compute(batch):
    volume, masks = batch
    every = torch.randn(2, 24, 16)
    index = masks.masked_ids[..., None].expand(-1, -1, 16)
    tokens = every.gather(1, index)
    ours = partial(masked_voxel_loss, tokens, volume, masks.masked_ids, PATCH)
    l2 = ours(kind="l2", normalise_target=True)
    torch.testing.assert_close(
        recipes.mae_loss(every, volume, masks.masked.float(), PATCH), l2, rtol=1e-5, atol=0
    )
    given = (tokens, volume, masks.masked_ids, PATCH)
    torch.testing.assert_close(recipes.clean_loss(*given), l2, rtol=1e-5, atol=0)
    torch.testing.assert_close(recipes.medmim_loss(*given), ours())
    torch.testing.assert_close(recipes.clean_raw_loss(*given), ours())
    dense = torch.randn(volume.shape) * 40
    torch.testing.assert_close(
        recipes.nnssl_loss(dense, volume, masks.visible_ids, GRID, PATCH),
        masked_voxel_loss(dense, volume, masks.masked_ids, PATCH, kind="l2"),
    )


def test_rows_and_embeddings_are_equal(batch):
    volume, masks = batch
    ids = masks.visible_ids
    wide = torch.float32
    truth = gather_patch_rows(volume, ids, PATCH, out_dtype=wide)
    assert torch.equal(recipes.plain_rows(volume, ids, PATCH, wide), truth)
    assert torch.equal(recipes.clean_rows(volume, ids, PATCH, wide), truth)
    scale, shift = torch.tensor([0.5, 2.0]), torch.tensor([1.0, -3.0])
    flip = torch.tensor([[True, False, True], [False, True, False]])
    truth = gather_patch_rows(
        volume, ids, PATCH, out_dtype=wide, scale=scale, shift=shift, flip=flip
    )
    given = (volume, ids, PATCH, wide, scale, shift, flip)
    assert torch.equal(recipes.plain_rows_augmented(*given), truth)
    assert torch.equal(recipes.clean_rows_augmented(*given), truth)
    weight, bias, table = torch.randn(5, 16), torch.randn(5), torch.randn(24, 5)
    tokens = [
        form(volume, ids, PATCH, weight, bias, table)
        for form in (recipes.mae_embed, recipes.medmim_embed, recipes.clean_embed)
    ]
    torch.testing.assert_close(tokens[0], tokens[2], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(tokens[1], tokens[2], rtol=1e-4, atol=1e-3)


def test_decoder_tokens_are_the_same_in_each_recipes_order(batch):
    _, masks = batch
    visible, mask_token, positions = torch.randn(2, 6, 4), torch.randn(4), torch.randn(24, 4)
    given = (visible, mask_token, positions)
    ids = (masks.visible_ids, masks.masked_ids)
    truth = decoder_tokens(*given, *ids)
    torch.testing.assert_close(recipes.clean_tokens(*given, *ids), truth)
    theirs = recipes.medmim_tokens(*given, *ids)
    torch.testing.assert_close(torch.cat([theirs[:, 18:], theirs[:, :18]], 1), truth)
    restore = torch.cat(ids, 1).argsort(1)
    in_order = truth.gather(1, restore[..., None].expand(-1, -1, 4))
    torch.testing.assert_close(recipes.mae_tokens(*given, restore), in_order)
    torch.testing.assert_close(recipes.nnssl_tokens(*given, masks.visible_ids), in_order)


def test_mask_recipes_hide_as_many():
    kept, mask, restore = recipes.mae_masks(3, 20, 5, "cpu")
    assert kept.shape == (3, 5)
    assert (mask.sum(1) == 15).all()
    assert (mask.gather(1, kept) == 0).all()
    assert torch.equal(restore.sort(1).values, torch.arange(20).expand(3, -1))
    masked, unmasked = recipes.medmim_masks(3, 20, 5, "cpu")
    assert (masked.shape, unmasked.shape) == ((3, 15), (3, 5))


@pytest.mark.parametrize("operation", operations(), ids=lambda operation: operation.name)
def test_operations_build_the_variants_they_name(operation):
    case = operation.build(TINY, "cpu")
    assert set(case.variants) == set(operation.variants(compiled=True))
    assert case.needed_bytes > 0
    assert set(operation.waits) <= set(operation.eager)


def test_a_gpus_plan_has_graphs_but_not_of_what_waits_and_compiles_last(monkeypatch):
    monkeypatch.setattr("mim3d.bench.kernels.runs.Flush", lambda device: None)
    session = Session("cuda", 1e12, 3, 60.0)
    session.plan(operations(), [Shape(2, 96, 16), Shape(2, 96, 8)], compiled=True)
    graphs = {(r.operation.name, r.variant) for r in session.runs if r.mode == "graph"}
    assert ("decoder tokens", "MAE") in graphs
    assert ("decoder tokens", "nnssl") not in graphs
    late = [r.variant.startswith("compiled") for r in session.runs]
    assert late == sorted(late) and any(late)
    assert not any(r.shape.patch == 8 and r.variant.startswith("compiled") for r in session.runs)
    assert len({r.name for r in session.runs}) == len(session.runs)


def test_a_device_clock_waits_for_its_event_and_divides_by_the_calls(monkeypatch):
    happened = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing
            self.place = len(happened)

        def record(self):
            happened.append(f"record {self.place}")

        def synchronize(self):
            happened.append(f"wait {self.place}")

        def elapsed_time(self, later):
            happened.append("read")
            assert later.place > self.place
            return 50.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    began, ended = timing.graph_instant(), timing.graph_instant()
    assert ended - began == pytest.approx(0.05 / timing.GRAPH_CALLS)
    assert happened == ["record 0", "record 1", "wait 1", "read"]


def broken() -> None:
    raise RuntimeError("no such luck")


def one_operation(**variants) -> Operation:
    eager = tuple(name for name in variants if name != OURS)
    return Operation("pass", lambda shape, device: Case(8, variants), eager)


def test_a_failing_recipe_is_told_and_the_rest_is_timed(tmp_path, capsys):
    session = Session("cpu", 1e9, 2, 60.0)
    session.plan([one_operation(mim3d=lambda: 1, bad=broken, good=lambda: 2)], [TINY], False)
    session.run([], tmp_path)
    assert [row.variant for row in rows_of(session)] == ["mim3d", "good"]
    assert "no such luck" in notes(session)[1]
    assert "FAILED" in capsys.readouterr().out


def test_our_own_failure_is_an_error(tmp_path):
    session = Session("cpu", 1e9, 2, 60.0)
    session.plan([one_operation(mim3d=broken)], [TINY], False)
    with pytest.raises(RuntimeError, match="no such luck"):
        session.run([], tmp_path)


def test_the_table_json_and_storage_agree(tmp_path):
    words = ["--size", "tiny", "--only", "masks", "--rounds", "3", "--out", str(tmp_path)]
    outcome = main([*words, "--storage", str(tmp_path / "store")])
    assert outcome.lost == 0
    rows = {row["variant"]: row["seconds"] for row in outcome.figures["rows"]}
    file = tmp_path / "kernels-benchmark.json"
    stored = json.loads(file.read_text())
    medians = {b["extra_info"]["variant"]: b["stats"]["median"] for b in stored["benchmarks"]}
    assert medians == rows
    assert {b["stats"]["rounds"] for b in stored["benchmarks"]} == {3}
    assert "node" not in stored["machine_info"]
    assert (tmp_path / "roofline.png").read_bytes().startswith(b"\x89PNG")
    compared = subprocess.run(
        [Path(sys.executable).with_name("pytest-benchmark"), "compare", str(file)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "MIM-Med3D-cold" in compared.stdout
    assert len(list((tmp_path / "store").rglob("*.json"))) == 1


def test_what_is_not_begun_in_time_counts_as_lost():
    outcome = main(["--size", "tiny", "--only", "masks", "--rounds", "1", "--seconds", "0"])
    assert outcome.lost == 3
    assert outcome.figures["rows"] == []


def test_an_unknown_operation_is_named():
    with pytest.raises(ConfigError, match="--only 'cooking' names no operation"):
        main(["--only", "cooking"])
