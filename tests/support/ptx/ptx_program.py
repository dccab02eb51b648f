"""PTX text of one kernel as a list of instructions."""

import re
from dataclasses import dataclass


class UnknownInstructionError(Exception):
    """An instruction that this machine does not know: the test must not pass over it."""


@dataclass(frozen=True)
class Instruction:
    """`@predicate opcode operands`; `parts` are the opcode's, as in ("ld", "global", "v4", "b32").

    `negated` runs it where the predicate is false.
    """

    parts: tuple[str, ...]
    operands: tuple[str, ...]
    predicate: str | None = None
    negated: bool = False

    @property
    def kind(self) -> str:
        """Type of what it works on: the last part, such as s32."""
        return self.parts[-1]


@dataclass(frozen=True)
class Program:
    """A kernel: parameter names in order, threads of a block, code, and where labels stand."""

    parameters: tuple[str, ...]
    threads: int
    code: tuple[Instruction, ...]
    labels: dict[str, int]


STATEMENT = re.compile(r"^(?:@(!?)(%p\d+)\s+)?([a-z][\w.:]*)\s*(.*)$", re.S)
LABEL = re.compile(r"^\{?\s*(\$?[\w$]+):\s*")


def parse(ptx: str) -> Program:
    """The one `.entry` of a module; ValueError for a statement of no known form."""
    entry = ptx[ptx.index(".entry") :]
    head, body = entry.split("{", 1)
    body = re.sub(r"//[^\n]*|/\*.*?\*/", "", body, flags=re.S)
    parameters = re.findall(r"\.param \.\w+ (?:\.ptr \.\w+ \.align \d+ )?(\w+)", head)
    threads = re.search(r"\.reqntid (\d+)", head)
    if threads is None:
        raise ValueError("the kernel does not tell its threads (.reqntid)")
    code: list[Instruction] = []
    labels: dict[str, int] = {}
    for text in re.split(r"[;\n]", body):
        statement = text.strip()
        while not statement.startswith(".") and (label := LABEL.match(statement)):
            labels[label[1]] = len(code)
            statement = statement[label.end() :].strip()
        statement = re.sub(r"^\{\s*(?!%)", "", statement)  # a scope opens
        if statement in ("", "}") or statement.startswith("."):
            continue
        found = STATEMENT.match(statement)
        if found is None:
            raise ValueError(f"no PTX statement: {statement!r}")
        negated, predicate, opcode, rest = found.groups()
        operands = split_operands(rest)
        code.append(Instruction(tuple(opcode.split(".")), operands, predicate, negated == "!"))
    return Program(tuple(parameters), int(threads[1]), tuple(code), labels)


def split_operands(text: str) -> tuple[str, ...]:
    """Operands at the outer commas: `{%r1, %r2}` and `[%rd1 + 4]` are one each."""
    found = re.findall(r"(?:\{[^}]*\}|\[[^\]]*\]|[^,{\[])+", text)
    return tuple(part.strip() for part in found if part.strip())
