import pytest

from mim3d.engine.pretrain.verdict import judge_pretext


def rows(losses, **floors):
    return [{"step": i, "loss": loss, **floors} for i, loss in enumerate(losses)]


def test_the_last_fifth_decides():
    verdict = judge_pretext(rows([1.0] * 8 + [0.5, 0.3], patch_mean=1.0, nearest_patch=2.0))
    assert verdict["loss"] == pytest.approx(0.4)
    assert verdict["patch_mean"] == 1.0
    assert verdict["nearest_patch"] == 2.0
    assert verdict["loss_over_floor"] == pytest.approx(0.4)
    assert verdict["learned"]


@pytest.mark.parametrize(
    ("loss", "learned"), [(3.4, False), (3.3, False), (3.2, True), (3.7, False)]
)
def test_chance_must_be_beaten_clearly(loss, learned):
    assert judge_pretext(rows([loss] * 10, chance=3.43))["learned"] is learned


def test_nothing_logged_is_nothing_learned():
    assert judge_pretext([]) == {"loss": None, "learned": False}
    assert not judge_pretext(rows([float("nan")] * 3, chance=3.4))["learned"]


def test_a_floor_that_is_null_in_some_rows_is_that_of_the_others() -> None:
    """metrics.jsonl has null for what was not finite."""
    given = rows([0.5] * 10, patch_mean=1.0)
    given[-1]["patch_mean"] = None
    assert judge_pretext(given)["floor"] == 1.0


def of_channels(losses, means, prefix=""):
    figures = {f"{prefix}loss": sum(losses) / len(losses)}
    figures[f"{prefix}patch_mean"] = sum(means) / len(means)
    for i, (loss, mean) in enumerate(zip(losses, means, strict=True)):
        figures[f"{prefix}loss_channel_{i}"] = loss
        figures[f"{prefix}patch_mean_channel_{i}"] = mean
    return figures


@pytest.mark.parametrize(
    ("losses", "behind"),
    [
        ([0.2, 0.2, 0.9], []),
        ([0.2, 0.2, 1.0], [2]),
        ([0.2, 1.2, 1.1], [1, 2]),
        ([0.2, None, 0.4], [1]),
    ],
)
def test_a_channel_predicted_no_better_than_by_its_patch_mean_is_not_learned(losses, behind):
    row = of_channels([0.2, 0.2, 0.4], [1.0, 1.0, 1.0])
    row |= {f"loss_channel_{i}": loss for i, loss in enumerate(losses)}
    verdict = judge_pretext([{"step": i, **row} for i in range(10)])
    assert verdict["loss"] < 0.95 * verdict["patch_mean"]
    assert verdict["behind"] == behind
    assert verdict["learned"] is not bool(behind)
    assert [each["loss"] for each in verdict["channels"]] == losses
    assert not any("_channel_" in name for name in verdict)


def test_nothing_is_asked_of_a_channel_that_every_crop_lacks():
    row = of_channels([0.2, 0.001], [1.0, 0.0])
    assert judge_pretext([row])["learned"]


def test_held_out_subjects_are_judged_by_channel_too():
    row = of_channels([0.2, 0.3], [1.0, 1.0]) | of_channels([0.2, 1.3], [1.0, 1.0], "held_out_")
    verdict = judge_pretext([row])
    assert verdict["learned"] and not verdict["held_out"]["learned"]
    assert verdict["held_out"]["behind"] == [1]
    assert verdict["held_out"]["channels"][1] == {"loss": 1.3, "patch_mean": 1.0}


def test_constant_crops_are_no_basis():
    """Nothing beats a floor of 0; nor one of rounding, which the nearest patch tells from a real
    one."""
    for mean in (0.0, 3e-9):
        verdict = judge_pretext(rows([0.35] * 10, patch_mean=mean, nearest_patch=0.0))
        assert verdict["constant"] and verdict["floor"] is None and not verdict["learned"]
        assert verdict["constant_rows"] == verdict["rows"] == 2
    given = rows([0.35] * 10, patch_mean=1.0, nearest_patch=1.5)
    assert "constant" not in judge_pretext(given) and "constant_rows" not in judge_pretext(given)
    given[-1] |= {"patch_mean": 0.0, "nearest_patch": 0.0}
    verdict = judge_pretext(given)
    assert verdict["constant_rows"] == 1 and "constant" not in verdict
    assert verdict["floor"] == 0.5 and verdict["learned"]


def test_held_out_crops_may_be_constant_too():
    row = rows([0.5], patch_mean=1.0, nearest_patch=2.0)[0]
    row |= {"held_out_loss": 0.3, "held_out_patch_mean": 0.0, "held_out_nearest_patch": 0.0}
    verdict = judge_pretext([row])
    assert verdict["learned"] and verdict["held_out"]["constant"]


def test_rows_without_a_floor_give_way_to_the_last_one_that_has_it():
    given = rows([0.9] * 7 + [0.2, 0.3, 0.3], patch_mean=1.0)
    for row in given[-2:]:
        row |= {"patch_mean": None, "counted": 0.0}
    verdict = judge_pretext(given)
    assert (verdict["loss"], verdict["floor"], verdict["rows"]) == (0.2, 1.0, 1)
    assert verdict["learned"]


def test_a_run_that_ends_without_a_finite_loss_is_not_judged_by_what_came_before():
    assert judge_pretext(rows([0.2] * 8 + [float("nan")] * 2, patch_mean=1.0))["loss"] is None
