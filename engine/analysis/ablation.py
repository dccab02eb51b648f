"""What an ablation varied and what each setting gave, in words and one table.

A setting whose pretext task was not learned is shown with a dagger and never named best.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, median, variance
from typing import Any

from mim3d.engine.analysis.family import primary_share
from mim3d.engine.analysis.results import Study
from mim3d.engine.analysis.speedup import MIN_PAIRS, PairedDifference, paired_difference
from mim3d.engine.analysis.summary import (
    MIN_GAIN,
    ArmSummary,
    GroupSummary,
    lost_runs,
    method_of,
    primary_target,
    reaches_of,
)
from mim3d.engine.analysis.verdict import Statement
from mim3d.engine.analysis.words import arm_name, difference, plus_minus
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

    def against_first(self, setting: Setting) -> PairedDifference | None:
        """Final scores of a setting less those of its arm's first as listed, paired by seed.

        None of that one itself, and where two settings are varied, for a grid has no first.
        """
        first = next(s for s in self.settings if s.arm == setting.arm)
        if len(self.varied) > 1 or setting is first:
            return None
        return paired_difference(setting.final, first.final)

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
        several = [s.final.values() for s in self.settings if len(s.final) > 1]
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
        matter = ALWAYS | settings_of_arm(study, arm.arm)
        matter |= {old for old, name in EARLIER_SETTINGS.items() if name in matter}
        values = {name: known[name] for name in varied if name in matter and name in known}
        found.append(Setting(arm, values, group, arm.arm not in group.untrained))
    return found


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


def ablation_statement(study: Study, ablation: Ablation) -> Statement:
    """Which setting of each arm ended highest, or how the score grows with the labels."""
    metric = study.about.get("metric", "Dice")
    title = str(study.about.get("ablation", "")).capitalize()
    if ablation.varied == ("labels",):
        text = f"{title} varied: final {metric} from the fewest labels to the most."
        sentences = [growth(ablation.of(arm)) for arm in ablation.arms]
        return Statement("neutral", text, " ".join(sentences))
    sentences = [best_of(ablation.of(arm)) for arm in ablation.arms]
    sentences.append(untested(ablation))
    if not any(setting.learned for setting in ablation.settings):
        text = f"{title} varied: no setting learned its pretext task, so none is named best."
        return Statement("warning", text, " ".join(sentences))
    text = f"{title} varied: where final {metric} was largest."
    return Statement("neutral", text, " ".join(sentences))


def untested(ablation: Ablation) -> str:
    """That no lead was tested, beside how far the seeds of one setting spread."""
    seeds = min((len(s.curves) for s in ablation.settings), default=0)
    if ablation.noise is None:
        text = "how far seeds of one setting spread is not known."
    else:
        text = f"no lead was tested, and seeds of one setting spread by ± {ablation.noise:.3f}."
    if seeds < MIN_PAIRS:
        return f"{seeds} seed{'s' if seeds != 1 else ''}, too few to test: {text}"
    return text[0].upper() + text[1:]


def growth(settings: Sequence[Setting]) -> str:
    """`MAE 0.412 ± 0.020 (4 labelled subjects) to 0.780 ± 0.004 (180).`"""
    first, last = settings[0], settings[-1]
    failed = "" if last.learned else ", whose pretext task was not learned,"
    few, many = (value_in_words("labels", s.values["labels"]) for s in (first, last))
    name = f"{arm_name(first.arm)}{failed}"
    return f"{name} from {plus_minus(first.final)} ({few}) to {plus_minus(last.final)} ({many})."


def best_of(settings: Sequence[Setting]) -> str:
    """The setting of an arm with the largest final score among those that learned, and its lead."""
    name = arm_name(settings[0].arm)
    valid = [s for s in settings if s.learned and s.score is not None]
    failed = sum(not s.learned for s in settings)
    gate = f" {failed} of {len(settings)} did not learn the pretext task." if failed else ""
    if not valid:
        return f"{name}:{gate or ' no score.'}"
    ranked = sorted(valid, key=lambda s: s.score or 0.0, reverse=True)
    lead_in = f"{name} with {ranked[0].name} ({plus_minus(ranked[0].final)})"
    if len(ranked) == 1:
        return f"{lead_in}.{gate}"
    lead = paired_difference(ranked[0].final, ranked[1].final)
    shown = difference(lead.mean, None)
    return f"{lead_in}, {shown} before {ranked[1].name}.{gate}"
