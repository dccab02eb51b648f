"""Images of one visit that are one volume of several channels: T1, T2 and FLAIR of a person."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from mim3d.dataio.errors import Rejection, SourceError
from mim3d.dataio.labels.pairing import occasion
from mim3d.dataio.nifti.names import stem
from mim3d.dataio.sources.source import Discovery, Source
from mim3d.dataio.subjects.grouping import counted


def stacked(found: Discovery, channels: Sequence[str], root: str) -> Discovery:
    """The sources with images of one visit stacked in the order of the channels' words.

    A visit that lacks a channel is left out and told; images of other kinds are counted in a note.
    """
    words = [channel.lower() for channel in channels]
    visits: dict[tuple[str, str], dict[str, list[Source]]] = defaultdict(lambda: defaultdict(list))
    others = 0
    for source in found.sources:
        name = source.images[0].removeprefix(root.rstrip("/") + "/")
        word = channel_of(source, name, words)
        if word:
            visit = source.visit or occasion_without(name, word)
            visits[source.subject if not source.visit else "", visit][word].append(source)
        else:
            others += 1
    if not visits:
        problem = f"no name tells one of the channels {', '.join(channels)}"
        raise SourceError("no-channel", "--channels", f"{problem}; use words of the file names")
    skipped = list(found.skipped)
    made = [stack(visit, words, channels, skipped) for visit in visits.values()]
    notes = list(found.notes)
    if others:
        notes.append(f"{counted(others, 'image')} of other kinds left out by --channels")
    kept = tuple(source for source in made if source is not None)
    if not kept:
        raise SourceError(skipped[-1].code, skipped[-1].path, skipped[-1].detail)
    return replace(found, sources=kept, skipped=tuple(skipped), notes=tuple(notes))


def channel_of(source: Source, name: str, words: Sequence[str]) -> str:
    """The channel's word in an image's name, the last one in it, else in its id or folder."""
    if len(source.channel_names) == 1 and source.channel_names[0].lower() in words:
        return source.channel_names[0].lower()
    for text in (stem(name), source.id, *reversed(name.split("/")[:-1])):
        found = [part for part in re.split(r"[-_. ]+", text.lower()) if part in words]
        if found and len(source.images) == 1:
            return found[-1]
    return ""


def occasion_without(name: str, word: str) -> str:
    """What a path tells beside the kind of image and the channel's word."""
    bare = re.sub(rf"(?i)(?<![a-z0-9]){re.escape(word)}(?![a-z0-9])", "", name)
    return re.sub(r"[-_. ]+", "_", occasion(bare, "")).strip("_")


def stack(
    visit: dict[str, list[Source]],
    words: Sequence[str],
    channels: Sequence[str],
    skipped: list[Rejection],
) -> Source | None:
    """One visit's volume, or None with the reason told."""
    first = next(iter(visit.values()))[0]
    missing = [word for word in words if word not in visit]
    if missing:
        why = f"has no {', '.join(missing)} beside it; add it, or leave it out of --channels"
        skipped.append(Rejection(first.images[0], "missing-channel", why))
        return None
    for word in words:
        if len(visit[word]) > 1:
            rivals = ", ".join(source.images[0] for source in visit[word][1:3])
            why = f"and {rivals} are all {word} of one visit; move the ones that are not meant"
            skipped.append(Rejection(visit[word][0].images[0], "ambiguous-channel", why))
            return None
    chosen = [visit[word][0] for word in words]
    labels: dict[str, str] = {}
    for source in chosen:
        labels = {**source.labels, **labels}
    id = re.sub(rf"(?i)[-_.]?(?<![a-z0-9]){re.escape(words[0])}(?![a-z0-9])", "", chosen[0].id)
    return replace(
        chosen[0],
        id=id.strip("-_.") or chosen[0].subject or chosen[0].id,
        images=tuple(source.images[0] for source in chosen),
        labels=labels,
        channel_names=tuple(channels),
        class_names={k: v for source in reversed(chosen) for k, v in source.class_names.items()},
    )
