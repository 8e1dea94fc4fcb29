//! Moves: results as exit codes, Ctrl-C, jobs.

use std::process::{Command, Stdio};
use std::time::Duration;

use drover::api::{Job, JobResult};

use crate::dbus_support::{job, served};
use crate::support::{as_json, bad, command, drover, good};

#[tokio::test(flavor = "multi_thread")]
async fn migrate_exits_by_result() {
    let (bus, fake, _service) = served().await;
    let out = good(&bus, &["migrate", "web", "cache", "--to", "beta/web2"]).await;
    // Progress is for terminals.
    assert_eq!(out.lines().count(), 1, "{out}");
    assert!(
        out.starts_with("'cache' runs on beta/web2: frozen 37 ms, 2 rounds"),
        "{out}"
    );
    assert_eq!(
        fake.calls.lock().unwrap()[0],
        "migrate web cache Some(\"beta\") Some(\"web2\")"
    );
    let j: Job = as_json(&bus, &["migrate", "web", "cache"]).await;
    assert_eq!(j.result, Some(JobResult::Done));
    for (feature, code, part) in [
        ("broken", 1, "cannot dump an io_uring"),
        ("slow", 5, "longer than 60 s"),
        ("nope", 3, "no feature 'nope'"),
    ] {
        let e = bad(&bus, code, &["migrate", "web", feature]).await;
        assert!(e.contains(part), "{e}");
    }
    let e = bad(&bus, 4, &["migrate", "web", "cache", "--to", "gamma"]).await;
    assert!(e.contains("gamma does not take"), "{e}");
    let out = good(&bus, &["migrate", "web", "same"]).await;
    assert!(out.contains("Nothing to do"), "{out}");
    // JSON also when it failed; the error goes beside it.
    let r = drover(&bus, &["migrate", "web", "broken", "--format", "json"]).await;
    assert_eq!(r.code, 1);
    let j: Job = serde_json::from_str(&r.out).unwrap();
    assert_eq!(j.result, Some(JobResult::Failed));
    let e = bad(
        &bus,
        5,
        &[
            "migrate",
            "web",
            "stuck",
            "--timeout",
            "300ms",
            "--format",
            "json",
        ],
    );
    assert!(e.await.contains("goes on"));
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_cancels_the_move() {
    let (bus, fake, _service) = served().await;
    let mut c = command(&bus.address, &["migrate", "web", "stuck"]);
    let child = c
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = child.id();
    let waited = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap());
    while fake.jobs.lock().unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let status = Command::new("kill")
        .args(["-INT", &pid.to_string()])
        .status();
    assert!(status.unwrap().success());
    let o = waited.await.unwrap();
    let err = String::from_utf8(o.stderr).unwrap();
    assert_eq!(o.status.code(), Some(6), "{err}");
    // Either it was accepted and is canceled, or the answer was not waited for.
    assert!(
        err.contains("was canceled: canceled by a user") || err.contains("no longer waiting"),
        "{err}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs() {
    let (bus, fake, _service) = served().await;
    assert_eq!(good(&bus, &["jobs"]).await.lines().count(), 1);
    bad(&bus, 3, &["jobinfo"]).await;
    bad(&bus, 3, &["jobabort"]).await;
    let mut old = job("aaaaaaaa-1", "cache");
    old.result = Some(JobResult::Failed);
    old.reason = Some("no room".into());
    fake.tell(&old);
    let out = good(&bus, &["migrate", "web", "stuck", "--no-wait"]).await;
    assert!(out.starts_with("Move 00000001-aaaa accepted"), "{out}");
    let out = good(&bus, &["jobs"]).await;
    assert_eq!(out.lines().count(), 3);
    assert!(
        out.lines().nth(1).unwrap().starts_with("00000001  stuck"),
        "{out}"
    );
    let v: Vec<Job> = as_json(&bus, &["jobs"]).await;
    assert_eq!(v.len(), 2);
    assert!(good(&bus, &["jobinfo"]).await.contains("00000001-aaaa"));
    let out = good(&bus, &["jobinfo", "web", "cache"]).await;
    assert!(out.contains("Reason:   no room"), "{out}");
    let j: Job = as_json(&bus, &["jobinfo", "aaaa"]).await;
    assert_eq!(j, old);
    let e = bad(&bus, 3, &["jobabort", "aaaaaaaa-1"]).await;
    assert!(e.contains("under way"), "{e}");
    let out = good(&bus, &["jobabort", "web", "stuck"]).await;
    assert_eq!(out, "Asked to cancel move 00000001-aaaa\n");
    let out = good(&bus, &["jobinfo"]).await;
    assert!(out.contains("Result:   canceled"), "{out}");
    let mut late = job("bbbbbbbb-1", "cache");
    late.state = "committed".into();
    fake.tell(&late);
    // The object follows the event.
    let mut r = drover(&bus, &["jobabort"]).await;
    for _ in 0..50 {
        if r.code == 4 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        r = drover(&bus, &["jobabort"]).await;
    }
    assert_eq!(r.code, 4, "{}", r.err);
    assert!(r.err.contains("only go forward"), "{}", r.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn daemon_stops_while_a_move_is_watched() {
    let (bus, fake, service) = served().await;
    let mut c = command(&bus.address, &["migrate", "web", "stuck"]);
    let child = c
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let waited = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap());
    while fake.jobs.lock().unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    drop(service);
    let o = waited.await.unwrap();
    let err = String::from_utf8(o.stderr).unwrap();
    assert_eq!(o.status.code(), Some(1), "{err}");
    assert!(
        err.contains("lost sight of the move 00000000-aaaa"),
        "{err}"
    );
}
