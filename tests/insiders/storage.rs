//! What one party may have others store.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;
use testkit::{RawH2, needs};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::timeout;

use crate::field::Field;
use crate::finding::{Finding, Length};
use crate::honest::{Honest, Manner};

/// Small quotas, where there are any.
const QUOTAS: [&str; 2] = [
    "[keys]\nmax_stored_per_pair = 2048\n\n[limits.sae]\nstored_keys = 2048",
    "[limits.kme]\ntombstones = 1000",
];
const TOMBSTONES_MAX: u32 = 1_000;
const STORED_KEYS_MAX: u32 = 2_048;

/// The tombstones in a database: how many, and how many hours the last of them lives on.
async fn tombstones(file: &Path) -> (i64, i64) {
    use sqlx::ConnectOptions as _;
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(file).read_only(true);
    let mut connection = options.connect().await.unwrap();
    let query = "SELECT count(*), coalesce(max(expires_at_ms), 0) FROM tombstones";
    let (count, last): (i64, i64) = sqlx::query_as(query).fetch_one(&mut connection).await.unwrap();
    let now = OffsetDateTime::now_utc().unix_timestamp();
    (count, (last / 1000 - now) / 3_600)
}

/// How many POSTs were made, and how many of them were answered with 200, until `until` or until `most` are
/// accepted.
async fn accepted(
    h2: &mut RawH2,
    path: &str,
    body: impl Fn(u32) -> String,
    until: Instant,
    most: u32,
) -> (u32, u32) {
    let (mut asked, mut accepted) = (0, 0);
    while Instant::now() < until && accepted < most {
        let mut streams = Vec::new();
        for _ in 0..4 {
            asked += 1;
            streams.push(h2.post(path, body(asked).as_bytes()).await.unwrap());
        }
        for stream in streams {
            if let Ok(Ok(answer)) = timeout(Duration::from_secs(5), h2.answer(stream)).await {
                accepted += u32::from(answer.status == 200);
            }
        }
    }
    (asked, accepted)
}

/// Site-b voids batches that never were, for a year. Returns how many tombstones site-a has, and for how many
/// hours.
pub(crate) async fn voids(length: Length) -> (Finding, i64, i64) {
    let mut field = Field::generate(3);
    field.configure_site_if_known(0, QUOTAS[1]);
    field.start_all();
    let expires = (OffsetDateTime::now_utc() + time::Duration::days(365)).format(&Rfc3339).unwrap();
    let mut site_b = field.client("site-b").h2(field.peer_listener(0)).await.unwrap();
    let quiet = Honest::served_in(&field, Manner::Steady, length.quiet()).await;
    let honest = Honest::start(&field, Manner::Steady);
    let body = |n: u32| {
        json!({ "batch_id": format!("{n:08x}-0000-4000-8000-000000000000"), "expires_at": expires })
            .to_string()
    };
    let until = Instant::now() + length.attack();
    let (asked, _) = accepted(&mut site_b, "/peer/v1/void", body, until, u32::MAX).await;
    let during = honest.stop().await;
    let (count, hours) = tombstones(&field.network.database(0)).await;
    let finding = Finding {
        attack: "A peer voids batches that never were",
        outcome: format!("{count} tombstones of {asked} voids, for {hours} h"),
        quiet: Some(quiet),
        during: Some(during),
        ..Finding::default()
    };
    (finding, count, hours)
}

/// Dave asks for keys that nobody fetches. Returns how many he was given, and whether he was refused any.
pub(crate) async fn unfetched_keys(length: Length) -> (Finding, u32, bool) {
    const KEYS: u32 = 128;
    let mut field = Field::generate(3);
    for site in 0..2 {
        field.configure_site_if_known(site, QUOTAS[0]);
    }
    field.start_all();
    let mut dave = field.client("dave").h2(field.sae_listener(0)).await.unwrap();
    let quiet = Honest::served_in(&field, Manner::Steady, length.quiet()).await;
    let honest = Honest::start(&field, Manner::Steady);
    let body = |_| json!({ "number": KEYS }).to_string();
    let until = Instant::now() + 3 * length.attack();
    let most = length.pick(2 * STORED_KEYS_MAX / KEYS, u32::MAX);
    let path = "/api/v1/keys/carol/enc_keys";
    let (asked, given) = accepted(&mut dave, path, body, until, most).await;
    let during = honest.stop().await;
    let finding = Finding {
        attack: "An SAE asks for keys, 128 at a time, which nobody fetches",
        outcome: format!("{} keys given and stored, {given} of {asked} requests answered", given * KEYS),
        quiet: Some(quiet),
        during: Some(during),
        ..Finding::default()
    };
    (finding, given * KEYS, given < asked)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_leaves_no_more_tombstones_than_its_quota_and_for_no_longer_than_keys_live() {
    needs!(Curl);
    let (finding, count, hours) = voids(Length::Short).await;
    assert!(count <= i64::from(TOMBSTONES_MAX) * 5 / 4, "{finding:?}");
    assert!(hours <= 24, "{finding:?}");
    assert!(finding.during.as_ref().unwrap().goes_on(), "{finding:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_sae_stores_no_more_than_its_quota() {
    needs!(Curl);
    let (finding, keys, is_refused) = unfetched_keys(Length::Short).await;
    assert!(is_refused && keys <= STORED_KEYS_MAX, "{finding:?}");
    assert!(finding.during.as_ref().unwrap().goes_on(), "{finding:?}");
}
