//! Events, terminals, pipes, other users, and a daemon that is not there.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use drover::api::ApiEvent;

use crate::dbus_support::{Bus, job, managed, me, name, served};
use crate::support::{Ran, bad, command, drover, good, run};

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

/// Whatever this machine has, the findings about what the test makes are known.
#[tokio::test(flavor = "multi_thread")]
async fn doctor() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("drover.toml");
    let here = dir.path().display();
    let text = format!(
        "[host]\nname = 'h1'\n[libvirt]\nuri = 'test:///default'\n\
         [history]\ndir = '{here}'\nstate_dir = '{here}'\n"
    );
    std::fs::write(&config, &text).unwrap();
    let config = config.to_str().unwrap();
    let (bus, _fake, service) = served().await;
    let found = |r: &Ran, about: &str| {
        let v: serde_json::Value = serde_json::from_str(&r.out).unwrap();
        let list = v["findings"].as_array().unwrap().clone();
        let worst = list.iter().filter(|f| f["about"] == about);
        let worst = worst.map(|f| f["severity"].as_str().unwrap().to_owned());
        (worst.collect::<Vec<_>>(), v["errors"].as_u64().unwrap())
    };
    let args = ["doctor", "--format=json", "--timeout=2", "--config", config];
    let r = drover(&bus, &args).await;
    assert_eq!(r.err, "");
    for about in ["configuration", "droverd", "libvirt", "peers"] {
        assert_eq!(found(&r, about).0, ["ok"], "{about}: {}", r.out);
    }
    // One history that does not come is told; the others are there.
    assert_eq!(found(&r, "history"), (vec!["error".to_owned()], 1));
    assert!(
        r.out.contains("1 of 5 features, first web/slow"),
        "{}",
        r.out
    );
    assert_eq!(r.code, 1);

    // Without droverd the rest is looked at all the same.
    drop(service);
    drop(bus);
    let r = drover(&Bus::start(), &args).await;
    assert_eq!((r.code, r.err.as_str()), (1, ""));
    assert_eq!(found(&r, "droverd").0, ["error"], "{}", r.out);
    assert_eq!(found(&r, "libvirt").0, ["ok"], "{}", r.out);

    let r = drover(&Bus::start(), &["doctor", "--config", config]).await;
    assert!(r.out.starts_with("Severity  About"), "{}", r.out);

    std::fs::write(config, format!("{text}colour = 1\n")).unwrap();
    let r = drover(&Bus::start(), &args).await;
    assert_eq!(found(&r, "configuration").0, ["error"], "{}", r.out);
    assert!(r.out.contains("colour"), "{}", r.out);
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
    fake.features.lock().unwrap()[1].spec = managed("broken", "geheim");
    for command in [
        &["dumpfile", "web", "broken"][..],
        &["list", "--format=json"],
    ] {
        let r = as_nobody(command).await;
        assert!(
            r.out.contains("(hidden)") && !r.out.contains("geheim"),
            "{}",
            r.out
        );
        assert!(good(&bus, command).await.contains("geheim"));
    }
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
    // Progress goes to standard error, which is none here.
    assert!(seen.starts_with("'cache' runs on"), "{seen:?}");
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
