"""What a study found, in words first, none of them stronger than the numbers behind them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from mim3d.engine.speedup import CLAIM_PAIRS, MIN_PAIRS, PairedDifference, PairedRatio
from mim3d.engine.study_results import SCRATCH, Row, Study
from mim3d.engine.study_summary import (
    MIM,
    PRIMARY,
    Comparison,
    GroupSummary,
    method_of,
    primary_target,
)

NAMES = {"scratch": "scratch", "mae": "MAE", "simmim": "SimMIM", "simclr": "SimCLR"}


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


def arm_name(arm: str) -> str:
    """How an arm is written: `MAE`, `SimCLR (equal FLOPs)`."""
    method, _, rest = arm.partition("-")
    name = NAMES.get(method)
    if name is None:
        return arm
    return f"{name} (equal FLOPs)" if rest == "flops" else " ".join(filter(None, [name, rest]))


def headline(study: Study, groups: Sequence[GroupSummary]) -> Statement:
    """The one sentence: the better masked arm over SimCLR, or over scratch where that fails."""
    group = groups[0]
    if study.about.get("ablation") and not any(g.comparisons for g in groups):
        return best_setting(study, groups)
    found = [c for c in group.comparisons if method_of(c.first) in MIM]
    over_simclr = [c for c in found if method_of(c.second) == "simclr"]
    candidates = over_simclr or [c for c in found if c.second == SCRATCH]
    if not candidates:
        return nothing_to_compare(group)
    share = primary_target(group.targets, primary_share(study)).share
    chosen = max(candidates, key=lambda c: c.at[share].ratio or 0.0)
    statement = speed_statement(chosen, share, group.reference)
    rivals = {c.first for c in candidates} - {chosen.first}
    extra = f"{group.group.title[0].upper()}{group.group.title[1:]}." if len(groups) > 1 else ""
    if rivals:
        extra += f" {arm_name(chosen.first)} is the better of {len(rivals) + 1} masked arms."
    return replace(statement, detail=f"{statement.detail} {extra}".strip())


def best_setting(study: Study, groups: Sequence[GroupSummary]) -> Statement:
    """Of an ablation without rival arms: each arm's setting with the largest final score."""
    best: dict[str, tuple[float, str]] = {}
    for group in groups:
        for arm in group.arms:
            score = fmean(arm.final.values()) if arm.final else 0.0
            best[arm.arm] = max(best.get(arm.arm, (0.0, "")), (score, group.group.variant))
    metric = study.about.get("metric", "Dice")
    told = [
        f"{arm_name(arm)} with {variant.replace('_', ' ') or 'its own settings'} ({score:.3f})"
        for arm, (score, variant) in best.items()
    ]
    text = f"{str(study.about['ablation']).capitalize()} varied: where final {metric} was largest."
    return Statement("neutral", text, "; ".join(told) + ".")


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


def speed_statement(comparison: Comparison, share: float, reference: str) -> Statement:
    """Whether one arm was faster than another at a target, as far as the pairs carry."""
    found = comparison.at[share]
    first, second = arm_name(comparison.first), arm_name(comparison.second)
    goal = f"{100 * share:g} % of {arm_name(reference)}'s best score"
    seeds = f"{found.pairs} seed{'s' if found.pairs != 1 else ''}"
    ratio, interval = ratio_in_words(found), interval_in_words(found)
    if found.ratio is None:
        text = f"No speed-up of {first} over {second} can be stated."
        return Statement("warning", text, f"To {goal}: {found.why}.")
    test = "" if found.p_value is None else f", {p_in_words(found.p_value)}"
    measured = f"{ratio} to {goal}: {interval}{test}; {seeds}."
    if found.above_one:
        if found.pairs < CLAIM_PAIRS:
            measured += f" A claim would want {CLAIM_PAIRS} seeds."
        text = f"{first} converged {ratio} as fast as {second}."
        return Statement("finding", text, measured)
    if found.below_one:
        return Statement("warning", f"{first} converged more slowly than {second}.", measured)
    if found.pairs < MIN_PAIRS:
        measured = f"Measured {ratio} to {goal}; {interval}."
    return Statement("neutral", f"No significant speed-up of {first} over {second}.", measured)


def ratio_in_words(found: PairedRatio) -> str:
    """`1.42×`, `at least 1.42×`, or a dash."""
    if found.ratio is None:
        return "–"
    bound = "" if found.bound == "exact" else f"{found.bound} "
    return f"{bound}{found.ratio:.2f}×"


def interval_in_words(found: PairedRatio) -> str:
    """The 95 % interval as far as it is supported, or why there is none."""
    if found.low is not None and found.high is not None:
        return f"95 % interval {found.low:.2f} to {found.high:.2f}"
    if found.low is not None:
        return f"95 % interval from {found.low:.2f} up"
    if found.high is not None:
        return f"95 % interval up to {found.high:.2f}"
    return found.why


def gate_statements(study: Study) -> list[Statement]:
    """One sentence for each pretraining: learned or not, loss against the floor."""
    return [gate_statement(pretraining) for pretraining in study.pretraining]


def gate_statement(pretraining: Row) -> Statement:
    """Whether a pretext task was learned, with the loss and what knowing nothing gives."""
    name = arm_name(pretraining["arm"])
    if pretraining.get("variant"):
        name = f"{name} ({pretraining['variant']})"
    loss, floor = pretraining.get("loss"), pretraining.get("floor")
    what = "chance" if method_of(pretraining["arm"]) == "simclr" else "each patch's mean"
    if loss is None or floor is None:
        figures = "Its loss against a trivial predictor is not known."
    else:
        figures = f"Loss {loss:.3f} against {floor:.3f} for {what}."
    if pretraining["trained"]:
        return Statement("finding", f"{name} learned its pretext task.", figures)
    text = f"{name} did not learn its pretext task, so it is not compared."
    return Statement("warning", text, figures)


def secondary_statements(study: Study, groups: Sequence[GroupSummary]) -> list[Statement]:
    """Speed over scratch, final scores of masked arms, and pretraining cost, first group."""
    group = groups[0]
    share = primary_target(group.targets, primary_share(study)).share
    found = [
        speed_statement(comparison, share, group.reference)
        for comparison in group.comparisons
        if comparison.second == SCRATCH
    ]
    masked = [c for c in group.comparisons if method_of(c.first) in MIM]
    return [*found, *map(final_statement, masked), *cost_statements(group)]


def final_statement(comparison: Comparison) -> Statement:
    """Difference of the final scores of two arms."""
    first, second = arm_name(comparison.first), arm_name(comparison.second)
    found: PairedDifference = comparison.final
    if found.mean is None:
        return Statement("neutral", f"Final score of {first} and {second}: {found.why}.")
    gap = f"{first} ended {found.mean:+.3f} against {second}"
    if found.p_value is None or found.low is None or found.high is None:
        return Statement("neutral", f"{gap}.", f"{found.why[0].upper()}{found.why[1:]}.")
    figures = f"95 % interval {found.low:+.3f} to {found.high:+.3f}, {p_in_words(found.p_value)}."
    if found.p_value < 0.05:
        return Statement("finding", f"{gap}, a significant difference.", figures)
    return Statement("neutral", f"{gap}, not significant.", figures)


def p_in_words(p_value: float) -> str:
    """`p = 0.012`, or `p < 0.001`."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"


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
