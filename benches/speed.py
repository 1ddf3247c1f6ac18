#!/usr/bin/env python3
"""The figures of docs/performance.md: two sites and three pool servers in processes of their own, on this machine.

    cargo build --release
    python3 benches/speed.py [--only enc,dec,...] [--out DIR]

Writes a JSON file for each measurement into DIR and prints one table. Every ratio is that of `dqkd bench
--baseline`: KMEs and a server that does nothing in alternation, medians of the rounds. Run it on a machine that
does nothing else, and look at the column "others": it says what else the processors did meanwhile.
"""

import argparse
import json
import pathlib
import signal
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
STARTUP_S = 60


class Network:
    """Files of `dqkd demo`, each daemon a process."""

    def __init__(self, dqkd, dir, store=None):
        self.dqkd, self.dir, self.running = dqkd, dir, {}
        command = [dqkd, "demo", "--generate-only", "--dir", dir / "demo", *(["--store", store] if store else [])]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        self.manifest_path = dir / "demo" / "demo.json"
        self.manifest = json.loads(self.manifest_path.read_text())
        self.plain = {site["id"]: pathlib.Path(site["config"]).read_text() for site in self.manifest["sites"]}

    def start_all(self):
        for pool in self.manifest["pool_servers"]:
            self.start(pool["id"], "pool", pool["config"])
        for site in self.manifest["sites"]:
            self.start(site["id"], "serve", site["config"])
        self.wait_ready()

    def start(self, name, command, config):
        self.running[name] = subprocess.Popen(
            [self.dqkd, command, "--config", config], stdout=subprocess.DEVNULL, stderr=(self.dir / f"{name}.log").open("a")
        )

    def stop(self, name):
        process = self.running.pop(name)
        process.send_signal(signal.SIGTERM)
        process.wait(60)

    def stop_all(self):
        for name in list(self.running):
            self.stop(name)

    def wait_ready(self):
        until = time.monotonic() + STARTUP_S
        for site in self.manifest["sites"]:
            while True:
                try:
                    with urllib.request.urlopen(site["admin_url"] + "/readyz", timeout=5) as answer:
                        if b"does not answer" not in answer.read():
                            break
                except OSError:
                    pass
                if time.monotonic() > until:
                    sys.exit(f"{site['id']} does not get ready; see {self.dir}")
                time.sleep(0.1)

    def configure(self, index, tables):
        """Restarts a site with more tables in its file; the files of `dqkd demo` have none of these."""
        site = self.manifest["sites"][index]
        if site["id"] in self.running:
            self.stop(site["id"])
        pathlib.Path(site["config"]).write_text(insert(self.plain[site["id"]], tables))
        self.start(site["id"], "serve", site["config"])
        self.wait_ready()

    def ready_keys(self):
        """Ready keys of alice for bob, by her KME's status."""
        site = self.manifest["sites"][0]
        alice, bob = site["saes"][0], self.manifest["sites"][1]["saes"][0]
        tls = ssl.create_default_context(cafile=self.manifest["ca"])
        tls.load_cert_chain(alice["cert"], alice["key"])
        url = f"{site['sae_url']}/api/v1/keys/{bob['id']}/status"
        with urllib.request.urlopen(url, context=tls, timeout=30) as answer:
            return json.load(answer)["stored_key_count"]


def insert(text, tables):
    """TOML tables go before the first array of tables; order does not matter otherwise."""
    head, array, tail = text.partition("\n[[")
    return f"{head}\n{tables}\n{array}{tail}"


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
        command = [self.args.dqkd, "bench", "--json", "--demo", network.manifest_path]
        command += ["--duration", str(self.args.duration), "--rounds", str(self.args.rounds), "--baseline", *map(str, options)]
        print(f"{name}: {' '.join(map(str, command[3:]))}", file=sys.stderr)
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.stdout:
            (self.args.out / f"{name}.json").write_text(done.stdout)
        if done.returncode != 0:
            print(f"{name}: failed", file=sys.stderr)
            return None
        report = json.loads(done.stdout)
        self.rows.append(row(name, report))
        return report

    def print(self):
        head = ["measurement", "ops/s", "p50 ms", "p99 ms", "hello ops/s", "hello p99 ms", "ratio of ops/s",
                "ratio of p99", "ratio of server CPU", "others", "keys compared"]
        for cells in [head, ["---"] * len(head), *self.rows]:
            print("| " + " | ".join(cells) + " |")


def number(value):
    return "-" if value is None else f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def bounds(ratio):
    return "-" if ratio is None else f"{ratio['median']:.2f} [{ratio['min']:.2f}, {ratio['max']:.2f}]"


def row(name, report):
    kme, hello = report["kme"], report["hello"] or {}
    runs = [run for each in report["rounds"] for run in (each["hello"], each["kme"]) if run]
    others = sum(run["others_cpu_s"] for run in runs) / sum(run["seconds"] for run in runs)
    errors = sum(n for run in runs for status, n in run["statuses"].items() if status != "200")
    compared = f"{report['twins']['compared']:,}" + (f", {errors} errors" if errors else "")
    return [name, number(kme["operations_per_s"]), number(kme["p50_ms"]), number(kme["p99_ms"]),
            number(hello.get("operations_per_s")), number(hello.get("p99_ms")), bounds(report["ratio_of_operations_per_s"]),
            bounds(report["ratio_of_p99"]), bounds(report["ratio_of_cpu"]), f"{others:.0%} of a core", compared]


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dqkd", type=pathlib.Path, default=ROOT / "target" / "release" / "dqkd")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "target" / "speed")
    parser.add_argument("--dir", type=pathlib.Path, help="for files of the sites, kept; a temporary folder unless given")
    parser.add_argument("--store", help="postgres://...: a database for all sites, instead of SQLite files")
    parser.add_argument("--only", help="names of measurements, with commas between")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--duration", type=float, default=3.0, help="measured seconds of each round")
    parser.add_argument("--stock", type=int, default=1_000_000, help="ready keys before enc is measured")
    args = parser.parse_args()
    speed = Speed(args)
    with tempfile.TemporaryDirectory() as temporary:
        network = Network(args.dqkd.resolve(), (args.dir or pathlib.Path(temporary)).resolve(), args.store)
        try:
            measure(speed, network)
        finally:
            network.stop_all()
    speed.print()


if __name__ == "__main__":
    main()
