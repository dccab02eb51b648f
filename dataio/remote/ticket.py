"""One read of an object under way: its runs of bytes, and whoever waits for them."""

from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from itertools import pairwise
from typing import Any

from mim3d.dataio.remote.ranges import Runs, cut

TOGETHER = 10
"""Ranges that obstore asks for at the same time in one call."""


class Part:
    """Some of a ticket's requests, which go to the client together; `spans` are their numbers.

    `done` is ready when they were answered, and holds what went wrong instead; who cancels it has
    the requests dropped.
    """

    def __init__(self, ticket: "Ticket", spans: range) -> None:
        self.ticket, self.spans = ticket, spans
        self.begun = False
        self.done: Future[None] = Future()

    @property
    def flying(self) -> int:
        """Requests that are in flight at a time once it has begun."""
        return min(len(self.spans), TOGETHER)

    @property
    def begins(self) -> list[int]:
        """First byte of each."""
        return self.ticket.spans.begins[self.spans.start : self.spans.stop]

    @property
    def ends(self) -> list[int]:
        """The byte after the last of each."""
        return self.ticket.spans.ends[self.spans.start : self.spans.stop]

    def land(self, answers: list[Any]) -> None:
        """Take in what was answered."""
        if len(answers) != len(self.spans):
            raise ValueError(f"{len(answers)} answers to {len(self.spans)} requests")
        self.ticket.answers[self.spans.start : self.spans.stop] = answers
        self.ticket.waiting -= len(self.spans)
        self.ticket.flying -= self.flying
        with suppress(InvalidStateError):  # cancelled meanwhile
            self.done.set_result(None)

    def fail(self, error: BaseException) -> None:
        """Have whoever waits get an error."""
        with suppress(InvalidStateError):
            self.done.set_exception(error)


class Ticket:
    """What was asked for: `needed` bytes of object `path`, within `runs`.

    In requests of at most `piece` bytes, `together` of which make a part; `waiting` of them are
    not answered, for which `flying` are in flight at a time.
    """

    def __init__(self, path: str, runs: Runs, needed: int, piece: int, together: int) -> None:
        self.path, self.runs, self.needed, self.nbytes = path, runs, needed, runs.nbytes
        self.spans = cut(runs, piece)
        n = self.waiting = len(self.spans.begins)
        edges = [n * i // -(-n // together) for i in range(-(-n // together) + 1)]
        self.parts = [Part(self, range(*pair)) for pair in pairwise(edges)]
        self.flying = sum(part.flying for part in self.parts)
        self.answers: list[Any] = [None] * n

    def cancel(self) -> None:
        """Drop what was not answered."""
        for part in self.parts:
            part.done.cancel()

    def buffers(self) -> list[Any]:
        """Bytes of each run, as many as the store had; only once all is answered."""
        if len(self.answers) == len(self.runs.begins):
            return self.answers
        pieces: list[list[Any]] = [[] for _ in self.runs.begins]
        for run, each in zip(self.spans.of, self.answers, strict=True):
            pieces[run].append(each)
        return [each[0] if len(each) == 1 else b"".join(each) for each in pieces]
