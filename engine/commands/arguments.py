"""Words of a command line to typed arguments, by tyro; what is wrong with them in one line."""

import dataclasses
import shlex
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import tyro
from tyro import _errors as tyro_errors  # its hook for errors; pyproject.toml holds the version
from tyro.constructors import StructConstructorSpec, StructFieldSpec

from mim3d.dataio.errors import Mim3dError
from mim3d.engine.runs.address import bucket_address
from mim3d.engine.runs.files import refuse_address

Arguments = TypeVar("Arguments")
JSON_HELP = "With --json FILE the figures are written there as well, as by every command."
LeftOut = Mapping[type, Collection[str]]
Aliases = Mapping[type, Mapping[str, str]]


class UsageError(Mim3dError):
    """Words that are no arguments of the command."""


def parse(
    kind: type[Arguments],
    words: Sequence[str],
    prog: str,
    description: str | None = None,
    *,
    default: Arguments | None = None,
    left_out: LeftOut | None = None,
    aliases: Aliases | None = None,
    addresses: Collection[str] = (),
) -> Arguments:
    """The arguments in the words; UsageError in one line where they are none.

    Paths are places of this machine, but those of the fields `addresses` may be in a bucket.

    Every field of `default` (nested ones too) is an option, but those of the classes in `left_out`
    that other settings make idle: they keep their value. `--help` prints and exits.
    """

    def refuse(event: tyro_errors.ParseErrorEvent) -> None:
        raise UsageError(f"{in_one_line(event, words)}; see {prog} --help")

    asked: dict[str, Any] = {
        "prog": prog,
        "description": f"{(description or kind.__doc__ or '').rstrip()}\n\n{JSON_HELP}",
        "config": (tyro.conf.AvoidSubcommands, tyro.conf.DisallowNone),
        "registry": fields_of(left_out or {}, aliases or {}),
        "default": tyro.constructors.MISSING_NONPROP if default is None else default,
    }
    several = sum(word.startswith("--") for word in words) > 1
    if several and not {"-h", "--help"}.intersection(words):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # pyproject.toml holds the version
            refuse_twice(tyro.extras.get_parser(kind, **asked)._actions, words)
    with tyro_errors.on_parse_error(refuse):
        given = tyro.cli(kind, args=list(words), **asked)
    for field in dataclasses.fields(cast(Any, given)):
        place = getattr(given, field.name)
        if isinstance(place, Path):
            refuse_empty(f"--{field.name.replace('_', '-')}", words)
        if isinstance(place, Path) and field.name in addresses:
            bucket_address(place, f"--{field.name}")
        elif isinstance(place, Path):
            refuse_address(place, f"--{field.name}")
    return given


def fields_of(left_out: LeftOut, aliases: Aliases) -> tyro.constructors.ConstructorRegistry:
    """A registry in which fields of some dataclasses are no options, or have other names too."""
    registry = tyro.constructors.ConstructorRegistry()
    asked: list[type] = []

    @registry.struct_rule
    def rule(info: tyro.constructors.StructTypeInfo) -> StructConstructorSpec | None:
        kind = info.type
        if kind in asked or not (kind in left_out or kind in aliases):
            return None
        asked.append(kind)
        whole = cast(StructConstructorSpec, registry.get_struct_spec(info))
        asked.remove(kind)
        others, idle = aliases.get(kind, {}), left_out.get(kind, ())
        fields = [also_called(field, others) for field in whole.fields if field.name not in idle]
        if not idle:
            return dataclasses.replace(whole, fields=tuple(fields))
        return StructConstructorSpec(replacing(kind, info.default), tuple(fields))

    return registry


def replacing(kind: type, start: Any) -> Callable[..., Any]:
    """`start` with other values, under the class's own words in --help."""

    def replaced(**given: Any) -> Any:
        return dataclasses.replace(start, **given)

    replaced.__doc__ = kind.__doc__
    return replaced


def also_called(field: StructFieldSpec, aliases: Mapping[str, str]) -> StructFieldSpec:
    """The field with its other name, where it has one."""
    if field.name not in aliases:
        return field
    kind: Any = Annotated[field.type, tyro.conf.arg(aliases=(aliases[field.name],))]
    return dataclasses.replace(field, type=kind)


def in_one_line(event: tyro_errors.ParseErrorEvent, words: Sequence[str]) -> str:
    """What is wrong, as one clause."""
    match event:
        case tyro_errors.MissingArgs():
            missing = "; ".join(described(found.arg) for found in event.missing_arguments)
            unknown = ", ".join(event.unrecognized_tokens)
            clause = f"missing {missing}" + (f"; unrecognized: {unknown}" if unknown else "")
        case tyro_errors.UnrecognizedArgs():
            clause = f"Unrecognized options: {', '.join(event.tokens)}"
        case tyro_errors.InvalidChoice():
            clause = f"{named(event.argument)} takes {' | '.join(event.choices)}, got {event.value}"
        case tyro_errors.BadValue():
            clause = taken(event.argument, words)
        case tyro_errors.InstantiationFailure(argument=None):
            clause = event.message
        case tyro_errors.InstantiationFailure(argument=wrong) if wrong and wrong.is_positional():
            clause = f"{named(wrong)}: {event.message}"
        case tyro_errors.InstantiationFailure(argument=argument):
            clause = taken(argument, words)
        case _:
            clause = "the arguments cannot be read"
    return clause


def described(argument: Any) -> str:
    """An argument with what it takes and what it is for."""
    name = named(argument)
    takes = "" if argument.is_positional() else f" {metavar(argument)}"
    help = argument.field.helptext
    text = " ".join(str(help() if callable(help) else help).split()).rstrip(".")
    return f"{name}{takes} ({text})"


def taken(argument: Any, words: Sequence[str]) -> str:
    """What an argument takes, and what it was given."""
    if argument.is_positional():
        return f"missing {described(argument)}"
    given = values_of(argument.lowered.name_or_flags, words)
    return f"{named(argument)} takes {metavar(argument)}, got {', '.join(given) or 'nothing'}"


def refuse_without_value(option: str, values: Collection[str], words: Sequence[str]) -> None:
    """UsageError where an option of one or more values stands there with none."""
    if not values and any(word.partition("=")[0] == option for word in words):
        raise UsageError(f"{option} takes NAME=VALUE, one or more, got nothing")


def refuse_twice(known: Sequence[Any], words: Sequence[str]) -> None:
    """UsageError where an option is given twice with other values: the last alone would count.

    Its other names are the same option, and so is --no-OPTION; `known` are argparse's actions.
    """
    actions = {flag: action for action in known for flag in action.option_strings}
    found: dict[str, list[list[str]]] = {}
    for option, values in given_options(words):
        if action := actions.get(option):
            count = action.nargs if isinstance(action.nargs, int) else None
            found.setdefault(action.dest, []).append([option, *values[:count]])
    for several in found.values():
        first = several[0]
        other = next((each for each in several if differs(each, first)), None)
        if other is None:
            continue
        remedy = "one of them alone"
        if "..." in str(actions[first[0]].metavar):  # any number of values, not one of (z, y, x)
            values = dict.fromkeys(value for each in several for value in each[1:])
            remedy = shlex.join([first[0], *values])
        raise UsageError(
            f"`{shlex.join(first)}` and `{shlex.join(other)}` are one option given twice, of which "
            f"only the last would count: write {remedy}"
        )


def differs(option: list[str], other: list[str]) -> bool:
    """Whether an option with its values says something else than the same one there does."""
    return option[1:] != other[1:] or (not other[1:] and option != other)


def given_options(words: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Options as they are called, each with the words behind it up to the next."""
    option, values = "", []
    for word in words:
        if word == "--":
            break
        if not word.startswith("--"):
            values.append(word)
            continue
        if option:
            yield option, values
        name, equals, value = word.partition("=")
        option, values = name.replace("_", "-"), [value] if equals else []
    if option:
        yield option, values


def refuse_empty(option: str, words: Sequence[str]) -> None:
    """UsageError where a place is empty, which would be the folder one is in."""
    if "" in values_of([option], words):
        raise UsageError(
            f"{option} is empty, as of a variable that is not set: name a place; . is this folder"
        )


def metavar(argument: Any) -> str:
    """The kind of its values."""
    return str(argument.lowered.metavar).strip("{}")


def named(argument: Any) -> str:
    """An option by its full name, which stands behind its aliases; a place by what stands there."""
    if not argument.is_positional():
        return argument.lowered.name_or_flags[-1]
    place = str(argument.lowered.metavar)
    return argument.field.intern_name.upper() if place.startswith("{") else place


def values_of(flags: Collection[str], words: Sequence[str]) -> list[str]:
    """The words that follow an option up to the next one."""
    names = {flag.replace("_", "-") for flag in flags}
    found: list[str] = []
    reading = False
    for word in words:
        name, equals, value = word.partition("=")
        if name.replace("_", "-") in names:
            found, reading = ([value] if equals else []), not equals
        elif word.startswith("--"):
            reading = False
        elif reading:
            found.append(word)
    return found
