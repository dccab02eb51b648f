"""One read of an object under way: its runs of bytes, and whoever waits for them."""

from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from itertools import pairwise
from typing import Any

import numpy as np

from mim3d.dataio.remote.ranges import Runs, cut


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
    def begins(self) -> list[int]:
        """First byte of each."""
        return [self.ticket.spans[i][1] for i in self.spans]

    @property
    def ends(self) -> list[int]:
        """The byte after the last of each."""
        return [self.ticket.spans[i][2] for i in self.spans]

    def land(self, answers: list[Any]) -> None:
        """Take in what was answered."""
        for i, each in zip(self.spans, answers, strict=True):
            self.ticket.answers[i] = each
        self.ticket.waiting -= len(self.spans)
        with suppress(InvalidStateError):  # cancelled meanwhile
            self.done.set_result(None)

    def fail(self, error: BaseException) -> None:
        """Have whoever waits get an error."""
        with suppress(InvalidStateError):
            self.done.set_exception(error)


class Ticket:
    """What was asked for: `needed` bytes of object `path`, within `runs`.

    In requests of at most `piece` bytes, `together` of which make a part; `waiting` of them are
    not answered.
    """

    def __init__(self, path: str, runs: Runs, needed: int, piece: int, together: int) -> None:
        self.path, self.runs, self.needed, self.nbytes = path, runs, needed, runs.nbytes
        self.spans = cut(runs, piece)
        n = self.waiting = len(self.spans)
        edges = [n * i // -(-n // together) for i in range(-(-n // together) + 1)]
        self.parts = [Part(self, range(*pair)) for pair in pairwise(edges)]
        self.answers: list[Any] = [None] * n

    def cancel(self) -> None:
        """Drop what was not answered."""
        for part in self.parts:
            part.done.cancel()

    def arrays(self) -> list[np.ndarray]:
        """Bytes of each run, uint8, as many as the store had; only once all is answered."""
        pieces: list[list[np.ndarray]] = [[] for _ in self.runs.begins]
        for (run, _, _), each in zip(self.spans, self.answers, strict=True):
            pieces[run].append(np.frombuffer(memoryview(each), np.uint8))
        return [each[0] if len(each) == 1 else np.concatenate(each) for each in pieces]
