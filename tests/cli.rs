//! `drover` end to end: the program itself, on a private bus, in front of a fake daemon.
#![cfg(feature = "daemon")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod dbus_support;

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use dbus_support::{Bus, job, me, name, plan, served, usage};
use drover::api::{ApiEvent, FeatureRow, Job, JobResult, Plan};
use drover::feature::FeatureSpec;
use drover::host::HostState;

/// What a run of `drover` left.
struct Ran {
    code: i32,
    out: String,
    err: String,
}

fn command(address: &str, args: &[&str]) -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_drover"));
    c.args(args)
        .env("DBUS_SYSTEM_BUS_ADDRESS", address)
        .env_remove("COLUMNS")
        .env_remove("NO_COLOR")
        .stdin(Stdio::null());
    c
}

async fn run(mut c: Command) -> Ran {
    let o = tokio::task::spawn_blocking(move || c.output().unwrap());
    let o = o.await.unwrap();
    Ran {
        code: o.status.code().expect("not ended by a signal"),
        out: String::from_utf8(o.stdout).unwrap(),
        err: String::from_utf8(o.stderr).unwrap(),
    }
}

async fn drover(bus: &Bus, args: &[&str]) -> Ran {
    run(command(&bus.address, args)).await
}

/// Runs it, expects success and nothing on standard error.
async fn good(bus: &Bus, args: &[&str]) -> String {
    let r = drover(bus, args).await;
    assert_eq!((r.code, r.err.as_str()), (0, ""), "{args:?}: {}", r.out);
    r.out
}

/// Runs it, expects one line `error: ...` and the exit code.
async fn bad(bus: &Bus, code: i32, args: &[&str]) -> String {
    let r = drover(bus, args).await;
    assert_eq!(r.code, code, "{args:?}: {}{}", r.out, r.err);
    let last = r.err.lines().last().unwrap_or_default().to_owned();
    assert!(last.starts_with("error: "), "{}", r.err);
    assert_eq!(r.err.lines().count(), 1, "{}", r.err);
    last
}

async fn as_json<T: serde::de::DeserializeOwned>(bus: &Bus, args: &[&str]) -> T {
    let mut all = vec!["--format", "json"];
    all.extend(args);
    serde_json::from_str(&good(bus, &all).await).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn list_and_stats() {
    let (bus, _fake, _service) = served().await;
    let out = good(&bus, &["list"]).await;
    assert_eq!(out.lines().count(), 6);
    assert!(
        out.contains("web     cache    running  nginx.service"),
        "{out}"
    );
    assert_eq!(good(&bus, &["list", "web"]).await, out);
    let e = bad(&bus, 3, &["list", "db"]).await;
    assert!(e.contains("'db'") && e.contains("drover list"), "{e}");
    let rows: Vec<FeatureRow> = as_json(&bus, &["list"]).await;
    assert_eq!(rows[0].usage, Some(usage(1)));

    let out = good(&bus, &["stats", "web", "cache"]).await;
    assert_eq!(out.lines().count(), 2);
    assert!(
        out.contains("42.5") && out.contains("64.0 MiB") && out.contains("1.5/-/-"),
        "{out}"
    );
    let rows: serde_json::Value = as_json(&bus, &["stats"]).await;
    assert_eq!(rows[0]["usage"]["cpu_percent"], 42.5);
    assert_eq!(rows[0]["usage"]["net_tx_bps"], serde_json::Value::Null);
    bad(&bus, 3, &["stats", "web", "nope"]).await;

    // Lines fit the screen.
    let mut narrow = command(&bus.address, &["stats"]);
    narrow.env("COLUMNS", "100");
    let r = run(narrow).await;
    assert!(r.out.lines().all(|l| l.chars().count() <= 100), "{}", r.out);
}

#[tokio::test(flavor = "multi_thread")]
async fn definitions() {
    let (bus, fake, _service) = served().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("mail.toml");
    let path = file.to_str().unwrap();
    std::fs::write(
        &file,
        "name = \"mail\"\nthresholds = [\"cpu > 80 % for 10 s\"]\n\
         [workload]\nkind = \"unit\"\nunit = \"mail.service\"\n",
    )
    .unwrap();
    let out = good(&bus, &["define", path, "--domain", "web"]).await;
    assert_eq!(out, "Feature 'web/mail' defined\n");
    let out = good(&bus, &["register", path, "--domain", "web"]).await;
    assert_eq!(out, "Feature 'web/mail' defined already\n");
    let dump = good(&bus, &["dumpfile", "web", "mail"]).await;
    let spec: FeatureSpec = as_json(&bus, &["dumpfile", "web", "mail"]).await;
    assert_eq!(drover::cli::spec::parse(&dump, "dump").unwrap(), spec);
    assert_eq!(fake.features.lock().unwrap().last().unwrap().spec, spec);

    // A dump is a file for define, also on standard input.
    let mut c = command(&bus.address, &["define", "-", "--domain", "web"]);
    let mut child = c
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(dump.as_bytes())
        .unwrap();
    let o = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap());
    assert_eq!(
        String::from_utf8(o.await.unwrap().stdout).unwrap(),
        "Feature 'web/mail' defined already\n"
    );

    std::fs::write(&file, "name = \"mail\"\nworkload = 1\n").unwrap();
    let e = bad(&bus, 2, &["define", path, "--domain", "web"]).await;
    assert!(e.contains("mail.toml"), "{e}");
    let e = bad(&bus, 2, &["define", "/nonexistent", "--domain", "web"]).await;
    assert!(e.contains("/nonexistent"), "{e}");
    std::fs::write(&file, serde_json::to_string(&spec).unwrap()).unwrap();
    let e = bad(&bus, 3, &["define", path, "--domain", "gone"]).await;
    assert!(e.contains("no domain 'gone'"), "{e}");

    let out = good(&bus, &["undefine", "web", "mail"]).await;
    assert_eq!(out, "Feature 'web/mail' undefined\n");
    bad(&bus, 3, &["dumpfile", "web", "mail"]).await;
    let e = bad(&bus, 4, &["undefine", "web", "stuck"]).await;
    assert!(
        e.contains("being moved") && e.contains("drover jobs"),
        "{e}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn switching() {
    let (bus, fake, _service) = served().await;
    let out = good(&bus, &["enable", "web", "cache"]).await;
    assert_eq!(out, "Feature 'web/cache' enabled already\n");
    let out = good(&bus, &["disable", "web", "cache"]).await;
    assert_eq!(out, "Feature 'web/cache' disabled\n");
    let v: serde_json::Value = as_json(&bus, &["disable", "web", "cache"]).await;
    assert_eq!(v["changed"], "done");
    bad(&bus, 3, &["enable", "web", "nope"]).await;

    let show = ["threshold", "web", "cache"];
    assert_eq!(good(&bus, &show).await, "No thresholds for 'web/cache'\n");
    let set = [
        "threshold",
        "web",
        "cache",
        "cpu>80% for 10s",
        "net_tx > 10 MiB/s",
    ];
    good(&bus, &set).await;
    assert_eq!(
        good(&bus, &show).await,
        "cpu > 80 % for 10 s\nnet_tx > 10 MiB/s\n"
    );
    let e = bad(&bus, 2, &["threshold", "web", "cache", "cpu >> 1"]).await;
    assert!(e.contains("'cpu >> 1'"), "{e}");
    good(&bus, &["threshold", "web", "cache", "--clear"]).await;
    assert_eq!(good(&bus, &show).await, "No thresholds for 'web/cache'\n");
    assert_eq!(
        fake.calls.lock().unwrap().last().unwrap(),
        "set_thresholds web cache 0"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn history() {
    let (bus, _fake, _service) = served().await;
    let at = [
        "history",
        "web",
        "cache",
        "--since",
        "2026-01-31",
        "--until",
        "2026-02-01",
    ];
    let out = good(&bus, &at).await;
    assert_eq!(out.lines().count(), 4);
    assert!(out.contains("2026-01-31T12:00:00Z"), "{out}");
    let csv = good(
        &bus,
        &[&at[..], &["--resource", "cpu", "--format", "csv"]].concat(),
    )
    .await;
    assert_eq!(
        csv.lines().take(2).collect::<Vec<_>>(),
        [
            "time,at_ms,interval_s,cpu",
            "2026-01-31T00:00:00.000Z,1769817600000,1,42.5"
        ]
    );
    let v: serde_json::Value = as_json(&bus, &at).await;
    assert_eq!(v.as_array().unwrap().len(), 3);
    assert_eq!(v[0]["net_tx"], serde_json::Value::Null);
    good(
        &bus,
        &["history", "web", "cache", "--since", "1h", "--limit", "1"],
    )
    .await;
    bad(
        &bus,
        2,
        &["history", "web", "cache", "--since", "1h", "--until", "2h"],
    )
    .await;
    bad(&bus, 2, &["list", "--format", "csv"]).await;
    let start = Instant::now();
    let e = bad(&bus, 5, &["history", "web", "slow", "--timeout", "300ms"]).await;
    assert!(start.elapsed() < Duration::from_secs(10));
    assert!(e.contains("--timeout"), "{e}");
}

#[tokio::test(flavor = "multi_thread")]
async fn plans_hosts_guests() {
    let (bus, _fake, _service) = served().await;
    let out = good(&bus, &["plan", "web", "cache"]).await;
    for part in [
        "*  beta",
        "headroom 0.90",
        "no guest with the helper",
        "would move",
        "Model:",
    ] {
        assert!(out.contains(part), "{part}: {out}");
    }
    let p: Plan = as_json(&bus, &["plan", "web", "cache"]).await;
    assert_eq!(p, plan("cache"));
    bad(&bus, 3, &["plan", "web", "nope"]).await;

    let out = good(&bus, &["hosts"]).await;
    assert!(out.contains("alpha") && out.contains("of 8"), "{out}");
    let h: Vec<HostState> = as_json(&bus, &["hosts"]).await;
    assert_eq!(h[0].instances[0].domain, "web");

    let out = good(&bus, &["guest", "install", "web"]).await;
    assert_eq!(out, "helper 0.1.0 runs in 'web'\n");
    good(&bus, &["guest", "remove", "web"]).await;
    let out = good(&bus, &["guest", "status", "web"]).await;
    assert!(out.contains("connected, version 0.1.0"), "{out}");
    assert!(out.contains("cache (running)"), "{out}");
    let v: serde_json::Value = as_json(&bus, &["guest", "status", "web"]).await;
    assert_eq!(v["helper"]["state"], "connected");
    bad(&bus, 3, &["guest", "status", "db"]).await;
    bad(&bus, 3, &["guest", "install", "db"]).await;
    let e = bad(&bus, 5, &["guest", "install", "hung"]).await;
    assert!(e.contains("guest agent of 'hung'"), "{e}");

    let out = good(&bus, &["version"]).await;
    let v = env!("CARGO_PKG_VERSION");
    assert_eq!(out, format!("drover {v}\ndroverd {v} on alpha\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn migrate_exits_by_result() {
    let (bus, fake, _service) = served().await;
    let out = good(&bus, &["migrate", "web", "cache", "--to", "beta/web2"]).await;
    assert!(
        out.contains("alpha/web -> beta/web2: pre-copy, round 1, 1.0 MiB sent"),
        "{out}"
    );
    assert!(
        out.lines()
            .last()
            .unwrap()
            .starts_with("'cache' runs on beta/web2: frozen 37 ms, 2 rounds"),
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
        out.lines().nth(1).unwrap().starts_with("00000001-aaaa"),
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
async fn events() {
    let (bus, fake, _service) = served().await;
    for format in ["json", "table"] {
        let args = ["event", "--count", "2", "--format", format];
        let mut c = command(&bus.address, &args);
        let child = c.stdout(Stdio::piped()).spawn().unwrap();
        let waited = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap());
        // It says nothing when it listens: told again until it heard enough.
        while !waited.is_finished() {
            fake.events
                .send(ApiEvent::Breach {
                    domain: "web".into(),
                    feature: name("cache"),
                    what: "cpu 93 % > 80 % for 10 s".into(),
                    active: true,
                })
                .unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let o = waited.await.unwrap();
        assert!(o.status.success());
        let out = String::from_utf8(o.stdout).unwrap();
        assert_eq!(out.lines().count(), 2, "{out}");
        if format == "json" {
            let v: serde_json::Value = serde_json::from_str(out.lines().next().unwrap()).unwrap();
            assert_eq!(
                (&v["event"], &v["feature"]),
                (&"breach".into(), &"cache".into())
            );
            assert!(v["at_ms"].as_i64().unwrap() > 1_700_000_000_000);
        } else {
            assert!(
                out.contains("breach      web/cache: cpu 93 % > 80 % for 10 s"),
                "{out}"
            );
        }
    }
    good(&bus, &["event", "--timeout", "200ms"]).await;
    bad(&bus, 5, &["event", "--timeout", "200ms", "--count", "1"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_daemon_or_bus() {
    let bus = Bus::start();
    for args in [&["list"][..], &["migrate", "web", "cache"], &["event"]] {
        let e = bad(&bus, 1, args).await;
        assert!(e.contains("systemctl status droverd"), "{e}");
    }
    let r = drover(&bus, &["version"]).await;
    assert_eq!(r.code, 0);
    assert!(
        r.out.contains("droverd -: droverd is not running"),
        "{}",
        r.out
    );
    let r = run(command("unix:path=/nonexistent/bus", &["list"])).await;
    assert_eq!(r.code, 1);
    assert!(r.err.contains("systemctl status dbus"), "{}", r.err);
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

#[tokio::test(flavor = "multi_thread")]
async fn usage_errors_and_help() {
    let (bus, _fake, _service) = served().await;
    for args in [
        &["enable", "web"][..],
        &["frobnicate"],
        &["enable", "web", "A/B"],
        &[],
    ] {
        let r = drover(&bus, args).await;
        assert_eq!(r.code, 2, "{args:?}");
        assert_eq!(r.out, "");
    }
    let out = good(&bus, &["--help"]).await;
    for part in ["Exit codes: 0 done", "6 canceled", "dumpfile", "jobabort"] {
        assert!(out.contains(part), "{part}: {out}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_pipe_is_harmless() {
    let (bus, fake, _service) = served().await;
    for n in 0..400 {
        fake.jobs
            .lock()
            .unwrap()
            .push_front(job(&format!("{n:08}"), "cache"));
    }
    for args in [&["jobs"][..], &["jobs", "--format", "json"]] {
        let mut c = command(&bus.address, args);
        let mut child = c
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let o = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap());
        let o = o.await.unwrap();
        assert_eq!(o.status.code(), Some(0));
        assert_eq!(String::from_utf8(o.stderr).unwrap(), "");
    }
}

/// Runs it with a terminal of 60 columns as its standard output; what the terminal got.
async fn on_terminal(bus: &Bus, args: &[&str], no_color: bool) -> String {
    let size = nix::pty::Winsize {
        ws_row: 24,
        ws_col: 60,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let pty = nix::pty::openpty(Some(&size), None).unwrap();
    let mut c = command(&bus.address, args);
    c.env("TERM", "xterm").stdout(pty.slave);
    if no_color {
        c.env("NO_COLOR", "1");
    }
    let mut child = c.spawn().unwrap();
    // The slave must be closed here, or the end is never seen.
    drop(c);
    let mut master = std::fs::File::from(pty.master);
    let seen = tokio::task::spawn_blocking(move || {
        let (mut all, mut part) = (Vec::new(), [0; 4096]);
        // The last read of a terminal without a slave is an error, not an end.
        while let Ok(n @ 1..) = master.read(&mut part) {
            all.extend_from_slice(&part[..n]);
        }
        String::from_utf8(all).unwrap()
    });
    let seen = seen.await.unwrap();
    assert!(child.wait().unwrap().success(), "{seen}");
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn terminals() {
    let (bus, _fake, _service) = served().await;
    let seen = on_terminal(&bus, &["list"], false).await;
    assert!(seen.contains("\x1b[32mrunning\x1b[0m"), "{seen:?}");
    let seen = on_terminal(&bus, &["list"], true).await;
    assert!(!seen.contains('\x1b'), "{seen:?}");
    assert!(seen.lines().all(|l| l.chars().count() <= 60), "{seen}");
    let seen = on_terminal(&bus, &["migrate", "web", "cache"], true).await;
    assert!(
        seen.contains("\r\x1b[Kcache: alpha/web -> beta/web2: "),
        "{seen:?}"
    );
    assert!(seen.contains("\r\x1b[K'cache' runs on"), "{seen:?}");
    // Not on a terminal: no escapes.
    assert!(!good(&bus, &["list"]).await.contains('\x1b'));
}

#[tokio::test(flavor = "multi_thread")]
async fn watching() {
    let (bus, _fake, _service) = served().await;
    let args = ["stats", "web", "cache", "--watch", "50ms"];
    let mut c = command(&bus.address, &args);
    let mut child = c.stdout(Stdio::piped()).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    let seen = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        let mut part = [0; 4096];
        while text.matches("Feature").count() < 3 {
            let n = out.read(&mut part).unwrap();
            assert!(n > 0, "ended early: {text}");
            text.push_str(std::str::from_utf8(&part[..n]).unwrap());
        }
        let pid = child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-INT", &pid])
                .status()
                .unwrap()
                .success()
        );
        (child.wait().unwrap().code(), text)
    });
    let (code, text) = seen.await.unwrap();
    assert_eq!(code, Some(0));
    assert!(!text.contains('\x1b'));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_user_may_look_but_not_change() {
    if me() != 0 {
        eprintln!("skipped: only root can act as another user");
        return;
    }
    let (bus, fake, _service) = served().await;
    // Another user may not reach the build directory.
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(dir.path(), mode).unwrap();
    let program = dir.path().join("drover");
    std::fs::copy(env!("CARGO_BIN_EXE_drover"), &program).unwrap();
    let as_nobody = |args: &[&str]| {
        let mut c = Command::new(&program);
        c.args(args)
            .env("DBUS_SYSTEM_BUS_ADDRESS", &bus.address)
            .current_dir("/")
            .uid(65534)
            .gid(65534);
        run(c)
    };
    let r = as_nobody(&["list"]).await;
    assert_eq!(r.code, 0, "{}", r.err);
    for args in [
        &["disable", "web", "cache"][..],
        &["migrate", "web", "cache"],
    ] {
        let r = as_nobody(args).await;
        assert_eq!(r.code, 4, "{}", r.err);
        assert!(
            r.err.contains("user 65534 may not") && r.err.contains("sudo"),
            "{}",
            r.err
        );
    }
    assert_eq!(*fake.calls.lock().unwrap(), Vec::<String>::new());
}
