"""What a report is made of: sections, each a title and blocks that the template knows by `kind`."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from mim3d.engine.analysis.ablation import Ablation
from mim3d.engine.analysis.results import Study
from mim3d.engine.analysis.summary import GroupSummary
from mim3d.engine.analysis.verdict import Statement
from mim3d.engine.report.plots import Chart, Plotter


@dataclass(frozen=True)
class Content:
    """What every section is made from: results, what they say, and where figures go."""

    study: Study
    groups: list[GroupSummary]
    ablation: Ablation | None
    plotter: Plotter

    @property
    def metric(self) -> str:
        """Name of the score."""
        return str(self.study.about.get("metric", "Dice"))

    @property
    def shown_groups(self) -> list[GroupSummary]:
        """Groups with a section of their own: of an ablation those in which arms are compared."""
        if self.ablation is None:
            return self.groups
        return [group for group in self.groups if group.comparisons]


@dataclass(frozen=True)
class Table:
    """Header and rows; the first column is a heading, `note` stands below."""

    kind: ClassVar = "table"
    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Charts:
    """Charts one below the other, or side by side where the page is wide enough."""

    kind: ClassVar = "charts"
    charts: tuple[Chart, ...]
    paired: bool = False


@dataclass(frozen=True)
class Picture:
    """A PNG inside the page, or without `data` why there is none; phones scroll along a `strip`."""

    kind: ClassVar = "picture"
    title: str
    data: str
    caption: str = ""
    strip: bool = False


@dataclass(frozen=True)
class Note:
    """A paragraph in small print."""

    kind: ClassVar = "note"
    text: str


@dataclass(frozen=True)
class Headline:
    """The report's first sentence; above it what report this is, and loud warnings."""

    kind: ClassVar = "headline"
    line: str
    banners: tuple[str, ...]
    statement: Statement


@dataclass(frozen=True)
class Statements:
    """Sentences with what they rest on."""

    kind: ClassVar = "statements"
    statements: tuple[Statement, ...]


@dataclass(frozen=True)
class Facts:
    """Names and values: `facts` as a strip, `configuration` in columns, `splits` as paragraphs."""

    kind: ClassVar = "facts"
    pairs: tuple[tuple[str, str], ...]
    style: Literal["facts", "configuration", "splits"] = "facts"
    title: str = ""


@dataclass(frozen=True)
class Lines:
    """A list of sentences."""

    kind: ClassVar = "lines"
    lines: tuple[str, ...]


Block = Table | Charts | Picture | Note | Headline | Statements | Facts | Lines


@dataclass(frozen=True)
class Section:
    """One part of the page; the first, the page's header, has no title."""

    title: str
    blocks: tuple[Block, ...]
