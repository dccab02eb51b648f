"""What the labels of each image are called, where several want one name.

The surer has it; another is called by its word or its label folder, if that tells it from the
rest, and is left out where it does not.
"""

import posixpath
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from mim3d.dataio.labels.folder_images import Match
from mim3d.dataio.labels.words import GENERIC, LABEL_FOLDER

MOST_NAMED = 4  # candidates named in a reason
Homes = Mapping[str, Sequence[str]]
Labels = dict[str, dict[str, str]]
Skipped = dict[str, tuple[str, str]]
OwnNames = dict[tuple[str, str, str], str]
"""Names of labels that had to leave the name they wanted: by that, their word and folder."""


def settled(matches: Mapping[str, Match], homes: Homes) -> tuple[Labels, Skipped]:
    """Labels of every image by name, and why others are left out. What got a name of its own beside
    another label of one image has it on all images: a name means the same throughout."""
    labels, skipped, own = settled_by_image(matches, homes)
    if not own:
        return labels, skipped
    named = {}
    for label, match in matches.items():
        wanted = match.key, bare(match.word)
        by_word = own.get((*wanted, ""), match.key)
        named[label] = replace(match, key=own.get((*wanted, folder_word(label, homes)), by_word))
    return settled_by_image(named, homes)[:2]


def settled_by_image(
    matches: Mapping[str, Match], homes: Homes
) -> tuple[Labels, Skipped, OwnNames]:
    """The same as each image alone has it, and what got a name of its own."""
    wanted: dict[tuple[str, str], list[str]] = defaultdict(list)
    for label, match in matches.items():
        for owner in match.owners:
            wanted[owner, match.key].append(label)
    labels: Labels = defaultdict(dict)
    own: OwnNames = {}
    losers: dict[str, str] = {}
    for (owner, key), several in wanted.items():
        groups: dict[tuple[tuple[int, int], str], list[str]] = defaultdict(list)
        for label in several:
            groups[matches[label].claim, matches[label].word].append(label)
        best, *others = sorted(claim for claim, _ in groups)
        for (claim, word), alike in sorted(groups.items()):
            is_free = (owner, word) not in wanted and claim[0] == best[0] and word != key
            is_best = claim == best and best not in others
            names = by_folder(alike, homes, key if is_best else word if is_free else "")
            for label in alike:
                name = names.get(label, "")
                is_taken = name in labels.get(owner, ()) or (
                    name != key and (owner, name) in wanted
                )
                if not name or is_taken:
                    rivals = [other for other in several if other != label]
                    losers[label] = f"would be {key!r} of {owner}, and so would {listed(rivals)}"
                    continue
                labels[owner][name] = label
                if name != key:
                    folder = "" if name == word else folder_word(label, homes)
                    place = key, bare(word), folder
                    own[place] = min(own.get(place, name), name)
    owned = {label for found in labels.values() for label in found.values()}
    skipped = {
        label: ("ambiguous-label", f"{losers[label]}; rename or move one")
        for label in sorted(losers.keys() - owned)
    }
    return labels, skipped, own


def by_folder(alike: Sequence[str], homes: Homes, name: str) -> dict[str, str]:
    """Names of labels of one image that are called alike: the name for a single one or the one
    whose folder claims it best, and their label folders' for the others; none where these are
    called alike too."""
    if not name or len(alike) == 1:
        return dict.fromkeys(alike, name)
    words = {label: folder_word(label, homes) for label in alike}
    if len({word.lower() for word in words.values()}) < len(alike):
        return {}
    claims = {label: folder_claim(word) for label, word in words.items()}
    best = [label for label in alike if claims[label] == min(claims.values())]
    return words | ({best[0]: name} if len(best) == 1 else {})


def folder_word(label: str, homes: Homes) -> str:
    """What the label folder of a file is called; nothing for one that stands in none."""
    return posixpath.basename(next(iter(homes[label]), ""))


def folder_claim(word: str) -> int:
    """Place of a folder among those whose labels want one name; a file in none comes first."""
    match = LABEL_FOLDER.fullmatch(word.lower())
    plain = match[1] if match else word.lower()
    return GENERIC.index(plain) if plain in GENERIC else len(GENERIC) if word else -1


def bare(word: str) -> str:
    """A word however it is spelt: `Mask` and `masks` are one."""
    return word.lower().removesuffix("s")


def listed(names: Iterable[str]) -> str:
    """The first few names, and how many more."""
    some = list(names)
    more = f" and {len(some) - MOST_NAMED} more" if len(some) > MOST_NAMED else ""
    return ", ".join(some[:MOST_NAMED]) + more
