"""What a study found, in words first, none of them stronger than the numbers behind them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mim3d.engine.analysis.results import Study
from mim3d.engine.analysis.speedup import CLAIM_PAIRS, LEVEL, MIN_PAIRS, PairedDifference, holm
from mim3d.engine.analysis.summary import (
    MIM,
    PRIMARY,
    ArmSummary,
    Comparison,
    GroupSummary,
    method_of,
    primary_target,
)
from mim3d.engine.analysis.words import (
    arm_name,
    interval_in_words,
    p_in_words,
    p_of_ratio,
    ratio_in_words,
    seed_list,
)
from mim3d.engine.study.config import SCRATCH, Row
from mim3d.engine.study.gather import headline_settings

ALPHA = 1 - LEVEL


@dataclass(frozen=True)
class Statement:
    """A short sentence and what it rests on; `kind` is finding, neutral or warning."""

    kind: str
    text: str
    detail: str = ""

    @property
    def whole(self) -> str:
        """Both parts in one line."""
        return f"{self.text} {self.detail}".strip()


def headline(study: Study, groups: Sequence[GroupSummary]) -> Statement:
    """The one sentence: the better masked arm over SimCLR, or over scratch where that fails.

    Its p value is corrected (Holm) for the masked arms that it was chosen from.
    """
    group = groups[0]
    family = headline_family(group)
    if not family:
        return nothing_to_compare(group)
    share = primary_target(group.targets, primary_share(study)).share
    chosen, choice = better_arm(family, share)
    statement = speed_statement(chosen, share, group.reference, choice)
    extra = [f"{group.group.title[0].upper()}{group.group.title[1:]}."] if len(groups) > 1 else []
    extra += [rival_in_words(c, share) for c in family if c is not chosen]
    return replace(statement, detail=" ".join(filter(None, [statement.detail, *extra])))


def headline_family(group: GroupSummary) -> list[Comparison]:
    """Each masked arm over one rival: SimCLR at equal crops, else at equal FLOPs, else scratch.

    An arm of equal FLOPs joins only where its twin of equal crops is not of the study, or where
    the rival is such an arm too: it answers another question.
    """
    masked = [c for c in group.comparisons if method_of(c.first) in MIM]
    found = masked or [c for c in group.comparisons if method_of(c.first) != "simclr"]
    seconds = [c.second for c in found]
    contrastive = [arm for arm in seconds if method_of(arm) == "simclr"]
    order = ["simclr", "simclr-flops", *contrastive, SCRATCH]
    rival = next((arm for arm in order if arm in seconds), None)
    family = [c for c in found if c.second == rival]
    if rival is None or rival.endswith("-flops"):
        return family
    return [c for c in family if twin_of(c.first) not in {arm.arm for arm in group.arms}]


def twin_of(arm: str) -> str:
    """`mae` of `mae-flops`; empty for others."""
    return arm.removesuffix("-flops") if arm.endswith("-flops") else ""


@dataclass(frozen=True)
class Choice:
    """That a comparison was chosen from several: how many, and its p value corrected for that."""

    arms: int
    p_value: float | None


def better_arm(family: Sequence[Comparison], share: float) -> tuple[Comparison, Choice]:
    """The comparison with the largest ratio, of those significant among them if any is."""
    corrected = holm([c.at[share].p_value for c in family])
    pairs = list(zip(family, corrected, strict=True))
    certain = [(c, p) for c, p in pairs if c.at[share].above_one and p is not None and p < ALPHA]
    chosen, p_value = max(certain or pairs, key=lambda pair: pair[0].at[share].ratio or 0.0)
    return chosen, Choice(len(family), p_value)


def rival_in_words(comparison: Comparison, share: float) -> str:
    """Another masked arm at the same target, so that the choice can be judged."""
    found, name = comparison.at[share], arm_name(comparison.first)
    if found.ratio is None:
        return f"{name}: no ratio ({found.why})."
    test = "" if found.p_value is None else f", {p_of_ratio(found)}"
    return f"{name}: {ratio_in_words(found)}{test}."


def nothing_to_compare(group: GroupSummary) -> Statement:
    """Why there is no comparison: masked arms that learned nothing, or none at all."""
    idle = [arm for arm in group.untrained if method_of(arm) in MIM]
    if idle:
        names = " and ".join(map(arm_name, idle))
        text = f"{names} did not learn the pretext task: no speed-up can be measured."
        return Statement("warning", text)
    return Statement("warning", "No masked arm could be compared with another arm.")


def primary_share(study: Study) -> float:
    """The target share fixed before the study ran."""
    return float(study.about.get("settings", {}).get("primary", PRIMARY))


def fixed_beforehand(study: Study) -> str:
    """What was fixed before any run was seen, as far as the study's own files show it."""
    rest = "All other ratios and p values are exploratory and not corrected for their number."
    first = study.about.get("asked_first")
    if first is None:
        return (
            "Nothing in these results shows when the headline's target, smoothing and setting were "
            f"chosen. {rest}"
        )
    now = headline_settings(study.about["settings"], study.about.get("config", {}))
    changed = [
        f"{name} from {first[name]} to {now[name]}"
        for name in now
        if name in first and first[name] != now[name]
    ]
    if changed:
        return (
            f"Changed after the study had begun: {', '.join(changed)}. So the headline is "
            "exploratory, as all other ratios and p values are; nothing corrects for that."
        )
    return (
        "The headline's setting, target and smoothing were on file before the first run, and its p "
        f"is corrected for the masked arms it was chosen from. {rest}"
    )


def speed_statement(
    comparison: Comparison, share: float, reference: str, choice: Choice | None = None
) -> Statement:
    """Whether one arm was faster than another at a target, as far as the pairs carry."""
    found = comparison.at[share]
    first, second = arm_name(comparison.first), arm_name(comparison.second)
    goal = f"{100 * share:g} % of {arm_name(reference)}'s best score"
    if found.ratio is None:
        text = f"No speed-up of {first} over {second} can be stated."
        return Statement("warning", text, f"To {goal}: {found.why}.")
    ratio, measured = ratio_in_words(found), measured_in_words(comparison, share, goal, choice)
    corrected = found.p_value if choice is None else choice.p_value
    certain = corrected is not None and corrected < ALPHA
    if found.above_one and certain:
        if found.pairs < CLAIM_PAIRS:
            measured += f" A claim would want {CLAIM_PAIRS} seeds."
        return Statement("finding", f"{first} converged {ratio} as fast as {second}.", measured)
    if found.below_one and certain:
        return Statement("warning", f"{first} converged more slowly than {second}.", measured)
    if (found.above_one or found.below_one) and choice:
        measured += f" That is too little for the better of {choice.arms} masked arms."
    text = f"No significant speed-up of {first} over {second}."
    if found.p_value is None and found.pairs >= MIN_PAIRS:
        text = f"A speed-up of {first} over {second} cannot be tested."
    return Statement("neutral", text, measured)


def measured_in_words(
    comparison: Comparison, share: float, goal: str, choice: Choice | None
) -> str:
    """The ratio, its interval and test, and how many seeds it rests on."""
    found = comparison.at[share]
    ratio, interval = ratio_in_words(found), interval_in_words(found)
    if found.p_value is None:
        return f"Measured {ratio} to {goal}; {interval}."
    test = p_of_ratio(found)
    if choice and choice.arms > 1 and choice.p_value is not None:
        test += f" ({p_in_words(choice.p_value)} by Holm as one of {choice.arms} masked arms)"
    why = "" if found.bound == "exact" else f" {found.why[0].upper()}{found.why[1:]}"
    return f"{ratio} to {goal}: {interval}, {test}; {seeds_in_words(comparison, share)}.{why}"


def seeds_in_words(comparison: Comparison, share: float) -> str:
    """`5 seeds`, or `4 of 5 seeds` where some were not run or failed."""
    pairs, planned = comparison.at[share].pairs, comparison.planned
    if pairs < planned:
        return f"{pairs} of {planned} seeds"
    return f"{pairs} seed{'s' if pairs != 1 else ''}"


def gate_statements(study: Study) -> list[Statement]:
    """One sentence for each pretraining: learned or not, loss against the baseline."""
    return [gate_statement(pretraining) for pretraining in study.pretraining]


def gate_statement(pretraining: Row) -> Statement:
    """Whether a pretext task was learned, with the loss and what knowing nothing gives."""
    name = arm_name(pretraining["arm"])
    if pretraining.get("variant"):
        name = f"{name} ({pretraining['variant']})"
    loss, baseline = pretraining.get("loss"), pretraining.get("floor")
    what = "chance" if method_of(pretraining["arm"]) == "simclr" else "each patch's mean"
    if loss is None or baseline is None:
        figures = "Its loss against a trivial predictor is not known."
    else:
        figures = f"Loss {loss:.3f} against {baseline:.3f} for {what}."
    who = "it"
    if pretraining.get("seed") is not None:
        name, who = f"{name}, seed {pretraining['seed']},", arm_name(pretraining["arm"])
    if pretraining["trained"] is None or (pretraining["method"] == "given" and loss is None):
        return Statement("neutral", f"{name} is compared as it was given.", figures)
    if pretraining["trained"]:
        return Statement("finding", f"{name} learned its pretext task.", figures)
    text = f"{name} did not learn its pretext task, so {who} is not compared."
    return Statement("warning", text, figures)


def secondary_statements(study: Study, groups: Sequence[GroupSummary]) -> list[Statement]:
    """Speed over scratch, final scores of masked arms, and pretraining cost, first group."""
    group = groups[0]
    share = primary_target(group.targets, primary_share(study)).share
    family = headline_family(group)
    found = [
        speed_statement(comparison, share, group.reference)
        for comparison in group.comparisons
        if comparison not in family
    ]
    masked = [c for c in group.comparisons if method_of(c.first) in MIM]
    lost = [s for g in groups for arm in g.arms if (s := lost_statement(g, arm)) is not None]
    return [*lost, *found, *map(final_statement, masked), *cost_statements(group)]


def lost_statement(group: GroupSummary, arm: ArmSummary) -> Statement | None:
    """Which runs of an arm are not there, and what that does to its figures."""
    parts = []
    if arm.diverged:
        parts.append(
            f"{seed_list(arm.diverged)} diverged, which counts as never reaching a target and is "
            "left out of scores and areas"
        )
    if arm.missing:
        parts.append(f"{seed_list(arm.missing)} not run or failed, which no figure counts")
    if not parts:
        return None
    text = f"Not all runs of {arm_name(arm.arm)} are there ({group.group.title})."
    return Statement("warning", text, f"{'; '.join(parts).capitalize()}.")


def final_statement(comparison: Comparison) -> Statement:
    """Difference of the final scores of two arms."""
    first, second = arm_name(comparison.first), arm_name(comparison.second)
    found: PairedDifference = comparison.final
    if found.mean is None:
        return Statement("neutral", f"Final score of {first} and {second}: {found.why}.")
    gap = f"{first} ended {found.mean:+.3f} against {second}"
    if found.pairs < comparison.planned:
        gap += f" over {found.pairs} of {comparison.planned} seeds"
    if found.p_value is None or found.low is None or found.high is None:
        return Statement("neutral", f"{gap}.", f"{found.why[0].upper()}{found.why[1:]}.")
    figures = f"95 % interval {found.low:+.3f} to {found.high:+.3f}, {p_in_words(found.p_value)}."
    if found.p_value < ALPHA:
        return Statement("finding", f"{gap}, a significant difference.", figures)
    return Statement("neutral", f"{gap}, not significant.", figures)


def cost_statements(group: GroupSummary) -> list[Statement]:
    """What pretraining does to the ratios over scratch when its own cost is counted."""
    speeds = []
    for comparison in group.comparisons:
        whole = comparison.ledgers["with pretraining", "flops"]
        if comparison.second == SCRATCH and whole.ratio is not None:
            speeds.append(f"{arm_name(comparison.first)} {ratio_in_words(whole)}")
    if not speeds:
        return []
    text = "With the FLOPs of pretraining counted, for one task alone, over scratch:"
    return [Statement("neutral", text, ", ".join(speeds) + ".")]
