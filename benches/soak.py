#!/usr/bin/env python3
"""A long time under half of what two sites can do: memory, files, connections and times must stay as they are.

    cargo build --release --workspace
    python3 benches/soak.py [--minutes 60] [--ops pair,enc] [--out DIR]
    target/plots/bin/python benches/draw.py DIR

Two sites and three pool servers in processes of their own, on this machine. First a few short runs with all
operations at once, as fast as they go: that is the maximum. Then each gets half of what it reached there, in an open
loop, for all the minutes; keys of `pair` are compared with their twins, keys of `enc` are never retrieved and expire.

Stores must reach a steady state in the run: keys live for a twelfth of it and pool sets for a sixth, at most five and
ten minutes (10 minutes is their default; keys otherwise live for a day). What comes before everything has expired once
is drawn and not judged. The rest is halved: "flat" means that the median of the second half differs from that of the
first by no more than the tolerance that is printed beside it. Slopes are least squares over both halves.

Writes DIR/soak.json, which draw.py makes DIR/soak.png of. Ends with 1 when anything rises, a request fails, a key
differs from its twin or a daemon ends.
"""

import json
import pathlib
import statistics
import subprocess
import sys
import time

from drawing import Panel, where
from network import errors, Failed, folder, insert, Load, machine, network, options, run, slope, table

MIB = 1 << 20
# Short runs that find the maximum.
PROBES, PROBE_S, PROBE_WARMUP_S = 3, 8, 3
WARMUP_S = 5
SLACK_S = 120
COMPARED_MAX = 200_000
# What belongs to each daemon: unit, factor, and what is flat: this part of the first half, or this much at least.
OF_DAEMONS = {
    "rss_bytes": ("resident memory, MiB", 1 / MIB, 0.05, 4),
    "files": ("open files", 1, 0.05, 4),
    "threads": ("threads", 1, 0.10, 2),
    "connections": ("TCP connections", 1, 0.05, 4),
    "cpu": ("CPU, cores", 1, 0.15, 0.03),
}
OF_SITES = {
    "database_bytes": ("database, MiB", 1 / MIB, 0.05, 4),
    "wal_bytes": ("write-ahead log, MiB", 1 / MIB, 0.25, 4),
    "ready": ("ready keys", 1, 0.25, 256),
}
OF_OPERATIONS = {
    "p50": ("p50, ms", 1, 0.20, 0.2),
    "p99": ("p99, ms", 1, 0.30, 2),
    "operations_per_s": ("operations a second", 1, 0.03, 1),
}


def put_load(args, network, operation, rate, seconds):
    compare = COMPARED_MAX if operation == "pair" else 0
    return Load(network, "--op", operation, "--rate", rate, "--connections", args.connections, "--duration", seconds,
                "--warmup", WARMUP_S, "--timeout", 30, "--compare", compare, window_s=args.every)


def wrong(operation, load):
    """What was not as it should be."""
    try:
        report = load.result(SLACK_S)
    except Failed as failure:
        return [f"{operation}: {failure}"]
    found = [f"{operation}: {count:,} x {what}" for what, count in errors([report["rounds"][0]["kme"]]).items()]
    twins = [(count, what) for what, count in report["twins"].items() if what != "compared" and count]
    return found + [f"{count:,} keys {what}" for count, what in twins]


def maximum(network, args):
    """Operations a second of each operation, all at once."""
    reached = {operation: [] for operation in args.ops}
    for _ in range(args.probes):
        running = {operation: subprocess.Popen(
            network.bench_command("--op", operation, "--connections", args.connections, "--rounds", 1, "--compare", 0,
                                  "--duration", args.probe_seconds, "--warmup", PROBE_WARMUP_S),
            stdout=subprocess.PIPE, text=True) for operation in args.ops}
        try:
            for operation, process in running.items():
                output, _ = process.communicate(timeout=SLACK_S + args.probe_seconds)
                if process.returncode != 0:
                    raise Failed(f"the maximum of {operation} could not be measured")
                reached[operation].append(json.loads(output)["kme"]["operations_per_s"])
        except subprocess.TimeoutExpired as error:
            raise Failed("a short run did not end") from error
        finally:
            for process in running.values():
                process.kill()
                process.wait()
    return {operation: statistics.median(found) for operation, found in reached.items()}


class Samples:
    """Everything about the daemons, every so many seconds."""

    def __init__(self, network):
        self.network, self.rows, self.cpu = network, [], {}

    def take(self, start):
        now = time.monotonic()
        row = {"at_s": now - start, "daemons": {}, "sites": {}}
        for name in self.network.running:
            sample = self.network.process(name).sample()
            if name in self.cpu:
                then, cpu_s = self.cpu[name]
                sample["cpu"] = (sample["cpu_s"] - cpu_s) / (now - then)
            self.cpu[name] = (now, sample.pop("cpu_s"))
            row["daemons"][name] = sample
        for index, site in enumerate(self.network.manifest["sites"]):
            database, wal = self.network.database_bytes(index)
            ready = sum(self.network.reserve(index))
            row["sites"][site["id"]] = {"database_bytes": database, "wal_bytes": wal, "ready": ready}
        self.rows.append(row)


def lives(seconds):
    """How long keys and pool sets live in a run of so many seconds, and when everything has expired once."""
    keys, sets = min(300, max(10, seconds / 12)), min(600, max(20, seconds / 6))
    settled = max(1.2 * keys + 20, 1.2 * sets)
    return int(keys), int(sets), min(settled, seconds / 3)


def soak(args, network, record):
    seconds = record["seconds"]
    settings = f"[keys]\nttl = \"{record['key_ttl_s']}s\"\n[pools]\nset_ttl = \"{record['set_ttl_s']}s\"\n"
    for site in network.manifest["sites"]:
        pathlib.Path(site["config"]).write_text(insert(network.plain[site["id"]], settings))
    network.start_all()
    print("the maximum is looked for", flush=True)
    record["maximum_per_s"] = maximum(network, args)
    record["rate_per_s"] = {operation: round(most / 2, 1) for operation, most in record["maximum_per_s"].items()}
    print(", ".join(f"{operation}: {most:,.0f} a second" for operation, most in record["maximum_per_s"].items())
          + f"; half of it for {seconds / 60:g} minutes", flush=True)
    samples, start, loads = Samples(network), time.monotonic(), {}
    record["samples"] = samples.rows
    try:
        for operation, rate in record["rate_per_s"].items():
            loads[operation] = put_load(args, network, operation, rate, seconds)
        watch(args, samples, start, loads, seconds)
        record["wrong"] += [each for operation, load in loads.items() for each in wrong(operation, load)]
    finally:
        for load in loads.values():
            load.stop()
        record["windows"] = {operation: [window | {"at_s": window["at"] - start} for window in load.windows]
                             for operation, load in loads.items()}


def watch(args, samples, start, loads, seconds):
    """Takes samples until the load is over."""
    number, until = 0, start + seconds + WARMUP_S + SLACK_S
    while any(load.is_running() for load in loads.values()):
        if time.monotonic() > until:
            raise Failed("the load did not end in time")
        samples.take(start)
        if number % 12 == 0:
            print(line(samples.rows[-1], loads), flush=True)
        number += 1
        time.sleep(max(0, start + number * args.every - time.monotonic()))


def line(row, loads):
    """One line for those who watch."""
    daemons = ", ".join(f"{name} {each['rss_bytes'] / MIB:.0f} MiB {each['files']} files"
                        for name, each in row["daemons"].items())
    last = [f"{operation} p99 {load.windows[-1]['latency_ms']['p99']:.1f} ms" for operation, load in loads.items()
            if load.windows and load.windows[-1]["latency_ms"]]
    return f"  {row['at_s']:6.0f} s: {daemons}" + "".join(f", {each}" for each in last)


# ---- what came of it ----


def all_series(record):
    """(group, name, unit, [(second, value)...], tolerances) of everything that was sampled."""
    found = []
    for kind, of in (("daemons", OF_DAEMONS), ("sites", OF_SITES)):
        names = list(record["samples"][0][kind]) if record["samples"] else []
        for key, (unit, factor, part, least) in of.items():
            for name in names:
                points = [(row["at_s"], row[kind][name][key] * factor) for row in record["samples"]
                          if key in row[kind].get(name, {})]
                found.append((key, name, unit, points, part, least))
    for key, (unit, factor, part, least) in OF_OPERATIONS.items():
        for operation, windows in record["windows"].items():
            points = [(window["at_s"], of_window(window, key)) for window in windows]
            points = [(at, value * factor) for at, value in points if value is not None]
            found.append((key, operation, unit, points, part, least))
    return found


def of_window(window, key):
    if key == "operations_per_s":
        return window[key]
    return window["latency_ms"] and window["latency_ms"][key]


def judge(record):
    """Whether each series is flat, once everything has expired once."""
    rows = []
    ends = [windows[-1]["at_s"] for windows in record["windows"].values() if windows]
    for key, name, unit, points, part, least in all_series(record):
        points = [(at, value) for at, value in points if record["settled_s"] <= at <= min(ends, default=0)]
        middle = len(points) // 2
        if middle < 2:
            rows.append({"name": f"{name}: {unit}", "verdict": "too few samples"})
            continue
        first, second = (statistics.median(value for _, value in half) for half in (points[:middle], points[middle:]))
        tolerance = max(part * abs(first), least)
        verdict = "flat" if abs(second - first) <= tolerance else "rises" if second > first else "falls"
        rows.append({"name": f"{name}: {unit}", "first": first, "second": second, "tolerance": tolerance,
                     "per_hour": slope(points) * 3600, "verdict": verdict})
    return rows


def draw(record):
    """Title, panels and notes."""
    series = all_series(record)
    panels = []
    for key, (unit, *_) in (OF_DAEMONS | OF_SITES | OF_OPERATIONS).items():
        lines = [(name, [at / 60 for at, _ in points], [value for _, value in points])
                 for of, name, _, points, _, _ in series if of == key]
        panels.append(Panel(unit, lines, "minutes", band=(0, record["settled_s"] / 60)))
    rates = ", ".join(f"{operation} {rate:,.0f}/s" for operation, rate in record.get("rate_per_s", {}).items())
    notes = [where(record["machine"]),
             f"Half of the maximum: {rates}. Keys live {record['key_ttl_s']} s, pool sets {record['set_ttl_s']} s; "
             "grey: not judged, until everything has expired once."]
    verdicts = [row for row in judge(record) if row["verdict"] not in ("flat", "falls")]
    verdict = "; ".join(f"{row['name']} {row['verdict']}" for row in verdicts)
    notes.append(f"Not flat: {verdict}" if verdicts else "Nothing rises.")
    notes += [f"Wrong: {each}" for each in record["wrong"]]
    return f"Soak of {record['seconds'] / 60:g} minutes", panels, notes


def report(record):
    figure = lambda value: f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    rows = []
    for row in record["judged"]:
        if "first" in row:
            figures = (figure(row[key]) for key in ("first", "second", "tolerance", "per_hour"))
            rows.append([row["name"], *figures, row["verdict"]])
        else:
            rows.append([row["name"], "-", "-", "-", "-", row["verdict"]])
    table(["", "first half", "second half", "flat within", "slope, an hour", ""], rows)
    for each in record["wrong"]:
        print(f"wrong: {each}")


def measure(args, file):
    seconds = args.minutes * 60
    key_ttl_s, set_ttl_s, settled_s = lives(seconds)
    record = {"name": "soak", "machine": machine(args.dqkd), "seconds": seconds, "key_ttl_s": key_ttl_s,
              "set_ttl_s": set_ttl_s, "settled_s": settled_s, "wrong": [], "samples": [], "windows": {}}
    try:
        with folder(args) as dir, network(args, dir) as sites:
            soak(args, sites, record)
    except (Failed, OSError) as error:
        record["wrong"].append(str(error))
    except KeyboardInterrupt:
        record["wrong"].append("it was ended before its time")
    finally:
        # Also what there is when somebody ends it.
        file.write_text(json.dumps(record))
    return record


def arguments():
    parser = options(__doc__, "soak")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--ops", default="pair,enc", help="of pair and enc, with a comma between")
    parser.add_argument("--connections", type=int, default=32, help="of each operation")
    parser.add_argument("--every", type=float, default=5, help="seconds between samples, and of each window")
    parser.add_argument("--probes", type=int, default=PROBES, help="short runs that find the maximum")
    parser.add_argument("--probe-seconds", type=float, default=PROBE_S, help="length of each")
    args = parser.parse_args()
    args.ops = args.ops.split(",")
    if not set(args.ops) <= {"pair", "enc"}:
        parser.error("--ops: pair, enc or both")
    return args


def main():
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    record = measure(args, args.out / "soak.json")
    record["judged"] = judge(record)
    report(record)
    if record["wrong"] or any(row["verdict"] == "rises" for row in record["judged"]):
        sys.exit("not everything is as it should be")


if __name__ == "__main__":
    run(main)
