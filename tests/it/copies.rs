//! How long a master's copies stay at its own site (`retrieval.master_ttl`), over real daemons.

use testkit::{Network, eventually, needs};

use crate::stored::{stored_batches, stored_keys};

#[test]
fn a_master_gets_its_copy_until_it_ends_then_its_site_forgets_the_key_and_the_slave_still_gets_it() {
    needs!(Curl);
    let mut network = Network::generate(2);
    // Without a reserve, so that every batch in the databases is of the request below.
    let settings = "[keys]\nmin_stored_per_pair = 0\n\n[retrieval]\nmaster_ttl = \"10s\"\n\n[limits]\n\
                    request_timeout = \"2s\"\n\n[store]";
    network.configure(0, "[store]", settings);
    network.start_pools(3);
    network.start_sites();
    eventually("pools are there", || network.enc("alice", "dave", "").status == 200);
    let before = stored_batches(&network.database(0));
    // Not of the default size: made for this request alone, and never leased.
    let keys = network.enc("alice", "bob", "?number=3&size=512").keys();
    let ids: Vec<&str> = keys.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(network.dec("alice", "bob", &ids[..1]).keys(), keys[..1]);
    assert_eq!(stored_batches(&network.database(0)), before + 1);
    eventually("site-a forgets the batch", || stored_batches(&network.database(0)) == before);
    let refused = network.dec("alice", "bob", &ids[1..]);
    assert_eq!(refused.status, 400, "{refused:?}");
    assert_eq!(stored_keys(&network.database(1)), 3);
    assert_eq!(network.dec("bob", "alice", &ids).keys(), keys);
    assert_eq!(stored_keys(&network.database(1)), 0);
}
