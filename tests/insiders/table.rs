//! All attacks in their long versions, one after the other, as lines of a table: the attack, a tab, what came
//! of it. `bash tests/insiders.sh` puts the lines of two programs side by side.

use std::io::Write as _;

use crate::finding::{Finding, Length};
use crate::pool_server::Attack;
use crate::strangers::Start;
use crate::work::Greed;
use crate::{
    liar, log_lines, places, pool_server, revocation, roles, speakers, storage, strangers, trust, unread,
    work,
};

/// `DQKD_INSIDERS_OUT` names the file that the lines go to; `DQKD_INSIDERS_LENGTH=short` tries it out.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes half an hour and the whole machine; tests/insiders.sh runs it"]
async fn table() {
    let is_short = std::env::var("DQKD_INSIDERS_LENGTH").is_ok_and(|length| length == "short");
    let length = if is_short { Length::Short } else { Length::Long };
    let mut out: Box<dyn std::io::Write> = match std::env::var_os("DQKD_INSIDERS_OUT") {
        Some(path) => Box::new(std::fs::File::create(path).unwrap()),
        None => Box::new(std::io::stdout()),
    };
    let mut line = |finding: &Finding| {
        writeln!(out, "{}\t{}", finding.attack, finding.cell()).unwrap();
        out.flush().unwrap();
    };
    line(&revocation::revoked(length).await.0);
    line(&revocation::expired(length).await.0);
    for finding in roles::sae_at_listeners_of_kmes(length).await.0 {
        line(&finding);
    }
    line(&places::unfinished_requests(length, false).await);
    line(&places::unfinished_requests(length, true).await);
    for greed in [Greed::Resets, Greed::ManyKeys, Greed::LargestKeys, Greed::UnknownKeys] {
        line(&work::greedy(length, greed).await);
    }
    for attack in [Attack::Bodies, Attack::Pools, Attack::Downloads] {
        line(&pool_server::one_kme(length, attack).await);
    }
    line(&unread::unread_answers(length).await.0);
    line(&storage::voids(length).await.0);
    line(&storage::unfetched_keys(length).await.0);
    line(&speakers::unlisted_sae().await.0);
    for admission in ["chain", "listed"] {
        line(&speakers::unlisted_master(admission).await.0);
    }
    for (from, start) in [("127.0.0.2", Start::Silent), ("127.0.0.1", Start::Trickle)] {
        line(&strangers::half_open(length, from, start).await);
    }
    line(&trust::missing_list(length).await.0);
    line(&trust::older_list().await.0);
    line(&trust::sae_ca_issues_a_kme().await.0);
    line(&log_lines::refusals(length).await.0);
    line(&liar::two_of_three().0);
    line(&liar::lying_server(length).await.0);
}
