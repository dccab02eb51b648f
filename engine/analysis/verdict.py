"""What a study found, in words first, none of them stronger than the numbers behind them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mim3d.engine.analysis.family import (
    PAPER_RATIO,
    Family,
    first_groups,
    planned_family,
    read_family,
    runs_awaited,
)
from mim3d.engine.analysis.naming import capital, interim, one_pretraining, pair_names, so_far
from mim3d.engine.analysis.results import TOLERATED, Study, is_of
from mim3d.engine.analysis.speedup import CLAIM_PAIRS, MIN_PAIRS, joint_interval
from mim3d.engine.analysis.summary import MIM, Comparison, GroupSummary, method_of
from mim3d.engine.analysis.words import (
    arm_name,
    beside,
    interval_in_words,
    on_encoder,
    p_of_ratio,
    pretrained_arm,
    ratio_in_words,
    seed_list,
)
from mim3d.engine.study.config import Row
from mim3d.engine.study.gather import headline_settings


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

    Its p value is corrected (Holm) for all that the family names.
    """
    firsts = first_groups(groups)
    family = read_family(study, *firsts)
    if not family.members:
        return nothing_to_compare(firsts)
    of_encoder = {group.group.encoder: group for group in firsts}
    group = of_encoder[family.chosen.encoder]
    awaited = runs_awaited(study, *firsts)
    statement = speed_statement(study, group, family, family.chosen, awaited)
    extra = [f"{capital(group.group.title)}."] if len(groups) > 1 else []
    rivals = [c for c in family.members if c is not family.chosen]
    extra += [rival_in_words(study, of_encoder[c.encoder], family, c) for c in rivals]
    return replace(statement, detail=" ".join(filter(None, [statement.detail, *extra])))


def rival_in_words(
    study: Study, group: GroupSummary, family: Family, comparison: Comparison
) -> str:
    """Another member of the family, so that the choice can be judged."""
    found = family.ratio_of(comparison)
    first, _ = pair_names(study, group, comparison)
    name = capital(first) + on_encoder(comparison.encoder)
    if found.ratio is None:
        return f"{name}: no ratio ({found.why})."
    corrected = family.p_of(comparison)
    if corrected is None:
        return f"{name}: {ratio_in_words(found)} ({interval_in_words(found)})."
    rests_on = f"{interval_in_words(found)}; {seeds_in_words(found.pairs, comparison.planned)}"
    text = f"{name}: {ratio_in_words(found)} ({rests_on}), {p_of_ratio(found, corrected)} by Holm."
    text += why_a_bound(family, comparison) + excluded_in_words(family, comparison)
    return text + failed_and_counted(study, group, comparison.first)


def nothing_to_compare(groups: Sequence[GroupSummary]) -> Statement:
    """Why there is no comparison: masked arms that learned nothing, or none at all."""
    idle = [
        arm_name(arm) + on_encoder(group.group.encoder)
        for group in groups
        for arm in group.untrained
        if method_of(arm) in MIM
    ]
    if idle:
        names = " and ".join(idle)
        text = f"{names} did not learn the pretext task: no speed-up can be measured."
        return Statement("warning", text)
    return Statement("warning", "No masked arm could be compared with another arm.")


def speed_statement(
    study: Study, group: GroupSummary, family: Family, comparison: Comparison, awaited: bool
) -> Statement:
    """Whether one arm was faster than another at the primary target, as far as the pairs carry.

    `awaited` says that runs which the family rests on are still to come.
    """
    found = family.ratio_of(comparison)
    first, second = pair_names(study, group, comparison)
    goal = f"{100 * family.share:g} % of {arm_name(group.reference)}'s best score"
    now = so_far(awaited)
    if found.ratio is None:
        few = 0 < found.pairs < MIN_PAIRS
        text = f"No speed-up of {first} over {second} can be stated{now}."
        if few:
            text = f"{undecided(first, second, family, comparison)}{now}."
        why = f"To {goal}: {found.why}.{interim(awaited)}"
        return Statement("neutral" if few else "warning", text, why)
    measured = measured_in_words(family, comparison, goal)
    measured += excluded_in_words(family, comparison)
    measured += one_pretraining(study, group, comparison)
    measured += failed_and_counted(study, group, comparison.first, comparison.second)
    measured += interim(awaited)
    certain = family.certain(comparison)
    if found.above_one and certain:
        if found.pairs < CLAIM_PAIRS:
            measured += f" A claim would want {CLAIM_PAIRS} seeds."
        text = f"{capital(first)} converged {ratio_in_words(found)} as fast as {second}{now}."
        return Statement("neutral" if awaited else "finding", text, measured)
    if found.below_one and certain:
        text = f"{capital(first)} converged more slowly than {second}{now}."
        return Statement("neutral" if awaited else "warning", text, measured)
    if (found.above_one or found.below_one) and family.size > 1:
        measured += f" That is too little for the better of {members_in_words(family)}."
    text = f"{undecided(first, second, family, comparison)}{now}."
    return Statement("neutral", text, measured)


def members_in_words(family: Family) -> str:
    """`2 masked arms`, or `2 arms` where others are compared too."""
    masked = all(method_of(member.first) in MIM for member in family.members)
    return f"{family.size} {'masked ' * masked}arms"


def failed_and_counted(study: Study, group: GroupSummary, *arms: str) -> str:
    """Which seeds of some arms count although their pretraining learned nothing."""
    failed = {arm: study.untrained(group.group, arm) for arm in arms}
    return "".join(
        f" Of {arm_name(arm)}'s pretrainings {seed_list(seeds)} did not learn the pretext task, "
        f"and count{'s' * (len(seeds) == 1)} all the same."
        for arm, seeds in failed.items()
        if seeds
    )


def undecided(first: str, second: str, family: Family, comparison: Comparison) -> str:
    """Why nothing is said of a speed-up: too few seeds, no test, or nothing found."""
    found = family.ratio_of(comparison)
    if found.pairs < MIN_PAIRS:
        return f"Too few seeds to test a speed-up of {first} over {second}"
    if found.p_value is None:
        return f"A speed-up of {first} over {second} cannot be tested"
    return f"No significant speed-up of {first} over {second}"


def excluded_in_words(family: Family, comparison: Comparison) -> str:
    """That the interval excludes the speed-up that was reported elsewhere, where it does."""
    contrastive = method_of(comparison.second) == "simclr" and method_of(comparison.first) in MIM
    if not contrastive or not family.excludes(comparison, PAPER_RATIO):
        return ""
    joint = ""
    if family.size > 1:
        ends = joint_interval(family.ratio_of(comparison), family.size)
        found = [beside(end, PAPER_RATIO, 2) for end in ends if end is not None]
        reach = " to ".join(found) if len(found) > 1 else f"up to {found[0]}"
        joint = f", widened for {family.size} comparisons ({reach}),"
    return f" The interval{joint} excludes {PAPER_RATIO:.2f}×."


def measured_in_words(family: Family, comparison: Comparison, goal: str) -> str:
    """The ratio, its interval and test, and how many seeds it rests on."""
    found, corrected = family.ratio_of(comparison), family.p_of(comparison)
    ratio, interval = ratio_in_words(found), interval_in_words(found)
    if found.p_value is None:
        return f"Measured {ratio} to {goal}; {interval}."
    test = p_of_ratio(found)
    if family.size > 1 and corrected is not None:
        by_holm = p_of_ratio(found, corrected)
        test += f" ({by_holm} by Holm as one of {members_in_words(family)})"
    seeds = seeds_in_words(found.pairs, comparison.planned)
    why = why_a_bound(family, comparison)
    return f"{capital(ratio)} to {goal}: {interval}, {test}; {seeds}.{why}"


def why_a_bound(family: Family, comparison: Comparison) -> str:
    """In how many seeds which arm was censored, where the ratio is a bound."""
    found = family.ratio_of(comparison)
    if found.bound == "exact":
        return ""
    why = found.why
    for place, arm in (("first", comparison.first), ("second", comparison.second)):
        why = why.replace(f"the {place} arm", arm_name(arm))
    return f" {capital(why)}"


def seeds_in_words(pairs: int, planned: int) -> str:
    """`5 seeds`, or `4 of 5 seeds` where some were not run or failed."""
    if pairs < planned:
        return f"{pairs} of {planned} seeds"
    return f"{pairs} seed{'s' if pairs != 1 else ''}"


def fixed_beforehand(study: Study) -> str:
    """What was fixed before any run was seen, as far as the study's own files show it."""
    ablation = bool(study.about.get("ablation"))
    hangs_on = "outcome and comparisons" if ablation else "target, smoothing and setting"
    rest = (
        "All other figures, intervals and p values describe: nothing was asked of them beforehand "
        "and none is corrected for their number."
    )
    first = study.about.get("asked_first")
    if first is None or (ablation and "outcome" not in first):
        return f"Nothing in these results shows when the headline's {hangs_on} were chosen. {rest}"
    first = {"encoders": []} | first  # studies from before they could be named
    now = headline_settings(study.about["settings"], study.about.get("config", {}))
    changed = [
        f"{name} from {first[name]} to {now[name]}"
        for name in now
        if name in first and first[name] != now[name]
    ]
    if changed:
        return (
            f"Changed after the study had begun: {', '.join(changed)}. So the headline is "
            "exploratory, as all other figures and p values are; nothing corrects for that."
        )
    if ablation:
        return (
            "The headline's outcome, comparisons and smoothing were on file before the first run, "
            f"and its p is corrected for their number. {rest}"
        )
    on_file = "The headline's setting, target and smoothing were on file before the first run"
    if not planned_family(study, ()):
        return f"{on_file}; its arms name no comparison to test. {rest}"
    return (
        f"{on_file}, and its p is corrected for the masked arms it was chosen from"
        f"{named_family(study)}. {rest}"
    )


def named_family(study: Study) -> str:
    """The comparisons that are tested, where arms have several encoders."""
    family = planned_family(study, ())
    if not any(encoder for encoder, _ in family):
        return ""
    names = [
        f"{arm_name(first)} over {arm_name(second)}{on_encoder(encoder)}"
        for encoder, (first, second) in family
    ]
    return f" ({', '.join(names)})"


def gate_statements(study: Study) -> list[Statement]:
    """One sentence for each pretraining: learned or not, loss against the baseline."""
    return [
        gate_statement(p, p["trained"] is False and is_tolerated(study, p))
        for p in study.pretraining
    ]


def is_tolerated(study: Study, pretraining: Row) -> bool:
    """Whether the arm of a pretraining that learned nothing is compared all the same."""
    arm = pretraining["arm"]
    its = [group for group in study.groups() if is_of(pretraining, group)]
    its = [group for group in its if arm in study.arms(group)]
    return bool(its) and not any(study.is_untrained(group, arm) for group in its)


def gate_statement(pretraining: Row, tolerated: bool = False) -> Statement:
    """Whether a pretext task was learned, with the loss and what knowing nothing gives.

    `tolerated` says that the arm is compared all the same, with the seeds of those that failed.
    """
    name = pretrained_arm(pretraining)
    if pretraining.get("variant"):
        name = f"{name} ({pretraining['variant']})"
    loss, baseline = pretraining.get("loss"), pretraining.get("floor")
    contrasts = method_of(pretraining["arm"]) == "simclr"  # earlier results tell no floor_of
    floor_of = pretraining.get("floor_of", "chance" if contrasts else "patch_mean")
    what = "chance" if floor_of == "chance" else "each patch's mean"
    if loss is None or baseline is None:
        figures = "Its loss against a trivial predictor is not known."
    else:
        figures = f"Loss {loss:.3f} against {baseline:.3f} for {what}."
    who = "it"
    if pretraining.get("seed") is not None:
        name, who = f"{name}, seed {pretraining['seed']},", arm_name(pretraining["arm"])
    if pretraining["trained"] is None and loss is not None:
        text = f"{name} has no baseline, so nobody knows whether its pretext task was learned."
        return Statement("neutral", text, f"Loss {loss:.3f}. It is compared nevertheless.")
    if pretraining["trained"] is None or (pretraining["method"] == "given" and loss is None):
        return Statement("neutral", f"{name} is compared as it was given.", figures)
    if pretraining["trained"]:
        return Statement("finding", f"{name} learned its pretext task.", figures)
    if behind := pretraining.get("behind"):
        which = f"Channel{'s' if len(behind) > 1 else ''} {', '.join(map(str, behind))} (from 0)"
        figures += f" {which} predicted no better than by each patch's own mean."
    if tolerated:
        figures += (
            f" {capital(who)} is compared with all its seeds: of those that are scored no more "
            f"than {100 * TOLERATED:g} % failed."
        )
        return Statement("warning", f"{name} did not learn its pretext task.", figures)
    text = f"{name} did not learn its pretext task, so {who} is not compared."
    return Statement("warning", text, figures)
