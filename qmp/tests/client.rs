//! The client against a QEMU played by the test, and against a real one where there is one.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use drover_qmp::command::{
    QueryBlockstats, QueryCpusFast, QueryIothreads, QueryStats, QueryStatus,
};
use drover_qmp::{Client, Event, EventKind, QmpError, Ready};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, DuplexStream, split};
use tokio::sync::mpsc;

/// For steps that must end.
const LONG: Duration = Duration::from_secs(30);
const GREETING: &str =
    r#"{"QMP": {"version": {"qemu": {"micro": 9, "minor": 2, "major": 7}}, "capabilities": []}}"#;

struct Fake {
    lines: tokio::io::Lines<BufReader<tokio::io::ReadHalf<DuplexStream>>>,
    writer: tokio::io::WriteHalf<DuplexStream>,
}

impl Fake {
    async fn say(&mut self, text: &str) {
        self.writer.write_all(text.as_bytes()).await.unwrap();
        self.writer.write_all(b"\r\n").await.unwrap();
    }
    async fn hear(&mut self) -> serde_json::Value {
        let line = self.lines.next_line().await.unwrap().unwrap();
        serde_json::from_str(&line).unwrap()
    }
}

async fn pair(limit: Duration) -> (Client<Ready>, Fake, mpsc::Receiver<Event>) {
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    let (reader, writer) = split(theirs);
    let mut fake = Fake {
        lines: BufReader::new(reader).lines(),
        writer,
    };
    let (tx, events) = mpsc::channel(4);
    let (reader, writer) = split(ours);
    let play = async {
        fake.say(GREETING).await;
        let hello = fake.hear().await;
        assert_eq!(hello["execute"], "qmp_capabilities");
        fake.say(&format!(r#"{{"return": {{}}, "id": {}}}"#, hello["id"]))
            .await;
    };
    let connect = async {
        let greeted = Client::over(reader, writer, limit, tx).await.unwrap();
        assert_eq!(greeted.version().major, 7);
        greeted.negotiate().await.unwrap()
    };
    let (client, ()) = tokio::join!(connect, play);
    (client, fake, events)
}

#[tokio::test]
async fn answers_in_any_order_between_events() {
    let (client, mut fake, mut events) = pair(LONG).await;
    let play = async {
        let (one, two) = (fake.hear().await, fake.hear().await);
        assert_eq!(two["arguments"]["target"], "vcpu");
        fake.say(r#"{"event": "BALLOON_CHANGE", "data": {"actual": 5}}"#)
            .await;
        fake.say(r#"{"return": {}, "id": 4711}"#).await;
        let stats = r#"[{"provider": "kvm", "qom-path": "/machine/cpu0", "stats":
            [{"name": "exits", "value": 7}, {"name": "h", "value": [1, 2]},
             {"name": "b", "value": true}]}]"#
            .replace('\n', "");
        fake.say(&format!(r#"{{"return": {stats}, "id": {}}}"#, two["id"]))
            .await;
        fake.say(&format!(
            r#"{{"return": {{"running": true, "status": "running"}}, "id": {}}}"#,
            one["id"]
        ))
        .await;
    };
    let (status, stats, ()) = tokio::join!(
        client.query(&QueryStatus),
        client.query(&QueryStats::Vcpu),
        play
    );
    assert!(status.unwrap().running);
    assert_eq!(stats.unwrap()[0].stats.len(), 3);
    let event = events.recv().await.unwrap();
    assert_eq!(event.kind, EventKind::BalloonChange { actual: 5 });
}

#[tokio::test]
async fn a_refusal_an_odd_answer_and_silence() {
    let (client, mut fake, _events) = pair(Duration::from_millis(300)).await;
    let play = async {
        let id = fake.hear().await["id"].clone();
        let error = r#"{"class": "CommandNotFound", "desc": "no such command"}"#;
        fake.say(&format!(r#"{{"error": {error}, "id": {id}}}"#))
            .await;
        let id = fake.hear().await["id"].clone();
        fake.say(&format!(r#"{{"return": 5, "id": {id}}}"#)).await;
    };
    let ask = async {
        let e = client.query(&QueryStats::Vm).await.unwrap_err();
        assert!(
            matches!(&e, QmpError::Refused { class, .. } if class == "CommandNotFound"),
            "{e}"
        );
        let e = client.query(&QueryStatus).await.unwrap_err();
        assert!(matches!(e, QmpError::Answer { .. }), "{e}");
    };
    tokio::join!(ask, play);
    let e = client.query(&QueryStatus).await.unwrap_err();
    assert!(matches!(e, QmpError::Timeout { .. }), "{e}");
}

#[tokio::test]
async fn a_closed_or_broken_connection_fails_what_waits() {
    for last in ["", "no json"] {
        let (client, mut fake, _events) = pair(LONG).await;
        let play = async {
            fake.hear().await;
            fake.say(last).await;
            drop(fake);
        };
        let (answer, ()) = tokio::join!(client.query(&QueryStatus), play);
        assert!(matches!(answer, Err(QmpError::Closed)), "{answer:?}");
        assert!(client.query(&QueryStatus).await.is_err());
    }
}

#[tokio::test]
async fn no_greeting_is_an_error() {
    let (ours, mut theirs) = tokio::io::duplex(1024);
    theirs.write_all(b"{\"hello\": 1}\n").await.unwrap();
    let (reader, writer) = split(ours);
    let (tx, _events) = mpsc::channel(1);
    let e = Client::over(reader, writer, LONG, tx).await.unwrap_err();
    assert!(matches!(e, QmpError::Unexpected(_)), "{e}");
}

#[tokio::test]
async fn a_real_qemu() {
    const QEMU: &str = "qemu-system-x86_64";
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qmp.sock");
    let spawned = tokio::process::Command::new(QEMU)
        .args(["-M", "none", "-display", "none", "-nodefaults"])
        .args(["-object", "iothread,id=io1"])
        .arg("-qmp")
        .arg(format!("unix:{},server=on,wait=off", path.display()))
        .kill_on_drop(true)
        .spawn();
    let mut qemu = match spawned {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("skipped: no {QEMU} on this machine");
            return;
        }
        other => other.unwrap(),
    };
    let mut tries = 0;
    while !path.exists() {
        assert!(qemu.try_wait().unwrap().is_none(), "QEMU ended");
        tries += 1;
        assert!(tries < 600, "QEMU made no socket");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (tx, mut events) = mpsc::channel(16);
    let client = Client::connect(&path, LONG, tx).await.unwrap();
    assert!(client.version().major >= 5);
    let client = client.negotiate().await.unwrap();
    assert!(client.query(&QueryStatus).await.unwrap().running);
    assert!(client.query(&QueryCpusFast).await.unwrap().is_empty());
    assert!(client.query(&QueryBlockstats).await.unwrap().is_empty());
    let threads = client.query(&QueryIothreads).await.unwrap();
    assert_eq!(threads[0].id, "io1");
    // QEMU tells SHUTDOWN when it is asked to terminate.
    let pid = nix::unistd::Pid::from_raw(qemu.id().unwrap().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    let event = tokio::time::timeout(LONG, events.recv())
        .await
        .unwrap()
        .unwrap();
    assert!(matches!(event.kind, EventKind::Unknown { name, .. } if name == "SHUTDOWN"));
    qemu.wait().await.unwrap();
    assert!(matches!(
        client.query(&QueryStatus).await,
        Err(QmpError::Closed | QmpError::Io(_))
    ));
}
