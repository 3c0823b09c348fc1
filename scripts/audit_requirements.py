"""Known vulnerabilities of pinned packages, by pip-audit: python scripts/audit_requirements.py FILE [FILE ...]

Ends with 1 where a pin has a known vulnerability, with 2 where there is no answer that can be relied on: a file is
missing, pins nothing or is no list of pins; the service is not reached, or says nothing of a package that is known to
be vulnerable. ``--whole`` also ends with 1 where a pin could
not be audited. Needs pip-audit; ``.ci/audit`` brings it.

A mirror of the package index may have no answers for a version, but for a project, which speak of its newest version.
Such an answer is taken where the pin is that version; all other pins are told as not audited, never as clean.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.version import Version

KNOWN = "pycrypto==2.6.1"  # vulnerable since 2017 and not maintained: no later version will ever mend it


class NothingAudited(Exception):
    """A file from which nothing could be audited."""


class NewestToo:
    """A session whose answer for a version that is not found is the project's, where that is of the same version."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def get(self, url: str, **options: Any) -> Any:
        """The answer for ``.../NAME/VERSION/json``."""
        answer = self._session.get(url=url, **options)
        if answer.status_code != 404:
            return answer
        project, version, _ = url.rsplit("/", 2)
        newest = self._session.get(url=f"{project}/json", **options)
        of_it = newest.status_code == 200 and Version(newest.json()["info"]["version"]) == Version(version)
        return newest if of_it else answer


@dataclass(frozen=True)
class Pin:
    """A package, and what is known of it: None where nothing could be learnt."""

    package: str
    vulnerabilities: tuple[str, ...] | None


def audited(file: Path, folder: str) -> Iterator[Pin]:
    """Every pin of a requirements file.

    Raises
    ------
    NothingAudited
        It is missing, or holds something other than pins.
    """
    if not file.is_file():
        raise NothingAudited(f"{file}: there is no such file; name a list of pins, such as requirements.lock")
    from pip_audit._audit import Auditor
    from pip_audit._dependency_source import DependencySourceError, RequirementSource
    from pip_audit._service import PyPIService

    service = PyPIService(cache_dir=Path(folder), timeout=60)
    service.session = NewestToo(service.session)
    try:
        for package, found in Auditor(service).audit(RequirementSource([file], no_deps=True, disable_pip=True)):
            ids = [f"{one.id}, mended in {', '.join(map(str, one.fix_versions)) or 'no version'}" for one in found]
            known = None if package.is_skipped() else tuple(dict.fromkeys(ids))
            yield Pin(package.name if known is None else f"{package.name} {package.version}", known)
    except DependencySourceError as error:
        raise NothingAudited(f"{file}: {error}; every line must pin a package to one version") from error


def told(name: str, pins: Sequence[Pin]) -> list[str]:
    """What was found, in words."""
    unknown = [pin.package for pin in pins if pin.vulnerabilities is None]
    found = [f"  {pin.package}: {one}" for pin in pins for one in pin.vulnerabilities or ()]
    counts = f"{name}: {len(pins) - len(unknown)} of {len(pins)} audited, {len(found)} vulnerabilities"
    return [counts, *found, *([f"  not audited: {', '.join(unknown)}"] if unknown else [])]


def status(pins: Sequence[Pin], whole: bool) -> int:
    """0 where nothing is known against any pin, or 1.

    >>> status([Pin("a", ())], False), status([Pin("a", ("PYSEC-1",))], False), status([Pin("a", None)], True)
    (0, 1, 1)
    """
    return int(any(pin.vulnerabilities or (whole and pin.vulnerabilities is None) for pin in pins))


def main(words: Sequence[str] | None = None) -> int:
    """Audit the files, after a file that must not pass."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="+", type=Path)
    parser.add_argument("--whole", action="store_true", help="fail where a pin could not be audited")
    options = parser.parse_args(words)
    with tempfile.TemporaryDirectory(prefix="neurostorm-audit-") as folder:
        known = Path(folder) / "known.txt"
        known.write_text(f"{KNOWN}\n")
        if not status(list(audited(known, folder)), whole=False):
            print(f"nothing was found against {KNOWN}, which is vulnerable: the service cannot be relied on")
            return 2
        print(f"{KNOWN}, which is vulnerable, is found to be")
        pins: list[Pin] = []
        for file in options.file:
            of_file = list(audited(file, folder))
            if not of_file:
                raise NothingAudited(f"{file}: pins no package; name a list of pins, such as requirements.lock")
            print("\n".join(told(str(file), of_file)), flush=True)
            pins += of_file
    return status(pins, options.whole)


def _run() -> int:
    from pip_audit._service import ServiceError

    try:
        return main()
    except NothingAudited as error:
        print(error, file=sys.stderr)
    except ServiceError as error:  # its ConnectionError too
        print(f"the service of advisories was not reached: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(_run())
