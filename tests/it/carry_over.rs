//! The move of what the release before stored, at two sites in service: replicas that start together, clients
//! that ask all the while, and a SIGKILL in the middle.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use serde_json::json;
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::{AnyConnection, AssertSqlSafe, Connection as _, SqlSafeStr as _};
use testkit::needs;
use testkit::postgres::TestPostgres;
use testkit::{CurlAnswer, Daemon, Network, Starting, eventually};
use tokio::runtime::Runtime;

/// The daemons: two of site A, one of site B.
const A: [usize; 2] = [0, 2];
const B: usize = 1;

/// When the release before made the rows.
const MADE_AT_MS: i64 = 1_795_392_000_000;
/// They name parties of both sites. At site A: what alice may retrieve, and what is ready for her.
const ONLY_OF_A: &str = "DELETE FROM retrievals WHERE key_id IN (SELECT k.key_id FROM keys k \
     JOIN batches b ON b.batch_id = k.batch_id WHERE b.entitled LIKE '%slave%'); \
     DELETE FROM keys WHERE batch_id IN (SELECT batch_id FROM batches WHERE entitled LIKE '%slave%'); \
     DELETE FROM batches WHERE entitled LIKE '%slave%'";
/// At site B everything is for slaves; of the batches at site A it has the twins.
const ONLY_OF_B: &str = "DELETE FROM ready_blocks; DELETE FROM retrievals WHERE party = 'sae:alice'; \
     UPDATE batches SET entitled = '[{\"party\":{\"kind\":\"sae\",\"id\":\"bob\"},\"role\":\"slave\"}]' \
     WHERE entitled NOT LIKE '%slave%'";
/// Stops whoever moves the fourth batch, until the test lets go of the lock.
const HOLD_THE_FOURTH: &str = "CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
     IF (SELECT count(*) FROM records) = 3 THEN PERFORM pg_advisory_xact_lock(4711); END IF; RETURN NEW; END $$; \
     CREATE TRIGGER hold BEFORE INSERT ON records FOR EACH ROW EXECUTE FUNCTION hold()";
const HOLD: &str = "SELECT pg_advisory_lock(4711)";
const LET_GO: &str = "SELECT pg_advisory_unlock(4711)";
/// Between two requests of a client.
const PAUSE: Duration = Duration::from_millis(50);

/// A batch of the release before.
#[derive(Deserialize)]
struct Batch {
    key_ids: Vec<String>,
}

/// A site's database, as a superuser sees it.
struct Sql {
    runtime: Runtime,
    connection: AnyConnection,
}

impl Sql {
    fn connect(url: &str) -> Self {
        sqlx::any::install_default_drivers();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let connection = runtime.block_on(AnyConnection::connect(url)).unwrap();
        Self { runtime, connection }
    }

    fn run(&mut self, text: &str) {
        let done = sqlx::raw_sql(AssertSqlSafe(text)).execute(&mut self.connection);
        self.runtime.block_on(done).unwrap_or_else(|error| panic!("{text}: {error}"));
    }

    /// The schema after these migrations.
    fn migrate(&mut self, files: &[(i64, &'static str, &'static str)]) {
        let migration = |(number, name, text): &(i64, &'static str, &'static str)| {
            Migration::new(*number, (*name).into(), MigrationType::Simple, text.into_sql_str(), false)
        };
        let migrator = Migrator::with_migrations(files.iter().map(migration).collect());
        self.runtime.block_on(migrator.run_direct(None, &mut self.connection, false)).unwrap();
    }

    /// The rows that the release before wrote, as if it had written them a moment ago.
    fn fill(&mut self, text: &str) {
        self.run(text);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let later = i64::try_from(now.as_millis()).unwrap() - MADE_AT_MS;
        for (table, column) in [
            ("data_keys", "created_at_ms"),
            ("batches", "created_at_ms"),
            ("batches", "expires_at_ms"),
            ("keys", "erase_at_ms"),
            ("retrievals", "retrieved_at_ms"),
            ("ready_blocks", "usable_until_ms"),
            ("tombstones", "expires_at_ms"),
        ] {
            self.run(&format!("UPDATE {table} SET {column} = {column} + {later}"));
        }
    }
}

const ROWS: &str = include_str!("../../src/store/tests/schema_2/rows.sql");

/// Site A's database: the daemon that widened the schema was killed before it moved anything.
fn fill_a(url: &str) -> Sql {
    let mut sql = Sql::connect(url);
    let schema = [
        (1, "keys", include_str!("../../migrations/postgres/0001_keys.sql")),
        (2, "ready_blocks", include_str!("../../migrations/postgres/0002_ready_blocks.sql")),
        (3, "records", include_str!("../../migrations/postgres/0003_records.sql")),
    ];
    sql.migrate(&schema[..2]);
    sql.fill(&ROWS.replace("X'", "'\\x"));
    sql.run(ONLY_OF_A);
    sql.migrate(&schema);
    sql.run(HOLD_THE_FOURTH);
    sql.run(HOLD);
    sql
}

/// Site B's database: no newer release has seen it.
fn fill_b(network: &Network) {
    let mut sql = Sql::connect(&format!("sqlite://{}?mode=rwc", network.database(B).display()));
    sql.migrate(&[
        (1, "keys", include_str!("../../migrations/sqlite/0001_keys.sql")),
        (2, "ready_blocks", include_str!("../../migrations/sqlite/0002_ready_blocks.sql")),
    ]);
    sql.fill(ROWS);
    sql.run(ONLY_OF_B);
}

/// IDs of keys that the release before stored.
struct Known {
    /// Site B has them for bob.
    of_bob: Vec<String>,
    /// Some of them, which site A has for alice too.
    of_alice: Vec<String>,
    /// Site A may hand them out.
    ready: Vec<String>,
    /// bob has had them, or they were voided.
    gone_at_b: Vec<String>,
    /// alice has had it.
    gone_at_a: String,
}

impl Known {
    fn read() -> Self {
        let all: HashMap<String, Batch> =
            serde_json::from_str(include_str!("../../src/store/tests/schema_2/batches.json")).unwrap();
        let from = |name: &str, first: usize| all[name].key_ids[first..].to_vec();
        Self {
            of_bob: [
                from("fresh", 0),
                from("first two retrieved", 2),
                from("first two retrieved by bob", 2),
                from("first voided", 1),
                from("leased", 0),
            ]
            .concat(),
            of_alice: from("leased", 0),
            ready: [
                from("last two given back", 1),
                from("ready", 0),
                from("ready, first retrieved by alice", 1)[..3].to_vec(),
                from("ready, nobody here may retrieve", 0),
            ]
            .concat(),
            gone_at_b: ["first two retrieved", "voided", "first voided"]
                .map(|name| all[name].key_ids[0].clone())
                .to_vec(),
            gone_at_a: all["ready, first retrieved by alice"].key_ids[0].clone(),
        }
    }
}

/// Key IDs and keys that a client got.
type Got = Mutex<Vec<(String, String)>>;

/// Two sites, and what their clients were told.
struct World {
    network: Network,
    /// Site A's.
    database: String,
    known: Known,
    /// By `enc_keys`, to alice.
    handed: Got,
    /// alice's copies of keys that she had before.
    own: Got,
    /// By `dec_keys`, to bob.
    retrieved: Got,
    stop: AtomicBool,
}

impl World {
    /// Everything but the sites' daemons runs. The lock that holds the fourth batch is the returned session's.
    fn start() -> (Self, Sql) {
        let mut network = Network::generate(2);
        let database = TestPostgres::shared().new_database();
        network.configure(A[0], "sqlite://site-a.db", &format!("{database}?application_name=one"));
        assert_eq!(network.add_replica(A[0]), A[1]);
        network.configure(A[1], "application_name=one", "application_name=two");
        network.list_replicas();
        for site in [A[0], B] {
            let file = network.site(site).config.with_extension("kek");
            std::fs::write(file, include_str!("../../src/store/tests/schema_2/one.kek")).unwrap();
        }
        let sql = fill_a(&database);
        fill_b(&network);
        network.start_pools(3);
        let (handed, own, retrieved, stop) = Default::default();
        (Self { network, database, known: Known::read(), handed, own, retrieved, stop }, sql)
    }

    fn launch(&self, daemon: usize) -> Starting {
        Starting::launch("serve", &self.network.site(daemon).config)
    }

    fn url(&self, daemon: usize, path_id: &str, call: &str) -> String {
        format!("{}/api/v1/keys/{path_id}/{call}", self.network.site(daemon).sae_url)
    }

    fn dec(&self, daemon: usize, sae: &str, path_id: &str, id: &str) -> CurlAnswer {
        let body = json!({ "key_IDs": [{ "key_ID": id }] }).to_string();
        self.network.curl(sae).post(&self.url(daemon, path_id, "dec_keys"), &body)
    }

    fn sql(&self, text: &str) -> String {
        TestPostgres::shared().sql(TestPostgres::database_of(&self.database), &[text])
    }

    /// Which daemons of site A wait for the lock that the test holds (`held`), or for another.
    fn waiting(&self, held: bool) -> Vec<String> {
        let text = format!(
            "SELECT DISTINCT application_name FROM pg_stat_activity a JOIN pg_locks l ON l.pid = a.pid \
             WHERE NOT l.granted AND (l.objid IS NOT DISTINCT FROM 4711) = {held} \
             AND a.datname = current_database() ORDER BY 1"
        );
        self.sql(&text).lines().map(ToOwned::to_owned).collect()
    }

    /// Nobody sees half of the keys.
    fn nothing_is_moved(&self) {
        assert_eq!(self.sql("SELECT count(*) FROM records").trim(), "0");
    }

    /// alice asks one daemon for keys, until told to stop.
    fn ask_for_keys(&self, daemon: usize) {
        while !self.stop.load(Ordering::SeqCst) {
            let answer = self.network.curl("alice").get(&self.url(daemon, "bob", "enc_keys?number=2"));
            match answer.status {
                200 => self.handed.lock().unwrap().extend(answer.keys()),
                0 | 503 => {}
                _ => panic!("{answer:?}"),
            }
            thread::sleep(PAUSE);
        }
    }

    /// An SAE asks one daemon for each of some keys until there is an answer. It may ask another daemon too.
    fn ask_for(&self, daemon: usize, (sae, path_id): (&str, &str), ids: &[String], got: &Got) {
        for id in ids {
            while !self.stop.load(Ordering::SeqCst) {
                let answer = self.dec(daemon, sae, path_id, id);
                match answer.status {
                    200 => got.lock().unwrap().push(answer.key()),
                    // Through the other replica.
                    400 if sae == "alice" => {}
                    0 | 503 => {
                        thread::sleep(PAUSE);
                        continue;
                    }
                    _ => panic!("{answer:?}"),
                }
                break;
            }
        }
    }

    /// The daemons of both sites start. The one that moves site A's keys is killed in the middle, and starts again.
    fn move_everything(&self, sql: &mut Sql) -> [Daemon; 3] {
        let b = self.launch(B);
        let [one, two] = A.map(|daemon| self.launch(daemon));
        eventually("one moves and the other waits", || {
            self.waiting(true).len() == 1 && self.waiting(false).len() == 1
        });
        let mover = self.waiting(true);
        let (dies, lives, place) = if mover == ["one"] { (one, two, A[0]) } else { (two, one, A[1]) };
        assert!(!dies.serves() && !lives.serves());
        self.nothing_is_moved();
        dies.kill();
        eventually("the other moves, although the first one's statement would still wait", || {
            let now = self.waiting(true);
            now.len() == 1 && now != mover
        });
        let again = self.launch(place);
        eventually("who comes later waits", || self.waiting(false) == mover);
        assert!(!lives.serves() && !again.serves());
        self.nothing_is_moved();
        sql.run(LET_GO);
        [b, lives, again].map(|daemon| daemon.up(3).unwrap())
    }

    /// Every key that was ready or handed out is with both SAEs, and nobody has one twice.
    fn check(&self) {
        let handed = self.handed.lock().unwrap();
        let distinct: HashSet<&String> = handed.iter().map(|(id, _)| id).collect();
        assert_eq!(distinct.len(), handed.len(), "a key was handed out twice");
        for (got, asked) in [(&self.own, &self.known.of_alice), (&self.retrieved, &self.known.of_bob)] {
            let mut got: Vec<String> = got.lock().unwrap().iter().map(|(id, _)| id.clone()).collect();
            let mut asked = asked.clone();
            got.sort();
            asked.sort();
            assert_eq!(got, asked, "each once");
        }
        for some in handed.chunks(64) {
            let ids: Vec<&str> = some.iter().map(|(id, _)| id.as_str()).collect();
            assert_eq!(self.network.dec("bob", "alice", &ids).keys(), some);
            assert_eq!(self.network.dec("bob", "alice", &ids[..1]).status, 400, "once");
        }
        for key in self.own.lock().unwrap().iter() {
            assert!(self.retrieved.lock().unwrap().contains(key), "both sites moved the same key");
        }
        for id in &self.known.gone_at_b {
            assert_eq!(self.dec(B, "bob", "alice", id).status, 400, "gone before");
        }
        for daemon in A {
            assert_eq!(self.dec(daemon, "alice", "bob", &self.known.gone_at_a).status, 400, "gone before");
        }
    }
}

#[test]
fn keys_of_the_release_before_are_moved_once_while_clients_ask_and_the_one_that_moves_them_is_killed() {
    needs!(Postgres, Curl);
    let (world, mut sql) = World::start();
    let world = &world;
    let daemons = thread::scope(|scope| {
        let stop = StopOnDrop(&world.stop);
        let Known { of_alice, of_bob, ready, .. } = &world.known;
        for daemon in A {
            scope.spawn(move || world.ask_for_keys(daemon));
            scope.spawn(move || world.ask_for(daemon, ("alice", "bob"), of_alice, &world.own));
        }
        scope.spawn(move || world.ask_for(B, ("bob", "alice"), of_bob, &world.retrieved));
        let daemons = world.move_everything(&mut sql);
        eventually("what was ready is handed out, and keys are made", || {
            let handed = world.handed.lock().unwrap();
            let is_handed = |id: &String| handed.iter().any(|(handed, _)| handed == id);
            ready.iter().all(is_handed) && handed.len() > ready.len() + 20
        });
        eventually("what was there is retrieved", || {
            let count = |got: &Got| got.lock().unwrap().len();
            count(&world.own) >= of_alice.len() && count(&world.retrieved) >= of_bob.len()
        });
        drop(stop);
        daemons
    });
    world.check();
    drop(daemons);
}

/// Ends the clients, also when the test fails.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
