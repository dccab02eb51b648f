"""The page's header: the headline, what else is stated, and the strip of facts."""

from collections.abc import Sequence

from mim3d.engine.analysis.results import TOLERATED, Study, encoder_title
from mim3d.engine.analysis.statements import first_statement, further_statements
from mim3d.engine.analysis.summary import GroupSummary
from mim3d.engine.analysis.verdict import Statement, gate_statements
from mim3d.engine.analysis.words import arm_name, pretrained_arm
from mim3d.engine.report.section import Content, Facts, Headline, Section, Statements

MOST_GATES = 6
FEW_NAMES = 5
SYNTHETIC = "Synthetic data: generated phantoms. This run proves the plumbing, not the method."


def headline_sections(content: Content) -> list[Section]:
    """The header: it has no title, for the headline is the page's."""
    study, groups, about = content.study, content.groups, content.study.about
    loud = [SYNTHETIC] * bool(about.get("synthetic")) + leaks(study)
    line = (
        f"Convergence study “{about.get('name', '')}”, mim3d {about.get('version', '')}, "
        f"{about.get('date', '')}"
    )
    headline = Headline(line, tuple(loud), first_statement(study, groups, content.ablation))
    more = [*gates(study), *further_statements(study, groups, content.ablation)]
    blocks = (headline, Statements(tuple(more)), Facts(tuple(facts(study, groups))))
    return [Section("", blocks)]


def facts(study: Study, groups: Sequence[GroupSummary]) -> list[tuple[str, str]]:
    """The strip below the headline: what was run, in numbers."""
    rows = study.scored
    seeds = sorted({row["seed"] for row in rows})
    arms = list(dict.fromkeys(arm for group in groups for arm in study.arms(group.group)))
    crops = [p["crops"] for p in study.pretraining if p["crops"]]
    last = max(row["step"] for row in rows)
    encoders = list(dict.fromkeys(encoder_title(group.group.encoder) for group in groups))
    found = [
        ("corpus", study.about.get("corpus", "")),
        ("arms", ", ".join(map(arm_name, arms))),
        *([("encoders", ", ".join(encoders))] if any(encoders) else []),
        ("seeds", ", ".join(map(str, seeds))),
        ("fine-tuning", f"{last:,} steps × {study.about['batch']} crops"),
    ]
    if crops:
        shown = f"{min(crops):,}" if min(crops) == max(crops) else f"{min(crops):,}–{max(crops):,}"
        found.append(("pretraining", f"{len(crops)} × {shown} crops"))
    found.append(("machine", str(study.about.get("machine_line", ""))))
    return found


def gates(study: Study) -> list[Statement]:
    """Whether each pretext task was learned; the number alone where there are many."""
    found = gate_statements(study)
    if len(found) <= MOST_GATES:
        return found
    failed = sum(p["trained"] is False for p in study.pretraining)
    text = f"{len(found) - failed} of {len(found)} pretrainings learned their pretext task."
    rule = "The table below has each."
    if failed:
        rule += f" An arm of which more than {100 * TOLERATED:g} % failed is not compared."
    return [Statement("warning" if failed else "finding", text, rule)]


def leaks(study: Study) -> list[str]:
    """Loud words on arms given by path that were pretrained on held-out subjects."""
    return [
        f"{pretrained_arm(p)} was pretrained on subjects that this study holds out "
        f"({names_in_words(p['leaked'])}): its scores are not of unseen subjects, and no "
        "comparison with it is fair."
        for p in study.pretraining
        if p.get("leaked")
    ]


def names_in_words(names: Sequence[str]) -> str:
    """The first few of many names."""
    more = f" and {len(names) - FEW_NAMES} more" if len(names) > FEW_NAMES else ""
    return ", ".join(names[:FEW_NAMES]) + more
