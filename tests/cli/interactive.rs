//! The interactive shell, other hosts over ssh, the editor.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::dbus_support::{Bus, managed, served};
use crate::support::{Ran, Terminal, command, run};

/// A program that stands for ssh: checks how it is called, and runs what is to run there.
const SSH: &str = r#"#!/bin/sh
while [ "$1" != "--" ]; do
    case $1 in -T|-x|-a) shift ;; -e|-o) shift 2 ;; *) echo "bad option $1" >&2; exit 99 ;; esac
done
case $2 in
    nowhere) echo "ssh: connect to host nowhere: refused" >&2; exit 255 ;;
    bare) PATH=/nonexistent; exec /bin/sh -c "$3" ;;
    mute) exit 0 ;;
esac
echo "Welcome to $2"
export DBUS_SYSTEM_BUS_ADDRESS="$THERE"
PATH=$DROVER_DIR:$PATH exec /bin/sh -c "$3"
"#;

fn program(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// `drover` whose ssh leads to `bus`, while the bus of this host does not exist.
fn over_ssh(dir: &Path, bus: &Bus, args: &[&str]) -> Command {
    let drover = Path::new(env!("CARGO_BIN_EXE_drover"));
    let mut c = command("unix:path=/nonexistent/bus", args);
    c.env("DROVER_SSH", program(dir, "ssh", SSH))
        .env("THERE", &bus.address)
        .env("DROVER_DIR", drover.parent().unwrap());
    c
}

#[tokio::test(flavor = "multi_thread")]
async fn another_host_over_ssh() {
    let (bus, fake, _service) = served().await;
    let dir = tempfile::tempdir().unwrap();
    let there = |args: &[&str]| run(over_ssh(dir.path(), &bus, args));
    let good = |r: Ran| {
        assert_eq!((r.code, r.err.as_str()), (0, ""), "{}", r.out);
        r.out
    };
    let out = good(there(&["-c", "root@h2", "list"]).await);
    assert!(out.contains("web     cache"), "{out}");
    // Files are of this side, and a move is followed to its end.
    let file = dir.path().join("mail.json");
    std::fs::write(&file, serde_json::to_string(&managed("mail", "x")).unwrap()).unwrap();
    let file = file.to_str().unwrap();
    good(there(&["--connect", "h2", "define", file, "--domain", "web"]).await);
    assert_eq!(
        fake.features.lock().unwrap().last().unwrap().spec,
        managed("mail", "x")
    );
    let out = good(there(&["migrate", "web", "cache", "--connect=h2"]).await);
    assert!(out.contains("'cache' runs on"), "{out}");
    let r = there(&["-c", "h2", "migrate", "web", "broken"]).await;
    assert_eq!(r.code, 1, "{}", r.err);
    // What looks at the host itself runs there.
    let r = there(&[
        "-c",
        "h2",
        "doctor",
        "--config",
        "/non existent",
        "--format",
        "json",
    ])
    .await;
    assert!(r.out.starts_with("Welcome to h2\n{"), "{}", r.out);
    assert!(r.out.contains("/non existent"), "{}", r.out);
    assert_eq!((r.code, r.err.as_str()), (1, ""));

    for (host, code, part) in [
        ("nowhere", 1, "cannot log in on host 'nowhere'"),
        ("bare", 1, "has no drover"),
        ("mute", 1, "ended before it answered"),
    ] {
        let r = there(&["-c", host, "list"]).await;
        assert_eq!(r.code, code, "{}", r.err);
        assert!(r.err.contains(part), "{host}: {}", r.err);
    }
    let r = there(&["-c", "-oProxyCommand=true", "list"]).await;
    assert_eq!(r.code, 2, "{}", r.err);
    let gone = Bus::start();
    let r = run(over_ssh(dir.path(), &gone, &["-c", "h2", "list"])).await;
    assert!(r.err.contains("droverd is not running"), "{}", r.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn editing() {
    let (bus, fake, _service) = served().await;
    fake.features.lock().unwrap()[0].spec = managed("cache", "geheim");
    let dir = tempfile::tempdir().unwrap();
    let edit = |script: &str| {
        let editor = program(dir.path(), "editor", &format!("#!/bin/sh\n{script}\n"));
        let mut c = command(&bus.address, &["edit", "web", "cache"]);
        c.env("EDITOR", editor)
            .env_remove("VISUAL")
            .env("XDG_RUNTIME_DIR", dir.path());
        run(c)
    };
    let r = edit("stat -c %a \"$1\"; grep -c geheim \"$1\"").await;
    assert_eq!((r.code, r.err.as_str()), (0, ""));
    assert_eq!(r.out, "600\n2\nFeature 'web/cache' is as edited already\n");
    assert_eq!(*fake.calls.lock().unwrap(), Vec::<String>::new());
    // Thresholds alone are set, also while it runs.
    let r = edit("sed -i 's/thresholds = .*/thresholds = [\"cpu > 7 %\"]/' \"$1\"").await;
    assert_eq!((r.code, r.err.as_str()), (0, ""), "{}", r.out);
    assert_eq!(fake.calls.lock().unwrap()[0], "set_thresholds web cache 1");
    let r = edit("sed -i 's/automatic = true/automatic = false/' \"$1\"").await;
    assert_eq!(r.code, 4, "the fake says it is enabled: {}", r.err);
    assert!(r.err.contains("disable it first"), "{}", r.err);
    for (script, code, part) in [
        ("echo 'colour = 1' > \"$1\"", 2, "cache.toml: line 1"),
        (
            "sed -i 's/^name = .*/name = \"other\"/' \"$1\"",
            2,
            "renamed",
        ),
        ("exit 3", 1, "editor"),
    ] {
        let r = edit(script).await;
        assert_eq!(r.code, code, "{}", r.err);
        assert!(r.err.contains(part), "{}", r.err);
    }
    let left = std::fs::read_dir(dir.path()).unwrap();
    assert_eq!(left.count(), 1, "only the editor itself is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn shell() {
    let (bus, fake, _service) = served().await;
    let state = tempfile::tempdir().unwrap();
    // With a controlling terminal, or Ctrl-C would be no signal.
    let mut c = Command::new("setsid");
    c.args(["--ctty", "--wait", env!("CARGO_BIN_EXE_drover")])
        .env("DBUS_SYSTEM_BUS_ADDRESS", &bus.address)
        .env_remove("COLUMNS");
    c.env("XDG_STATE_HOME", state.path()).env("NO_COLOR", "1");
    let session = move || {
        let (mut t, mut child) = Terminal::start(c);
        t.wait("drover # ");
        t.send("list\r");
        t.wait("nginx.service");
        t.wait("drover # ");
        // Completion: the command, the domain, the feature.
        t.send("disa\tw\tcac\t\r");
        t.wait("Feature 'web/cache' disabled");
        t.wait("drover # ");
        // Errors do not end it.
        t.send("enable web nope\r");
        t.wait("error: no feature 'nope'");
        t.send("frobnicate\r");
        t.wait("unrecognized subcommand");
        t.send("threshold web cache \"cpu > 80 %\r");
        t.wait("a quote is not closed");
        t.send("threshold web cache \"cpu > 80 %\"\r");
        t.wait("has the thresholds");
        t.send("help migrate\r");
        t.wait("--no-wait");
        // Ctrl-C ends a command that hangs, not the shell.
        t.send("history web slow\r");
        std::thread::sleep(Duration::from_millis(500));
        t.send("\x03");
        t.wait("interrupted");
        t.wait("drover # ");
        t.send("\x04");
        child.wait().unwrap().code()
    };
    let code = tokio::task::spawn_blocking(session).await.unwrap();
    assert_eq!(code, Some(0));
    let calls = fake.calls.lock().unwrap().clone();
    assert_eq!(
        calls,
        ["set_enabled web cache false", "set_thresholds web cache 1"]
    );
    let history = std::fs::read_to_string(state.path().join("drover/history")).unwrap();
    assert!(history.contains("help migrate"), "{history}");
    let dir = std::fs::metadata(state.path().join("drover")).unwrap();
    assert_eq!(dir.permissions().mode() & 0o777, 0o700);
}
