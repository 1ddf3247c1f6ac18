//! What a server and the way to it can do: stop under load, lose an answer, hang, be full, be a standby.

use std::collections::HashMap;

use futures_util::StreamExt as _;
use rustix::process::Signal;
use testkit::postgres::Stop;
use tokio::task::JoinSet;

use super::super::super::record::prefix_of;
use super::lossy::Lossy;
use super::*;
use testkit::needs;

/// A site on its own server, which may be stopped.
fn site_on(server: &TestPostgres) -> Site {
    Site::at(tempfile::tempdir().unwrap(), server.new_database())
}

/// Through a proxy on the loopback, without TLS, so that it can tell messages apart.
fn through(proxy: &Lossy, url: &str) -> String {
    let server = TestPostgres::shared();
    let url = server.tls_url(TestPostgres::database_of(url));
    let url = url.split('?').next().unwrap();
    let address = format!("localhost:{}", server.port());
    format!("{}?sslmode=disable", url.replace(&address, &format!("127.0.0.1:{}", proxy.port())))
}

async fn site_behind(proxy: &Lossy) -> (Site, Store) {
    let mut site = site();
    site.url = through(proxy, &site.url);
    let store = site.open().await;
    (site, store)
}

#[tokio::test]
async fn a_commit_that_took_place_is_answered_as_such_when_its_answer_is_lost() {
    needs!(Postgres);
    let proxy = Lossy::to(TestPostgres::shared().port()).await;
    let (site, store) = site_behind(&proxy).await;
    let ids = Sample::to_bob(2).stored(&store).await.ids();
    proxy.lose_the_answer_to_commits(1);
    Ask::by("bob").gets(&store, &ids[..1]).await;
    assert_eq!(proxy.lost(), 1);
    Ask::by("bob").finds_nothing(&store, &ids[..1]).await;
    Ask::by("bob").gets(&store, &ids[1..]).await;

    let sample = Sample::to_bob(2).ready(&store, true).await;
    proxy.lose_the_answer_to_commits(1);
    let pair = ReadyPair { master: &sae("alice"), recipient: &sample.recipients[0] };
    let leased = store.lease(pair, 1, HOUR).await.unwrap();
    assert_eq!((proxy.lost(), leased.len()), (2, 1), "leased, although nobody saw the commit");
    assert!(store.lease(pair, 1, HOUR).await.unwrap().is_empty());
    store.close().await;
    drop(site);
}

#[tokio::test]
async fn a_commit_that_never_arrived_is_run_again() {
    needs!(Postgres);
    let proxy = Lossy::to(TestPostgres::shared().port()).await;
    let (_site, store) = site_behind(&proxy).await;
    proxy.lose_commits(1);
    let ids = Sample::to_bob(2).stored(&store).await.ids();
    assert_eq!(proxy.lost(), 1);
    proxy.lose_commits(2);
    Ask::by("bob").gets(&store, &ids).await;
    assert_eq!(proxy.lost(), 3);
    Ask::by("bob").finds_nothing(&store, &ids).await;
}

#[tokio::test]
async fn where_it_cannot_be_found_out_the_caller_is_told_and_nothing_is_run_again() {
    needs!(Postgres);
    let proxy = Lossy::to(TestPostgres::shared().port()).await;
    let (site, store) = site_behind(&proxy).await;
    let store = Arc::new(store);
    let ids = Sample::to_bob(4).stored(&store).await.ids();
    proxy.lose_the_answer_to_commits(1);
    proxy.refuse_after_a_loss(true);
    let mut tasks = JoinSet::new();
    for id in ids.clone() {
        let store = Arc::clone(&store);
        tasks.spawn(async move { (id, Ask::by("bob").at(&store, &[id]).await) });
    }
    let mut told: HashMap<KeyId, bool> = HashMap::new();
    while let Some(result) = tasks.join_next().await {
        let (id, asked) = result.unwrap();
        match asked {
            Err(RetrieveError::Store(StoreError::Uncertain(_))) => told.insert(id, true),
            // It came after the loss: the database was out of reach for it from the start.
            Err(RetrieveError::Store(StoreError::Busy(_))) => told.insert(id, false),
            other => panic!("{other:?}"),
        };
    }
    assert!(told.values().any(|uncertain| *uncertain));
    proxy.refuse_after_a_loss(false);
    let direct = site.sql().await;
    drop(direct);
    for (id, uncertain) in told {
        if uncertain {
            Ask::by("bob").finds_nothing(&store, &[id]).await;
        } else {
            Ask::by("bob").gets(&store, &[id]).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_server_that_stops_under_load_costs_no_key_and_gives_none_twice() {
    needs!(Postgres);
    let server = TestPostgres::private();
    let site = site_on(&server);
    let stores = [Arc::new(site.open().await), Arc::new(site.open().await)];
    let mut ids = Vec::new();
    for _ in 0..50 {
        ids.extend(Sample::to_bob(60).stored(&stores[0]).await.ids());
    }
    let mut tasks = JoinSet::new();
    for (number, ids) in ids.chunks(100).enumerate() {
        let (store, ids) = (Arc::clone(&stores[number % 2]), ids.to_vec());
        tasks.spawn(async move {
            let (mut refusals, mut uncertain) = (0_u32, 0_u32);
            for id in ids {
                let mut may_be_gone = false;
                loop {
                    match Ask::by("bob").at(&store, &[id]).await {
                        Ok(keys) => {
                            assert!(keys[0].material.ct_eq(&material(id)));
                            break;
                        }
                        Err(RetrieveError::NotFound) if may_be_gone => {
                            uncertain += 1;
                            break;
                        }
                        Err(RetrieveError::Store(StoreError::Uncertain(_))) => may_be_gone = true,
                        Err(RetrieveError::Store(StoreError::Busy(_))) => refusals += 1,
                        Err(other) => panic!("{other:?}"),
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                // Nobody gets it again.
                Ask::by("bob").finds_nothing_now_or_later(&store, id).await;
            }
            (refusals, uncertain)
        });
    }
    for how in [Stop::Immediate, Stop::Fast, Stop::Immediate] {
        tokio::time::sleep(Duration::from_millis(300)).await;
        tokio::task::block_in_place(|| {
            server.stop(how).unwrap();
            server.start().unwrap();
        });
    }
    let (mut refusals, mut uncertain) = (0, 0);
    while let Some(result) = tasks.join_next().await {
        let (more_refusals, more_uncertain) = result.unwrap();
        (refusals, uncertain) = (refusals + more_refusals, uncertain + more_uncertain);
    }
    assert!(refusals > 0, "the stops were felt");
    // Each time the server came back long before a writer would stop trying to find out.
    assert_eq!(uncertain, 0);
    assert_eq!(counts(&stores[0]).await.keys, 0);
}

impl Ask {
    /// Asks until the server answers.
    async fn finds_nothing_now_or_later(&self, store: &Store, id: KeyId) {
        loop {
            match self.at(store, &[id]).await {
                Err(RetrieveError::NotFound) => return,
                Err(RetrieveError::Store(StoreError::Busy(_))) => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_hangs_is_not_waited_for_longer_than_patience_and_comes_back() {
    needs!(Postgres);
    let server = TestPostgres::private();
    let site = site_on(&server);
    let store = site.open().await;
    let ids = Sample::to_bob(2).stored(&store).await.ids();
    server.signal_all(Signal::STOP);
    let hasty = Ask::by("bob").patient_for(Duration::from_millis(300));
    let refused = hasty.at(&store, &ids).await;
    assert!(matches!(refused, Err(RetrieveError::Store(StoreError::Busy(_)))), "{refused:?}");
    assert!(matches!(store.ping().await, Err(StoreError::Busy(_))));
    server.signal_all(Signal::CONT);
    Ask::by("bob").patient_for(Duration::from_mins(1)).gets(&store, &ids).await;
    store.ping().await.unwrap();
}

#[tokio::test]
async fn a_server_without_free_connections_is_busy_and_serves_again_when_one_is_free() {
    needs!(Postgres);
    let server = TestPostgres::private();
    server.sql("postgres", &["ALTER SYSTEM SET max_connections = 6"]);
    server.stop(Stop::Fast).unwrap();
    server.start().unwrap();
    let site = site_on(&server);
    let store = site.open().await;
    let ids = Sample::to_bob(1).stored(&store).await.ids();
    let cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
               WHERE pid <> pg_backend_pid() AND datname = current_database()";
    let _: i64 = sqlx::query_scalar(cut).fetch_one(&mut *site.sql().await).await.unwrap();
    let address = Address::parse(&site.url).unwrap();
    let mut others = Vec::new();
    let refused = loop {
        match address.connect().await {
            Ok(link) => others.push(link),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, StoreError::Busy(Some(_))), "{refused:?}");
    let refused = Ask::by("bob").at(&store, &ids).await;
    assert!(matches!(refused, Err(RetrieveError::Store(StoreError::Busy(_)))), "{refused:?}");
    others.clear();
    Ask::by("bob").finally_gets(&store, &ids).await;
}

impl Ask {
    /// Asks again while the store is busy: the server needs a moment to notice an abandoned connection.
    async fn finally_gets(&self, store: &Store, ids: &[KeyId]) {
        for _ in 0..500 {
            match self.at(store, ids).await {
                Ok(keys) => return assert_eq!(keys.len(), ids.len()),
                Err(RetrieveError::Store(StoreError::Busy(_))) => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                other => panic!("{other:?}"),
            }
        }
        panic!("busy for good");
    }
}

#[tokio::test]
async fn a_connection_that_turns_read_only_is_replaced() {
    needs!(Postgres);
    let site = site();
    let store = site.open().await;
    let ids = Sample::to_bob(1).stored(&store).await.ids();
    for _ in 0..POSTGRES_WRITERS {
        let read_only = "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY";
        on_writer(&store, read_only).await.unwrap();
    }
    Ask::by("bob").gets(&store, &ids).await;
}

#[tokio::test]
async fn a_database_that_takes_no_writes_is_busy_and_used_again_when_it_does() {
    needs!(Postgres);
    let server = TestPostgres::private();
    let site = site_on(&server);
    let store = site.open().await;
    let ids = Sample::to_bob(1).stored(&store).await.ids();
    let database = TestPostgres::database_of(&site.url);
    let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'dqkd'";
    let read_only = format!("ALTER DATABASE {database} SET default_transaction_read_only = on");
    server.sql("postgres", &[&read_only, cut]);
    for _ in 0..3 {
        let refused = Ask::by("bob").at(&store, &ids).await;
        assert!(matches!(refused, Err(RetrieveError::Store(StoreError::Busy(_)))), "{refused:?}");
    }
    server.sql("postgres", &[&format!("ALTER DATABASE {database} RESET default_transaction_read_only")]);
    Ask::by("bob").gets(&store, &ids).await;
}

#[tokio::test]
async fn a_row_that_somebody_holds_delays_only_who_wants_it() {
    needs!(Postgres);
    let site = site();
    let store = Arc::new(site.open().await);
    let mut ids = Vec::new();
    for _ in 0..8 {
        ids.extend(Sample::to_bob(1).stored(&store).await.ids());
    }
    let mut other = site.sql().await;
    // An operator's psql session, which no timeout ends.
    let begin = "SET idle_in_transaction_session_timeout = 0; BEGIN";
    sqlx::raw_sql(begin).execute(&mut *other).await.unwrap();
    sqlx::query("SELECT 1 FROM records WHERE prefix = $1 FOR UPDATE")
        .bind(prefix_of(&ids[0]))
        .execute(&mut *other)
        .await
        .unwrap();
    let mut tasks = JoinSet::new();
    for (number, id) in ids.iter().copied().enumerate() {
        let store = Arc::clone(&store);
        let patient = Ask::by("bob").patient_for(Duration::from_secs(30));
        tasks.spawn(async move { (number, patient.at(&store, &[id]).await) });
    }
    while let Some(result) = tasks.join_next().await {
        let (number, asked) = result.unwrap();
        match number {
            0 => assert!(matches!(asked, Err(RetrieveError::Store(StoreError::Busy(_)))), "{asked:?}"),
            _ => assert!(asked.is_ok(), "{asked:?}"),
        }
    }
    drop(other);
    Ask::by("bob").finally_gets(&store, &ids[..1]).await;
}

#[tokio::test]
async fn a_daemon_that_never_takes_an_answer_keeps_no_lock() {
    needs!(Postgres);
    let mut site = site();
    let mut other = site.sql().await;
    // By TCP, as from another machine: it hangs there, and its kernel does not.
    site.url = TestPostgres::shared().tls_url(TestPostgres::database_of(&site.url));
    let mut hanging = site.sql().await;
    sqlx::raw_sql("BEGIN").execute(&mut *hanging).await.unwrap();
    let much = "SELECT pg_advisory_xact_lock(4711), repeat('x', 1000000) FROM generate_series(1, 100)";
    let mut answer = sqlx::raw_sql(much).fetch(&mut *hanging);
    answer.next().await.unwrap().unwrap();
    let held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711 \
                AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    let mut count = async || sqlx::query_scalar::<_, i64>(held).fetch_one(&mut *other).await.unwrap();
    assert_eq!(count().await, 1);
    for _ in 0..600 {
        if count().await == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the lock stays");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_standby_is_passed_over_and_takes_over_every_answered_retrieval_when_it_is_promoted() {
    needs!(Postgres);
    let primary = TestPostgres::private();
    let mut site = site_on(&primary);
    let standby = primary.standby();
    let synchronous = "ALTER SYSTEM SET synchronous_standby_names = '*'";
    primary.sql("postgres", &[synchronous, "SELECT pg_reload_conf()"]);
    let host = |url: &str| url.split('@').nth(1).unwrap().split('/').next().unwrap().to_owned();
    let (first, second) = (host(&standby.socket_url("d")), host(&site.url));
    site.url = site.url.replace(&second, &format!("{first},{second}"));
    let store = Arc::new(site.open().await);
    let ids = Sample::to_bob(400).stored(&store).await.ids();
    let mut tasks = JoinSet::new();
    for ids in ids.chunks(50) {
        let (store, ids) = (Arc::clone(&store), ids.to_vec());
        tasks.spawn(async move {
            for id in ids {
                let mut may_be_gone = false;
                loop {
                    match Ask::by("bob").at(&store, &[id]).await {
                        Ok(_) => break,
                        Err(RetrieveError::NotFound) if may_be_gone => break,
                        Err(RetrieveError::Store(StoreError::Uncertain(_))) => may_be_gone = true,
                        Err(RetrieveError::Store(StoreError::Busy(_))) => {}
                        Err(other) => panic!("{other:?}"),
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Ask::by("bob").finds_nothing_now_or_later(&store, id).await;
            }
        });
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    tokio::task::block_in_place(|| {
        primary.stop(Stop::Kill).unwrap();
        standby.promote();
    });
    while let Some(result) = tasks.join_next().await {
        result.unwrap();
    }
    assert_eq!(counts(&store).await.keys, 0);
    Sample::to_bob(1).stored(&store).await;
}

#[tokio::test]
async fn the_server_has_to_prove_its_name_and_no_error_shows_the_password() {
    needs!(Postgres);
    let server = TestPostgres::shared();
    let mut site = site();
    let good = server.tls_url(TestPostgres::database_of(&site.url));
    let ca = |path: PathBuf| path.display().to_string();
    let wrong_ca = good.replace(&ca(server.ca()), &ca(server.another_ca()));
    let wrong_password = good.replace("a%20p", "hunter2");
    for url in [wrong_ca, wrong_password] {
        site.url = url;
        let error = site.try_open("one.kek").await.unwrap_err();
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("hunter2") && !shown.contains("%40ss") && !shown.contains("@ss"), "{shown}");
    }
    assert!(!format!("{:?}", site.settings("one.kek")).contains("hunter2"));
    site.url = good;
    let store = site.open().await;
    let ids = Sample::to_bob(1).stored(&store).await.ids();
    Ask::by("bob").gets(&store, &ids).await;
}

#[tokio::test]
async fn the_first_of_several_servers_that_takes_writes_is_used() {
    needs!(Postgres);
    let server = TestPostgres::private();
    let mut site = site_on(&server);
    let url = site.url.clone();
    let host = url.split('@').nth(1).unwrap().split('/').next().unwrap();
    site.url = url.replace(host, &format!("%2Fno%2Fsuch%2Fdir,127.0.0.1:1,{host}"));
    let store = site.open().await;
    let ids = Sample::to_bob(1).stored(&store).await.ids();
    Ask::by("bob").gets(&store, &ids).await;
}
