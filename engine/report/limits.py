"""What a study cannot show, said before somebody else does."""

from mim3d.engine.analysis.results import Study
from mim3d.engine.analysis.speedup import CLAIM_PAIRS, MIN_PAIRS
from mim3d.engine.analysis.summary import GroupSummary
from mim3d.engine.analysis.verdict import fixed_beforehand
from mim3d.engine.analysis.words import arm_name
from mim3d.engine.study.config import SCRATCH, Row


def limits(study: Study, groups: list[GroupSummary]) -> list[str]:
    """What this study cannot show, said before somebody else does."""
    seeds = len({row["seed"] for row in study.scored})
    found = []
    if study.about.get("synthetic"):
        found.append("The images are generated, not acquired: nothing here is about anatomy.")
    if seeds < MIN_PAIRS:
        found.append(
            f"{seeds} seed{'s' if seeds > 1 else ''}: no interval is supported below {MIN_PAIRS}."
        )
    elif seeds < CLAIM_PAIRS:
        found.append(
            f"{seeds} seeds: a claim would want {CLAIM_PAIRS}. Of so few pairs t intervals lean on "
            "logarithms of ratios being about normal, and bootstrap intervals are too narrow."
        )
    if all(p.get("seed") is None for p in study.pretraining) and study.pretraining:
        found.append(
            "Each arm was pretrained once: seeds vary the fine-tuning, not the pretraining."
        )
    unknown = [arm_name(p["arm"]) for p in study.pretraining if not p["crops"]]
    if unknown:
        found.append(
            f"What the pretraining of {', '.join(unknown)} cost and learned is not known: "
            "ledgers with pretraining are a dash."
        )
    scratch = any(arm.arm == SCRATCH for group in groups for arm in group.arms)
    if not scratch and not study.about.get("ablation"):
        found.append("No scratch arm was run: targets are shares of the first arm's best score.")
    found.append(fixed_beforehand(study))
    found.append(validation_limit(study))
    found += leak_limits(study)
    found.append("One corpus, one encoder size: other data and models may answer otherwise.")
    return found


def validation_limit(study: Study) -> str:
    """What the validation subjects were used for, besides being scored."""
    tuned = any(row.get("tuning") for row in study.rows)
    chose = "chose the learning rates and also " if tuned else ""
    words = f"The validation subjects {chose}make the curves that speed-ups are read off"
    if any(row["split"] == "test" for row in study.scored):
        return f"{words}; final scores are of test subjects, which nothing was chosen by."
    return f"{words}, and the final scores too: no test subjects were scored."


def leak_limits(study: Study) -> list[str]:
    """What is not known of arms given by path."""
    unknown = [p for p in study.pretraining if is_given(p) and p.get("leaked") is None]
    return [
        f"Whether {arm_name(p['arm'])}, given by path, was pretrained on subjects that this study "
        "holds out is not known."
        for p in unknown
    ]


def is_given(pretraining: Row) -> bool:
    """Whether the study did not pretrain the arm itself."""
    return "given" in pretraining or pretraining.get("method") == "given"
