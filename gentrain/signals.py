"""Stopping on request: a signal ends training at the next step's edge, after a checkpoint."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

from gentrain.errors import Interrupted, Stopped

_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")


class Stop:
    """A context that turns signals into a request to stop.

    Before training has anything to lose (`deferred` False) the first signal ends the process at once; then it only
    sets `requested`, which the trainer polls. A second signal of any kind always ends the process at once.
    SIGUSR1 and SIGUSR2 are what batch systems send ahead of their time limit.
    """

    def __init__(self) -> None:
        self.requested = 0
        self.deferred = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python has no handlers to set
            for name in _NAMES:
                if hasattr(signal, name):
                    number = getattr(signal, name)
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        with self.worded():
            if isinstance(error, Stopped):
                raise error

    @contextlib.contextmanager
    def worded(self) -> Iterator[None]:
        """What a handler raises within it comes out as the `Interrupted` that callers know."""
        try:
            yield
        except Stopped as stopped:
            raise stopped.interrupted from stopped

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again = self.requested
        self.requested = number
        if again or not self.deferred:
            raise Stopped(self.error("at once"))

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Within it even the first signal raises: for work that changes nothing and can be done again.

        Raises:
            Interrupted: a signal came, or had come before.
        """
        before, self.deferred = self.deferred, False
        try:
            if self.requested:
                raise self.error("at once")
            with self.worded():
                yield
        finally:
            self.deferred = before

    def error(self, where: str) -> Interrupted:
        """The error that reports the request."""
        return Interrupted(f"stopped {where} by {signal.Signals(self.requested).name}", self.requested)
