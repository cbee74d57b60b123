"""Errors an analyst can act on: what went wrong, where, and what to do.

Only these are caught at the top of the command line; anything else is a bug and shows its traceback.
"""

import difflib
from collections.abc import Iterable


class SkysenseError(Exception):
    """Something failed that the user can do something about (exit code 1).

    `message` says what and where; `fix` says what to do next, as one sentence or a command-line option.
    """

    exit_code = 1

    def __init__(self, message: str, *, fix: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return self.message if self.fix is None else f"{self.message}\n{self.fix}"


class UsageError(SkysenseError):
    """The command or a setting does not make sense as it stands (exit code 2)."""

    exit_code = 2


class PartialError(SkysenseError):
    """Finished, but some items failed; the rest is done and kept (exit code 3)."""

    exit_code = 3


class Interrupted(SkysenseError):
    """Stopped by a signal; what is finished is kept and a rerun resumes (exit code 130 or 143)."""

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The closest known name as `"did you mean X? "`, or an empty string; for the end of a message."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]}? " if close else ""


def unknown(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """The error for a name that is none of the known ones: `unknown task crops; did you mean crop? Known: ...`."""
    known = sorted(known)
    return UsageError(f"unknown {kind} {name!r}", fix=f"{did_you_mean(name, known)}Known: {', '.join(known)}.")
