"""What an ablation found, in words: which areas differ; all else is description."""

from collections.abc import Sequence

from mim3d.engine.analysis.ablation import Ablation, Setting, value_in_words
from mim3d.engine.analysis.ablation_family import (
    AblationFamily,
    SettingComparison,
    read_ablation_family,
)
from mim3d.engine.analysis.ablation_plan import planned_settings
from mim3d.engine.analysis.naming import capital, interim, so_far
from mim3d.engine.analysis.results import Study
from mim3d.engine.analysis.speedup import CLAIM_PAIRS, MIN_PAIRS, paired_difference
from mim3d.engine.analysis.verdict import Statement, seeds_in_words
from mim3d.engine.analysis.words import arm_name, difference, ends_in_words, p_in_words, plus_minus


def ablation_statement(study: Study, ablation: Ablation) -> Statement:
    """Which settings differ from their rival in area, and, as description, how scores stand."""
    title = f"{capital(str(study.about.get('ablation', '')))} varied"
    more = described(study, ablation)
    if not any(setting.learned for setting in ablation.settings):
        text = f"{title}: no setting learned its pretext task, so none is named best."
        return Statement("warning", text, more)
    family = read_ablation_family(study, ablation)
    tested = [member for member in family.members if member.p_value is not None]
    if not tested:
        text = f"{title}: {why_untested(family)}{so_far(family.awaited)}."
        return Statement("neutral", text, more)
    found = [member for member in tested if member.significant]
    text = (
        f"{title}: {whose(tested)} under the validation curve differs significantly from "
        f"{of_rival(tested)} in {len(found) or 'none'} of {number_of(family)}"
        f"{so_far(family.awaited)}."
    )
    open_question = family.awaited or any(member.shared for member in found)
    kind = "finding" if found and not open_question else "neutral"
    return Statement(kind, text, f"{compared(family)} {more}")


def why_untested(family: AblationFamily) -> str:
    """Why a family has no p value."""
    if not family.members:
        return "nothing could be compared"
    pairs = max(member.area.pairs for member in family.members)
    if pairs < MIN_PAIRS:
        return f"{pairs} seed{'s' if pairs != 1 else ''}, too few to test"
    return "no comparison could be tested, for every seed gives the same difference"


def whose(members: Sequence[SettingComparison]) -> str:
    """`MAE's area`, or `the area` where several arms are compared."""
    arms = {member.setting.arm for member in members}
    return f"{arm_name(*arms)}'s area" if len(arms) == 1 else "the area"


def of_rival(members: Sequence[SettingComparison]) -> str:
    """`that of mask ratio 0.6`, `scratch's`, or `its rival's` where rivals are of several kinds."""
    rivals = {id(member.rival): member for member in members}
    own = {member.rival.arm == member.setting.arm for member in members}
    if own == {True} and len(rivals) == 1:
        return f"that of {members[0].rival.name}"
    arms = {member.rival.arm for member in members}
    return f"{arm_name(*arms)}'s" if own == {False} and len(arms) == 1 else "its rival's"


def number_of(family: AblationFamily) -> str:
    """`2 comparisons`."""
    return f"{family.size} comparison{'s' if family.size != 1 else ''}"


def compared(family: AblationFamily) -> str:
    """What differs, how far the rest may, how that was tested, and what it rests on."""
    found = [member for member in family.members if member.significant]
    others = [member for member in family.members if not member.significant]
    sentences = [f"{compared_in_words(member)}." for member in found]
    sentences.append(rest_in_words(others, "other " if found else ""))
    sentences.append(
        f"Paired by seed; p by Holm over {number_of(family)} of the plan, intervals each by itself."
    )
    if absent := family.size - len(family.members):
        sentences.append(
            f"{absent} of {number_of(family)} could not be made (runs are to come or failed, or a "
            "pretext task was not learned), and count all the same."
        )
    sentences.append(interim(family.awaited).strip())
    if any(member.shared for member in family.members):
        sentences.append(
            "Seeds of a setting share one pretraining, so what differs are these encoders: another "
            "pretraining of the same setting may stand otherwise, and no interval or p counts that."
        )
    if any(member.area.pairs < CLAIM_PAIRS for member in found):
        sentences.append(f"A claim would want {CLAIM_PAIRS} seeds.")
    return " ".join(filter(None, sentences))


def compared_in_words(member: SettingComparison) -> str:
    """`MAE, mask ratio 0.9: -0.021 (95 % interval -0.030 to -0.012; 5 seeds), p = 0.004`."""
    found, setting = member.area, member.setting
    name = f"{arm_name(setting.arm)}, {setting.name}"
    if found.low is None or found.high is None or member.p_value is None:
        return f"{name}: {difference(found.mean, None)} ({found.why}), not tested"
    interval = f"95 % interval {ends_in_words(found.low, found.high)}"
    seeds = seeds_in_words(found.pairs, member.planned)
    test = p_in_words(member.p_value) if member.significant else "not significant"
    return f"{name}: {difference(found.mean, None)} ({interval}; {seeds}), {test}"


def rest_in_words(members: Sequence[SettingComparison], other: str) -> str:
    """How far differences that are not significant may reach, each by its own interval."""
    ends = [
        (m.area.low, m.area.high)
        for m in members
        if m.area.low is not None and m.area.high is not None
    ]
    if not members:
        return ""
    if len(members) == 1:
        return f"{compared_in_words(members[0])}."
    if not ends:
        return f"None of the {other}{len(members)} differences has an interval."
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    none = f"; {len(members) - len(ends)} have none" if len(members) > len(ends) else ""
    return (
        f"The {other}{len(members)} differences: 95 % intervals from {ends_in_words(low, high)}"
        f"{none}."
    )


def described(study: Study, ablation: Ablation) -> str:
    """Where final scores were largest, or how they grow with the labels; never a test."""
    metric = study.about.get("metric", "Dice")
    if ablation.varied == ("labels",):
        sentences = [growth(ablation.of(arm)) for arm in ablation.arms]
        return " ".join([f"Final {metric} from the fewest labels to the most:", *sentences])
    groups = [s.group.group for s in ablation.settings]
    asked = {(head, labels) for head, labels, _ in planned_settings(study, groups)}
    of_arms = [
        [s for s in ablation.of(arm) if (s.group.group.head, s.group.group.labels) in asked]
        for arm in ablation.arms
    ]
    sentences = [best_of(settings) for settings in of_arms if settings]
    some = any(s.learned and s.score is not None for settings in of_arms for s in settings)
    lead_in = [f"Largest final {metric}, not tested:"] * some
    return " ".join([*lead_in, *sentences, spread(ablation)])


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
