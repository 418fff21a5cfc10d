"""Lists the licence of everything tandem needs at run time, and fails on one that is not known to be free to use."""

from __future__ import annotations

import re
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

FREE = re.compile(
    r"\b(MIT|BSD|BSL|Apache|PSF|CNRI-Python|Python Software Foundation|ISC|MPL|Mozilla Public|HPND|Unlicense|0BSD|CC0"
    r"|Zlib)",
    re.I,
)


def licence(package: Distribution) -> str:
    """What a package says of its licence: its expression, else its classifiers, else the first line of its field."""
    fields = package.metadata
    classifiers = [line.split(" :: ")[-1] for line in fields.get_all("Classifier", []) if line.startswith("License")]
    return fields["License-Expression"] or ", ".join(classifiers) or (fields["License"] or "unknown").splitlines()[0]


def is_free(text: str) -> bool:
    """Whether every licence that applies at once is a free one; of alternatives, one is enough."""
    return all(FREE.search(part) for part in re.split(r"\bAND\b|,", text))


def needed(name: str, found: dict[str, str]) -> dict[str, str]:
    """The licences of everything that `name` needs, without extras, added to `found`."""
    for line in distribution(name).requires or []:
        requirement = Requirement(line)
        other = canonicalize_name(requirement.name)
        if other in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        try:
            found[other] = licence(distribution(other))
        except PackageNotFoundError:
            continue  # optional on this platform
        needed(other, found)
    return found


def main() -> int:
    """Print the list; 1 if a licence is not among the free ones."""
    found = needed("tandem", {})
    for name, text in sorted(found.items()):
        print(f"{name:24} {text}")
    refused = [name for name, text in found.items() if not is_free(text)]
    if refused:
        print(f"licences: not known to be free to use: {', '.join(refused)}; check them", file=sys.stderr)
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
