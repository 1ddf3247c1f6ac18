//! T27 to T30: additional slaves.

use serde_json::{Value, json};

use super::super::exchange::Delivered;
use super::super::outcome::{Ended, Failure, Refusal, Sentence, Stop, skip};
use super::super::session::Session;
use super::case::{Case, case};

/// Most additional IDs that T27 lists, whatever the limit.
const LISTED_MAX: u64 = 1000;

pub(super) fn cases() -> [Case; 4] {
    [
        case!(27, "more additional SAEs than max_SAE_ID_count", Calm, too_many),
        case!(28, "additional SAEs that are unknown, blank, twice, B or A", Calm, wrong_ones),
        case!(29, "B and an additional C get the key that A got", Calm, shared),
        case!(30, "after a key for B and C, B gets it once only", Calm, once_each),
    ]
}

async fn too_many(session: &Session) -> Ended {
    let limits = session.limits()?;
    if limits.max_additional >= LISTED_MAX {
        return skip(format!("max_SAE_ID_count is {}", limits.max_additional));
    }
    // Without multicast even one valid SAE is too many; ignoring it silently breaks R36.
    let mut listed: Vec<String> = session.setup.c.iter().map(|c| c.id.clone()).collect();
    while listed.len() as u64 <= limits.max_additional {
        listed.push(format!("nobody-{}", listed.len()));
    }
    listed.truncate(usize::try_from(limits.max_additional).unwrap_or(0) + 1);
    session.spend(1)?;
    let exchange = session.enc(&json!({ "additional_slave_SAE_IDs": listed })).await;
    session.refused(&exchange, &Refusal::of("6.2 R36 R37", "more additional SAEs than max_SAE_ID_count"));
    Ok(())
}

async fn wrong_ones(session: &Session) -> Ended {
    if session.limits()?.max_additional == 0 {
        return skip("max_SAE_ID_count is 0: no multicast");
    }
    let nobody = format!("nobody-{}", uuid::Uuid::new_v4());
    let unserved = |of| Refusal::of("6.2 R36 A15", of).tolerate(&[401, 404]);
    // The standard says nothing about these. A key for fewer SAEs than entries does no harm.
    let repeated = |of| Refusal::of("6.2 A15", of).tolerate(&[200]);
    let mut cases: Vec<(Value, Refusal)> = vec![
        (json!([nobody]), unserved("an additional SAE that nobody registered")),
        (json!([""]), unserved("an additional SAE without an ID")),
        (json!([session.setup.b.id]), repeated("an additional SAE that is the slave of the path")),
        (json!([session.setup.a.id]), repeated("an additional SAE that is the caller")),
    ];
    if let Some(c) = &session.setup.c
        && session.limits()?.max_additional > 1
    {
        cases.push((json!([c.id, c.id]), repeated("an additional SAE listed twice")));
    }
    session.spend(cases.len())?;
    for (listed, refusal) in cases {
        let exchange = session.enc(&json!({ "additional_slave_SAE_IDs": listed })).await;
        session.refused(&exchange, &refusal);
    }
    Ok(())
}

async fn key_for_b_and_c(session: &Session) -> Result<Delivered, Stop> {
    let (limits, c) = (session.limits()?, session.c()?);
    if limits.max_additional == 0 {
        return skip("max_SAE_ID_count is 0: no multicast");
    }
    session.spend(1)?;
    let exchange = session.enc(&json!({ "additional_slave_SAE_IDs": [c.id] })).await;
    let mut keys = session.fresh_of(&exchange, 1, limits.key_size, "6.2 R36")?;
    let missing = || Failure::new(&exchange, "6.3 R44", "one key");
    keys.pop().ok_or_else(|| missing().into())
}

async fn shared(session: &Session) -> Ended {
    let key = key_for_b_and_c(session).await?;
    session.b_still_gets(&key, "5.4, 6.2 R36 R49").await;
    let exchange = session.dec(session.c()?, &session.setup.a.id, &[&key.id]).await;
    session.same_keys(&exchange, std::slice::from_ref(&key), "5.4, 6.2 R36 A11");
    Ok(())
}

async fn once_each(session: &Session) -> Ended {
    let key = key_for_b_and_c(session).await?;
    session.b_still_gets(&key, "5.4, 6.2 R36 R49").await;
    let exchange = session.b_gets(&[&key.id]).await;
    let refusal = Refusal::of("5.4, 6.4 R51 R52 A11", "a key that B has fetched already");
    session.refused(&exchange, &refusal.saying(Sentence::NOT_FOUND));
    let exchange = session.dec(session.c()?, &session.setup.a.id, &[&key.id]).await;
    session.same_keys(&exchange, std::slice::from_ref(&key), "5.4, 6.2 R36 A11");
    Ok(())
}
