//! Who speaks for whom: an SAE that nobody listed, and a peer that names a master that is not its own.

use serde_json::json;
use testkit::needs;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::field::Field;
use crate::finding::Finding;

/// A key addressed to all of site-b is asked for by an SAE that is in nobody's directory. Returns the status
/// of its answer, and of bob's afterwards.
pub(crate) async fn unlisted_sae() -> (Finding, u16, u16) {
    let field = Field::start();
    let made = field.network.enc("alice", "site-b", "");
    let (key_id, _) = made.key();
    let mut mallory = field.issue("sae", "mallory").h2(field.sae_listener(1)).await.unwrap();
    let ask = format!("/api/v1/keys/site-a/dec_keys?key_ID={key_id}");
    let stream = mallory.get(&ask).await.unwrap();
    let stolen = mallory.answer(stream).await.map_or(0, |answer| answer.status);
    let bob = field.network.dec_get("bob", "site-a", &key_id).status;
    let finding = Finding {
        attack: "An SAE that nobody listed asks for a key that is addressed to a whole site",
        outcome: format!("it gets {stolen}, then the listed SAE gets {bob}"),
        ..Finding::default()
    };
    (finding, stolen, bob)
}

/// Site-b pushes a batch to site-a in the name of a master that neither site lists. Returns status and message.
/// 424 means that nothing was wrong with it but the pools, which do not exist.
pub(crate) async fn unlisted_master(admission: &str) -> (Finding, u16, String) {
    let field = {
        let mut field = Field::generate(3);
        let line = format!("id = \"site-a\"\nsae_admission = \"{admission}\"");
        field.network.configure(0, "id = \"site-a\"", &line);
        field.start_all();
        field
    };
    let id = |n: u8| format!("{n:08x}-0000-4000-8000-000000000000");
    let after = |minutes: i64| {
        (OffsetDateTime::now_utc() + time::Duration::minutes(minutes)).format(&Rfc3339).unwrap()
    };
    let pools: Vec<_> =
        (0..3_u8).map(|n| json!({"server": field.network.pool(n.into()).id, "id": id(n + 10)})).collect();
    let batch = json!({
        "batch_id": id(1), "suite": "dqkd-blast-1",
        "pool_set": { "id": id(2), "words": 131_072, "expires_at": after(5), "pools": pools },
        "seed": "00".repeat(32), "mask_seed": "11".repeat(32), "words_per_pool": 180, "key_bytes": 32,
        "key_ids": [id(5)], "master": "ghost", "recipients": [
            {"party": {"kind": "sae", "id": "alice"}, "kme": "site-a"}],
        "created_at": after(0), "expires_at": after(60), "confirm": "22".repeat(16),
    });
    let mut site_b = field.client("site-b").h2(field.peer_listener(0)).await.unwrap();
    let stream = site_b.post("/peer/v1/batches", batch.to_string().as_bytes()).await.unwrap();
    let answer = site_b.answer(stream).await.unwrap();
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    let finding = Finding {
        attack: if admission == "chain" {
            "A peer speaks for a master that this site cannot place (sae_admission chain)"
        } else {
            "A peer speaks for a master that this site does not list (sae_admission listed)"
        },
        outcome: format!("{} {text}", answer.status),
        ..Finding::default()
    };
    (finding, answer.status, text)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_sae_that_nobody_listed_gets_no_key_of_a_whole_site() {
    needs!(Curl);
    let (finding, stolen, bob) = unlisted_sae().await;
    assert_eq!((stolen, bob), (401, 200), "{finding:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_speaks_for_no_master_that_a_site_cannot_place_there() {
    needs!(Curl);
    for admission in ["chain", "listed"] {
        let (finding, status, text) = unlisted_master(admission).await;
        assert!(status == 403 && text.contains("ghost"), "{finding:?}");
    }
}
