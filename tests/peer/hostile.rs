//! Certificates and clients that must be refused, while a good peer is served.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use drover::peer::{PeerError, PeerEvent, Peers};
use drover::transport::listen::CONNECTIONS_PER_PEER;
use drover::transport::stream::connect;
use drover::transport::{Pki, Protocol, pki};
use drover::wire::bulk::{Body, Message};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Ca, EXPIRED, Fake, Pair, VALID, extensions, start};

/// What a client gets that trusts `trusts`, shows `shows` and asks for `alpn`: the greeting, or
/// the error in words.
async fn greeting(
    to: SocketAddr,
    trusts: &Path,
    shows: Option<(&Ca, &str)>,
    alpn: &[&[u8]],
) -> Result<String, String> {
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(trusts).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match shows {
        None => config.with_no_client_auth(),
        Some((ca, name)) => config
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_file(ca.path(&format!("{name}.pem"))).unwrap()],
                PrivateKeyDer::from_pem_file(ca.path(&format!("{name}.key"))).unwrap(),
            )
            .unwrap(),
    };
    config.alpn_protocols = alpn.iter().map(|a| a.to_vec()).collect();
    let tcp = TcpStream::connect(to).await.map_err(|e| e.to_string())?;
    let mut tls = tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect(ServerName::try_from("host-a").unwrap(), tcp)
        .await
        .map_err(|e| e.to_string())?;
    let mut text = vec![0; 600];
    let n = tls.read(&mut text).await.map_err(|e| e.to_string())?;
    Ok(String::from_utf8_lossy(&text[..n]).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_certificates_are_refused_and_good_peers_served() {
    let pair = Pair::new();
    let (mut a, b) = pair.both().await;
    let (ca, at) = (&pair.ca, pair.a.listen.unwrap());
    let trusts = ca.path("ca.pem");
    let control: &[&[u8]] = &[Protocol::Control.alpn()];
    let other = Ca::new();
    other.host("host-b");
    ca.issue("late", &extensions("DNS:host-b"), EXPIRED);
    ca.issue("both", &extensions("DNS:host-b,DNS:x"), VALID);
    ca.issue("host-c", "basicConstraints=CA:FALSE\n", VALID);
    ca.issue(
        "server-only",
        "basicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\nsubjectAltName=DNS:host-b\n",
        VALID,
    );
    ca.host("stranger");

    let ask = |shows, alpn| greeting(at, &trusts, shows, alpn);
    // The same way of asking works with the right certificate, also with further names in it.
    assert_eq!(ask(Some((ca, "both")), control).await.unwrap(), "ok\n");
    let e = ask(Some((&other, "host-b")), control).await.unwrap_err();
    assert!(
        e.contains("UnknownCA") || e.contains("DecryptError"),
        "another CA: {e}"
    );
    let e = ask(Some((ca, "late")), control).await.unwrap_err();
    assert!(e.contains("CertificateExpired"), "expired: {e}");
    let e = ask(Some((ca, "server-only")), control).await.unwrap_err();
    assert!(e.contains("alert"), "not for clients: {e}");
    let e = ask(None, control).await.unwrap_err();
    assert!(e.contains("CertificateRequired"), "no certificate: {e}");
    let told = ask(Some((ca, "stranger")), control).await.unwrap();
    assert!(
        told.starts_with("refused ") && told.contains("it is for stranger"),
        "{told}"
    );
    let told = ask(Some((ca, "host-c")), control).await.unwrap();
    assert!(
        told.starts_with("refused ") && told.contains("no subjectAltName"),
        "{told}"
    );
    let e = ask(Some((ca, "host-b")), &[b"h2"]).await.unwrap_err();
    assert!(e.contains("NoApplicationProtocol"), "other protocol: {e}");
    let told = ask(Some((ca, "host-b")), &[]).await.unwrap();
    assert!(
        told.starts_with("refused ") && told.contains("ALPN"),
        "{told}"
    );

    // One of the certificates above was host-b's own, so its connection took the place of the
    // real one, which comes back.
    let begun = Instant::now();
    while b.peers.host_state("host-a").await.is_err() {
        assert!(begun.elapsed() < Duration::from_secs(5));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    a.event(|e| matches!(e, PeerEvent::State(_))).await;
}

/// A peer with a good certificate and bad manners.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_peer_sends_is_bounded() {
    let pair = Pair::new();
    let a = start("host-a", &pair.a).await;
    let pki = Pki::load(&pair.b, "host-b").unwrap();
    let name = pki::server_name("host-a").unwrap();
    let t = Duration::from_secs(3);
    let dial = |protocol| connect(&pki, pair.a.listen.unwrap(), &name, protocol, t, t);

    // D-Bus: a header that announces 100 MiB of body.
    let mut link = dial(Protocol::Control).await.unwrap();
    let control = &mut link.stream;
    let mut header = b"l\x01\x00\x01".to_vec();
    for word in [100_u32 << 20, 1, 0] {
        header.extend(word.to_le_bytes());
    }
    control.write_all(&header).await.unwrap();
    control.flush().await.unwrap();
    let end = tokio::time::timeout(t, control.read(&mut header)).await;
    assert_eq!(end.expect("the connection is ended").unwrap_or(0), 0);

    // Bulk: headers that are not one, and one without an end.
    for hello in [
        "{\"protocol\":2,\"id\":\"../../etc\"}\n".to_owned(),
        "{\"protocol\":9,\"id\":\"00000000-0001\"}\n".to_owned(),
        "x".repeat(5000),
    ] {
        let mut link = dial(Protocol::Bulk).await.unwrap();
        let bulk = &mut link.stream;
        bulk.write_all(hello.as_bytes()).await.unwrap();
        bulk.flush().await.unwrap();
        let mut answer = vec![0; 600];
        let read = tokio::time::timeout(t, bulk.read(&mut answer)).await;
        let n = read.expect("an answer or the end").unwrap_or(0);
        let refused = answer.starts_with(b"refused ");
        assert!(refused || (n == 0 && hello.len() > 4096), "{hello}");
    }
    assert!(
        a.fake.bulk.lock().unwrap().id.is_empty(),
        "none reached the service"
    );

    // Bulk: a good header, then a message of 2 MiB, or of a name that leaves the directory.
    let mut evil = Vec::new();
    Message {
        stream: 1,
        body: Body::Open {
            round: 1,
            file: 1,
            size: 1,
            name: "../x".into(),
        },
    }
    .encode(&mut evil);
    let evil = [&(evil.len() as u32).to_le_bytes()[..], &evil].concat();
    for (sent, word) in [
        (&(2_u32 << 20).to_le_bytes()[..], "2097152"),
        (&evil, "file name"),
    ] {
        a.fake.bulk.lock().unwrap().end = None;
        let mut link = dial(Protocol::Bulk).await.unwrap();
        let bulk = &mut link.stream;
        bulk.write_all(b"{\"protocol\":2,\"id\":\"00000000-0001\"}\n")
            .await
            .unwrap();
        bulk.write_all(sent).await.unwrap();
        bulk.flush().await.unwrap();
        let begun = Instant::now();
        let end = loop {
            assert!(begun.elapsed() < t);
            if let Some(end) = a.fake.bulk.lock().unwrap().end.clone() {
                break end.unwrap_err();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        assert!(end.contains(word), "{end}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_of_a_peer_are_limited_and_give_their_place_back() {
    let pair = Pair::new();
    let _a = start("host-a", &pair.a).await;
    let pki = Pki::load(&pair.b, "host-b").unwrap();
    let name = pki::server_name("host-a").unwrap();
    let t = Duration::from_secs(3);
    let dial = |protocol| connect(&pki, pair.a.listen.unwrap(), &name, protocol, t, t);
    let most = usize::try_from(CONNECTIONS_PER_PEER).unwrap();
    for _ in 0..most + 8 {
        dial(Protocol::Control).await.unwrap();
    }
    let mut open = Vec::new();
    let refused = loop {
        match dial(Protocol::Bulk).await {
            Ok(link) => open.push(link),
            Err(e) => break e.to_string(),
        }
        assert!(open.len() <= most);
    };
    assert!(refused.contains("connections already"), "{refused}");
    assert!(open.len() + 2 >= most, "{}", open.len());
    drop(open);
    let begun = Instant::now();
    while dial(Protocol::Bulk).await.is_err() {
        assert!(begun.elapsed() < Duration::from_secs(2));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until the other side ends the connection.
async fn ended(client: &mut TcpStream, within_s: u64) {
    let mut buf = [0; 8];
    let read = client.read(&mut buf);
    let end = tokio::time::timeout(Duration::from_secs(within_s), read).await;
    assert_eq!(end.expect("the connection is ended").unwrap_or(0), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_text_and_silent_clients_hold_up_nobody() {
    let pair = Pair::new();
    let a = start("host-a", &pair.a).await;
    let at = pair.a.listen.unwrap();
    let mut plain = TcpStream::connect(at).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut silent = Vec::new();
    for _ in 0..10 {
        silent.push(TcpStream::connect(at).await.unwrap());
    }
    let begun = Instant::now();
    let mut b = start("host-b", &pair.b).await;
    b.up().await;
    assert!(
        begun.elapsed() < Duration::from_secs(3),
        "{:?}",
        begun.elapsed()
    );
    b.peers.host_state("host-a").await.unwrap();
    // Plain text gets a TLS alert at most, then the end; silence ends after the deadline.
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(2), plain.read_to_end(&mut rest))
        .await
        .expect("plain text is refused at once");
    assert!(rest.len() < 32, "{rest:?}");
    ended(&mut silent[0], 8).await;
    // A crowd from one address is turned away beyond the limit.
    let mut crowd = Vec::new();
    for _ in 0..40 {
        crowd.push(TcpStream::connect(at).await.unwrap());
    }
    ended(&mut crowd[39], 2).await;
    b.peers.host_state("host-a").await.unwrap();
    drop(a);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_checks_the_servers_name_and_ca() {
    let pair = Pair::new();
    let _a = start("host-a", &pair.a).await;
    let t = Duration::from_secs(3);
    let mine = Pki::load(&pair.b, "host-b").unwrap();
    let dial = |pki: Pki, name: &'static str| async move {
        let name = pki::server_name(name).unwrap();
        connect(&pki, pair.a.listen.unwrap(), &name, Protocol::Control, t, t)
            .await
            .map(|_| ())
            .map_err(|e| e.to_string())
    };
    dial(mine.clone(), "host-a").await.unwrap();
    let e = dial(mine, "host-x").await.unwrap_err();
    assert!(e.contains("not for the configured host name"), "{e}");
    let other = Ca::new();
    other.host("host-b");
    let section = other.section("host-b", pair.b.listen.unwrap(), vec![]);
    let e = dial(Pki::load(&section, "host-b").unwrap(), "host-a")
        .await
        .unwrap_err();
    assert!(e.contains("not issued by the configured CA"), "{e}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_refused_side_learns_why() {
    let pair = Pair::new();
    pair.ca.host("stranger");
    let _a = start("host-a", &pair.a).await;
    let mut section = pair.b.clone();
    section.server_cert = pair.ca.path("stranger.pem");
    section.server_key = pair.ca.path("stranger.key");
    section.client_cert = section.server_cert.clone();
    section.client_key = section.server_key.clone();
    let mut stranger = start("stranger", &section).await;
    let PeerEvent::Down { reason, .. } = stranger.down().await else {
        unreachable!()
    };
    assert!(
        reason.contains("refused this host") && reason.contains("subjectAltName"),
        "{reason}"
    );
}

#[tokio::test]
async fn own_files_are_checked_at_start() {
    let pair = Pair::new();
    let ca = &pair.ca;
    ca.issue("late", &extensions("DNS:host-a"), EXPIRED);
    ca.issue("cn-only", "basicConstraints=CA:FALSE\n", VALID);
    let other = Ca::new();
    other.host("host-a");
    let start = |section: drover::config::PeerSection| async move {
        let (tell, _events) = tokio::sync::mpsc::channel(1);
        let e = Peers::start(&section, "host-a", Arc::new(Fake::default()), tell)
            .await
            .unwrap_err();
        assert!(matches!(e, PeerError::Transport(_)), "{e:?}");
        e.to_string()
    };
    let mut s = pair.a.clone();
    s.ca = "/nonexistent/cacert.pem".into();
    let e = start(s).await;
    assert!(
        e.contains("/nonexistent/cacert.pem") && e.contains("peer.ca"),
        "{e}"
    );
    let mut s = pair.a.clone();
    s.server_cert = ca.path("late.pem");
    let e = start(s).await;
    assert!(e.contains("late.pem") && e.contains("expired"), "{e}");
    let mut s = pair.a.clone();
    s.client_cert = other.path("host-a.pem");
    let e = start(s).await;
    assert!(
        e.contains("client certificate") && e.contains("not issued by"),
        "{e}"
    );
    let mut s = pair.a.clone();
    s.client_cert = ca.path("cn-only.pem");
    let e = start(s).await;
    assert!(e.contains("subjectAltName=DNS:host-a"), "{e}");
    let mut s = pair.a.clone();
    s.server_key = ca.path("host-b.key");
    let e = start(s).await;
    assert!(
        e.contains("host-b.key") && e.contains("must be the key of"),
        "{e}"
    );
    let mut s = pair.a.clone();
    s.client_key = ca.path("host-a.pem");
    let e = start(s).await;
    assert!(e.contains("no unencrypted private key"), "{e}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut s = pair.a.clone();
    s.listen = taken.local_addr().ok();
    let e = start(s).await;
    assert!(e.contains("peer.listen"), "{e}");
}

#[test]
fn ends_of_certificates() {
    let ca = Ca::new();
    ca.host("good");
    ca.issue("late", &extensions("DNS:late"), EXPIRED);
    let end = |name: &str| drover::transport::pki::expires(&ca.path(name));
    // 2069-12-31 and 2021-01-01, both at midnight.
    assert_eq!(end("good.pem"), Some(3_155_673_600));
    assert_eq!(end("late.pem"), Some(1_609_459_200));
    let now = std::time::SystemTime::now();
    let now = now.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    // The authority's own: a CA, which signed itself.
    let left = end("ca.pem").unwrap() - now;
    assert!((86_400..=2 * 86_400).contains(&left), "{left}");
    // The earliest of several counts.
    let mut both = std::fs::read(ca.path("good.pem")).unwrap();
    both.extend(std::fs::read(ca.path("late.pem")).unwrap());
    std::fs::write(ca.path("both.pem"), both).unwrap();
    assert_eq!(end("both.pem"), Some(1_609_459_200));
    assert_eq!(end("good.key"), None);
    assert_eq!(end("nothing.pem"), None);
}
