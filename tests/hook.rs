//! `drover-hook` as libvirt runs it: it always succeeds, prints nothing and never hangs.
#![cfg(feature = "daemon")]
#![allow(clippy::unwrap_used)]

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use drover::hypervisor::hook::{self, HookNotice};

/// A run that takes longer hangs. The hook itself needs milliseconds; the rest is for a machine
/// that is busy with other things.
const WATCHDOG: Duration = Duration::from_secs(20);

fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let status = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--package", "drover-hook"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .unwrap();
        assert!(status.success());
        // target/PROFILE/deps/this-test
        let mut dir = std::env::current_exe().unwrap();
        dir.pop();
        dir.pop();
        dir.pop();
        dir.join("debug/drover-hook")
    })
}

/// Runs the hook with open pipes on which nobody writes or reads, as a careless caller would.
fn run(socket: &Path, args: &[OsString]) {
    run_with(socket, args, |_| {});
}

fn run_with(socket: &Path, args: &[OsString], prepare: impl FnOnce(&mut Command)) {
    let mut command = Command::new(binary());
    command
        .args(args)
        .env("DROVER_HOOK_SOCKET", socket)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    prepare(&mut command);
    let mut child = command.spawn().unwrap();
    let _stdin = child.stdin.take();
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > WATCHDOG {
            child.kill().unwrap();
            panic!("the hook hangs with {args:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let out = child.wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(0), "{args:?}");
    assert_eq!((out.stdout, out.stderr), (vec![], vec![]), "{args:?}");
}

fn args(list: &[&str]) -> Vec<OsString> {
    list.iter().map(OsString::from).collect()
}

#[tokio::test]
async fn the_daemon_hears_the_hook() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("drover/hook.sock");
    let mut notices = hook::listen(&path).unwrap();
    let mode = |p: &Path| std::fs::metadata(p).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o755));

    // Garbage before it does not matter.
    let sender = UnixDatagram::unbound().unwrap();
    sender.send_to(b"\xff{", &path).unwrap();
    sender.send_to(&[0; 9000], &path).unwrap();
    let list = args(&["g\"1", "started", "begin", "-"]);
    let hook_path = path.clone();
    tokio::task::spawn_blocking(move || run(&hook_path, &list))
        .await
        .unwrap();
    let notice = tokio::time::timeout(WATCHDOG, notices.recv())
        .await
        .unwrap();
    assert_eq!(
        notice,
        Some(HookNotice {
            domain: "g\"1".into(),
            operation: "started".into(),
            sub: "begin".into(),
            extra: "-".into(),
        })
    );
    // A new daemon takes over the path of an old one.
    let mut again = hook::listen(&path).unwrap();
    sender
        .send_to(
            br#"{"domain":"g2","operation":"release","sub":"end","extra":"-"}"#,
            &path,
        )
        .unwrap();
    let notice = tokio::time::timeout(WATCHDOG, again.recv()).await.unwrap();
    assert_eq!(notice.unwrap().domain, "g2");
}

#[test]
fn without_a_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let list = args(&["g1", "prepare", "begin", "-"]);
    run(&dir.path().join("absent.sock"), &list);
    // A socket whose daemon died.
    let dead = dir.path().join("dead.sock");
    drop(UnixDatagram::bind(&dead).unwrap());
    run(&dead, &list);
    // Not a datagram socket; not a socket; no path at all.
    let stream = dir.path().join("stream.sock");
    let _listener = UnixListener::bind(&stream).unwrap();
    run(&stream, &list);
    run(dir.path(), &list);
    run(Path::new(""), &list);
    run(Path::new(&"/x".repeat(200)), &list);
}

#[test]
fn with_a_daemon_that_hangs() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("full.sock");
    let _never_read = UnixDatagram::bind(&path).unwrap();
    let sender = UnixDatagram::unbound().unwrap();
    sender.set_nonblocking(true).unwrap();
    while sender.send_to(&[b'x'; 1024], &path).is_ok() {}
    run(&path, &args(&["g1", "stopped", "end", "-"]));
}

#[test]
fn with_garbage_arguments() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("absent.sock");
    run(&path, &[]);
    run(&path, &args(&["", "", "", "", "", "", ""]));
    run(&path, &args(&["--help"]));
    let long = OsString::from_vec(vec![0xff; 100_000]);
    run(&path, &[long.clone(), long.clone(), long]);
}

#[test]
fn with_closed_descriptors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("absent.sock");
    run_with(&path, &args(&["g1", "release", "end", "-"]), |command| {
        // SAFETY: close is async-signal-safe, as code between fork and exec must be.
        unsafe {
            command.pre_exec(|| {
                for fd in 0..3 {
                    let _ = nix::unistd::close(fd);
                }
                Ok(())
            });
        }
    });
}
