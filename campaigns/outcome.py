"""What a campaign answers."""

from __future__ import annotations

from dataclasses import dataclass, field


class TooLong(BaseException):
    """The campaign's time is over; like KeyboardInterrupt, so that no case takes it for its own failure."""


@dataclass(frozen=True)
class Outcome:
    """Counts by name (numbers, or tables of numbers) and a line for each failure."""

    counts: dict[str, object] = field(default_factory=dict)
    failures: tuple[str, ...] = ()

    @classmethod
    def of_code(cls, name: str, code: int) -> Outcome:
        """The outcome of a campaign that prints everything itself."""
        return cls(failures=(f"{name} ended with {code}",) if code else ())

    def summary(self) -> str:
        """The plain counts in one line."""
        parts = [f"{value} {name}" for name, value in self.counts.items() if isinstance(value, int)]
        return ", ".join([*parts, f"{len(self.failures)} failed" if self.failures else "nothing failed"])
