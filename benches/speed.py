#!/usr/bin/env python3
"""The figures of docs/lab/performance.md: two sites and three pool servers in processes of their own, on this machine.

    cargo build --release
    python3 benches/speed.py [--only enc,dec,...] [--out DIR]

Writes a JSON file for each measurement into DIR and prints one table. Every ratio is that of `qkd014 bench
--baseline`: KMEs and a server that does nothing in alternation, medians of the rounds. Run it on a machine that
does nothing else, and look at the column "others": it says what else the processors did meanwhile.
"""

import json
import sys
import time

from network import Failed, Network, errors, folder, options, others, run, table

# For everything but the measured time, the keys that `dec` wants beforehand included.
PATIENCE_S = 600


class Speed:
    def __init__(self, args):
        self.args, self.rows = args, []
        self.only = set(args.only.split(",")) if args.only else None
        args.out.mkdir(parents=True, exist_ok=True)

    def wants(self, *names):
        return self.only is None or any(name in self.only for name in names)

    def bench(self, network, name, *options):
        if not self.wants(name):
            return None
        options = ["--duration", self.args.duration, "--rounds", self.args.rounds, "--baseline", *options]
        print(f"{name}: {' '.join(map(str, options))}", file=sys.stderr)
        file = self.args.out / f"{name}.json"
        try:
            report = network.bench(*options, patience_s=PATIENCE_S + 10 * self.args.rounds * self.args.duration)
        except Failed as failure:
            if failure.output:
                file.write_text(failure.output)
            print(f"{name}: failed: {failure}", file=sys.stderr)
            return None
        file.write_text(json.dumps(report, indent=2))
        self.rows.append(row(name, report))
        return report

    def print(self):
        head = ["measurement", "ops/s", "p50 ms", "p99 ms", "baseline ops/s", "baseline p99 ms", "ratio of ops/s",
                "ratio of p99", "ratio of server CPU", "others", "keys compared"]
        table(head, self.rows)


def number(value):
    return "-" if value is None else f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def bounds(ratio):
    return "-" if ratio is None else f"{ratio['median']:.2f} [{ratio['min']:.2f}, {ratio['max']:.2f}]"


def row(name, report):
    kme, baseline = report["kme"], report["baseline"] or {}
    runs = [run for each in report["rounds"] for run in (each["baseline"], each["kme"]) if run]
    wrong = sum(errors(runs).values())
    compared = f"{report['twins']['compared']:,}" + (f", {wrong} errors" if wrong else "")
    return [name, number(kme["operations_per_s"]), number(kme["p50_ms"]), number(kme["p99_ms"]),
            number(baseline.get("operations_per_s")), number(baseline.get("p99_ms")), bounds(report["ratio_of_operations_per_s"]),
            bounds(report["ratio_of_p99"]), bounds(report["ratio_of_cpu"]), f"{others(runs):.0%} of a core", compared]


def stock(speed, network):
    """Fills the reserve and says how fast: two sites make, push, regenerate, store, and nobody asks for keys."""
    wanted = speed.args.stock
    network.configure(0, f"[keys]\nmin_stored_per_pair = {wanted}\nmax_stored_per_pair = {wanted}\n")
    before, start = network.ready_keys(), time.monotonic()
    while (count := network.ready_keys()) < wanted:
        time.sleep(0.5)
    seconds = time.monotonic() - start
    generated = {"keys": count - before, "seconds": seconds, "keys_per_s": (count - before) / seconds}
    (speed.args.out / "generation.json").write_text(json.dumps(generated))
    print(f"generation: {generated['keys']:,} keys in {seconds:.1f} s: {generated['keys_per_s']:,.0f} keys/s", file=sys.stderr)
    # From here on nothing is refilled: the site wants far fewer than it has.
    network.configure(0, "[keys]\nmin_stored_per_pair = 1\nmax_stored_per_pair = 128\n")


def measure(speed, network):
    network.start_all()
    if speed.wants("generation", "enc", "enc-kme-path", "enc-h2", "enc-c1", "enc-half-load", "handshake"):
        stock(speed, network)
    full = speed.bench(network, "enc", "--op", "enc")
    speed.bench(network, "enc-c1", "--op", "enc", "--connections", 1)
    speed.bench(network, "enc-h2", "--op", "enc", "--http", 2, "--connections", 4, "--streams", 16)
    if full:
        half = full["kme"]["operations_per_s"] / 2
        speed.bench(network, "enc-half-load", "--op", "enc", "--rate", round(half))
    speed.bench(network, "handshake", "--op", "handshake", "--connections", 8)
    network.configure(0, "")  # as `dqkd demo` has it
    speed.bench(network, "enc-refilled", "--op", "enc")
    speed.bench(network, "enc-128", "--op", "enc", "--number", 128, "--connections", 8)
    dec = int(speed.args.duration * 25000 + 25000)
    speed.bench(network, "dec", "--op", "dec", "--stock", dec)
    speed.bench(network, "dec-c1", "--op", "dec", "--stock", dec, "--connections", 1)
    speed.bench(network, "pair", "--op", "pair")


def main():
    parser = options(__doc__, "speed")
    parser.add_argument("--store", help="postgres://...: a database for all sites, instead of SQLite files")
    parser.add_argument("--only", help="names of measurements, with commas between")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--duration", type=float, default=3.0, help="measured seconds of each round")
    parser.add_argument("--stock", type=int, default=1_000_000, help="ready keys before enc is measured")
    args = parser.parse_args()
    speed = Speed(args)
    with folder(args) as dir, Network(args.dqkd, dir, store=args.store) as network:
        measure(speed, network)
    speed.print()


if __name__ == "__main__":
    run(main)
