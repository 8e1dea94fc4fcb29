//! Progress: on standard error, and only when that is a terminal.

use std::process::{Child, Command};
use std::time::Duration;

use drover::api::MoveDetail;
use drover::decision::{DrainStatus, Left};

use crate::dbus_support::{Bus, Fake, job, name, served};
use crate::support::{Terminal, command, good};

/// `drover` with only its standard error on a terminal.
fn on_terminal(bus: &Bus, args: &[&str]) -> (Terminal, Child) {
    Terminal::on_error(command(&bus.address, args))
}

/// What it left: exit code and standard output.
async fn ended(child: Child) -> (Option<i32>, String) {
    let waited = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap());
    let o = waited.await.unwrap();
    (o.status.code(), String::from_utf8(o.stdout).unwrap())
}

async fn accepted(fake: &Fake) {
    while fake.jobs.lock().unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits on a thread of its own, since the fake daemon answers on this one.
async fn wait(mut t: Terminal, part: &'static str) -> (Terminal, String) {
    let waited = tokio::task::spawn_blocking(move || {
        let seen = t.wait(part);
        (t, seen)
    });
    waited.await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_move() {
    let (bus, fake, _service) = served().await;
    let (t, child) = on_terminal(&bus, &["migrate", "web", "stuck"]);
    accepted(&fake).await;
    let (t, _) = wait(t, "stuck alpha/web -> beta/web2: ").await;
    let (t, _) = wait(t, "preparing").await;
    let id = fake.jobs.lock().unwrap()[0].id.clone();
    let mut now = job(&id, "stuck");
    now.state = "pre-copy".into();
    now.rounds = 2;
    now.bytes_sent = 5 << 20;
    now.detail = MoveDetail {
        round_sent: 42 << 10,
        round_total: 100 << 10,
        predicted_freeze_ms: Some(340),
        throttle_percent: 30,
        ..MoveDetail::default()
    };
    fake.tell(&now);
    let (t, seen) = wait(t, " 42 % pre-copy, round 2, 5.0 MiB sent").await;
    assert!(seen.contains("[========"), "{seen:?}");
    // As in virsh.
    let status = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(status.unwrap().success());
    let (t, _) = wait(t, "asked to cancel the move").await;
    let (_, seen) = wait(t, "error: ").await;
    assert!(
        seen.ends_with("\r\x1b[2Kerror: ") || seen.contains('\r'),
        "the line is taken away: {seen:?}"
    );
    assert_eq!(ended(child).await, (Some(6), String::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_narrow_terminal_keeps_to_its_line() {
    let (bus, fake, _service) = served().await;
    let (mut t, child) = on_terminal(&bus, &["migrate", "web", "stuck"]);
    t.send("");
    accepted(&fake).await;
    let id = fake.jobs.lock().unwrap()[0].id.clone();
    let (t, _) = wait(t, "preparing").await;
    let mut now = job(&id, "stuck");
    now.state = "x".repeat(300);
    fake.tell(&now);
    let (_t, seen) = wait(t, "xxxx").await;
    let last = seen.rsplit('\r').next().unwrap();
    assert!(last.chars().count() <= 100 + 20, "{last:?}");
    fake.tell(&{
        let mut done = job(&id, "stuck");
        done.result = Some(drover::api::JobResult::Done);
        done
    });
    let (code, out) = ended(child).await;
    assert_eq!(code, Some(0));
    assert!(out.starts_with("'stuck' runs on"), "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_drain() {
    let (bus, fake, _service) = served().await;
    let left = |feature: &str| Left {
        domain: "web".into(),
        feature: name(feature),
        reason: "its turn comes".into(),
        tried: false,
    };
    let mut status = DrainStatus {
        host: "alpha".into(),
        draining: true,
        moving: Some(name("stuck")),
        left: vec![left("stuck"), left("cache"), left("same")],
        moved: vec![(name("mail"), "beta/web2".into())],
        ..DrainStatus::default()
    };
    *fake.drain.lock().unwrap() = Some(status.clone());
    let mut running = job("0000000a-aaaa", "stuck");
    running.state = "restoring".into();
    fake.tell(&running);
    let (t, child) = on_terminal(&bus, &["drain", "--wait"]);
    let (t, _) = wait(t, "drain alpha: [").await;
    let (t, _) = wait(t, "25 % 1 of 4 features left it; stuck: alpha/web").await;
    status.moving = None;
    status.moved.push((name("stuck"), "beta/web2".into()));
    status.left = vec![];
    *fake.drain.lock().unwrap() = Some(status);
    let (code, out) = ended(child).await;
    assert_eq!(code, Some(0), "{out}");
    assert!(out.starts_with("'stuck' went to beta/web2\n"), "{out}");
    drop(t);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_an_installation() {
    let (bus, _fake, _service) = served().await;
    let (t, child) = on_terminal(&bus, &["guest", "install", "new"]);
    let (t, _) = wait(t, "installing the helper in new: ").await;
    let (t, _) = wait(t, " 59 % copied 3 of 5.1 MiB").await;
    assert_eq!(
        ended(child).await,
        (Some(0), "helper 0.1.0 runs in 'new'\n".into())
    );
    drop(t);
    // Quiet where nobody looks.
    assert_eq!(
        good(&bus, &["guest", "install", "new"]).await,
        "helper 0.1.0 runs in 'new'\n"
    );
}
