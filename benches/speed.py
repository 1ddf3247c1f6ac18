#!/usr/bin/env python3
"""How fast two sites serve, and for how long: the first table of docs/lab/performance.md.

    cargo build --release --workspace
    python3 benches/speed.py [--only enc,pair,...] [--minutes 10] [--stored 1000000] [--rounds 5]
    python3 benches/speed.py --bin OLD/dqkd --bin NEW/dqkd      # both in turn, and the ratio of the two

Two sites and three pool servers in processes of their own, on this machine, in the configuration of `dqkd demo`. Every
measurement begins with a new network and with --stored live keys at both sites: delivered to the master, not yet
retrieved by the slave. The names for --only, in this order:

    enc, pair      sustained for --minutes: keys are made while they are asked for
    dec-newest     stocked: the newest of the stored keys are retrieved
    dec-random     stocked: any of the stored keys are retrieved
    generation     keys made ahead while nobody asks, --stock of them, in a store without others
    enc-stocked    stocked: those are handed out, and nothing is made meanwhile; then the same at half of that rate
    others         sustained, --seconds each: handshake, 128 keys a request, 1 connection, HTTP/2

Every ratio is to the baseline server (`qkd014 bench --baseline`: a server that does nothing), measured just before with
the same load. With several --bin, all take their turn in each round, and a second table has the ratio of each to the
first, round by round. All are put under load by the same program, --qkd014.

Writes DIR/sustained.json, which draw.py makes a plot over time of, and the reports of `qkd014 bench` in DIR. Run it on
a machine that does nothing else, and look at the column "others": it says what else the processors did meanwhile. If a
site reaches a quota of stored keys, the measurement ends there and says so.
"""

import json
import pathlib
import statistics
import sys
import time

from drawing import Panel, where
from network import Failed, Load, cell_bytes, errors, folder, machine, network, options, others, run, table

CONNECTIONS = 64
BASELINE_S = 10
WINDOW_S = 10
# For everything but the measured time, and a second for so many keys that are stored before.
PATIENCE_S, STORED_PER_S = 600, 2_000
LOOK_EVERY_S = 0.2
COMPARED_MAX = 100_000
# More than a site hands out in a second: how long a stock lasts.
STOCKED_PER_S = 100_000
# Part of the keys that may be made while stocked ones are handed out.
MADE_MAX = 0.02
# Of sustained keys, the part that may be ready before.
RESERVE_SHARE_MAX = 0.1
# First and last part of a sustained measurement, which are compared.
ENDS = 0.2
MIB = 1 << 20


def keys(floor, most):
    """A site that keeps so many keys ready."""
    return f"[keys]\nmin_stored_per_pair = {floor}\nmax_stored_per_pair = {most}\n"


class Measurement:
    """One build in one round: a network of its own, and what was found."""

    def __init__(self, args, record, sites, build, round):
        self.args, self.record, self.sites, self.build, self.round = args, record, sites, build, round

    def add(self, name, figures):
        self.record["figures"][self.build].setdefault(name, []).append(figures | {"round": self.round})
        print(f"  {name}: {number(figures['operations_per_s'])} ops/s, p99 {number(figures.get('p99_ms'))} ms, "
              f"ratio {number(figures.get('ratio'))}", file=sys.stderr)

    def store(self):
        """Fills both sites with live keys. Returns what one takes in each database."""
        before = [self.sites.stored_bytes(index) for index in (0, 1)]
        self.sites.deliver(self.args.stored)
        self.sites.settle()
        if not self.args.stored:
            return {}
        after = [self.sites.stored_bytes(index) for index in (0, 1)]
        each = [(now - then) / self.sites.delivered for now, then in zip(after, before)]
        return {"stored": self.sites.delivered, "bytes_per_key": each}

    def bench(self, name, operation, seconds, *options, known=0, connections=CONNECTIONS):
        """The figures of one `qkd014 bench` with its baseline."""
        options = ["--op", operation, "--connections", connections, "--duration", seconds, "--compare", COMPARED_MAX,
                   "--baseline", "--baseline-duration", min(BASELINE_S, seconds), *options]
        patience_s = PATIENCE_S + seconds + known / STORED_PER_S
        load = Load(self.sites, *options, window_s=max(0.5, min(WINDOW_S, seconds / 5)))
        try:
            self.watch(load, time.monotonic() + patience_s)
            report = load.result(patience_s)
        finally:
            load.stop()
            if load.windows:
                self.record["windows"].append({"name": name, "build": self.build, "round": self.round,
                                               "windows": load.windows})
        (self.args.out / f"{name}-{self.build}-{self.round}.json").write_text(json.dumps(report, indent=2))
        # Also what was refused at the very end.
        if errors([report["rounds"][0]["kme"]]) and (quota := self.sites.full()):
            raise Failed(quota)
        return figures_of(report)

    def watch(self, load, until):
        """Notes the databases at the end of each window, and ends the measurement when a quota is reached."""
        seen = 0
        while load.is_running():
            if time.monotonic() > until:
                raise Failed("qkd014 bench did not end in time")
            time.sleep(LOOK_EVERY_S)
            while seen < len(load.windows):
                window = load.windows[seen]
                window["database_bytes"] = [sum(self.sites.database_bytes(index)) for index in (0, 1)]
                seen += 1
                if set(window["statuses"]) - {"200"} and (quota := self.sites.full()):
                    raise Failed(f"after {window['start_s'] + window['seconds']:.0f} s: {quota}")


def sustained(measurement, operation):
    stored = measurement.store()
    measurement.add(operation, measurement.bench(operation, operation, 60 * measurement.args.minutes) | stored)


def dec(measurement, order):
    name, stock = f"dec-{order}", measurement.args.stored
    figures = measurement.bench(name, "dec", measurement.args.seconds, "--order", order, "--stock", stock, known=stock)
    measurement.add(name, figures)


def generation(measurement):
    """Two sites make, push, regenerate and store, and nobody asks for keys; then what they have is handed out."""
    args, sites = measurement.args, measurement.sites
    sites.configure(0, keys(args.stock, args.stock))
    before, cpu, start = sites.ready_keys(), cpu_s(sites), time.monotonic()
    count = sites.fill(args.stock, part=1)
    seconds, made = time.monotonic() - start, count - before
    used = {name: (now - cpu[name]) * 1e6 / made for name, now in cpu_s(sites).items()}
    if "generation" in args.only:
        measurement.add("generation", {"supply": "made ahead, nobody asks", "operations_per_s": made / seconds,
                                       "seconds": seconds, "cpu_us": sum(used.values()), "cpu_us_of": used})
    if "enc-stocked" in args.only:
        # From here on nothing is made: the site wants far fewer than it has.
        sites.configure(0, keys(1, 128))
        stocked(measurement, count)


def stocked(measurement, count):
    seconds = min(measurement.args.seconds, count / STOCKED_PER_S / 2)
    before = measurement.sites.made_and_handed_out()
    # A status tells of no more than a pair may have.
    options = ["--stock", min(count, 128), "--warmup", min(0.5, seconds / 4)]
    full = measurement.bench("enc-stocked", "enc", seconds, *options)
    made, handed_out = (now - then for now, then in zip(measurement.sites.made_and_handed_out(), before))
    if made > MADE_MAX * handed_out:
        raise Failed(f"enc-stocked: {made:,.0f} keys were made while {handed_out:,.0f} were handed out")
    measurement.add("enc-stocked", full)
    rate = round(full["operations_per_s"] / 2)
    measurement.add("enc-stocked-half", measurement.bench("enc-stocked-half", "enc", seconds, *options, "--rate", rate))


def further(measurement):
    measurement.store()
    seconds = measurement.args.seconds
    for name, operation, connections, more in (
        ("handshake", "handshake", 8, []),
        ("enc-128", "enc", 8, ["--number", 128]),
        ("enc-c1", "enc", 1, []),
        ("enc-h2", "enc", 4, ["--http", 2, "--streams", 16]),
    ):
        measurement.add(name, measurement.bench(name, operation, seconds, *more, connections=connections))


MEASUREMENTS = {
    "enc": lambda measurement: sustained(measurement, "enc"),
    "pair": lambda measurement: sustained(measurement, "pair"),
    "dec-newest": lambda measurement: dec(measurement, "newest"),
    "dec-random": lambda measurement: dec(measurement, "random"),
    "generation": generation,
    "enc-stocked": generation,
    "others": further,
}


def cpu_s(sites):
    return {name: sites.process(name).cpu_s() for name in sites.running}


def figures_of(report):
    """What one round found."""
    (each,) = report["rounds"]
    kme, baseline = each["kme"], each["baseline"]
    windows = [window["operations_per_s"] for window in kme["windows"]]
    ends = max(1, int(len(windows) * ENDS))
    return {
        "supply": report["supply"],
        "order": report["order"],
        "known": kme["known_before"],
        "seconds": kme["seconds"],
        "operations_per_s": kme["operations_per_s"],
        "p50_ms": kme["latency_ms"]["p50"],
        "p99_ms": kme["latency_ms"]["p99"],
        "over_time": kme["over_time"],
        "end_over_beginning": over(windows[-ends:], windows[:ends]),
        "reserve_share": kme["reserve_share"],
        "baseline_per_s": baseline["operations_per_s"],
        "ratio": kme["operations_per_s"] / baseline["operations_per_s"],
        "ratio_of_p99": kme["latency_ms"]["p99"] / baseline["latency_ms"]["p99"],
        "cpu_us": kme["server_cpu_us_per_operation"],
        "cpu_us_of": {"+".join(server["names"]): server["cpu_s"] * 1e6 / max(kme["operations"], 1)
                      for server in kme["servers"]},
        "baseline_cpu_us": baseline["server_cpu_us_per_operation"],
        "others": others([kme, baseline]),
        "compared": report["twins"]["compared"],
        "errors": errors([kme]) | {what: count for what, count in report["twins"].items()
                                   if count and what != "compared"},
        "refusals": kme["refusals"],
    }


def over(these, those):
    """The mean of some windows over that of others."""
    return statistics.mean(these) / statistics.mean(those) if those and sum(those) else None


# ---- tables and plots ----


def number(value):
    return "-" if value is None else f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"


def spread(rounds, key):
    """The median with the least and the greatest."""
    values = [each[key] for each in rounds if each.get(key) is not None]
    if not values:
        return "-"
    text = f"{statistics.median(values):.2f}"
    return text if len(values) == 1 else f"{text} [{min(values):.2f}, {max(values):.2f}]"


def middle(rounds, key):
    values = [each[key] for each in rounds if each.get(key) is not None]
    return statistics.median(values) if values else None


SERVICE = ["measurement", "keys", "ops/s", "windows: first, last, least", "end / beginning", "p50 ms", "p99 ms",
           "baseline ops/s", "ratio of ops/s", "ratio of p99"]
COST = ["measurement", "CPU us an op", "of which", "baseline CPU us an op", "bytes of database a stored key at A, B",
        "others", "keys compared"]


def service_row(name, rounds):
    """What was served."""
    courses = [each["over_time"]["operations_per_s"] for each in rounds if each.get("over_time")]
    course = [number(middle(courses, window)) for window in ("first", "last", "worst")]
    figures = [number(middle(rounds, key)) for key in ("p50_ms", "p99_ms", "baseline_per_s")]
    return [name, supply(rounds), number(middle(rounds, "operations_per_s")), ", ".join(course) if courses else "-",
            spread(rounds, "end_over_beginning"), *figures, spread(rounds, "ratio"), spread(rounds, "ratio_of_p99")]


def supply(rounds):
    """When keys were made."""
    text = rounds[0]["supply"]
    if known := middle(rounds, "known"):
        return f"{text}, {rounds[0]['order']} of {known:,.0f}"
    if text != "sustained":
        return text
    share = middle(rounds, "reserve_share") or 0
    short = f" ({share:.0%} were ready before: too short)" if share > RESERVE_SHARE_MAX else ""
    return f"{text} for {middle(rounds, 'seconds'):,.0f} s{short}"


def cost_row(name, rounds):
    """What it cost, and whether it can be believed."""
    parts = [each["cpu_us_of"] for each in rounds]
    of = ", ".join(f"{part} {number(middle(parts, part))}" for part in parts[0])
    stored = [{"A": a, "B": b} for a, b in (each["bytes_per_key"] for each in rounds if each.get("bytes_per_key"))]
    bytes_each = ", ".join(cell_bytes(middle(stored, site)) for site in "AB") if stored else "-"
    busy, compared = middle(rounds, "others"), f"{sum(each.get('compared', 0) for each in rounds):,}"
    for each in rounds:
        for what, count in each.get("errors", {}).items():
            compared += f"; {count:,} x {what} {each['refusals'].get(what, '')}"
    return [name, number(middle(rounds, "cpu_us")), of, number(middle(rounds, "baseline_cpu_us")), bytes_each,
            "-" if busy is None else f"{busy:.0%} of a core", compared]


def compared_row(name, rounds, before):
    """One build over another, round by round."""
    before = {each["round"]: each for each in before}
    pairs = [(each, before[each["round"]]) for each in rounds if each["round"] in before]
    cells = []
    for key in ("operations_per_s", "ratio", "p50_ms", "p99_ms", "cpu_us", "bytes_per_key"):
        ratios = [{key: total(now[key]) / total(then[key])} for now, then in pairs if now.get(key) and then.get(key)]
        cells.append(spread(ratios, key))
    return [name, *cells]


def total(value):
    return sum(value) if isinstance(value, list) else value


def report(record):
    """Prints the tables."""
    first, *more = record["machines"]
    for build, machine in record["machines"].items():
        figures = record["figures"][build].items()
        print(f"\n{build}: {machine['program']}, {record['database']}, {record['configuration']}, medians of "
              f"{record['rounds']} round(s)\n")
        table(SERVICE, [service_row(*each) for each in figures])
        print()
        table(COST, [cost_row(*each) for each in figures])
    for build in more:
        print(f"\n{build} over {first}, round by round\n")
        table(["measurement", "ops/s", "ratio to the baseline", "p50", "p99", "CPU an op", "bytes a stored key"],
              [compared_row(name, rounds, record["figures"][first].get(name, []))
               for name, rounds in record["figures"][build].items()])
    for failure in record["failed"]:
        print(f"failed: {failure}")


def draw(record):
    """Title, panels and notes: what was sustained, over time."""
    panels = [panel for operation in ("enc", "pair") for panel in over_time(record, operation)]
    notes = [f"{build}: {where(machine)}" for build, machine in record["machines"].items()]
    notes.append(f"{record['database']}, {record['configuration']}; {record['stored']:,} live keys at both sites "
                 f"before, {CONNECTIONS} connections.")
    notes += [f"No figure for {failure}" for failure in record["failed"]]
    return "Sustained service: keys are made while they are asked for", panels, notes


def over_time(record, operation):
    """The panels of one operation, with a line for each build and round."""
    runs = [each for each in record["windows"] if each["name"] == operation]
    if not runs:
        return []

    def lines(value):
        found = []
        for each in runs:
            build = f"{each['build']}, " if len(record["machines"]) > 1 else ""
            minutes = [(window["start_s"] + window["seconds"]) / 60 for window in each["windows"]]
            found.append((f"{build}round {each['round']}", minutes, [value(window) for window in each["windows"]]))
        return found

    def database(index):
        return lambda window: window["database_bytes"][index] / MIB if window.get("database_bytes") else None

    rates = lines(lambda window: window["operations_per_s"])
    return [
        Panel(f"{operation}, sustained: operations a second", rates, "minutes"),
        Panel("p99, ms", lines(lambda window: window["latency_ms"] and window["latency_ms"]["p99"]), "minutes"),
        Panel("database and log of the master's site, MiB", lines(database(0)), "minutes"),
        Panel("database and log of the slave's site, MiB", lines(database(1)), "minutes"),
    ]


# ---- one after the other ----


def measure(args, dir, record):
    """All measurements, all builds in turn."""
    todo = {MEASUREMENTS[name]: name for name in reversed(args.only)}
    networks = 0
    for round in range(1, args.rounds + 1):
        for function, name in reversed(todo.items()):
            # Each is the first to run every other time.
            builds = list(args.builds.items())
            for build, (dqkd, store) in builds if round % 2 else reversed(builds):
                networks += 1
                print(f"round {round}, {build}: {name}", file=sys.stderr)
                try:
                    own = pathlib.Path(dir) / str(networks)
                    own.mkdir(parents=True)
                    with network(args, own, dqkd=dqkd, store=store) as sites:
                        sites.start_all()
                        function(Measurement(args, record, sites, build, round))
                except (Failed, OSError) as failure:
                    record["failed"].append(f"{name}, {build}, round {round}: {failure}")
                    print(f"  failed: {failure}", file=sys.stderr)
                save(args, record)


def save(args, record):
    (args.out / "sustained.json").write_text(json.dumps(record))


def named(bins, stores):
    """Builds by a short name, each with its database."""
    if len(stores) not in (0, 1, len(bins)):
        sys.exit("give --store once, or once for each --bin")
    if len(bins) == 1:
        return {"dqkd": (bins[0], stores[0] if stores else None)}
    # Networks run one after the other, and each makes its schemas anew: one database serves all.
    stores = stores * len(bins) if len(stores) == 1 else stores or [None] * len(bins)
    return {f"build-{number}": (dqkd, store) for number, (dqkd, store) in enumerate(zip(bins, stores), 1)}


def arguments():
    parser = options(__doc__, "speed")
    parser.add_argument("--bin", type=pathlib.Path, action="append", metavar="DQKD",
                        help="the daemon's program, instead of --dqkd; several are measured in turn")
    parser.add_argument("--store", action="append", default=[], metavar="postgres://...",
                        help="a database for all sites, instead of SQLite files; or one for each --bin")
    parser.add_argument("--only", default=",".join(MEASUREMENTS), help="names of measurements, with commas between")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=10, help="of enc and pair, sustained")
    parser.add_argument("--seconds", type=float, default=10, help="of the other measurements")
    parser.add_argument("--stored", type=int, default=1_000_000, help="live keys at both sites before each measurement")
    parser.add_argument("--stock", type=int, default=1_000_000, help="ready keys for generation and enc-stocked")
    args = parser.parse_args()
    args.only = args.only.split(",")
    if unknown := set(args.only) - set(MEASUREMENTS):
        parser.error(f"--only: {', '.join(sorted(unknown))} is none of {', '.join(MEASUREMENTS)}")
    if any(name.startswith("dec") for name in args.only) and not args.stored:
        parser.error("dec needs --stored")
    args.builds = named(args.bin or [args.dqkd], args.store)
    return args


def main():
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    record = {"name": "sustained", "machines": {build: machine(dqkd) for build, (dqkd, _) in args.builds.items()},
              "configuration": "the demo's configuration" + (f" and {args.tables}" if args.tables else ""),
              "database": "Postgres" if args.store else "SQLite", "stored": args.stored, "rounds": args.rounds,
              "figures": {build: {} for build in args.builds}, "failed": [], "windows": []}
    try:
        with folder(args) as dir:
            measure(args, dir, record)
    finally:
        # Also what there is when somebody ends it.
        save(args, record)
        print("\n".join(f"{build}: {dqkd}" for build, (dqkd, _) in args.builds.items()))
        report(record)
    if record["failed"]:
        sys.exit("some measurements have no figure")


if __name__ == "__main__":
    run(main)
