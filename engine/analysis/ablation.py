"""What an ablation varied and what each setting gave, in words and one table.

A setting whose pretext task was not learned is shown with a dagger and never named best.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, median, variance
from typing import Any

from mim3d.engine.analysis.family import primary_share
from mim3d.engine.analysis.results import Study
from mim3d.engine.analysis.summary import (
    MIN_GAIN,
    ArmSummary,
    GroupSummary,
    lost_runs,
    method_of,
    primary_target,
    reaches_of,
)
from mim3d.engine.study.config import ARM_SETTINGS, EARLIER_SETTINGS, ENCODER_SETTINGS, OWN_SETTINGS
from mim3d.engine.study.curves import Curve, Reach, best_trained
from mim3d.engine.study.encoders import SCRATCH

ALWAYS = ENCODER_SETTINGS | {"labels", "head"}
"""Settings that matter to every arm."""
DAGGER = "†"


@dataclass(frozen=True)
class Setting:
    """One arm at one value of each varied setting that matters to it (`values`, maybe none).

    `curves` are smoothed; `reaches` has what each seed needed to the target, nothing without one.
    """

    summary: ArmSummary
    values: Mapping[str, Any]
    group: GroupSummary
    learned: bool
    reaches: Mapping[int, Reach] = field(default_factory=dict)

    @property
    def arm(self) -> str:
        """The arm's name."""
        return self.summary.arm

    @property
    def final(self) -> Mapping[int, float]:
        """Final score by seed."""
        return self.summary.final

    @property
    def curves(self) -> Mapping[int, Curve]:
        """Smoothed validation curves by seed."""
        return self.group.curves[self.arm]

    @property
    def score(self) -> float | None:
        """Mean final score over seeds."""
        return fmean(self.final.values()) if self.final else None

    @property
    def budget(self) -> float:
        """Steps that each seed was given."""
        return max((curve.budget for curve in self.curves.values()), default=1.0)

    @property
    def name(self) -> str:
        """`mask ratio 0.75, patch 8`; an arm that nothing varies for is named by what it has."""
        parts = [value_in_words(key, value) for key, value in self.values.items()]
        if parts:
            return ", ".join(parts)
        return "linear head" if method_of(self.arm) == "simmim" else "its own settings"


@dataclass(frozen=True)
class Ablation:
    """Every setting of every arm, and what the target of their steps is, in words."""

    varied: tuple[str, ...]
    settings: tuple[Setting, ...]
    target: str

    @property
    def arms(self) -> list[str]:
        """Arms in the order run."""
        return list(dict.fromkeys(setting.arm for setting in self.settings))

    def of(self, arm: str) -> list[Setting]:
        """An arm's settings in order of their values."""
        own = [setting for setting in self.settings if setting.arm == arm]
        return sorted(own, key=lambda setting: tuple(setting.values.values()))

    def varied_of(self, arm: str) -> list[str]:
        """The settings that take several values for an arm."""
        own = self.of(arm)
        return [
            name
            for name in self.varied
            if name in own[0].values and len({setting.values[name] for setting in own}) > 1
        ]

    @property
    def noise(self) -> float | None:
        """Standard deviation over seeds of one setting's final score, pooled over settings."""
        return pooled_spread([s.final for s in self.settings])


def pooled_spread(of_settings: Sequence[Mapping[int, float]]) -> float | None:
    """Standard deviation over seeds within a setting, pooled; None where each has one seed."""
    several = [values.values() for values in of_settings if len(values) > 1]
    return fmean(map(variance, several)) ** 0.5 if several else None


def read_ablation(study: Study, groups: Sequence[GroupSummary]) -> Ablation | None:
    """The settings of an ablation, None where the study is none or only one was finished."""
    varied = tuple(study.about.get("ablation_axes", ()))
    settings = [s for group in groups for s in settings_of(study, group, varied)]
    if not varied or len(settings) < 2:
        return None
    aimed, target = with_targets(study, settings)
    return Ablation(varied, tuple(aimed), target)


def settings_of(study: Study, group: GroupSummary, varied: Sequence[str]) -> list[Setting]:
    """The arms of one group with the settings they were run with."""
    known = dict(study.about.get("variants", {}).get(group.group.variant, {}))
    known |= {"labels": labelled(study, group), "head": group.group.head}
    found = []
    for arm in group.arms:
        matter = what_matters(study, arm.arm)
        values = {name: known[name] for name in varied if name in matter and name in known}
        found.append(Setting(arm, values, group, arm.arm not in group.untrained))
    return found


def what_matters(study: Study, arm: str) -> set[str]:
    """Settings that change an arm's encoder, pretraining or fine-tuning, by any of their names."""
    matter = ALWAYS | settings_of_arm(study, arm)
    return matter | {old for old, name in EARLIER_SETTINGS.items() if name in matter}


def settings_of_arm(study: Study, arm: str) -> set[str]:
    """Settings that change an arm's pretraining.

    A plugin's method is told by its runs: a report is made without its plugin too.
    """
    methods = {p["method"] for p in study.pretraining if p["arm"] == arm}
    if methods - {"given", "", *ARM_SETTINGS}:
        return OWN_SETTINGS
    return ARM_SETTINGS.get(method_of(arm), set())


def labelled(study: Study, group: GroupSummary) -> float:
    """Labelled subjects of a group, from its rows; its share where those do not tell."""
    rows = [row for arm in group.arms for row in study.select(group.group, arm.arm, "validation")]
    counts = [row["n_labelled"] for row in rows if row.get("n_labelled")]
    train = len(study.about.get("splits", {}).get("train", ()))
    labels = group.group.labels
    if counts:
        return median(counts)
    return labels if labels > 1 or not train else round(labels * train)


def with_targets(study: Study, settings: Sequence[Setting]) -> tuple[list[Setting], str]:
    """Settings with their steps to a target: scratch's where there is one, else one for all.

    The shared target is a share of the median setting's best smoothed score, so that no single
    setting decides it. It must lie above every setting's score before training.
    """
    share = primary_share(study)
    if all(s.group.reference == SCRATCH for s in settings):
        words = f"{100 * share:g} % of scratch's best smoothed score at the same setting"
        return [replace(s, reaches=own_reaches(s, share)) for s in settings], words
    curves = [list(s.curves.values()) for s in settings if s.curves]
    if not curves:
        return list(settings), "none, for no setting has a score"
    score = share * median(fmean(map(best_trained, of_setting)) for of_setting in curves)
    untrained = max(fmean(c.values[0] for c in of_setting) for of_setting in curves)
    if score < untrained + MIN_GAIN:
        words = (
            f"none, for {100 * share:g} % of the median setting's best score ({score:.3f}) is not "
            f"{MIN_GAIN:g} above what a setting scores before training ({untrained:.3f})"
        )
        return list(settings), words
    words = f"{score:.3f}, {100 * share:g} % of the median setting's best smoothed score"
    return [replace(s, reaches=shared_reaches(s, score)) for s in settings], words


def own_reaches(setting: Setting, share: float) -> Mapping[int, Reach]:
    """What each seed needed to the primary target of the setting's own group."""
    target = primary_target(setting.group.targets, share)
    return setting.summary.reaches[target.share]


def shared_reaches(setting: Setting, score: float) -> Mapping[int, Reach]:
    """What each seed needed to a score; diverged seeds never reach it."""
    lost = lost_runs(setting.summary.diverged, {setting.arm: setting.curves})
    return reaches_of(setting.curves, lost, score)


def value_in_words(name: str, value: Any) -> str:
    """`mask ratio 0.75`, `8 labelled subjects`."""
    if name == "labels":
        return f"{value:g} labelled subjects"
    shown = f"{value:g}" if isinstance(value, int | float) else str(value)
    return f"{words(name)} {shown}"


def words(setting: str) -> str:
    """`mask ratio` of `mask_ratio`."""
    return "labelled subjects" if setting == "labels" else setting.replace("_", " ")
