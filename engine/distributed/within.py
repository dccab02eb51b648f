"""A call that may never return, bounded: the host of a store can vanish without a word.

The kernel goes on sending to a machine that is gone for a quarter of an hour, whatever timeout the
store was made with.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Answer = TypeVar("Answer")


def within(seconds: float, call: Callable[[], Answer]) -> Answer:
    """What `call` returns or raises; TimeoutError after `seconds`, and its thread is left behind.

    Nothing else may be waiting for what the call holds.
    """
    answer: Future[Answer] = Future()

    def run() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return answer.result(seconds)
