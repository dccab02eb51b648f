"""Which files of a plain folder are labels, and of which images: told by names alone.

A label goes to the image called exactly so, else to the images of its case, else to the only one
that fits. Where two could have it it is left out and that is told; what it is called is `settling`.
"""

import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from mim3d.dataio.labels.folder_images import (
    CASE,
    LOOSE,
    FolderImages,
    Index,
    Match,
    index_images,
)
from mim3d.dataio.labels.settling import listed, settled
from mim3d.dataio.labels.words import (
    OFFICIAL,
    bare_word,
    ending_organ,
    ending_word,
    is_label_folder,
    label_folders,
    label_key,
    leading_word,
    sounds_like_labels,
    twins_of,
)
from mim3d.dataio.nifti.names import cases_of, stem
from mim3d.dataio.subjects.inferred import PLAIN_FOLDER
from mim3d.dataio.subjects.words import occasion_in

MOST_AROUND = 60  # images around a label that are believed to be one person's
MOST_ALIKE = 50  # files of one name, which then tells nobody
BY_SERIES = ("VSD.", "SMIR.")  # names of series, which tell neither person nor visit
Folders = dict[str, FolderImages]


@dataclass
class Pairing:
    """`labels`: image -> label's name -> file; `skipped`: label -> (code, why) that no image has;
    `doubtful`: files called labels with nothing beside them, which are taken for images.
    """

    labels: dict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    skipped: dict[str, tuple[str, str]] = field(default_factory=dict)
    doubtful: list[str] = field(default_factory=list)

    @property
    def label_files(self) -> set[str]:
        """Every file that is a label."""
        owned = {file for found in self.labels.values() for file in found.values()}
        return owned | set(self.skipped)


def pair_labels(names: list[str]) -> Pairing:
    """Pair NIfTI files with the labels among them, in time linear in their number.

    Labels are: `case_seg` beside `case` or `case_t1`; `segmentation-0` beside `volume-0`; `lesion`
    beside a subject's few images or above them; a file in `labelsTr/` named like one in
    `imagesTr/`; a file in `labels/NAME/` named like one in `images/`; a file in `segmentations/`
    below a subject's images; a file in `lung-masks/` called like one image elsewhere.
    A label word with nothing beside it is an image, and doubtful.
    """
    names_of = exact_names(names)
    homes = label_homes(names, names_of)
    called = {n for n in names if homes[n] or called_label(stem(n))}
    called |= organs_beside_images(names)
    folders = index_images(n for n in names if n not in called)
    matches = {
        name: match_across(name, homes[name], folders)
        if homes[name]
        else folders[folder].beside(name)
        if (folder := posixpath.dirname(name)) in folders
        else Match()
        for name in names
        if name in called
    }
    matches |= matches_elsewhere(matches, homes, names_of)
    matches |= matches_of_occasions(matches, homes, folders)
    pairing = Pairing(*settled(matches, homes))
    judge_unowned(pairing, matches, homes)
    pairing.doubtful += [n for n in names if n not in called and is_label_folder(_folder(n))]
    return pairing


def called_label(whole: str) -> bool:
    """Whether a stem has a label word at its end or at its beginning."""
    is_label = bool(ending_word(f"x_{whole}")[1] or leading_word(whole)[0])
    return is_label or bool(OFFICIAL.match(whole))


def organs_beside_images(names: Iterable[str]) -> set[str]:
    """Files called after an organ whose image lies beside: `case_liver` and `case`, or `liver` and
    `ct`. Elsewhere it may be what was scanned."""
    stems: dict[str, set[str]] = defaultdict(set)
    for name in names:
        stems[_folder(name)].update(cases_of(stem(name)))
    plain = {folder for folder, found in stems.items() if "" in found}
    found = set()
    for name in names:
        folder, (base, word) = _folder(name), ending_organ(stem(name))
        if word and (base in stems[folder] if base else folder in plain):
            found.add(name)
    return found


def exact_names(names: Iterable[str]) -> Index:
    """Files by their stem, in every folder."""
    found: Index = defaultdict(list)
    for name in names:
        found[stem(name)].append(name)
    return found


def label_homes(names: Sequence[str], names_of: Index) -> dict[str, list[str]]:
    """Label folders of each file, innermost first: those that stand below or beside images."""
    holding = {_folder(name) for name in names}
    standing = {above for folder in holding for above in _upwards(folder)}
    known: dict[str, bool] = {}
    alike = folders_like_others(names, names_of)
    occasions = {
        posixpath.dirname(folder)
        for folder in holding
        if not label_folders(posixpath.join(folder, "x"))
    }

    def stands(folder: str) -> bool:
        if folder not in known:
            beside = any(twin in standing for twin in twins_of(folder))
            sure = is_label_folder(folder)
            above = posixpath.dirname(folder)
            below = (sure and (above in holding or above in occasions)) or (
                bool(above) and above in holding and sounds_like_labels(folder)
            )
            known[folder] = beside or below or folder in alike
        return known[folder]

    by_folder = {
        f: [h for h in label_folders(posixpath.join(f, "x")) if stands(h)] for f in holding
    }
    return {name: by_folder[_folder(name)] for name in names}


def match_across(name: str, homes: list[str], folders: Folders) -> Match:
    """What a file in label folders belongs to by name: in the twin, in the same place there,
    else below the parent."""
    undecided = Match()
    for place, key in places_across(name, homes):
        match = folders[place].across(name) if place in folders else Match()
        if match.owners:
            return match if not key else Match(match.owners, key, key, match.rank)
        undecided = undecided if undecided.candidates else match
    return undecided


def places_across(name: str, homes: list[str]) -> Iterator[tuple[str, str]]:
    """Image folders a label may have its image in, with the label's name where a folder says it."""
    for home in homes:
        inner = _folder(name)[len(home) + 1 :]
        key = inner.replace("/", "_")
        twins = twins_of(home)
        yield from ((posixpath.join(twin, inner) if inner else twin, "") for twin in twins)
        if inner:
            yield from ((twin, key) for twin in twins)
        yield posixpath.dirname(home), key


def folders_like_others(names: Iterable[str], names_of: Index) -> set[str]:
    """Folders that sound like labels and most of whose files are called like one beside them."""
    total: Counter[str] = Counter()
    twins: Counter[str] = Counter()
    for name in names:
        for folder in label_folders(name):
            total[folder] += 1
            twins[folder] += bool(named_alike(name, folder, names_of))
    return {folder for folder, count in total.items() if 2 * twins[folder] > count}


def named_alike(name: str, home: str, names_of: Index) -> list[str]:
    """Files called like a label, outside its folder but below that one's parent."""
    whole = stem(name)
    parent = posixpath.dirname(home)
    above = f"{parent}/" if parent else ""
    for case in filter(None, (whole, ending_word(whole)[0])):
        if len(names_of.get(case, ())) > MOST_ALIKE:
            return []
        found = [
            other
            for other in names_of.get(case, ())
            if other.startswith(above) and not label_folders(other)
        ]
        if found:
            return found
    return []


def matches_elsewhere(
    matches: dict[str, Match], homes: dict[str, list[str]], names_of: Index
) -> dict[str, Match]:
    """Matches of labels whose namesakes lie in folders that are not called after images."""
    found = {}
    for name, match in matches.items():
        if match.owners or match.candidates:
            continue
        for home in homes[name]:
            others = named_alike(name, home, names_of)
            if len(others) == 1:
                found[name] = Match(tuple(others), rank=CASE)
            elif others:
                found[name] = Match(candidates=tuple(others))
            if others:
                break
    return found


def matches_of_occasions(
    matches: dict[str, Match], homes: dict[str, list[str]], folders: Folders
) -> dict[str, Match]:
    """Matches of labels called after organs or nobody: they are of the one visit around them.

    Not where any label of the folder is named like an image: then the others miss theirs.
    """
    by_name = {home for name, match in matches.items() if match.owners for home in homes[name]}
    below = images_below(folders)
    found = {}
    for name, match in matches.items():
        home = next(iter(homes[name]), None)
        is_bare = bool(bare_word(stem(name)) or OFFICIAL.match(stem(name)))
        if match.owners or match.candidates or home in by_name or not (home or is_bare):
            continue
        place = _folder(home) if home is not None else _folder(name)
        if OFFICIAL.match(posixpath.basename(place)):
            place = _folder(place)
        images = below.get(place, [])
        case = occasion_in(ending_word(stem(name))[0])
        of_case = [image for image in images if case and occasion_in(stem(image)) == case]
        images = of_case or images
        if not images:
            continue
        if len(images) > MOST_AROUND or len({occasion(image, place) for image in images}) > 1:
            found[name] = Match(candidates=tuple(images))
        elif home is not None:
            inner = _folder(name)[len(home) + 1 :]
            word = bare_word(stem(name))
            word = word or (ending_word(stem(name))[1] if of_case else "")
            key = "_".join([*filter(None, inner.split("/")), word or stem(name)])
            found[name] = Match(tuple(images), label_key(key) if word else key, key)
        else:
            word = bare_word(stem(name)) or "seg"
            found[name] = Match(tuple(images), label_key(word), word, LOOSE)
    return found


def images_below(folders: Folders) -> dict[str, list[str]]:
    """Images of each folder and of all below it; of a crowd only the first ones too many."""
    found: dict[str, list[str]] = defaultdict(list)
    for folder, images in folders.items():
        for above in _upwards(folder):
            if len(found[above]) <= MOST_AROUND:
                found[above] += images.names[: MOST_AROUND + 1]
    return found


def occasion(image: str, place: str) -> str:
    """Whose image a file below a folder is and of which visit, by all that its path tells there."""
    rest = image[len(place) + 1 :] if place else image
    parts = [part for part in _folder(rest).split("/") if part and not PLAIN_FOLDER.fullmatch(part)]
    occasions = [occasion_in(part) for part in parts if not part.startswith(BY_SERIES)]
    whole = "" if stem(rest).startswith(BY_SERIES) else occasion_in(stem(rest))
    return "/".join(filter(None, (*occasions, whole)))


def judge_unowned(pairing: Pairing, matches: dict[str, Match], homes: dict[str, list[str]]) -> None:
    """Leave out labels of no image; what only sounds like a label stays an image, and doubtful."""
    owned = pairing.label_files
    words = {(_folder(n), ending_word(stem(n))[1]) for n in owned} - {("", "")}
    for name, match in matches.items():
        if name in owned:
            continue
        if match.candidates:
            why = f"may belong to {listed(match.candidates)}; name it like its image"
            pairing.skipped[name] = ("ambiguous-label", why)
        elif homes[name]:
            why = "stands in a label folder, but no image is named like it"
            pairing.skipped[name] = ("label-without-image", why)
        elif (word := ending_word(stem(name))[1]) and (_folder(name), word) in words:
            why = f"is called a label as others here are (`{word}`), but no image is named like it"
            pairing.skipped[name] = ("label-without-image", why)
        else:
            pairing.doubtful.append(name)


def _folder(name: str) -> str:
    return posixpath.dirname(name)


def _upwards(folder: str) -> Iterator[str]:
    """A folder and all above it."""
    yield folder
    while folder:
        folder = posixpath.dirname(folder)
        yield folder
