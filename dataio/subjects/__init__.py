"""Whose a scan is: words (what each word of a name says), families (data sets with names of their
own), inferred (the subject of each path), numbers (bare ones, in several folders), declared (what
the user says), spelling (accents and capitals), grouping (N volumes of M subjects, with examples
and doubts), across (subjects of several corpora).
"""
