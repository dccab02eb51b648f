"""What a study cannot show, said before somebody else does."""

from mim3d.engine.analysis.ablation import read_ablation
from mim3d.engine.analysis.ablation_family import read_ablation_family
from mim3d.engine.analysis.convergence import never_found, unconverged
from mim3d.engine.analysis.family import first_groups, read_family, runs_awaited
from mim3d.engine.analysis.naming import interim
from mim3d.engine.analysis.results import Study, group_of, is_given
from mim3d.engine.analysis.speedup import CLAIM_PAIRS, MIN_PAIRS
from mim3d.engine.analysis.summary import GroupSummary
from mim3d.engine.analysis.verdict import fixed_beforehand
from mim3d.engine.analysis.words import arm_name
from mim3d.engine.report.pretext import pretraining_name
from mim3d.engine.report.rates import one_choice, unequal_tuning
from mim3d.engine.study.config import ENCODER_SETTINGS, Row
from mim3d.engine.study.encoders import SCRATCH

FEW_SETTINGS = 4


def limits(study: Study, groups: list[GroupSummary]) -> list[str]:
    """What this study cannot show, said before somebody else does."""
    seeds, awaited = tested_seeds(study, groups)
    ablation = bool(study.about.get("ablation"))
    found = [interim(awaited).strip()] * awaited + to_come(study)
    if study.about.get("synthetic"):
        found.append("The images are generated, not acquired: nothing here is about anatomy.")
    if seeds < MIN_PAIRS:
        found.append(
            f"{seeds} seed{'s' if seeds != 1 else ''}, too few to test anything: no interval is "
            f"supported below {MIN_PAIRS}."
        )
    elif seeds < CLAIM_PAIRS:
        normal = "differences" if ablation else "logarithms of ratios"
        found.append(
            f"{seeds} seeds: a claim would want {CLAIM_PAIRS}. Of so few pairs t intervals lean on "
            f"{normal} being about normal, and bootstrap intervals are too narrow."
        )
    if all(p.get("seed") is None for p in study.pretraining) and study.pretraining:
        found.append(
            f"Each {'setting' if ablation else 'arm'} was pretrained once: seeds vary the "
            "fine-tuning, not the pretraining, so what is compared are these encoders, not their "
            "methods."
        )
    unknown = [pretraining_name(p) for p in study.pretraining if not p["crops"]]
    if unknown:
        found.append(
            f"What the pretraining of {', '.join(unknown)} cost and learned is not known: "
            "ledgers with pretraining are a dash."
        )
    scratch = any(arm.arm == SCRATCH for group in groups for arm in group.arms)
    if not scratch and not ablation:
        found.append("No scratch arm was run: targets are shares of the first arm's best score.")
    found += convergence_limits(study, groups)
    found.append(fixed_beforehand(study))
    found += added_later(study)
    if not ablation:
        found += unequal_tuning(study)
    found += one_choice(study)
    found += [validation_limit(study), subjects_limit(study)]
    found += leak_limits(study)
    found.append(encoder_limit(study, groups))
    return found


def tested_seeds(study: Study, groups: list[GroupSummary]) -> tuple[int, bool]:
    """How many seeds the tested comparison of fewest has, and whether more are to come.

    Of what compares nothing, all seeds that were run: scratch may have more than any pair has.
    """
    ablation = read_ablation(study, groups)
    if ablation is not None:
        tested = read_ablation_family(study, ablation)
        pairs, awaited = [member.area.pairs for member in tested.members], tested.awaited
    else:
        firsts = first_groups(groups)
        family = read_family(study, *firsts)
        ratios = [family.ratio_of(member).pairs for member in family.members]
        pairs = list(map(max, ratios, [member.area.pairs for member in family.members]))
        awaited = runs_awaited(study, *firsts)
    everyone = len({row["seed"] for row in study.scored})
    return min(pairs, default=everyone), awaited


def to_come(study: Study) -> list[str]:
    """How many planned runs have no result yet, and of which settings."""
    left = study.about.get("to_come", [])
    if not left:
        return []
    places = [group_of(row).title + few_of(row) for row in left[:FEW_SETTINGS]]
    more = len(left) - FEW_SETTINGS
    places += [f"{more} more setting{'s' * (more > 1)}"] * (more > 0)
    runs = sum(row["runs"] for row in left)
    are = "runs that were planned have" if runs > 1 else "run that was planned has"
    return [f"{runs} {are} no result yet, and nothing here counts them: {'; '.join(places)}."]


def few_of(row: Row) -> str:
    """How many of a setting's planned runs have ended, failed ones too, where some have."""
    ended = row["planned"] - row["runs"]
    return f" ({ended} of {row['planned']} ended)" if ended else ""


def subjects_limit(study: Study) -> str:
    """That one division of the subjects stands behind every seed."""
    splits = study.about.get("splits", {})
    parts = [(name, len(splits.get(name, ()))) for name in ("train", "validation", "test")]
    words = ", ".join(f"{number} {name}" for name, number in parts if number)
    return (
        f"All seeds share one division of the subjects{f' ({words})' if words else ''}: intervals "
        "count the luck of seeds, not that of this division."
    )


def encoder_limit(study: Study, groups: list[GroupSummary]) -> str:
    """How far the encoders go."""
    encoders = dict.fromkeys(group.group.encoder for group in groups)
    if len(encoders) == 1:
        sizes = {n["encoder_parameters"] for n in study.about.get("networks", ())}
        varied = ENCODER_SETTINGS & set(study.about.get("ablation_axes", ()))
        alone = len(sizes) == 1 and not varied
        size = f" of {min(sizes) / 1e6:.2f} M parameters" if alone else " size"
        return f"One corpus, one encoder{size}: other data and models may answer otherwise."
    return (
        f"One corpus, {len(encoders)} encoders of one size each: other data and models may answer "
        "otherwise. Encoders are not compared with one another: they differ in size, decoder and "
        "cost, targets are shares of each one's own scratch, and a method has the same pretext "
        "settings on all, which were not tuned for each."
    )


def convergence_limits(study: Study, groups: list[GroupSummary]) -> list[str]:
    """Arms that still rose when their steps ended, and classes that an arm never found."""
    found = []
    for group in groups:
        if rising := unconverged(group):
            arms = ", ".join(f"{arm_name(arm)} ({gain:+.3f})" for arm, gain in rising.items())
            found.append(
                f"Not converged, {group.group.title}: over the last fifth of the steps still "
                f"rose {arms}. With more steps targets, ratios and final scores may change."
            )
        lost = never_found(study, group.group)
        for classes in dict.fromkeys(map(tuple, lost.values())):
            arms = [arm_name(arm) for arm, own in lost.items() if tuple(own) == classes]
            whole = len(arms) == len(study.arms(group.group)) > 1
            who = "any arm" if whole else ", ".join(arms)
            names = f"{'es' if len(classes) > 1 else ''} {', '.join(map(str, classes))}"
            found.append(
                f"Class{names} {'were' if len(classes) > 1 else 'was'} never found by {who}, "
                f"{group.group.title}: the mean over classes hides that."
            )
    return found


def added_later(study: Study) -> list[str]:
    """Decoders and numbers of labels that joined when results were there to be looked at."""
    began = study.about.get("began_with", {})
    now = study.about.get("config", {})
    found = []
    for name, words in (("heads", "decoder"), ("labels", "number of labels")):
        more = [value for value in now.get(name, ()) if name in began and value not in began[name]]
        if more:
            shown = ", ".join(map(str, more))
            found.append(
                f"Added after the study's first results could be seen: {words} {shown}. What is "
                "said of it describes and was not planned."
            )
    return found


def validation_limit(study: Study) -> str:
    """What the validation subjects were used for, besides being scored."""
    tuned = any(row.get("tuning") for row in study.rows)
    chose = "chose the learning rates and also " if tuned else ""
    searched = bool(study.about.get("search"))
    before = (
        " The validation subjects served the search for pretext settings too, where that had the "
        "same division."
    )
    read = (
        "whose areas are compared" if study.about.get("ablation") else "that speed-ups are read off"
    )
    words = f"The validation subjects {chose}make the curves {read}"
    if any(row["split"] == "test" for row in study.scored):
        words += "; final scores are of test subjects, which nothing in this study was chosen by."
    else:
        words += ", and the final scores too: no test subjects were scored."
    return words + before * searched


def leak_limits(study: Study) -> list[str]:
    """What is not known of arms given by path."""
    unknown = [p for p in study.pretraining if is_given(p) and p.get("leaked") is None]
    return [
        f"Whether {pretraining_name(p)}, given by path, was pretrained on subjects that this study "
        "holds out is not known."
        for p in unknown
    ]
