"""Data sets whose names tell a person in a way of their own: the person's part of a path.

Each pattern's first group (or all of it, where it has none) is the person over all visits, sides
and kinds of image. Names of these families are worldwide: one name in two folders is one person.
"""

import re

START, END = r"(?<![A-Za-z0-9])", r"(?![A-Za-z0-9])"
FAMILIES = {
    "BraTS": r"(BraTS-[A-Za-z]{2,5}(?:-RT)?-\d{4,6})-\d{1,3}",
    "BraTS 2018": r"(Brats1[5-9]_[A-Za-z0-9]+_[A-Za-z0-9]+)_\d",
    "ADNI": r"(\d{3}_S_\d{4,5})",
    "OASIS": r"(OAS[12]_\d{4})_MR\d|(OAS[34]\d{4,5})",
    "IXI": r"(IXI\d{3})",
    "LIDC": r"(LIDC-IDRI-\d{4})",
    "TCGA": r"(TCGA-[A-Z0-9]{2}-[A-Z0-9]{4})",
    "CPTAC": r"(C3[LN]-\d{5})",
    "UPenn": r"(UPENN-GBM-\d{5})(?:_\d\d)?",
    "UCSF": r"(UCSF-PDGM-\d{3,4})(?:_FU\d+d?)?",
    "HCP": r"(\d{6})_[37]T|(HC[APD]\d{7})_V\d|(HC[APD]\d{7})",
    "UK Biobank": r"(\d{7})_2\d{4}_\d_\d",
    "PI-CAI": r"(1[01]\d{3})_1\d{6}",
    "CT-RATE": r"((?:train|valid)_\d+)_[a-z]_\d+",
    "DeepLesion": r"(\d{6})_\d\d_\d\d_\d{3}-\d{3}",
    "ISBI 2015": r"((?:training|test)\d\d)_\d\d_(?:flair|mprage|pd|t2|mask\d?)\w*",
    "MM-WHS": r"((?:ct|mr)_(?:train|test)_\d{4})(?:_\w+)?",
    "PPMI": r"(PPMI_\d{4,6})(?:_\w+)?",
}
"""Data set: pattern of a word of its names."""
PATTERNS = {name: re.compile(f"{START}(?:{pattern}){END}") for name, pattern in FAMILIES.items()}
HIPPOCAMPUS = re.compile(r"(hippocampus_)(\d{3})(?!\d)")


def known_person(name: str) -> tuple[str, str]:
    """Person and family of a path; ("", "") where no family knows it."""
    if found := HIPPOCAMPUS.search(name):
        # The files 2k-1 and 2k of the Decathlon's hippocampus are two sides of one person.
        number = int(found[2])
        return f"{found[1]}{number - 1 + number % 2:03d}", "MSD hippocampus"
    for family, pattern in PATTERNS.items():
        if found := pattern.search(name):
            return next(filter(None, found.groups()), found[0]), family
    return "", ""
