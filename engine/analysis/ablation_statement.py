"""What an ablation found, in words: which areas certainly differ; all else is description."""

from collections.abc import Sequence

from mim3d.engine.analysis.ablation import Ablation, Setting, value_in_words
from mim3d.engine.analysis.ablation_family import (
    AblationFamily,
    SettingComparison,
    read_ablation_family,
)
from mim3d.engine.analysis.results import Study
from mim3d.engine.analysis.speedup import MIN_PAIRS, paired_difference
from mim3d.engine.analysis.verdict import Statement
from mim3d.engine.analysis.words import arm_name, difference, p_in_words, plus_minus

OUTCOME = "area under the validation curve"


def ablation_statement(study: Study, ablation: Ablation) -> Statement:
    """Which settings certainly differ in area, and, as description, where scores were largest."""
    metric = study.about.get("metric", "Dice")
    title = f"{str(study.about.get('ablation', '')).capitalize()} varied"
    if not any(setting.learned for setting in ablation.settings):
        return Statement(
            "warning",
            f"{title}: no setting learned its pretext task, so none is named best.",
            described(ablation, metric),
        )
    seeds = min((len(setting.curves) for setting in ablation.settings), default=0)
    family = read_ablation_family(study, ablation)
    if seeds < MIN_PAIRS or not family.members:
        number = f"{seeds} seed{'s' if seeds != 1 else ''}"
        why = f"{number}, too few to test" if seeds < MIN_PAIRS else "nothing could be compared"
        return Statement("neutral", f"{title}: {why}.", described(ablation, metric))
    detail = f"{tested(family)} {described(ablation, metric)}"
    certain = sum(member.certain for member in family.members)
    if not certain:
        return Statement("neutral", f"{title}: no certain difference in the {OUTCOME}.", detail)
    of = f"{certain} of {family.size} comparison{'s' if family.size != 1 else ''}"
    text = f"{title}: the {OUTCOME} certainly differs in {of}."
    return Statement("finding", text, detail)


def tested(family: AblationFamily) -> str:
    """What certainly differs, how far the rest may, and how that was tested."""
    certain = [member for member in family.members if member.certain]
    others = [member for member in family.members if not member.certain]
    sentences = [f"{compared_in_words(member)}." for member in certain]
    sentences.append(rest_in_words(others, "other " if certain else ""))
    comparisons = f"{family.size} comparison{'s' if family.size != 1 else ''}"
    sentences.append(f"Paired by seed; p by Holm over {comparisons} named beforehand.")
    return " ".join(filter(None, sentences))


def compared_in_words(member: SettingComparison) -> str:
    """`MAE, mask ratio 0.9: -0.021 (-0.030 to -0.012) against mask ratio 0.6, p = 0.004`."""
    found, setting, rival = member.area, member.setting, member.rival
    name = f"{arm_name(setting.arm)}, {setting.name}"
    against = rival.name if rival.arm == setting.arm else arm_name(rival.arm)
    test = "" if member.p_value is None else f", {p_in_words(member.p_value)}"
    return f"{name}: {interval(found.mean, found.low, found.high)} against {against}{test}"


def interval(mean: float | None, low: float | None, high: float | None) -> str:
    """`-0.021 (-0.030 to -0.012)`."""
    if low is None or high is None:
        return difference(mean, None)
    return f"{difference(mean, None)} ({low:+.3f} to {high:+.3f})"


def rest_in_words(members: Sequence[SettingComparison], other: str) -> str:
    """How far differences that are not certain may reach, each by its own interval."""
    lows = [m.area.low for m in members if m.area.low is not None]
    highs = [m.area.high for m in members if m.area.high is not None]
    if not lows or not highs:
        return ""
    reach = f"{min(lows):+.3f} to {max(highs):+.3f}"
    return f"All {other}intervals lie in {reach}." if len(lows) > 1 else f"Interval {reach}."


def described(ablation: Ablation, metric: str) -> str:
    """Where final scores were largest, or how they grow with the labels; never a test."""
    if ablation.varied == ("labels",):
        sentences = [growth(ablation.of(arm)) for arm in ablation.arms]
        return " ".join([f"Final {metric} from the fewest labels to the most:", *sentences])
    sentences = [best_of(ablation.of(arm)) for arm in ablation.arms]
    return " ".join([f"Largest final {metric}, not tested:", *sentences, spread(ablation)])


def spread(ablation: Ablation) -> str:
    """How far the seeds of one setting spread."""
    if ablation.noise is None:
        return "How far seeds of one setting spread is not known."
    return f"Seeds of one setting spread by ± {ablation.noise:.3f}."


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
