"""Words of a command line to typed arguments, by tyro; what is wrong with them in one line."""

import io
import re
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from typing import Any, TypeVar

import tyro

from mim3d.dataio.errors import Mim3dError

Arguments = TypeVar("Arguments")
FRAME = re.compile(r"[╭╰╮╯│─]")
MARKUP = re.compile(r"\[/?bold\]")
NONE_OR = re.compile(r"\{None\}\|(\{[^}\n]*\}|\S+)")
JSON_HELP = "--json FILE: write the figures there as well, as every command does."


class UsageError(Mim3dError):
    """Words that are no arguments of the command."""


def parse(
    kind: type[Arguments],
    words: Sequence[str],
    prog: str,
    description: str | None = None,
    **options: Any,
) -> Arguments:
    """The arguments in the words; UsageError in one line where they are none.

    `options` are tyro.cli's own. `--help` prints and exits as it always did.
    """
    told = captured("utf-8")
    try:
        with redirect_stderr(told):
            arguments = tyro.cli(
                kind, args=list(words), prog=prog, description=description, **options
            )
    except SystemExit as ended:
        if not ended.code:
            raise
        raise UsageError(f"{in_one_line(text_of(told))}; see {prog} --help") from None
    print(text_of(told), end="", file=sys.stderr)
    return arguments


def in_one_line(box: str) -> str:
    """What a box of tyro's says before its help texts begin."""
    parts = re.split(r"[─-]{10,}[ │]*\n", box.partition("\n")[2])
    body = next(filter(str.strip, parts), "")
    text = NONE_OR.sub(r"\1", " ".join(MARKUP.sub("", FRAME.sub(" ", body)).split()))
    found = re.match(r"Error parsing (\S+): no type matching (.+) could be .* from \[(.*?)\]", text)
    if found:
        return f"{found[1]} takes {found[2].strip('{}')}, got {found[3].replace(chr(39), '')}"
    text = re.sub(r"^Error parsing (\S+): ", r"\1: ", text).rstrip(".")
    return re.sub(r"^\w+Args: ", "", text) or "the arguments cannot be read"


def captured(encoding: str) -> io.TextIOWrapper:
    """A stream in memory; its encoding decides how tyro draws its frames."""
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)


def text_of(stream: io.TextIOWrapper) -> str:
    """What was written to a captured stream."""
    stream.seek(0)
    return stream.read()


def readable_help(text: str) -> str:
    """tyro's help without its `{None}|`, its frames kept in line, and with what it leaves out."""

    def shorter(found: re.Match[str]) -> str:
        bare = found[1].strip("{}")
        return bare + " " * (len(found[0]) - len(bare))

    return f"{NONE_OR.sub(shorter, text).rstrip()}\n{JSON_HELP}\n"
