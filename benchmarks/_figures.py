"""What benchmarks share: lines of a table with what they should be, calls that others disturbed, the machine."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import psutil

MOST_SHARE = 0.1  # of the processors, taken by other programs, for a call to count
Seconds = dict[str, list[float]]


@dataclass(frozen=True)
class Figure:
    """One line of the table: a value from medians, the same from the smallest times, and what it should be."""

    item: str
    name: str
    value: float
    unit: str = "times"
    of_minima: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        """holds or misses, and nothing where no aim is given."""
        if self.at_least is None and self.at_most is None:
            return ""
        reached = (self.at_least is None or self.value >= self.at_least) and (
            self.at_most is None or self.value <= self.at_most
        )
        return "holds" if reached else "misses"

    def line(self) -> str:
        """As a line of the table."""
        minima = "" if self.of_minima is None else f"({self.of_minima:.4g})"
        aim = f">= {self.at_least:g}" if self.at_least is not None else ""
        aim = f"<= {self.at_most:g}" if self.at_most is not None else aim
        value = f"{self.value:.4g}" if self.value < 1e5 else f"{self.value:.4e}"
        start = f"{self.item:<3} {self.name:<58} {value:>10} {minima:>9} {self.unit:<6}"
        return f"{start} {aim:>8} {self.verdict:<7} {self.note}"


HEADER = f"{'':<3} {'':<58} {'medians':>10} {'(minima)':>9}"


def ratio(item: str, name: str, times: Seconds, above: str, below: str, **aims: Any) -> Figure:
    """Times of one path over those of another, with both medians and both minima in the note."""
    medians, minima = ([statistic(times[path]) for path in (above, below)] for statistic in (median, min))
    shown = " over ".join(f"{m:.4g} ({s:.4g})" for m, s in zip(medians, minima, strict=True))
    return Figure(item, name, medians[0] / medians[1], "times", minima[0] / minima[1], note=f"{shown} s", **aims)


def undisturbed(samples: Sequence[tuple[float, float]]) -> list[float]:
    """Seconds of the calls that had the machine to themselves; of the third least disturbed where they are too few."""
    by_share = sorted(samples, key=lambda sample: sample[1])
    quiet = [seconds for seconds, share in samples if share <= MOST_SHARE]
    fewest = max(len(samples) // 3, 1)
    return quiet if len(quiet) >= fewest else [seconds for seconds, _ in by_share[:fewest]]


def busy_elsewhere_s() -> float:
    """Processor seconds that other programs have taken since the machine started."""
    cpu, own = psutil.cpu_times(), os.times()
    kernel = cpu.system + getattr(cpu, "irq", 0.0) + getattr(cpu, "softirq", 0.0) + getattr(cpu, "steal", 0.0)
    return cpu.user + cpu.nice + kernel - sum(own[:4])


def peak_mb() -> float:
    """Largest resident size of this process so far (VmHWM), in MB."""
    status = Path("/proc/self/status").read_text()
    return float(status.partition("VmHWM:")[2].split()[0]) / 1024


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    model = names[0] if names else platform.machine()
    return {"cpu": model, "cores": os.cpu_count(), "torch": version("torch"), "python": platform.python_version()}
