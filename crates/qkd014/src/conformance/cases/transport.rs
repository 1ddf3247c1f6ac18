//! T1 to T7 and T53: TLS, certificates, identity, connections.

use http::Version;
use mtls::{Offer, OfferedTls};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::super::exchange::unanswered;
use super::super::outcome::{Ended, Failure, Refusal, Stop, skip};
use super::super::session::Session;
use super::super::setup::Sae;
use super::case::{Case, case};
use crate::https::{Connection, HTTP_1, HTTP_2, HttpRequest};
use crate::wire::path;

const CLAUSE: &str = "4, 5.1 R4";
/// Requests of T53 over one connection.
const MANY: usize = 100;
/// Most bytes of an answer that T1 and T3 read.
const RAW_MAX_BYTES: u64 = 64 * 1024;

pub(super) fn cases() -> [Case; 8] {
    [
        case!(1, "TLS 1.1 and 1.0 are refused", Calm, old_tls),
        case!(2, "TLS 1.2 and TLS 1.3 work", Calm, new_tls),
        case!(3, "plain HTTP gives no key", Calm, plain_http),
        case!(4, "no client certificate, no service", Calm, no_certificate),
        case!(5, "a certificate of an untrusted CA is refused", Calm, untrusted),
        case!(6, "an unregistered SAE gets 401", Calm, unregistered),
        case!(7, "the certificate says who calls, headers do not", Calm, headers),
        case!(53, "100 requests over one connection; HTTP/2 if offered", Calm, kept_alive),
    ]
}

/// A failure below HTTP.
fn below(sae: &Sae, expected: &str, sent: &str, received: impl Into<String>) -> Failure {
    let sent = format!("{sent} to {}", sae.url);
    Failure { expected: expected.to_owned(), sent, received: received.into(), clause: CLAUSE }
}

async fn dial(session: &Session, sae: &Sae) -> Result<TcpStream, Stop> {
    let failed = |why: String| Stop::from(below(sae, "a TCP connection", "SYN", why));
    let connected = timeout(session.setup.timeout, TcpStream::connect((sae.url.host(), sae.url.port())));
    let connected = connected.await.map_err(|_| failed("no answer in time".to_owned()))?;
    connected.map_err(|error| failed(error.to_string()))
}

/// Sends `bytes` and reads until the server closes, has sent `enough`, or is silent for a while.
async fn raw(session: &Session, sae: &Sae, bytes: &[u8], enough: usize) -> Result<Vec<u8>, Stop> {
    let mut stream = dial(session, sae).await?;
    let mut answer = Vec::new();
    // A server may close before it has read everything; that is an answer, too.
    let _ = stream.write_all(bytes).await;
    let read = async {
        let mut stream = stream.take(RAW_MAX_BYTES);
        let mut part = [0; 1024];
        while let Ok(length @ 1..) = stream.read(&mut part).await {
            answer.extend_from_slice(part.get(..length).unwrap_or_default());
            if answer.len() >= enough {
                break;
            }
        }
    };
    let _ = timeout(session.setup.timeout, read).await;
    Ok(answer)
}

async fn old_tls(session: &Session) -> Ended {
    for sae in [&session.setup.a, &session.setup.b] {
        for (version, name) in [([3, 2], "TLS 1.1"), ([3, 1], "TLS 1.0")] {
            let sent = format!("a ClientHello that offers {name} at most");
            let answer = raw(session, sae, &client_hello(version), 11).await?;
            if let Some([major, minor]) = chosen_version(&answer) {
                let received = format!("a ServerHello that chooses version {major}.{minor}");
                session.fail(below(sae, "a refusal: TLS 1.2 or higher only", &sent, received));
            }
        }
    }
    for sae in [&session.setup.a, &session.setup.b] {
        session.still_answers(sae, CLAUSE).await;
    }
    Ok(())
}

/// A record with a `ClientHello` of TLS 1.0 or 1.1, with cipher suites that servers of that time know.
fn client_hello(version: [u8; 2]) -> Vec<u8> {
    // ECDHE and RSA with AES in CBC mode, and the marker for safe renegotiation.
    const SUITES: [u16; 11] =
        [0xc009, 0xc00a, 0xc013, 0xc014, 0x0033, 0x0039, 0x002f, 0x0035, 0x000a, 0x0005, 0x00ff];
    // supported_groups: P-256, P-384, P-521; ec_point_formats: uncompressed.
    const EXTENSIONS: [u8; 18] = [0, 10, 0, 8, 0, 6, 0, 23, 0, 24, 0, 25, 0, 11, 0, 2, 1, 0];
    let mut hello = version.to_vec();
    // The client random. Any value will do, since no handshake may succeed.
    hello.extend_from_slice(uuid::Uuid::new_v4().as_bytes());
    hello.extend_from_slice(uuid::Uuid::new_v4().as_bytes());
    hello.push(0);
    hello.extend_from_slice(&length_16(SUITES.len() * 2));
    hello.extend(SUITES.iter().flat_map(|suite| suite.to_be_bytes()));
    hello.extend_from_slice(&[1, 0]);
    hello.extend_from_slice(&length_16(EXTENSIONS.len()));
    hello.extend_from_slice(&EXTENSIONS);
    let mut record = vec![22, 3, 1];
    record.extend_from_slice(&length_16(hello.len() + 4));
    record.extend_from_slice(&[1, 0]);
    record.extend_from_slice(&length_16(hello.len()));
    record.extend_from_slice(&hello);
    record
}

fn length_16(length: usize) -> [u8; 2] {
    u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes()
}

/// The version of a `ServerHello`, if the answer begins with one.
fn chosen_version(answer: &[u8]) -> Option<[u8; 2]> {
    match answer {
        // Handshake record, its version and length; server_hello, its length, its version.
        [22, _, _, _, _, 2, _, _, _, major, minor, ..] => Some([*major, *minor]),
        _ => None,
    }
}

async fn new_tls(session: &Session) -> Ended {
    for sae in [&session.setup.a, &session.setup.b] {
        let other = if sae.id == session.setup.a.id { &session.setup.b } else { &session.setup.a };
        let request = HttpRequest::get(path(&other.id, "status"));
        let (mut served, mut missing) = (0, None);
        for (tls, name) in [(OfferedTls::V1_2, "TLS 1.2"), (OfferedTls::V1_3, "TLS 1.3")] {
            match session.connect(sae, Offer { tls, ..HTTP_1 }).await {
                Ok(mut connection) => {
                    let exchange = session.over(&mut connection, sae, &request).await;
                    session.check(
                        exchange.status == 200,
                        &exchange,
                        CLAUSE,
                        &format!("status 200 over {name}"),
                    );
                    served += 1;
                }
                Err(trouble) => missing = Some((name, unanswered(sae, &request, trouble))),
            }
        }
        // "TLS 1.2 or higher": one version is enough for the letter of the standard.
        if let Some((name, exchange)) = missing {
            let expected = format!("a connection over {name}");
            if served == 0 {
                session.fail(Failure::new(&exchange, CLAUSE, "a connection over TLS 1.2 or 1.3"));
            } else {
                session.should(false, &exchange, CLAUSE, &expected);
            }
        }
    }
    Ok(())
}

async fn plain_http(session: &Session) -> Ended {
    for (sae, other) in [(&session.setup.a, &session.setup.b), (&session.setup.b, &session.setup.a)] {
        let host = sae.url.authority();
        let path = path(&other.id, "enc_keys");
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let answer = raw(session, sae, request.as_bytes(), usize::MAX).await?;
        let text = zeroize::Zeroizing::new(String::from_utf8_lossy(&answer).into_owned());
        let first = text.lines().next().unwrap_or_default();
        let is_served =
            first.starts_with("HTTP/") && first.split(' ').nth(1).is_some_and(|code| code.starts_with('2'));
        if is_served || text.contains("key_ID") {
            let expected = "no service over plain HTTP";
            session.fail(below(sae, expected, &format!("GET {path} without TLS"), first));
        }
    }
    Ok(())
}

/// Requires that `sae`, over a connection of this kind, is refused: at the handshake or with 401.
async fn is_turned_away(session: &Session, sae: &Sae, certificate: bool, of: &'static str) {
    let offer = Offer { certificate, ..HTTP_1 };
    for rest in ["status", "enc_keys"] {
        let Ok(mut connection) = session.connect(sae, offer).await else { continue };
        let request = HttpRequest::get(path(&session.setup.b.id, rest));
        let exchange = session.over(&mut connection, sae, &request).await;
        // In TLS 1.3 a server refuses a certificate after the client has finished its handshake.
        if exchange.trouble.is_none() {
            session
                .refused(&exchange, &Refusal::of("4, 5.1 R5 R7", of).with(&[401]).tolerate(&[400, 403, 404]));
        }
    }
    session.still_answers(&session.setup.a, CLAUSE).await;
}

async fn no_certificate(session: &Session) -> Ended {
    let nobody = Sae { id: "nobody (no certificate)".to_owned(), ..session.setup.a.clone() };
    is_turned_away(session, &nobody, false, "a caller without a certificate, or no connection").await;
    Ok(())
}

async fn untrusted(session: &Session) -> Ended {
    let Some(y) = &session.setup.y else {
        return skip("needs a certificate of a CA that the KMEs do not trust: --y-cert, --y-key");
    };
    is_turned_away(session, y, true, "a certificate of an untrusted CA, or no connection").await;
    Ok(())
}

async fn unregistered(session: &Session) -> Ended {
    let Some(x) = &session.setup.x else {
        return skip("needs an unregistered SAE with a certificate of the trusted CA: --x-cert, --x-key");
    };
    for rest in ["status", "enc_keys"] {
        let exchange = session.send_alone(x, HttpRequest::get(path(&session.setup.b.id, rest))).await;
        let refusal = Refusal::of("5.1 R7 R8 A3", "an SAE that is not registered").with(&[401]);
        // A refusal at the handshake is as good.
        if exchange.trouble.is_none() {
            session.refused(&exchange, &refusal.tolerate(&[400, 403, 404]));
        }
    }
    session.still_answers(&session.setup.a, CLAUSE).await;
    Ok(())
}

async fn headers(session: &Session) -> Ended {
    let (a, b) = (&session.setup.a.id, &session.setup.b.id);
    let mut request = HttpRequest::get(path(b, "status"));
    let common_name = format!("CN={b}");
    for name in ["x-sae-id", "sae-id", "x-forwarded-user", "x-client-cert-cn", "x-ssl-client-cn", "from"] {
        request = request.with(name, b);
    }
    for name in ["x-ssl-client-s-dn", "x-ssl-client-dn", "ssl-client-subject-dn"] {
        request = request.with(name, &common_name);
    }
    let forwarded = format!("By=spiffe://x/kme;Subject=\"{common_name}\";URI=spiffe://x/sae/{b}");
    request =
        request.with("x-forwarded-client-cert", &forwarded).with("authorization", &format!("Bearer {b}"));
    let exchange = session.send(&session.setup.a, request).await;
    let master = exchange.json().and_then(|json| json.get("master_SAE_ID")?.as_str().map(str::to_owned));
    let expected = "status 200 with the SAE of the certificate as master_SAE_ID, whatever headers claim";
    session.check(exchange.status == 200 && master.as_ref() == Some(a), &exchange, "5.1 R7 R8", expected);
    Ok(())
}

async fn kept_alive(session: &Session) -> Ended {
    let a = &session.setup.a;
    let request = HttpRequest::get(path(&session.setup.b.id, "status"));
    for (offer, version) in [(HTTP_1, Version::HTTP_11), (HTTP_2, Version::HTTP_2)] {
        let is_2 = version == Version::HTTP_2;
        let open = async || match session.connect(a, offer).await {
            Ok(connection) => Ok(Some(connection)),
            Err(_) if is_2 => Ok(None),
            Err(trouble) => Err(Failure::new(&unanswered(a, &request, trouble), CLAUSE, "a connection")),
        };
        let first: Option<Connection> = open().await?;
        let Some(mut connection) = first.filter(|first| !is_2 || first.is_http_2()) else {
            session.note("HTTP/2 is not offered");
            continue;
        };
        let (mut connections, mut served) = (1, 0);
        while served < MANY && connections <= MANY {
            let exchange = session.over(&mut connection, a, &request).await;
            if exchange.trouble.is_some() && !is_2 && served > 0 {
                // A server may close a connection after any answer.
                let expected = "100 answers over one connection";
                session.should(connections > 1, &exchange, CLAUSE, expected);
                connections += 1;
                let Some(fresh) = open().await? else { break };
                connection = fresh;
                continue;
            }
            if exchange.status != 200 || exchange.response.version != version {
                return Err(Failure::new(&exchange, CLAUSE, format!("status 200 over {version:?}")).into());
            }
            served += 1;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_hello_has_consistent_lengths_and_offers_no_more_than_it_says() {
        for version in [[3, 1], [3, 2]] {
            let hello = client_hello(version);
            let record = usize::from(u16::from_be_bytes([hello[3], hello[4]]));
            assert_eq!(hello.len(), record + 5);
            let handshake = usize::from(u16::from_be_bytes([hello[7], hello[8]]));
            assert_eq!((hello[0], hello[5], handshake + 4), (22, 1, record));
            assert_eq!([hello[9], hello[10]], version);
        }
    }

    #[test]
    fn a_server_hello_is_told_from_an_alert() {
        assert_eq!(chosen_version(&[22, 3, 2, 0, 70, 2, 0, 0, 66, 3, 2, 9]), Some([3, 2]));
        assert_eq!(chosen_version(&[21, 3, 1, 0, 2, 2, 70]), None);
        assert_eq!(chosen_version(&[]), None);
    }
}
