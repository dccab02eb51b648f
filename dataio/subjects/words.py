"""What each word of a name says: a kind of image, a visit, a date, a side, a run; or whose it is.

`P001_visit2_T1w` is P001's: `visit2` tells when, `T1w` tells how, and what is left tells who.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from mim3d.dataio.nifti.names import IMAGE_WORDS, MODALITIES

# Date, with or without separators, and the time that scanners and converters write after it.
DATE = (
    r"(?<!\d)(?:(?:19|20)\d\d(?P<s>[-_.]?)(?:0[1-9]|1[0-2])(?P=s)(?:0[1-9]|[12]\d|3[01])"
    r"|(?:0[1-9]|1[0-2]|[12]\d|3[01])[-.]\d\d[-.](?:19|20)\d\d)"
    r"(?:[T_-]?\d{6}(?:_\d{1,4})?|_\d\d_\d\d_\d\d(?:\.\d+)?|(?!\d))"
)
ENTITY = (
    r"(?<![A-Za-z0-9])(?P<key>ses|run|acq|echo|rec|dir|task|space|desc|res|den|part|ce|inv|flip|hemi"
    r"|split|trc|proc|chunk|mt|tracksys)-[A-Za-z0-9]+"
)
OF_TIME = (
    "visit|vis|session|sess|ses|timepoint|time|tp|frame|followup|follow-up|fu|week|wk|month|year|yr"
    "|day|phase"
)
NUMBERED = rf"(?<![A-Za-z0-9])(?P<time>{OF_TIME})[-_ ]?\d{{1,4}}(?:[-_]\d{{1,2}})?(?![A-Za-z0-9])"
WORD = r"[^_\-\s/]+"
WORDS = re.compile(
    rf"(?P<date>{DATE})|(?P<entity>{ENTITY})|{NUMBERED}|(?P<word>{WORD})", re.IGNORECASE
)
VISIT = re.compile(
    r"(?:v|m|y|d|bl)\d{1,4}|t0|t\d\d|baseline|bl|follow[-_]?up|fu|screening|preop|postop|intraop"
    r"|pretreatment|posttreatment|retest|ed|es|end[-_]?diastole|end[-_]?systole|diastole|systole"
    r"|inhale|exhale|insp|exp|inspiration|expiration|rest|stress"
    r"|(?:visit|session|timepoint|time|ses|tp)[a-z]?"
)
SIDE = re.compile(r"left|right|lh|rh|lt|rt|lefthand|righthand|bilateral")
RUN = re.compile(r"(?:run|rep|echo|scan|series|mpr|acq|e)\d{1,3}[a-z]?")
KINDS_TEXT = """
3d 4d acpc aligned angio anon ax axial b0 bet bias biascorr brain cbf cbv ce cine contrast cor
coronal corrected crop cropped dc dce deface defaced dixon dsc dti dual eddy fa fat fgatir fs fse
fullres gd gfc gre haste high hires in inphase iso isovox la lax low masked md middle mni mni152 mp
mtt n4 native noddi norm nu on outphase post pp pre preproc preprocessed r2star rage reg registered
reoriented res resampled restore robust sa sag sagittal sax scanner se skullstripped space spgr
stir stripped t1weighted t2weighted tmax to tof tse ttp unbiased vibe warped water
"""
KINDS = MODALITIES | frozenset(KINDS_TEXT.split())
MORE_KINDS = re.compile(
    r"\d+(?:\.\d+)?(?:mm|um|iso)|b\d{2,4}|t88|[123457]t|(?:[23]d)?(?:t[12]|pd|ir|flair)w?\d?"
)
GATHERING = re.compile(
    r"(?:sets?|sites?|centers?|centres?|hospital|clinic|cohort|group|batch|fold|part|subset|train(?:ing)?"
    r"|test(?:ing)?|val(?:id|idation)?|data|dataset|task|study|project|scanner|vendor|class|split"
    r"|section|chunk|stage|collection)(?:data|set|tr|ts)?s?",
    re.IGNORECASE,
)
UID = re.compile(r"\d+(?:\.\d+){4,}")


@dataclass(frozen=True)
class Word:
    """A word of a name, where it stands, and its role: one of kind, visit, date, side, run, image
    (`img`, `scan`) or who."""

    text: str
    start: int
    end: int
    role: str


def words_of(name: str) -> list[Word]:
    """The words of a stem or a folder's name with their roles."""
    found = []
    for match in WORDS.finditer(name):
        if match["date"]:
            role = "date"
        elif match["entity"]:
            role = {"ses": "visit", "hemi": "side"}.get(match["key"].lower(), "kind")
        elif match["time"]:
            role = "visit"
        else:
            role = role_of(match[0].lower())
        found.append(Word(match[0], match.start(), match.end(), role))
    return found


def role_of(word: str) -> str:
    """Role of a single word in small letters."""
    if word in KINDS or MORE_KINDS.fullmatch(word):
        return "kind"
    if VISIT.fullmatch(word):
        return "visit"
    if SIDE.fullmatch(word):
        return "side"
    if word in IMAGE_WORDS or word.rstrip("0123456789") in IMAGE_WORDS:
        return "image"
    return "run" if RUN.fullmatch(word) else "who"


def person_in(name: str) -> str:
    """What is left of a stem when all that tells how and when is taken out; empty if nothing is.

    `P001_visit2_T1w` -> `P001`; `scan_001` -> `scan_001` (the number is all there is); `T1w` -> ``.
    A leading `ct`, `mr` or `pet` stays: people of two studies are told apart by it.
    """
    words = words_of(name)
    who = [word for word in words if word.role == "who"]
    numbered = any(map(has_digit, (word.text for word in who)))
    kept = []
    for place, word in enumerate(words):
        is_last = place == len(words) - 1
        if word.role == "image":
            # `img0001` and `scan_001` are numbers of people; `P001_scan2` and `P001_image` are not.
            keep = not is_last if numbered and not has_digit(word.text) else not numbered
            keep = keep and (has_digit(word.text) or bool(who))
        elif word.role == "who":
            keep = not (is_last and numbered and len(who) > 1 and word.text.lower() in {"l", "r"})
        else:
            keep = word.text.lower() in {"ct", "mr", "pet"} and place == 0 and bool(who)
        if keep:
            kept.append(word)
    if not any(has_digit(w.text) or w.role == "who" for w in kept):
        return ""
    return joined(name, kept)


def person_folder(folder: str) -> str:
    """A folder's name without visits, dates, sides and runs, and without kinds at its end.

    `P001_visit2` -> `P001`, `knee_L` -> `knee`, `Breast_MRI_001` stays; all if nothing is left.
    """
    words = words_of(folder)
    kept = [w for w in words if w.role not in {"visit", "date", "side", "run"}]
    if len(kept) > 1 and kept[-1].text.lower() in {"l", "r"}:
        kept.pop()
    while kept and kept[-1].role == "kind":
        kept.pop()
    return joined(folder, kept) if len(kept) < len(words) and kept else folder


def occasion_in(name: str) -> str:
    """A stem without the words that tell the kind of image: whose it is, and of which visit."""
    words = words_of(name)
    kept = [word for word in words if word.role != "kind"]
    is_plain = all(word.role == "image" and not has_digit(word.text) for word in kept)
    return "" if is_plain else joined(name, kept)


def joined(name: str, kept: Iterable[Word]) -> str:
    """Words with what stood before each of them in the name."""
    text = ""
    for word in kept:
        before = name[word.start - 1] if text and word.start else ""
        text += before + word.text
    return text


def has_digit(text: str) -> bool:
    """Whether any digit is in the text."""
    return any(map(str.isdigit, text))


def is_gathering(folder: str) -> bool:
    """Whether a folder's own name says that it gathers people: `site2`, `train`, `batch_03`."""
    bare = (re.sub(rf"[-_ ]?{end}$", "", folder) for end in ("", r"\d+", "[A-Za-z]"))
    if any(GATHERING.fullmatch(name) for name in bare):
        return True
    parts = re.split(r"[-_ ]+", folder)
    words = [part for part in parts if not part.isdigit() and len(part) > 1]
    return bool(words) and all(GATHERING.fullmatch(part) for part in words)


def identifies_nobody(folder: str) -> bool:
    """Whether every word of a folder's name tells how or when, or it is a scanner's UID."""
    words = words_of(folder)
    if UID.fullmatch(folder) or any(word.role == "date" and word.start == 0 for word in words):
        return True
    return (
        bool(words)
        and not any(word.role == "who" for word in words)
        and not all(word.role == "image" and has_digit(word.text) for word in words)
    )
