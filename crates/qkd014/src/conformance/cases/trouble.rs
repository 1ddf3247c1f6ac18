//! T48 and T49: killed KMEs, a cut link.

use serde_json::json;

use super::super::exchange::{Delivered, Exchange};
use super::super::outcome::{Ended, Failure, Refusal, Sentence, skip};
use super::super::session::{MOMENT, Session};
use super::case::{Case, case};

/// How often to check for service after a link healed, once every [`MOMENT`].
const RECOVERY_LOOKS: u32 = 150;

pub(super) fn cases() -> [Case; 2] {
    [
        case!(48, "KMEs killed and started: no key changes, none comes twice", Disturbs, killed),
        case!(49, "the link of the KMEs cut: 503, or a key that B can fetch later", Disturbs, cut),
    ]
}

async fn killed(session: &Session) -> Ended {
    let Some(command) = &session.setup.hooks.restart else {
        return skip("needs a command that kills and starts both KMEs: --restart-hook");
    };
    let mut keys = session.fresh(2).await?;
    let (Some(waiting), Some(fetched)) = (keys.pop(), keys.pop()) else { return skip("no two keys") };
    session.b_still_gets(&fetched, "5.4 R49").await;
    session.hook(command).await?;
    let exchange = session.b_gets(&[&fetched.id]).await;
    let gone = Refusal::of("5.4, 6.4 R51 R52 R55", "a key that was returned before the KMEs were killed");
    session.refused(&exchange, &gone.saying(Sentence::NOT_FOUND));
    let exchange = session.b_gets(&[&waiting.id]).await;
    if exchange.status == 400 {
        let refusal = Refusal::of("6.4 R51", "a key that was lost when the KMEs were killed");
        session.refused(&exchange, &refusal.saying(Sentence::NOT_FOUND));
    } else {
        session.same_keys(&exchange, std::slice::from_ref(&waiting), "5.4 R49");
    }
    serves_fresh_keys(session).await
}

async fn cut(session: &Session) -> Ended {
    let (Some(cut), Some(heal)) = (&session.setup.hooks.cut, &session.setup.hooks.heal) else {
        return skip("needs commands that cut and heal the link of the KMEs: --cut-hook, --heal-hook");
    };
    let limits = session.limits()?;
    session.spend(1)?;
    session.hook(cut).await?;
    let exchange = session.enc(&json!({})).await;
    session.hook(heal).await?;
    if exchange.status == 200 {
        let keys = session.fresh_of(&exchange, 1, limits.key_size, "6.3 R44-R46")?;
        for key in &keys {
            eventually_fetched(session, key).await;
        }
    } else {
        let of = "keys while the link of the KMEs is cut";
        session.refused(&exchange, &Refusal::of("5.3 R18 A9", of).with(&[503]));
        session.should(exchange.header("retry-after").is_some(), &exchange, "A9", "Retry-After with 503");
    }
    serves_fresh_keys(session).await
}

async fn eventually_fetched(session: &Session, key: &Delivered) {
    let mut exchange = session.b_gets(&[&key.id]).await;
    for _ in 0..RECOVERY_LOOKS {
        if exchange.status == 200 {
            break;
        }
        tokio::time::sleep(MOMENT).await;
        exchange = session.b_gets(&[&key.id]).await;
    }
    session.same_keys(&exchange, std::slice::from_ref(key), "5.4 R10 R49");
}

/// Requires that both KMEs reach each other again, and hand out only new keys.
async fn serves_fresh_keys(session: &Session) -> Ended {
    let limits = session.limits()?;
    session.spend(1)?;
    let mut exchange: Exchange = session.enc(&json!({})).await;
    for _ in 0..RECOVERY_LOOKS {
        if exchange.status == 200 {
            break;
        }
        tokio::time::sleep(MOMENT).await;
        exchange = session.enc(&json!({})).await;
    }
    if exchange.status != 200 {
        return Err(Failure::new(&exchange, "5.3", "keys again, some time after the trouble ended").into());
    }
    for key in session.fresh_of(&exchange, 1, limits.key_size, "5.3 R43 R55")? {
        session.b_still_gets(&key, "5.4 R10 R49").await;
    }
    Ok(())
}
