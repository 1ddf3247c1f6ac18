//! Files that decide whom a site trusts: revocation lists that lack something, and CAs that vouch for more
//! than they should.

use std::path::Path;
use std::time::Duration;

use testkit::{CorporateCa, Curl, needs};
use tokio::time::sleep;

use crate::field::{Field, append, client_of};
use crate::finding::{Finding, Length};
use crate::honest::{Honest, Manner, Service};
use crate::roles::ask_afresh;

/// Longer than a daemon takes to notice a changed file.
const NOTICED: Duration = Duration::from_secs(8);
const PEM_END: &str = "-----END X509 CRL-----\n";

/// `/readyz` of site-a.
fn readiness(field: &Field) -> String {
    Curl::nobody(&field.network.ca()).get(&format!("{}/readyz", field.network.site(0).admin_url)).body
}

/// The file of revocation lists loses the list of one CA, of each in turn. Returns what `/readyz` said.
pub(crate) async fn missing_list(length: Length) -> (Finding, Vec<String>) {
    let field = Field::start();
    let file = field.network.pki().join("crl.pem");
    let whole = std::fs::read_to_string(&file).unwrap();
    let lists: Vec<String> = whole
        .split_inclusive(PEM_END)
        .filter(|part| part.contains("BEGIN X509 CRL"))
        .map(str::to_owned)
        .collect();
    assert!(lists.len() > 1, "{whole}");
    let quiet = Honest::served_in(&field, Manner::Fresh, length.quiet()).await;
    let mut said = Vec::new();
    let mut during = None;
    for list in &lists {
        std::fs::write(&file, list).unwrap();
        sleep(NOTICED).await;
        said.push(readiness(&field));
        let service =
            Honest::served_in(&field, Manner::Fresh, length.pick(1, 5) * Duration::from_secs(1)).await;
        if during.as_ref().is_none_or(|worst: &Service| worst.failed() == 0) {
            during = Some(service);
        }
        std::fs::write(&file, &whole).unwrap();
        sleep(NOTICED).await;
    }
    let degraded = said.iter().filter(|text| text.contains("degraded")).count();
    let finding = Finding {
        attack: "The file of revocation lists loses the list of one CA",
        outcome: format!("/readyz says so in {degraded} of {} cases", said.len()),
        quiet: Some(quiet),
        during,
        ..Finding::default()
    };
    (finding, said)
}

/// Dave is revoked; then somebody puts the older list back. Returns how often dave is served before, after
/// his revocation, and after that.
pub(crate) async fn older_list() -> (Finding, [usize; 3]) {
    let field = Field::start();
    let file = field.network.pki().join("crl.pem");
    let older = std::fs::read(&file).unwrap();
    let dave = field.client("dave");
    let served = async || ask_afresh(&dave, field.sae_listener(0), "/api/v1/keys/bob/status", 3).await.served;
    let before = served().await;
    field.pki(&["revoke", "sae", "dave"]);
    sleep(NOTICED).await;
    let revoked = served().await;
    std::fs::write(&file, older).unwrap();
    sleep(NOTICED).await;
    let after = served().await;
    let finding = Finding {
        attack: "Somebody puts an older revocation list back",
        outcome: format!("of 3 requests of the revoked SAE {after} are answered"),
        ..Finding::default()
    };
    (finding, [before, revoked, after])
}

/// A CA that is there for SAEs issues a certificate for site-b. Returns how often an SAE of that CA, the false
/// KME at the peer listener, and it at a pool server are served, of 3 times each.
pub(crate) async fn sae_ca_issues_a_kme() -> (Finding, [usize; 3]) {
    let mut field = Field::generate(3);
    let foreign = field.network.dir().join("foreign");
    let authority = CorporateCa::new(&foreign);
    authority.issue("zoe", "spiffe://dqkd.example/sae/zoe");
    authority.issue("site-b", "spiffe://dqkd.example/kme/site-b");
    field.list_sae("zoe", "site-a");
    let config = field.network.site(0).config.clone();
    let text = std::fs::read_to_string(&config).unwrap();
    let ca = format!("sae_ca = \"{}\"\n[listen]", foreign.join("ca.pem").display());
    std::fs::write(&config, text.replacen("[listen]", &ca, 1)).unwrap();
    append_pem(&field.network.pki().join("crl.pem"), &foreign.join("crl.pem"));
    let check = testkit::output_of(testkit::dqkd().arg("check-config").arg(&config));
    let has_sae_ca = check.status.success();
    if !has_sae_ca {
        // The only way to serve SAEs of another CA.
        std::fs::write(&config, text).unwrap();
        append_pem(&field.network.ca(), &foreign.join("ca.pem"));
    }
    field.start_all();
    let ca = field.network.ca();
    let (zoe, kme) = (client_of(&ca, &foreign, "zoe"), client_of(&ca, &foreign, "site-b"));
    let sae = ask_afresh(&zoe, field.sae_listener(0), "/api/v1/keys/bob/status", 3).await.served;
    let peer = ask_afresh(&kme, field.peer_listener(0), "/peer/v1/info", 3).await.served;
    let at_sae = ask_afresh(&kme, field.sae_listener(0), "/api/v1/keys/bob/status", 3).await.served;
    let finding = Finding {
        attack: "A CA that is there for SAEs issues a certificate for a KME",
        outcome: format!(
            "{peer} of 3 requests are answered at the peer listener (sae_ca: {})",
            if has_sae_ca { "yes" } else { "no such setting" }
        ),
        ..Finding::default()
    };
    (finding, [sae, peer, at_sae])
}

fn append_pem(to: &Path, from: &Path) {
    append(to, &std::fs::read_to_string(from).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_list_that_lacks_a_ca_is_not_taken_up_and_readiness_says_so() {
    needs!(Curl);
    let (finding, said) = missing_list(Length::Short).await;
    assert!(finding.during.as_ref().unwrap().goes_on(), "{finding:?} {said:?}");
    assert!(said.iter().all(|text| text.contains("degraded") && text.contains("CA")), "{said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_revocation_list_forgives_nobody() {
    needs!(Curl);
    let (finding, served) = older_list().await;
    assert_eq!(served, [3, 0, 0], "{finding:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ca_for_saes_vouches_for_no_kme() {
    needs!(Curl);
    let (finding, served) = sae_ca_issues_a_kme().await;
    assert_eq!(served, [3, 0, 0], "{finding:?}");
}
