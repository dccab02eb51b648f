"""Whose a scan is: words (what each word of a name says), families (data sets with names of their
own), people (the person of each path), told (what a person says instead), grouping (N volumes of M
subjects, with examples and doubts).
"""
