//! The socket behind `drover peer-stdio`. ssh itself is tried on the cluster.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use drover::config::PeerHost;

use crate::support::{Ca, free_address, host, start};

const A: &str = "host-a";
const B: &str = "host-b";

/// What droverd answers to a first line.
fn greeting(socket: &std::path::Path, line: &str) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(line.as_bytes()).unwrap();
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn only_configured_names_and_known_protocols() {
    let ca = Ca::new();
    ca.host(A);
    let by_ssh = PeerHost {
        address: None,
        ssh: Some("root@192.0.2.1".into()),
        ..host(B, free_address())
    };
    let by_tls = host("host-c", free_address());
    let section = ca.section(A, free_address(), vec![by_ssh, by_tls]);
    let socket = section.ssh_socket.clone();
    // One that a killed daemon left is no obstacle.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let a = start(A, &section).await;
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let ask = |line: &str| {
        let (socket, line) = (socket.clone(), line.to_owned());
        tokio::task::spawn_blocking(move || greeting(&socket, &line))
    };
    assert_eq!(ask("drover-control/1 host-b\n").await.unwrap(), "ok\n");
    assert_eq!(ask("drover-bulk/1 host-b\n").await.unwrap(), "ok\n");
    for (line, why) in [
        ("drover-control/1 host-x\n", "not a configured peer"),
        // It has a certificate and must show it.
        ("drover-control/1 host-c\n", "not a configured peer"),
        ("drover-control/1 host-a\n", "not a configured peer"),
        ("drover-control/2 host-b\n", "different versions"),
        ("\n", "no name"),
        ("drover-control/1\n", "no name"),
    ] {
        let answer = ask(line).await.unwrap();
        assert!(
            answer.starts_with("refused ") && answer.contains(why),
            "{line}: {answer}"
        );
    }
    a.peers.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_ssh_from_working_is_told() {
    let ca = Ca::new();
    let by_ssh = PeerHost {
        address: None,
        // Nobody listens there.
        ssh: Some("127.0.0.1".into()),
        ..host(B, free_address())
    };
    let mut section = ca.section(A, free_address(), vec![by_ssh]);
    // No certificates are needed when nobody comes by TLS.
    section.listen = None;
    let mut a = start(A, &section).await;
    let drover::peer::PeerEvent::Down { reason, .. } = a.down().await else {
        unreachable!("only downs are waited for")
    };
    assert!(reason.contains("ssh: "), "{reason}");
    a.peers.stop();
}
