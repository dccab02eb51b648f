"""Words to arguments: every way in which tyro refuses words is one line that says what to write."""

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import tyro
from tyro import _errors as tyro_errors

from mim3d.dataio.errors import Mim3dError
from mim3d.engine.commands.arguments import UsageError, in_one_line, parse


@dataclass(frozen=True)
class Inner:
    """Settings of a part."""

    kind: Literal["plain", "fancy"] = "plain"
    sizes: tuple[int, int, int] | None = None
    """Three of them."""
    rate: float = 0.5
    on: bool = False

    def __post_init__(self) -> None:
        if self.rate > 1.0:
            raise Mim3dError(f"inner.rate {self.rate} must be at most 1")


@dataclass(frozen=True)
class Outer:
    """Settings of the whole."""

    place: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PLACE")]
    """Where it goes."""
    inner: Inner = field(default_factory=Inner)
    many: tuple[str, ...] = ()


def asked(*words: str, **options: Any) -> Outer:
    return parse(Outer, words, "mim3d x", **options)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ((), "missing PLACE (Where it goes)"),
        (("--far", "1"), "missing PLACE"),
        (("a", "--inner.kind", "odd"), "--inner.kind takes plain | fancy, got odd"),
        (("a", "--inner.kind=odd"), "--inner.kind takes plain | fancy, got odd"),
        (("a", "--inner.sizes", "1", "2"), "--inner.sizes takes INT INT INT, got 1, 2"),
        (("a", "--inner.sizes", "1", "2", "x"), "--inner.sizes takes INT INT INT, got 1, 2, x"),
        (("a", "--inner.sizes", "None"), "--inner.sizes takes INT INT INT, got None"),
        (("a", "--inner.rate", "half"), "--inner.rate takes FLOAT, got half"),
        (("a", "--inner.rate"), "--inner.rate takes FLOAT, got nothing"),
        (("a", "--inner.rate", "2"), "inner.rate 2.0 must be at most 1"),
        (("a", "--inner.on", "yes"), "Unrecognized options: yes"),
        (("a", "--inner.far", "1"), "Unrecognized options: --inner.far, 1"),
        (("a", "[bold]b[/bold]"), "Unrecognized options: [bold]b[/bold]"),
    ],
)
def test_wrong_words_are_told_in_one_line(words: tuple[str, ...], wanted: str) -> None:
    with pytest.raises(UsageError) as refused:
        asked(*words)
    message = str(refused.value)
    assert message.startswith(wanted) and message.endswith("; see mim3d x --help")
    assert "\n" not in message


@dataclass(frozen=True)
class Writing:
    """Where it is written."""

    out: Path = Path("run")


@pytest.mark.parametrize("words", [("--out", ""), ("--out=",)])
def test_a_place_that_is_empty_is_not_this_folder(words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match=r"--out is empty, .* \. is this folder"):
        parse(Writing, words, "mim3d x")
    assert parse(Writing, ("--out", "."), "mim3d x").out == Path()
    assert parse(Writing, (), "mim3d x").out == Path("run")


def test_every_event_of_tyro_is_known_or_told_in_general() -> None:
    known = {"MissingArgs", "UnrecognizedArgs", "InvalidChoice", "BadValue", "InstantiationFailure"}
    events = {event.__name__ for event in tyro_errors.ParseErrorEvent.__subclasses__()}
    # Groups and subcommands, which no command here has.
    assert events - known == {
        "MissingMutexGroup",
        "MissingSubcommand",
        "MutexConflict",
        "SubcommandConflict",
    }
    other = tyro_errors.SubcommandConflict("x", "a", "b", "--c", False)
    assert in_one_line(other, []) == "the arguments cannot be read"


def test_idle_fields_are_no_options_and_keep_their_value() -> None:
    start = Outer("here", Inner(rate=0.25))
    kept = asked("there", "--inner.kind", "fancy", default=start, left_out={Inner: ("rate",)})
    assert kept == Outer("there", Inner("fancy", rate=0.25))
    with pytest.raises(UsageError, match=r"Unrecognized options: --inner\.rate, 1"):
        asked("there", "--inner.rate", "1", default=start, left_out={Inner: ("rate",)})


def test_an_alias_is_another_name_and_errors_tell_the_full_one() -> None:
    aliases = {Inner: {"sizes": "--sizes"}}
    assert asked("a", "--sizes", "1", "2", "3", aliases=aliases).inner.sizes == (1, 2, 3)
    with pytest.raises(UsageError, match=r"--inner\.sizes takes INT INT INT, got 4"):
        asked("a", "--sizes=4", aliases=aliases)


def test_help_goes_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        asked("--help")
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "Settings of the whole." in shown and "--json FILE" in shown and "None}" not in shown


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("a --inner.rate 0.1 --inner.rate 0.2", "`--inner.rate 0.1` and `--inner.rate 0.2`"),
        ("--inner.rate=0.1 a --inner.rate=0.2", "`--inner.rate 0.1` and `--inner.rate 0.2`"),
        ("a --inner.on --inner.no-on", "`--inner.on` and `--inner.no-on`"),
        ("--inner.on a --inner.no_on", "`--inner.on` and `--inner.no-on`"),
        ("a --inner.sizes 1 2 3 --inner.sizes=1 2 4", "`--inner.sizes 1 2 3` and"),
        ("a --inner.rate -1 --rate -2", "`--inner.rate -1` and `--rate -2`"),
        ("a --many b c --many d", "write --many b c d"),
        ("a --many b --inner.on --many c --many 'd e'", "write --many b c 'd e'"),
    ],
)
def test_an_option_given_twice_is_refused_with_both_values(words: str, wanted: str) -> None:
    with pytest.raises(UsageError) as refused:
        asked(*shlex.split(words), aliases={Inner: {"rate": "--rate"}})
    assert wanted in str(refused.value) and "\n" not in str(refused.value)


def test_the_same_said_twice_is_taken_and_the_remedy_for_several_values_too() -> None:
    words = "a --inner.rate 0.1 --many b c --inner.on --inner.rate 0.1 --inner.on"
    again = asked(*shlex.split(words))
    assert again.inner.rate == 0.1 and again.inner.on and again.many == ("b", "c")
    assert asked("a", "--many", "b", "c", "d").many == ("b", "c", "d")
    assert asked("--inner.kind", "fancy", "--", "--inner.kind").place == "--inner.kind"
