#!/usr/bin/env python3
"""How cost grows: with pairs of SAEs, ready and stored keys, peers, connections, the size of keys, pools.

    cargo build --release --workspace
    python3 benches/growth.py [--only pairs,stored,...] [--pairs 1,100] [--out DIR]
    target/plots/bin/python benches/draw.py DIR

Two sites and three pool servers in processes of their own (more where that is what grows), on this machine, so run
it where nothing else runs. Each measurement writes DIR/NAME.json, which draw.py makes DIR/NAME.png of. A point that
could not be measured is reported and left out of the plot. In the end a table says what one more costs in memory: the
slope of least squares over the points, and the step between the last two.

Figures are medians of the rounds. "server CPU" is that of all daemons for one operation. Sites that are measured with
ready keys ("stocked") get them beforehand, and then want no more, so that nothing is made meanwhile; where more than
one key in fifty had to be made all the same, there is no figure. `stored` is measured in the default configuration:
there keys are made while they are asked for.
"""

import argparse
import collections
import http.client
import json
import pathlib
import socket
import statistics
import sys
import time
from urllib.parse import urlsplit

from drawing import Panel, where
from network import (Failed, cell_bytes, errors, folder, listed, machine, network, options, others, run, slope, table,
                     with_one_peer)

# The most that one `qkd014 bench` may take besides the time that it measures.
SLACK_S = 120
# Part of the keys that may be made on demand while ready keys are measured.
MADE_MAX = 0.02
# Of a reserve, by configuration.
PAIR_MAX = 1_000_000
# Requests to keys of pairs that are new: made on demand, or taken from the database.
NEW_PAIRS_PER_S, TOUCHES_MAX = 500, 4
OPERATIONS_PER_S_MAX = 40_000
# Slower than any site delivers the keys that `dec` knows.
FETCHED_PER_S = 5_000
# A reserve is looked through every ten seconds; an idle site is looked at for longer.
IDLE_S = 12
READY_PAIRS = 2_000
# An idle connection is ended by the site after ten seconds.
ASK_EVERY_S = 6
# The size of batches bounds how fast large keys are made.
SIZE_FILL_S = 30


def keys(floor, most=None, more=""):
    """The table of a site that keeps `floor` keys ready for each pair."""
    most = floor if most is None else most
    bounds = f"min_stored_per_pair = {floor}\nmax_stored_per_pair = {most}\n"
    return f"[keys]\n{bounds}max_per_request = {min(most, 128)}\n{more}"


# Far fewer than there are: nothing is made.
NO_REFILL = keys(1, 128)
ON_DEMAND = keys(0, 128)


class Growth:
    """One measurement: its points, and the networks that it needs."""

    def __init__(self, args, dir, name):
        self.args, self.dir, self.name, self.points, self.networks = args, dir, name, [], 0

    def network(self, **sizes):
        self.networks += 1
        dir = self.dir / f"{self.name}-{self.networks}"
        dir.mkdir(parents=True)
        return network(self.args, dir, **sizes)

    def sizes(self):
        return getattr(self.args, self.name.replace("-", "_"))

    def each(self, network, measure):
        for x in self.sizes():
            if ended := network.revive():
                print(f"  started again, had ended: {', '.join(ended)}")
            self.point(x, lambda: measure(self, network, x))

    def point(self, x, measure):
        start = time.monotonic()
        try:
            point = {"x": x} | measure()
        except Failed as failure:
            point = {"x": x, "failed": str(failure)}
        except (OSError, http.client.HTTPException) as error:
            point = {"x": x, "failed": f"{type(error).__name__}: {error}"}
        point["took_s"] = round(time.monotonic() - start, 1)
        self.points.append(point)
        values = ", ".join(f"{key} {shown(value)}" for key, value in point.items() if key != "x")
        print(f"  {self.name} {x:,}: {values}", flush=True)

    def bench(self, network, *options, rounds=None, duration=None, warmup=0.5, connections=64, compare=2000,
              slack_s=SLACK_S):
        """Figures of one `qkd014 bench`."""
        rounds, duration = rounds or self.args.rounds, duration or self.args.duration
        patience = slack_s + 2 * rounds * (duration + warmup)
        report = network.bench("--rounds", rounds, "--duration", duration, "--warmup", warmup, "--timeout", 60,
                               "--connections", connections, "--compare", compare, *options, patience_s=patience)
        runs = [each["kme"] for each in report["rounds"]]
        if wrong := errors(runs):
            raise Failed(f"not all was answered: {wrong}; {network.full() or ''}")
        kme = report["kme"]
        return {
            "operations_per_s": kme["operations_per_s"],
            "p50_ms": kme["p50_ms"],
            "p99_ms": kme["p99_ms"],
            "server_cpu_us": kme["server_cpu_us_per_operation"],
            "first_site_cpu_us": cpu_us(runs, "KME of A"),
            "second_site_cpu_us": cpu_us(runs, "KME of B"),
            "others": round(others(runs), 3),
        }

    def ready(self, network, *options, **how):
        """The same of `enc_keys` from keys that are ready."""
        network.settle()
        before = network.made_and_handed_out()
        figures = self.bench(network, "--op", "enc", *options, **how)
        made, handed_out = (now - then for now, then in zip(network.made_and_handed_out(), before))
        if made > MADE_MAX * handed_out:
            raise Failed(f"{made:,.0f} keys were made while {handed_out:,.0f} were handed out: too few were ready")
        return figures

    def stocked(self, network, wanted, tables=NO_REFILL):
        """Has `wanted` keys ready for alice and bob, and then makes no more."""
        network.configure(0, keys(min(wanted, PAIR_MAX)))
        network.ready_keys()
        network.fill(wanted)
        network.configure(0, tables)

    def touch(self, network, slaves, name):
        """One request for each of `slaves` pairs, and a few more, so that each is in use."""
        seconds = max(1, slaves / NEW_PAIRS_PER_S)
        for _ in range(TOUCHES_MAX):
            self.bench(network, "--op", "enc", "--slaves", slaves, "--sae-b", name, "--rate",
                       1.2 * slaves / seconds + 10, rounds=1, duration=seconds, warmup=0, compare=0)
            in_use = network.metrics()["dqkd_reserve_pairs"]
            if in_use >= slaves:
                return
            seconds *= 2  # the machine is slower than that
        raise Failed(f"only {in_use:,.0f} of {slaves:,} pairs are in use")

    def record(self):
        return {"name": self.name, "machine": machine(self.args.dqkd), "rounds": self.args.rounds,
                "duration_s": self.args.duration, "points": self.points}


def cpu_us(runs, name):
    """Of one server for an operation."""
    of = [sum(server["cpu_s"] for server in run["servers"] if name in server["names"]) * 1e6 / run["operations"]
          for run in runs if run["operations"]]
    return statistics.median(of) if of else None


def shown(value):
    if not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,.4g}" if value < 1e4 else f"{value:,.0f}"


def idle(network, name, seconds=IDLE_S):
    """Memory of a daemon that nobody asks, and the share of a core that it and all daemons use."""
    processes = [network.process(daemon) for daemon in network.running]
    own, all = network.process(name).cpu_s(), sum(process.cpu_s() for process in processes)
    time.sleep(seconds)
    return {"rss_bytes": network.process(name).rss_bytes(), "idle_cpu": (network.process(name).cpu_s() - own) / seconds,
            "idle_cpu_of_all": (sum(process.cpu_s() for process in processes) - all) / seconds}


# ---- what grows ----


def pairs(growth):
    """So many pairs in use; the ready keys of all together are as many each time."""
    with growth.network() as network:
        # Others for each point: what is left of the one before belongs to nobody any more.
        directory = "".join(listed(f"of-{count}", count, "site-b") for count in growth.sizes())
        network.start_all()
        network.configure(1, "", directory)
        growth.each(network, lambda growth, network, count: of_pairs(growth, network, count, directory))


def of_pairs(growth, network, count, directory):
    each, name = min(-(-growth.args.stock // count), PAIR_MAX), f"of-{count}"
    network.configure(0, keys(each), directory)
    growth.touch(network, count, name)
    network.fill(each * count)
    # Fewer than each pair has, whatever they ask: nothing is made, nor voided.
    network.configure(0, keys(1), directory)
    growth.touch(network, count, name)
    figures = growth.ready(network, "--slaves", count, "--sae-b", name, compare=0)
    leased, _ = network.reserve()
    return figures | idle(network, "site-a") | {"ready_in_memory": leased}


def ready(growth):
    """So many ready keys in memory, of as many pairs each time."""
    with growth.network() as network:
        directory = "".join(listed(f"of-{count}", growth.args.ready_pairs, "site-b") for count in growth.sizes())
        network.start_all()
        network.configure(1, "", directory)
        growth.each(network, lambda growth, network, count: of_ready(growth, network, count, directory))


def of_ready(growth, network, count, directory):
    slaves, name = growth.args.ready_pairs, f"of-{count}"
    each = -(-count // slaves) + 1
    network.configure(0, keys(each), directory)
    growth.touch(network, slaves, name)
    network.fill(each * slaves)
    network.configure(0, keys(1), directory)
    # Each pair takes its block into memory, once.
    growth.touch(network, slaves, name)
    leased, stored = network.reserve()
    return {"ready_in_memory": leased, "ready_in_database": stored} | idle(network, "site-a", 2)


def stored(growth):
    """So many keys that were delivered and not retrieved, before what is measured."""
    for count in growth.sizes():
        growth.point(count, lambda: of_stored(growth, count))


def of_stored(growth, count):
    # A network each: every measurement stores keys of its own.
    with growth.network() as network:
        network.start_all()
        network.deliver(count)
        network.settle()
        size, wal = network.database_bytes(1)
        figures = {"rss_bytes": network.process("site-b").rss_bytes(), "database_bytes": size, "wal_bytes": wal}
        figures |= prefixed("enc_", growth.bench(network, "--op", "enc"))
    for order in ("newest", "random"):
        with growth.network() as network:
            network.start_all()
            known = count + growth.args.dec_stock
            figures |= prefixed(f"{order}_", growth.bench(
                network, "--op", "dec", "--order", order, "--stock", known, warmup=0.2,
                slack_s=SLACK_S + growth.args.rounds * known / FETCHED_PER_S))
    return figures


def peers(growth):
    """So many other sites, all of them there."""
    for count in growth.sizes():
        growth.point(count, lambda: of_peers(growth, count))


def of_peers(growth, count):
    with growth.network(sites=count + 1) as network:
        # The others know the first site only, or the machine would be busy with what they have among themselves.
        for site in network.manifest["sites"][1:]:
            config = pathlib.Path(site["config"])
            config.write_text(with_one_peer(network.plain[site["id"]], site["id"], "site-a"))
        network.start_all()
        slaves = [site["saes"][0]["id"] for site in network.manifest["sites"][1:]]
        time.sleep(growth.args.idle / 2)  # for what a start costs
        quiet = idle(network, "site-a", growth.args.idle)
        for slave in slaves:
            network.ready_keys(slave)
        network.fill(60 * count)
        in_use = idle(network, "site-a", growth.args.idle)
        growth.stocked(network, growth.args.stock)
        return growth.ready(network) | in_use | prefixed("before_use_", quiet)


def idle_connections(growth):
    """So many connections that do nothing but stay."""
    with growth.network() as network:
        network.start_all()
        network.configure(0, f"[limits]\nmax_connections = {max(growth.sizes()) + 100}\n")
        with Connections(network) as connections:
            connections.open(1)  # what the first one costs is no slope
            growth.each(network, lambda growth, network, count: of_idle(network, connections, count))


def of_idle(network, connections, count):
    start, before = time.monotonic(), connections.opened
    connections.open(count)
    seconds, opened = time.monotonic() - start, connections.opened - before
    sample = network.process("site-a").sample()
    if sample["connections"] < count:
        raise Failed(f"the site has only {sample['connections']:,} connections")
    return {"rss_bytes": sample["rss_bytes"], "connections": sample["connections"], "files": sample["files"],
            "opened_per_s": opened / seconds if opened else None}


class Connections:
    """TLS connections of alice to her site. A site ends those that ask nothing for ten seconds, so each asks now and
    then."""

    def __init__(self, network):
        self.tls, self.oldest_first, self.opened = network.open_tls(network.pair()[0]), collections.deque(), 0
        url = urlsplit(network.manifest["sites"][0]["sae_url"])
        self.address = (url.hostname, url.port)
        path = f"/api/v1/keys/{network.pair()[1]['id']}/status"
        self.request = f"GET {path} HTTP/1.1\r\nHost: {url.netloc}\r\n\r\n".encode()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for _, connection in self.oldest_first:
            connection.close()

    def open(self, count):
        while len(self.oldest_first) < count:
            tcp = socket.create_connection(self.address, 30)
            tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.ask(self.tls.wrap_socket(tcp, server_hostname=self.address[0]))
            self.opened += 1
            while time.monotonic() - self.oldest_first[0][0] > ASK_EVERY_S:
                self.ask(self.oldest_first.popleft()[1])

    def ask(self, connection):
        connection.sendall(self.request)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        answer.read()
        if answer.status != 200:
            raise Failed(f"one of {len(self.oldest_first):,} connections was answered {answer.status}")
        self.oldest_first.append((time.monotonic(), connection))


def active_connections(growth):
    """So many connections that ask as fast as they are answered."""
    with growth.network() as network:
        network.start_all()
        growth.each(network, of_active)


def of_active(growth, network, count):
    growth.stocked(network, growth.args.stock)
    figures = growth.ready(network, connections=count)
    return figures | {"rss_bytes": network.process("site-a").rss_bytes()}


def key_bits(growth):
    """Keys of so many bits: ready ones where that is the size that is kept ready, and on demand."""
    for bits in growth.sizes():
        growth.point(bits, lambda: of_bits(growth, bits))


def of_bits(growth, bits):
    with growth.network() as network:
        size = f"size_bits = {bits}\nmax_size_bits = 65536\n"
        network.start_all()
        network.configure(0, keys(min(growth.args.stock, PAIR_MAX), None, size))
        network.ready_keys()
        start = time.monotonic()
        count = network.fill(growth.args.stock, most_s=growth.args.size_fill)
        seconds = time.monotonic() - start
        network.configure(0, keys(1, 128, size))
        # No longer than the ready keys last.
        warmup = 0.1
        duration = count / growth.args.rounds / OPERATIONS_PER_S_MAX - warmup
        duration = min(max(duration, 0.1), growth.args.duration)
        try:
            figures = growth.ready(network, duration=duration, warmup=warmup) | {"duration_s": duration}
            figures["megabytes_per_s"] = figures["operations_per_s"] * bits / 8e6
        except Failed as failure:
            figures = {"missing": f"ready keys: {failure}"}
        network.configure(0, keys(0, 128, size))
        on_demand = growth.bench(network, "--op", "enc", "--sae-b", "carol", connections=16, compare=0)
    on_demand["megabytes_per_s"] = on_demand["operations_per_s"] * bits / 8e6
    return figures | {"made_ahead_per_s": count / seconds} | prefixed("on_demand_", on_demand)


def prefixed(prefix, figures):
    return {prefix + name: value for name, value in figures.items()}


def pools(growth):
    """Batches from so many pools."""
    most = max(growth.sizes())
    with growth.network(pool_servers=max(most, 2)) as network:
        network.start_all()
        growth.each(network, of_pools)


def of_pools(growth, network, count):
    wanted, first = growth.args.pool_keys, growth.args.pool_keys // 10
    pools = f"[pools]\npools_per_set = {count}\n"
    network.ready_keys()
    have = sum(network.reserve())  # a status says no more than it may have
    network.configure(0, keys(min(have + first + wanted, PAIR_MAX)) + pools)
    network.ready_keys()
    # The first keys wait for pools, which are downloaded once.
    before = network.fill(have + first)
    cpu = {name: network.process(name).cpu_s() for name in network.running}
    start = time.monotonic()
    now = network.fill(have + first + wanted)
    seconds, keys_made = time.monotonic() - start, now - before
    used = {name: (network.process(name).cpu_s() - then) * 1e6 / keys_made for name, then in cpu.items()}
    rss = network.process("site-a").rss_bytes()
    network.configure(0, ON_DEMAND + pools)
    on_demand = growth.bench(network, "--op", "enc", "--sae-b", "carol", connections=16, compare=0)
    return {
        "made_ahead_per_s": keys_made / seconds,
        "first_site_cpu_us": used["site-a"],
        "second_site_cpu_us": used["site-b"],
        "pool_servers_cpu_us": sum(us for name, us in used.items() if name.startswith("pool-")),
        "rss_bytes": rss,
    } | prefixed("on_demand_", on_demand)


# ---- plots and tables ----

MIB = 1 / (1 << 20)


def series(points, label, key, factor=1):
    good = [point for point in points if point.get(key) is not None]
    return label, [point["x"] for point in good], [point[key] * factor for point in good]


class Plot:
    """How one measurement is drawn. `panels`: (title, [(label, key, factor)...]) each."""

    def __init__(self, measure, title, x_label, panels, default, unit=None, linear=False):
        self.measure, self.title, self.x_label, self.panels = measure, title, x_label, panels
        self.default, self.unit, self.linear = default, unit, linear

    def draw(self, record):
        """Title, panels and notes."""
        points = record["points"]
        panels = [Panel(title, [series(points, *each) for each in of], self.x_label, log_x=not self.linear)
                  for title, of in self.panels]
        notes = [f"{where(record['machine'])}; medians of {record['rounds']} rounds of {record['duration_s']:g} s"]
        busy = [share for point in points for name, share in point.items() if name.endswith("others")]
        if busy:
            notes.append(f"The machine did other things meanwhile: up to {max(busy):.0%} of a core.")
        failed = [f"{point['x']:,}: {point[why]}" for point in points for why in ("failed", "missing") if why in point]
        if record.get("failed"):
            failed.append(record["failed"])
        notes += [f"No figure for {each}" for each in failed]
        return f"{self.title} ({self.measure.__doc__.rstrip('.')})", panels, notes


def each_order(figure):
    return [("enc_keys, sustained", f"enc_{figure}", 1), ("dec_keys, newest", f"newest_{figure}", 1),
            ("dec_keys, random", f"random_{figure}", 1)]


RATE = ("enc_keys, stocked, operations a second", [("enc_keys", "operations_per_s", 1)])
CPU = ("server CPU, us an operation", [("all daemons", "server_cpu_us", 1), ("first site", "first_site_cpu_us", 1)])
TIMES = ("latency, ms", [("p50", "p50_ms", 1), ("p99", "p99_ms", 1)])
MEMORY = ("memory of the first site, MiB", [("resident", "rss_bytes", MIB)])
IDLE = ("CPU of the idle site, cores", [("idle", "idle_cpu", 1)])

PLOTS = {
    "pairs": Plot(pairs, "Pairs", "pairs", [RATE, CPU, TIMES, MEMORY, IDLE], [1, 10, 100, 1_000, 10_000], "pair"),
    "ready": Plot(ready, "Ready keys", "ready keys in memory", [MEMORY], [2_000, 32_000, 64_000, 126_000], "ready key",
                  linear=True),
    "stored": Plot(stored, "Stored keys", "other keys stored at both sites", [
        ("operations a second", each_order("operations_per_s")),
        ("p99, ms", each_order("p99_ms")),
        ("server CPU of all daemons, us an operation", each_order("server_cpu_us")),
        ("memory of the second site, MiB", [("resident", "rss_bytes", MIB)]),
        ("its database, MiB", [("database", "database_bytes", MIB), ("write-ahead log", "wal_bytes", MIB)]),
    ], [1_000, 10_000, 100_000, 1_000_000], "stored key"),
    "peers": Plot(peers, "Peers", "peers", [
        RATE, CPU, TIMES,
        ("memory of the first site, MiB", [("in use", "rss_bytes", MIB), ("before", "before_use_rss_bytes", MIB)]),
        ("CPU of the idle site, cores", [("in use", "idle_cpu", 1), ("before", "before_use_idle_cpu", 1)]),
    ], [1, 2, 5, 10, 20], "peer", linear=True),
    "idle-connections": Plot(idle_connections, "Idle connections", "connections", [
        MEMORY, ("opened a second, one after the other", [("opened", "opened_per_s", 1)]),
    ], [1, 10, 100, 1_000, 10_000], "idle TLS connection"),
    "active-connections": Plot(active_connections, "Active connections", "connections", [RATE, TIMES, CPU, MEMORY],
                               [1, 4, 16, 64, 256, 1_000]),
    "key-bits": Plot(key_bits, "Size of keys", "bits", [
        ("enc_keys, operations a second", [
            ("stocked", "operations_per_s", 1), ("on demand", "on_demand_operations_per_s", 1),
        ]),
        ("MB of key a second", [("stocked", "megabytes_per_s", 1), ("on demand", "on_demand_megabytes_per_s", 1)]),
        ("server CPU, us an operation", [("stocked", "server_cpu_us", 1), ("on demand", "on_demand_server_cpu_us", 1)]),
        ("made ahead, keys a second", [("made", "made_ahead_per_s", 1)]),
    ], [256, 1_024, 4_096, 16_384, 65_536]),
    "pools": Plot(pools, "Pools", "pools of a set", [
        ("made ahead, keys a second", [("made", "made_ahead_per_s", 1)]),
        ("CPU, us a key made ahead", [("first site", "first_site_cpu_us", 1), ("second site", "second_site_cpu_us", 1),
                                      ("pool servers", "pool_servers_cpu_us", 1)]),
        ("enc_keys on demand, operations a second", [("on demand", "on_demand_operations_per_s", 1)]),
        ("the same, p50 in ms", [("p50", "on_demand_p50_ms", 1)]),
        MEMORY,
    ], [2, 3, 4, 5, 6, 7, 8], linear=True),
}


def slopes(records):
    """Rows: what one more costs in memory."""
    rows = []
    for name, plot in PLOTS.items():
        if plot.unit is None or name not in records:
            continue
        key = "database_bytes" if name == "stored" else "rss_bytes"
        across = "ready_in_memory" if name == "ready" else "x"
        good = [(point[across], point[key]) for point in records[name]["points"] if point.get(key) is not None]
        over = slope(good)
        last = slope(good[-2:])
        what = "database" if name == "stored" else "resident memory"
        rows.append([plot.unit, what, cell_bytes(over), cell_bytes(last),
                     f"{good[0][0]:,} to {good[-1][0]:,}" if good else "-"])
    return rows


def measure(args, dir, name):
    plot = PLOTS[name]
    print(f"{name}: {plot.measure.__doc__}", flush=True)
    growth, start, record = Growth(args, dir, name), time.monotonic(), {}
    record = growth.record()
    try:
        plot.measure(growth)
    except (Failed, OSError) as error:
        record["failed"] = str(error)
        print(f"  {name} failed: {error}", flush=True)
    finally:
        # Also what there is when somebody ends it.
        record["took_s"] = round(time.monotonic() - start, 1)
        (args.out / f"{name}.json").write_text(json.dumps(record, indent=2))
    print(f"  {record['took_s']:.0f} s", flush=True)


def sizes(text):
    found = sorted({int(part.replace("_", "")) for part in text.split(",")})
    if not found or found[0] < 1:
        raise argparse.ArgumentTypeError("numbers above 0 with commas between")
    return found


def arguments():
    parser = options(__doc__, "growth")
    parser.add_argument("--only", default=",".join(PLOTS), help=f"of {', '.join(PLOTS)}, with commas between")
    for name, plot in PLOTS.items():
        parser.add_argument(f"--{name}", type=sizes, default=plot.default, metavar="N,N...",
                            help=f"default {','.join(map(str, plot.default))}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--duration", type=float, default=1.0, help="measured seconds of each round")
    parser.add_argument("--stock", type=int, default=300_000, help="ready keys before enc_keys is measured")
    parser.add_argument("--dec-stock", type=int, default=30_000,
                        help="keys that dec knows besides the stored ones, so that a round has enough")
    parser.add_argument("--pool-keys", type=int, default=60_000, help="keys made with each number of pools")
    parser.add_argument("--ready-pairs", type=int, default=READY_PAIRS, help="pairs that the ready keys belong to")
    parser.add_argument("--size-fill", type=float, default=SIZE_FILL_S, help="seconds to make ready keys of one size")
    parser.add_argument("--idle", type=float, default=IDLE_S, help="seconds for which idle peers are looked at")
    args = parser.parse_args()
    args.only = args.only.split(",")
    if unknown := set(args.only) - set(PLOTS):
        parser.error(f"--only: {', '.join(sorted(unknown))} is none of {', '.join(PLOTS)}")
    return args


def main():
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    with folder(args) as dir:
        for name in args.only:
            measure(args, pathlib.Path(dir), name)
    files = {name: args.out / f"{name}.json" for name in args.only}
    records = {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}
    table(["one more", "costs", "slope of all points", "step between the last two", "from"], slopes(records))
    everything = [each for record in records.values() for each in (record, *record["points"])]
    if any("failed" in each or "missing" in each for each in everything):
        sys.exit("some points have no figure")


if __name__ == "__main__":
    run(main)
