"""Sites and pool servers of `dqkd demo`, each daemon a process of its own: started, configured, filled, put under
load with `qkd014 bench`, and looked at through /proc and /metrics. What the scripts of this folder share.
"""

import argparse
import json
import os
import pathlib
import platform
import resource
import signal
import sqlite3
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
DQKD = ROOT / "target" / "release" / "dqkd"
QKD014 = DQKD.with_name("qkd014")
STARTUP_S = 60
STOP_S = 60
# Longer than any pause of a reserve that is being filled.
FILL_PATIENCE_S = 30
# A reserve that was full is left alone until a whole batch is missing, or half of it.
FILLED_PART, FILLED_S = 0.5, 5
# Daemons that use no more than this of a core have nothing left to do.
QUIET_CORES, SETTLE_S = 0.1, 15
# How keys are delivered that nobody retrieves: keys of a request, connections, and the most that is expected of a site.
STORE_EACH, STORE_CONNECTIONS, STORE_PER_S = 128, 8, 100_000
STORE_TRIES_WITHOUT_KEYS = 3
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


QUOTA_ADVICE = ("what came after is no measurement. Choose less --stored or fewer --minutes, or raise stored_keys and "
                "stored_mib in [limits.sae] and [limits.kme] with --tables FILE")


class Failed(Exception):
    """Why there is no figure."""

    def __init__(self, reason, output=""):
        super().__init__(reason)
        self.output = output


class Process:
    """What /proc says of one process."""

    def __init__(self, pid):
        self.dir = pathlib.Path(f"/proc/{pid}")

    def rss_bytes(self):
        return int(self.read("statm").split()[1]) * PAGE_BYTES

    def cpu_s(self):
        # The name is in brackets and may hold anything.
        user, system = self.read("stat").rpartition(") ")[2].split()[11:13]
        return (int(user) + int(system)) / TICKS_PER_S

    def threads(self):
        return int(self.read("stat").rpartition(") ")[2].split()[17])

    def files(self):
        """Targets of all open files."""
        found = []
        for file in (self.dir / "fd").iterdir():
            try:
                found.append(os.readlink(file))
            except FileNotFoundError:
                pass  # closed meanwhile
        return found

    def sample(self):
        """Everything that should not grow."""
        files = self.files()
        established = established_sockets()
        return {
            "rss_bytes": self.rss_bytes(),
            "files": len(files),
            "threads": self.threads(),
            "connections": sum(file.startswith("socket:[") and file[8:-1] in established for file in files),
            "cpu_s": self.cpu_s(),
        }

    def read(self, name):
        try:
            return (self.dir / name).read_text()
        except OSError as error:
            raise Failed(f"a daemon is gone: {error}") from error


def established_sockets():
    """Inodes of all TCP connections of this machine that are open at both ends."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = pathlib.Path(table).read_text().splitlines()[1:]
        except FileNotFoundError:
            continue
        inodes.update(columns[9] for columns in map(str.split, lines) if columns[3] == "01")
    return inodes


class Load:
    """One `qkd014 bench` of one round that tells of each window while it runs."""

    def __init__(self, network, *options, window_s):
        self.windows, self.report = [], None
        command = network.bench_command(*options, "--rounds", 1, "--window", window_s)
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        for line in self.process.stdout:
            told = json.loads(line)
            if window := told.get("window"):
                self.windows.append(window | {"at": time.monotonic()})
            else:
                self.report = told

    def is_running(self):
        return self.process.poll() is None

    def result(self, patience_s):
        """The report, or why there is none."""
        try:
            self.process.wait(patience_s)
        except subprocess.TimeoutExpired as error:
            raise Failed("qkd014 bench did not end in time") from error
        self.reader.join(patience_s)
        if self.process.returncode != 0 or self.report is None:
            raise Failed(f"qkd014 bench ended with {self.process.returncode}; it says why above")
        return self.report

    def stop(self):
        if self.is_running():
            self.process.kill()
            self.process.wait()


class Network:
    """Files of `dqkd demo`, each daemon a process; all are stopped at the end of a `with`, however it ends."""

    def __init__(self, dqkd, dir, sites=2, pool_servers=3, store=None, qkd014=QKD014, tables=""):
        self.dqkd, self.dir, self.running = pathlib.Path(dqkd).resolve(), pathlib.Path(dir).resolve(), {}
        self.qkd014, self.store, self.delivered = pathlib.Path(qkd014).resolve(), store, 0
        demo = self.dir / "demo"
        command = [self.dqkd, "demo", "--generate-only", "--dir", demo]
        command += ["--sites", str(sites)] if sites != 2 else []
        command += ["--pool-servers", str(pool_servers)] if pool_servers != 3 else []
        command += ["--store", store] if store else []
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        self.manifest_path = demo / "demo.json"
        self.manifest = json.loads(self.manifest_path.read_text())
        self.plain = {}
        for site in self.manifest["sites"]:
            config = pathlib.Path(site["config"])
            self.plain[site["id"]] = insert(config.read_text(), tables) if tables else config.read_text()
            config.write_text(self.plain[site["id"]])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop_all()

    def start_all(self):
        for pool in self.manifest["pool_servers"]:
            self.start(pool["id"], "pool", pool["config"])
        for site in self.manifest["sites"]:
            self.start(site["id"], "serve", site["config"])
        self.wait_ready()

    def start(self, name, command, config):
        with (self.dir / f"{name}.log").open("a") as log:
            self.running[name] = subprocess.Popen(
                [self.dqkd, command, "--config", config], stdout=subprocess.DEVNULL, stderr=log
            )

    def stop(self, name):
        process = self.running[name]
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            print(f"{name} does not stop; it is killed", file=sys.stderr)
            process.kill()
            process.wait()
        del self.running[name]

    def stop_all(self):
        for process in self.running.values():
            process.send_signal(signal.SIGTERM)  # all at once, so that none waits for another
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
                if time.monotonic() > until or self.running[site["id"]].poll() is not None:
                    raise Failed(f"{site['id']} does not get ready; see {self.dir}")
                time.sleep(0.1)

    def configure(self, index, tables, arrays=""):
        """Restarts a site with more in its file: tables that files of `dqkd demo` have not, and arrays of tables."""
        site = self.manifest["sites"][index]
        if site["id"] in self.running:
            self.stop(site["id"])
        pathlib.Path(site["config"]).write_text(insert(self.plain[site["id"]], tables) + arrays)
        self.start(site["id"], "serve", site["config"])
        self.wait_ready()

    def open_tls(self, sae):
        """A client's context with the certificate of `sae`."""
        tls = ssl.create_default_context(cafile=self.manifest["ca"])
        tls.load_cert_chain(sae["cert"], sae["key"])
        return tls

    def pair(self):
        """Alice and bob: the first SAEs of the first two sites."""
        return self.manifest["sites"][0]["saes"][0], self.manifest["sites"][1]["saes"][0]

    def ready_keys(self, slave=None):
        """Ready keys of alice for bob or another slave, by her KME's status; from here on there is a reserve."""
        alice, bob = self.pair()
        url = f"{self.manifest['sites'][0]['sae_url']}/api/v1/keys/{slave or bob['id']}/status"
        with urllib.request.urlopen(url, context=self.open_tls(alice), timeout=30) as answer:
            return json.load(answer)["stored_key_count"]

    def metrics(self, index=0):
        """Samples of a site's /metrics by name and labels."""
        url = self.manifest["sites"][index]["admin_url"] + "/metrics"
        with urllib.request.urlopen(url, timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        samples = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    def reserve(self, index=0):
        """Ready keys of all pairs of a site: those in memory, and those in the database."""
        metrics = self.metrics(index)
        return tuple(int(metrics[f'dqkd_reserve_keys{{place="{place}"}}']) for place in ("leased", "stored"))

    def fill(self, wanted, part=FILLED_PART, most_s=float("inf")):
        """Waits until the first site has `wanted` ready keys in all, or more than a `part` of them and makes no
        more, or for `most_s`; returns how many there are."""
        most, start = 0, time.monotonic()
        grew_at = start
        while True:
            count, now = sum(self.reserve()), time.monotonic()
            if count >= wanted or now - start >= most_s:
                return count
            if count > most:
                most, grew_at = count, now
            if count > wanted * part and now - grew_at > FILLED_S:
                return count
            if now - grew_at > FILL_PATIENCE_S:
                raise Failed(f"{count:,} of {wanted:,} ready keys, and for {FILL_PATIENCE_S} s no more came")
            time.sleep(0.1)

    def settle(self, most_s=SETTLE_S):
        """Waits until the daemons have done what a start or the load before left to do, but not for ever."""
        processes, until = [self.process(name) for name in self.running], time.monotonic() + most_s
        used = lambda: sum(process.cpu_s() for process in processes)
        before = used()
        while time.monotonic() < until:
            time.sleep(1)
            before, then = used(), before
            if before - then < QUIET_CORES:
                return

    def process(self, name):
        return Process(self.running[name].pid)

    def revive(self):
        """Starts what has ended by itself; returns the names."""
        ended = [name for name, process in self.running.items() if process.poll() is not None]
        for daemon, command in ((daemon, command) for kind, command in (("pool_servers", "pool"), ("sites", "serve"))
                                for daemon in self.manifest[kind] if daemon["id"] in ended):
            self.start(daemon["id"], command, daemon["config"])
        if ended:
            self.wait_ready()
        return ended

    def database_file(self, index):
        return self.manifest_path.parent / f"{self.manifest['sites'][index]['id']}.db"

    def database_bytes(self, index):
        """Sizes of a site's database and of its write-ahead log. On Postgres that is its tables with their indexes, and
        no log."""
        if self.store:
            return self.schema_bytes(index), 0
        file = self.database_file(index)
        wal = file.with_name(file.name + "-wal")
        return file.stat().st_size, wal.stat().st_size if wal.exists() else 0

    def stored_bytes(self, index):
        """What a site's database takes, with what is in its log only."""
        if self.store:
            return self.schema_bytes(index)
        database = sqlite3.connect(f"file:{self.database_file(index)}?mode=ro", uri=True)
        try:
            (pages,), (page_bytes,) = (database.execute(f"PRAGMA {name}").fetchone()
                                       for name in ("page_count", "page_size"))
        finally:
            database.close()
        return pages * page_bytes

    def schema_bytes(self, index):
        schema = "dqkd_demo_" + self.manifest["sites"][index]["id"].replace("-", "_")
        sql = ("SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0) FROM pg_class c JOIN pg_namespace n "
               f"ON n.oid = c.relnamespace WHERE c.relkind = 'r' AND n.nspname = '{schema}'")
        try:
            done = subprocess.run(["psql", "-XAtc", sql, self.store], capture_output=True, text=True, timeout=60)
        except FileNotFoundError as error:
            raise Failed("psql is missing, which says how large the database is (Debian: postgresql-client)") from error
        if done.returncode != 0:
            raise Failed(f"psql: {done.stderr.strip()}")
        return int(done.stdout)

    def deliver(self, wanted):
        """Has alice take keys that bob does not retrieve, in the configuration as it is, until there are `wanted` of
        them: so many stored keys at both sites."""
        tries = 0
        while (missing := wanted - self.delivered) > 0:
            requests = -(-missing // STORE_EACH)
            seconds = max(1, missing / STORE_PER_S)
            report = self.bench("--op", "enc", "--number", STORE_EACH, "--connections", STORE_CONNECTIONS,
                                "--rate", requests / seconds, "--duration", seconds, "--warmup", 0, "--timeout", 60,
                                "--compare", 0, "--rounds", 1, patience_s=seconds + 120)
            run = report["rounds"][0]["kme"]
            self.delivered += run["operations"] * STORE_EACH
            tries = 0 if run["operations"] else tries + 1
            if tries == STORE_TRIES_WITHOUT_KEYS:
                raise Failed(f"{self.delivered:,} of {wanted:,} keys were delivered and no more: "
                             f"{self.full() or run['refusals'] or run['troubles']}")

    def full(self):
        """Which quota of stored keys a site has reached, and what to do; `None` for none."""
        for index, site in enumerate(self.manifest["sites"]):
            for sample, count in self.metrics(index).items():
                name, _, labels = sample.partition("{")
                if not count:
                    continue
                if name == "dqkd_limited_total" and 'limit="stored_' in labels:
                    return f"{site['id']} has reached a quota of stored keys, {labels.rstrip('}')}: {QUOTA_ADVICE}"
                if name == "dqkd_batches_received_total" and 'outcome="full"' in labels:
                    return f"{site['id']} stores no more for its peer, a quota is reached: {QUOTA_ADVICE}"
        return None

    def made_and_handed_out(self):
        """Keys that the first site has made and handed out, whatever for."""
        samples = self.metrics().items()
        return [sum(value for sample, value in samples if sample.startswith(name + "{"))
                for name in ("dqkd_keys_made_total", "dqkd_keys_handed_out_total")]

    def bench_command(self, *options):
        return [str(part) for part in (self.qkd014, "bench", "--json", "--demo", self.manifest_path, *options)]

    def bench(self, *options, patience_s):
        """The report of one `qkd014 bench`."""
        command = self.bench_command(*options)
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=patience_s)
        except subprocess.TimeoutExpired as error:
            raise Failed(f"qkd014 bench did not end within {patience_s:.0f} s") from error
        if done.returncode != 0:
            last = done.stderr.strip().splitlines()[-1:] or [f"qkd014 bench ended with {done.returncode}"]
            raise Failed(last[0], done.stdout)
        return json.loads(done.stdout)


def network(args, dir, dqkd=None, **sizes):
    """A network of the programs and with the tables that `options` were given."""
    tables = args.tables.read_text() if args.tables else ""
    return Network(dqkd or args.dqkd, dir, qkd014=args.qkd014, tables=tables, **sizes)


def insert(text, tables):
    """TOML tables go before the first array of tables; order does not matter otherwise."""
    head, array, tail = text.partition("\n[[")
    return f"{head}\n{tables}\n{array}{tail}"


def with_one_peer(text, own, peer):
    """A site's file without other peers than one, and without the SAEs of those."""
    head, *arrays = text.split("\n[[")
    kmes = {"peer]]": [f'id = "{peer}"'], "sae]]": [f'kme = "{own}"', f'kme = "{peer}"']}
    allowed = lambda array: any(line in array for line in kmes.get(array.split("\n")[0], [""]))
    return "\n[[".join([head, *filter(allowed, arrays)])


def listed(name, count, kme):
    """Lines of the directory: SAEs `name-1` to `name-count` live at `kme`."""
    return "".join(f'\n[[sae]]\nid = "{name}-{number}"\nkme = "{kme}"\n' for number in range(1, count + 1))


def errors(runs):
    """What was not answered as it should be, with how often."""
    found = {}
    for run in runs:
        for what, count in (run["statuses"] | run["troubles"]).items():
            if what != "200":
                found[what] = found.get(what, 0) + count
    return found


def others(runs):
    """Share of a core that the machine spent on other things meanwhile."""
    return sum(run["others_cpu_s"] for run in runs) / sum(run["cpu_counted_s"] for run in runs)


def slope(points):
    """Least squares over (x, y); `None` without two different x."""
    points = list(points)
    if len({x for x, _ in points}) < 2:
        return None
    return statistics.linear_regression(*zip(*points)).slope


def cell_bytes(bytes_each):
    """A size for a table."""
    if bytes_each is None:
        return "-"
    return f"{bytes_each / 1024:,.1f} KiB" if abs(bytes_each) >= 10_240 else f"{bytes_each:,.0f} B"


def table(head, rows):
    """Prints a table of Markdown."""
    for cells in [head, ["---"] * len(head), *rows]:
        print("| " + " | ".join(cells) + " |")


def machine(dqkd):
    """Where and with what figures were taken."""
    version = subprocess.run([dqkd, "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    model = [line.partition(":")[2].strip() for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
             if line.startswith("model name")]
    return {"program": version, "date": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()), "cores": os.cpu_count(),
            "processor": model[0] if model else platform.machine(), "kernel": platform.release(),
            "load_before": os.getloadavg()[0]}


def options(doc, name):
    """A parser with what all scripts of this folder have in common."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dqkd", type=pathlib.Path, default=DQKD)
    parser.add_argument("--qkd014", type=pathlib.Path, default=QKD014, help="the program that puts load on it")
    parser.add_argument("--tables", type=pathlib.Path, metavar="FILE",
                        help="TOML tables that every site's file gets besides")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "target" / name)
    parser.add_argument("--dir", type=pathlib.Path, help="files of the sites, kept; a temporary folder unless given")
    return parser


def run(main):
    """Runs a script. Ctrl-C and SIGTERM end it, daemons included; it may have as many files as the system allows."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("ended before its time")
    except Failed as failure:
        sys.exit(str(failure))


def folder(args):
    """A context with the folder for files of the sites: the one that was given is kept."""
    return KeptFolder(args.dir) if args.dir else tempfile.TemporaryDirectory(prefix="dqkd-bench-")


class KeptFolder:
    def __init__(self, dir):
        self.dir = dir

    def __enter__(self):
        self.dir.mkdir(parents=True, exist_ok=True)
        return self.dir

    def __exit__(self, *_):
        pass
