"""Write the tables of README and docs from benchmarks/results: no number is ever typed.

    python benchmarks/tables.py            rewrite
    python benchmarks/tables.py --check    exit 1 where a file differs from what would be written

A table stands between `<!-- results: NAME -->` and `<!-- end of results -->` and is made from results/NAME.json.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MARKED = re.compile(r"(<!-- results: ([\w.-]+) -->\n).*?(<!-- end of results -->)", re.DOTALL)


def documents() -> list[Path]:
    """The files that may hold tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]


def rendered(text: str) -> str:
    """A document with every marked table made anew."""
    return MARKED.sub(lambda found: f"{found[1]}{table_of(found[2])}{found[3]}", text)


def table_of(name: str) -> str:
    """The claims and the table of one result, and where it was measured; a word where it was not measured yet."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return "Not measured yet.\n"
    result = json.loads(path.read_text())
    parts = []
    if result["claims"]:
        rows = [
            [
                c["name"],
                number(c["value"], c["unit"]),
                f"{c['relation']} {number(c['target'], c['unit'])}",
                yes(c["met"]),
            ]
            for c in result["claims"]
        ]
        parts.append(markdown(["measured", "value", "target", "met"], rows))
    if "table" in result["measurements"]:
        table = result["measurements"]["table"]
        parts.append(markdown(table["columns"], table["rows"]))
    machine, versions = result["machine"], result["versions"]
    gpu = "" if machine["gpu"] in (None, "none") else f", {machine['gpu']}"
    where = f"{machine['processor']}, {machine['cores']} cores, {machine['memory_bytes'] / 1e9:.0f} GB{gpu}"
    stack = ", ".join(f"{package} {version}" for package, version in versions.items())
    parts.append(f"<sub>`{result['command']}`, {result['date'][:10]}: {where}; {stack}.</sub>\n")
    return "\n".join(parts)


def number(value: float, unit: str) -> str:
    """A value as people read it.

    >>> number(0.1234, "share"), number(3.25, "x"), number(0.5, "s"), number(12, "")
    ('12.3 %', '3.25x', '0.5 s', '12')
    """
    if unit == "share":
        return f"{100 * value:.3g} %"
    text = f"{value:.3g}" if isinstance(value, float) else f"{value:,}"
    return f"{text}{unit}" if unit in ("x", "%") else f"{text} {unit}".strip()


def yes(met: bool) -> str:
    """Whether a claim is met, in a word."""
    return "yes" if met else "**no**"


def markdown(columns: list[str], rows: list[list[Any]]) -> str:
    """A table in markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join("| " + " | ".join(str(cell) for cell in line) + " |\n" for line in lines)


def main() -> int:
    """Rewrite the documents, or say which differ."""
    check, stale = "--check" in sys.argv[1:], []
    for path in documents():
        text = path.read_text()
        new = rendered(text)
        if new != text:
            stale.append(str(path.relative_to(ROOT)))
            if not check:
                path.write_text(new)
    if stale:
        print(("differ from benchmarks/results: " if check else "rewritten: ") + ", ".join(stale))
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
