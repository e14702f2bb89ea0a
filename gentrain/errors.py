"""Errors a user can act on: each is one line that names the option or file, the value and the remedy.

`gentrain.cli` prints the line and exits with `code`; the traceback goes to the log.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GentrainError(Exception):
    """Something went wrong that the user can mend."""

    code = 1
    state = "failed"


class UsageError(GentrainError, ValueError):
    """A wrong verb, option, key, type, range or combination: nothing was written."""

    code = 2


class DataError(GentrainError):
    """Data missing, unreadable, corrupt, or unfit for what was asked."""


class CheckpointError(GentrainError):
    """A checkpoint that is missing, damaged, foreign or hostile."""


class RunBusyError(GentrainError):
    """Another process is at work in the run folder."""


class DiskError(GentrainError):
    """The disk is full or the folder can't be written."""

    code = 74


class NonFiniteError(GentrainError):
    """A loss or gradient became NaN or infinite at `step` (counted from 0); training stopped before the step."""

    state = "nan"

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


class OutOfMemoryError(GentrainError):
    """Memory ran out, on the device or the host."""

    state = "oom"


class Interrupted(GentrainError):
    """Training stopped on a signal, after a checkpoint."""

    state = "interrupted"

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.signal = signal
        self.code = 128 + signal


class Stopped(BaseException):
    """An `Interrupted` on its way out of a signal's handler.

    It may be raised in the middle of anybody's code, and is no Exception: torch's compiler, for one, catches every
    Exception and goes on, or reports it as its own.
    """

    def __init__(self, interrupted: Interrupted):
        super().__init__(str(interrupted))
        self.interrupted = interrupted


def out_of_memory(error: BaseException, batch_size: int) -> OutOfMemoryError | None:
    """The remedy, if `error` says that memory ran out; torch has a type for that on a GPU and only words on a CPU."""
    kinds = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if not kinds and "can't allocate memory" not in str(error):
        return None
    return OutOfMemoryError(
        f"out of memory with data.batch_size={batch_size}: try data.batch_size={max(1, batch_size // 2)}"
        " or a smaller model"
    )


def nearest(word: str, valid: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the closest valid word, or nothing.

    >>> nearest("vea", ["vae", "gan"])
    " Did you mean 'vae'?"
    >>> nearest("transformer", ["vae", "gan"])
    ''
    """
    valid = list(valid)
    found = difflib.get_close_matches(word, valid, n=1, cutoff=0.5)
    if not found:  # 'vea' and 'vae' share two letters of three in order; a transposition deserves an answer
        found = [v for v in valid if sorted(v) == sorted(word)][:1]
    return f" Did you mean '{found[0]}'?" if found else ""
