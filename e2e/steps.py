"""Saying what is asserted, and waiting for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Steps:
    """Prints each assertion before it is looked at, so that a failure has a sentence above it."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, sentence: str) -> None:
        self.count += 1
        print(f"  - {sentence}", flush=True)


def until(what: str, look: Callable[[], T | None], seconds: float = 60, every: float = 0.5) -> T:
    """What `look` finds, once it finds something; an error that says for what it waited in vain."""
    deadline = time.monotonic() + seconds
    last: Exception | None = None
    while time.monotonic() < deadline:
        try:
            found = look()
            last = None
        except Exception as error:  # an object that is not there yet, a pod that is not up yet
            found, last = None, error
        if found is not None and found is not False:
            return found
        time.sleep(every)
    raise AssertionError(f"after {seconds:.0f} s still not: {what}" + (f" ({last})" if last else ""))


def equal(found: object, wanted: object, what: str) -> None:
    """An error with both values where they differ."""
    if found != wanted:
        raise AssertionError(f"{what}: {found!r} instead of {wanted!r}")


def true(holds: object, what: str) -> None:
    """An error that says what does not hold."""
    if not holds:
        raise AssertionError(what)
