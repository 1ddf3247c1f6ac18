#!/usr/bin/env python3
"""Draws what the other scripts of this folder have measured: a PNG beside each of their JSON files.

    python3 -m venv target/plots && target/plots/bin/pip install matplotlib
    target/plots/bin/python benches/draw.py FILE_OR_FOLDER...

Of speed.py it draws `sustained`: throughput, p99 and databases over time. Of growth.py: what each size costs. Of
soak.py: everything that should stay as it is.
"""

import argparse
import json
import pathlib
import sys

import drawing
import growth
import soak
import speed


def plot(name, record):
    """Title, panels and notes, and how they are laid out; `None` for a file of something else."""
    if name in growth.PLOTS:
        return growth.PLOTS[name].draw(record), {}
    if name == "soak":
        return soak.draw(record), {"columns": 4, "markers": False}
    if name == "sustained":
        return speed.draw(record), {"columns": 4, "markers": False}
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", type=pathlib.Path, nargs="+", metavar="FILE_OR_FOLDER")
    args = parser.parse_args()
    drawing.demand()
    files = [file for path in args.paths for file in (sorted(path.glob("*.json")) if path.is_dir() else [path])]
    drawn = 0
    for file in files:
        record = json.loads(file.read_text())
        found = plot(record.get("name", file.stem), record)
        if found is None:
            continue
        (title, panels, notes), layout = found
        drawing.draw(file.with_suffix(".png"), title, panels, notes, **layout)
        print(f"drawn: {file.with_suffix('.png')}")
        drawn += 1
    if not drawn:
        sys.exit("there is nothing to draw")


if __name__ == "__main__":
    main()
