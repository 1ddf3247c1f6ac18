#!/usr/bin/env python3
"""Lines of Rust by crate and room: `python3 docs/lab/lines.py [CHECKOUT]`.

Test lines are the files named `tests` or `testing`, the module `tests` at the end of a file, everything under a
folder `tests`, `benches` or `examples`, and the crate `testkit`. All other lines are product, comments included.
"""

import collections
import pathlib
import re
import sys

TAIL = re.compile(r"^#\[cfg\(test\)\]\nmod tests \{", re.M)
TEST_PARTS = {"tests", "testing", "benches", "examples"}


def place(path):
    """The row of a file."""
    parts = path.parts
    if parts[0] == "crates":
        crate, rest = parts[1], parts[2:]
        rooms = [part for part in rest[1:-1]] if crate == "qkd014" and rest[0] == "src" else []
        return f"crates/{crate}" + (f" {rooms[0]}" if rooms else "")
    if parts[0] == "src":
        return f"src/{parts[1].removesuffix('.rs')}"
    return parts[0]


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parents[2])
    rows = collections.defaultdict(lambda: [0, 0])
    for top in ("src", "crates", "tests", "benches", "examples"):
        for path in sorted((root / top).rglob("*.rs")):
            inside = path.relative_to(root)
            if "target" in inside.parts:
                continue
            text = path.read_text()
            lines = text.count("\n")
            names = {part.removesuffix(".rs") for part in inside.parts}
            is_test = names & TEST_PARTS or "testkit" in names or top not in ("src", "crates") or "_tests" in path.stem
            tail = TAIL.search(text)
            tests = lines if is_test else text[tail.start():].count("\n") if tail else 0
            row = rows[place(inside)]
            row[0] += lines - tests
            row[1] += tests
    print("| place | product | test |\n|---|---|---|")
    for name in sorted(rows):
        print(f"| {name} | {rows[name][0]:,} | {rows[name][1]:,} |")
    for title, is_in in (
        ("the KME: `src/` and the crates it is made of", lambda n: n.startswith(("src/", "crates/")) and "qkd014" not in n and "testkit" not in n),
        ("everything", lambda n: True),
    ):
        chosen = [row for name, row in rows.items() if is_in(name)]
        print(f"| **{title}** | **{sum(r[0] for r in chosen):,}** | **{sum(r[1] for r in chosen):,}** |")


main()
