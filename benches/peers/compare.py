#!/usr/bin/env python3
"""The same load on other ETSI GS QKD 014 servers as on ours, side by side.

Needs what any client of theirs needs: base URLs, certificates, SAE IDs. Nothing of theirs is part of this
repository: start their servers as they say, then name them, each as one --peer with options of `qkd014 bench`:

    python3 benches/peers/compare.py --ours dqkd-demo/demo.json \\
        --peer 'other: --url-a https://127.0.0.1:9001 --url-b https://127.0.0.1:9002 --ca ca.pem
                --sae-a 1 --cert-a a.pem --key-a a.key --sae-b 2 --cert-b b.pem --key-b b.key'

Each row is the median of the rounds. In every round all servers take their turn, one after the other, so that
what the machine does besides falls on all of them. "keys compared" are those of which master and slave got the
same; what is not right with the others is said beside them. A server that answers 503 or 400 under load is not
slow but wrong, so answers are counted by status. "server CPU" is that of the process that listens: a database that
a server has beside it is among the "others". Comparing keys asks for them one by one, as does the stock for dec when a
server gives one key at a time: for slow ones add `--compare 500` to the options of --peer and use --dec-stock.
"""

import argparse
import json
import pathlib
import shlex
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def bench(args, options, operation, connections):
    command = [args.qkd014, "bench", "--json", "--op", operation, "--connections", str(connections)]
    command += ["--duration", str(args.duration), "--rounds", "1", "--timeout", str(args.timeout)]
    if operation == "dec":
        command += ["--stock", str(args.dec_stock)]
    done = subprocess.run(command + options, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if not done.stdout:
        return None, done.stderr.strip().splitlines()[-1:] or ["it ended without a word"]
    return json.loads(done.stdout), None


def row(name, operation, connections, reports, failures):
    cells = [name, operation, connections]
    if not reports:
        return cells + ["failed: " + "; ".join(failures)] + [""] * 6
    runs = [report["rounds"][0]["kme"] for report in reports]
    middle = lambda value: statistics.median(value(run) for run in runs)
    cpu = [run["server_cpu_us_per_operation"] for run in runs if run["server_cpu_us_per_operation"] is not None]
    statuses, troubles = {}, {}
    for run in runs:
        for total, counted in ((statuses, run["statuses"]), (troubles, run["troubles"])):
            for what, count in counted.items():
                total[what] = total.get(what, 0) + count
    twins = {what: sum(report["twins"][what] for report in reports) for what in reports[0]["twins"]}
    wrong = [f"{count:,} {what}" for what, count in twins.items() if count and what != "compared"]
    others = sum(run["others_cpu_s"] for run in runs) / sum(run["cpu_counted_s"] for run in runs)
    return cells + [
        f"{middle(lambda run: run['operations_per_s']):,.0f}",
        f"{middle(lambda run: run['latency_ms']['p50']):.2f}",
        f"{middle(lambda run: run['latency_ms']['p99']):.2f}",
        f"{statistics.median(cpu) / 1000:.3f}" if cpu else "-",
        ", ".join(f"{count:,} x {what}" for what, count in (statuses | troubles).items()),
        ", ".join([f"{twins['compared']:,}", *wrong, *failures]),
        f"{others:.0%} of a core",
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--qkd014", default=ROOT / "target" / "release" / "qkd014", type=pathlib.Path)
    parser.add_argument("--ours", metavar="DEMO.JSON", help="of a `dqkd demo` that runs")
    parser.add_argument("--peer", action="append", default=[], metavar="'NAME: OPTIONS'", help="may be repeated")
    parser.add_argument("--ops", default="enc,dec,pair", help="of enc, dec, pair, handshake")
    parser.add_argument("--connections", default="1,16,64")
    parser.add_argument("--duration", default=5.0, type=float)
    parser.add_argument("--timeout", default=30.0, type=float)
    parser.add_argument("--dec-stock", default=5000, type=int, help="keys fetched before dec is measured")
    parser.add_argument("--rounds", default=5, type=int)
    args = parser.parse_args()
    servers = [("dqkd", ["--demo", args.ours])] if args.ours else []
    for peer in args.peer:
        name, colon, options = peer.partition(":")
        if not colon:
            parser.error("--peer is 'NAME: OPTIONS'")
        servers.append((name.strip(), shlex.split(options)))
    if not servers:
        parser.error("give --ours or --peer")
    head = ["server", "operation", "connections", "ops/s", "p50 ms", "p99 ms", "server CPU ms/op", "answers",
            "keys compared", "others"]
    for cells in (head, ["---"] * len(head)):
        print("| " + " | ".join(cells) + " |")
    for operation in args.ops.split(","):
        for connections in args.connections.split(","):
            reports, failures = {name: [] for name, _ in servers}, {name: [] for name, _ in servers}
            for _ in range(args.rounds):
                for name, options in servers:
                    report, failure = bench(args, options, operation, connections)
                    reports[name] += [report] if report else []
                    failures[name] += failure or []
            for name, _ in servers:
                cells = row(name, operation, connections, reports[name], sorted(set(failures[name])))
                print("| " + " | ".join(map(str, cells)) + " |")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
