"""Everything a report states, in order: the headline and what stands below it."""

from collections.abc import Sequence

from mim3d.engine.analysis.ablation import Ablation
from mim3d.engine.analysis.ablation_statement import ablation_statement
from mim3d.engine.analysis.description import lost_statement, secondary_statements
from mim3d.engine.analysis.results import Study
from mim3d.engine.analysis.summary import GroupSummary
from mim3d.engine.analysis.verdict import Statement, headline


def first_statement(
    study: Study, groups: Sequence[GroupSummary], ablation: Ablation | None
) -> Statement:
    """The headline: of an ablation what its settings gave, else who converged faster."""
    return ablation_statement(study, ablation) if ablation else headline(study, groups)


def further_statements(
    study: Study, groups: Sequence[GroupSummary], ablation: Ablation | None
) -> list[Statement]:
    """What else was found; of an ablation only what is missing, for its settings have a table."""
    if ablation is None:
        return secondary_statements(study, groups)
    lost = (lost_statement(study, group, arm) for group in groups for arm in group.arms)
    return [statement for statement in lost if statement is not None]
