"""One class a cause: every error names the file, the fault, the expectation and the remedy.

The command line prints an error as one paragraph and exits with its ``exit_code``
(codes of the BIDS execution specification, see ``docs/reference``).
"""

from __future__ import annotations

from pathlib import Path

OK = 0
SOME_RUNS_FAILED = 1
USAGE = 2
INVALID_BIDS = 16
UNKNOWN_LEVEL = 17
NOTHING_SELECTED = 18
NO_USABLE_RUN = 65
NO_INPUT = 66
CANNOT_CREATE_OUTPUT = 73
IO_ERROR = 74
TRY_AGAIN = 75


class NeurostormError(Exception):
    """What failed, in four parts.

    Parameters
    ----------
    fault : str
        What is wrong, in a clause ("the header gives TR 0 s").
    file : Path or str, optional
        The file (or option) that is at fault.
    expected : str, optional
        What was expected instead ("0.1 to 20 s").
    remedy : str, optional
        What the user can do ("state RepetitionTime in the JSON sidecar").
    """

    exit_code = SOME_RUNS_FAILED

    def __init__(
        self, fault: str, *, file: Path | str | None = None, expected: str | None = None, remedy: str | None = None
    ) -> None:
        self.fault, self.file, self.expected, self.remedy = fault, file, expected, remedy
        super().__init__(self.paragraph())

    def paragraph(self) -> str:
        """The error as one paragraph: file, fault, expectation, remedy."""
        parts = [f"{self.file}: {self.fault}" if self.file is not None else self.fault]
        if self.expected:
            parts.append(f"expected {self.expected}")
        if self.remedy:
            parts.append(self.remedy)
        return ". ".join(part.rstrip(".") for part in parts) + "."

    def __reduce__(self):
        # keyword-only arguments do not survive the default pickling, and errors cross process borders here
        return _rebuild, (type(self), self.fault, self.file, self.expected, self.remedy)


def _rebuild(cls: type[NeurostormError], fault: str, file, expected, remedy) -> NeurostormError:
    return cls(fault, file=file, expected=expected, remedy=remedy)


# --- command line -----------------------------------------------------------------------------------------------


class UsageError(NeurostormError):
    """An option, or a combination of options, that makes no sense."""

    exit_code = USAGE


class UnknownLevel(NeurostormError):
    """The analysis level is neither participant nor group."""

    exit_code = UNKNOWN_LEVEL


class ConfigUnreadable(NeurostormError):
    """A configuration file that cannot be read, or that names a setting that does not exist."""

    exit_code = USAGE


class OutputNotWritable(NeurostormError):
    """The output or work folder cannot be created or written."""

    exit_code = CANNOT_CREATE_OUTPUT
