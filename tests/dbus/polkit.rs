//! Who may do what: root, a user whom polkit lets, one whom it refuses; no polkit, a slow one.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use drover::api::FeatureRow;
use drover::dbus::{Access, MANAGER, NAME, PATH, Service, serve, serve_with};
use drover::feature::HIDDEN;

use crate::dbus_support::{Bus, Fake, managed, me};
use crate::support::client;

const NOBODY: u32 = 65534;
/// Debian's `games`.
const GAMES: u32 = 5;
const POLKITD: &str = "/usr/lib/polkit-1/polkitd";

/// busctl as another user: what it printed, or its error.
async fn as_user(uid: u32, bus: &Bus, interactive: bool, args: &[&str]) -> Result<String, String> {
    let mut c = Command::new("busctl");
    c.arg(format!("--address={}", bus.address))
        .arg(format!("--allow-interactive-authorization={interactive}"))
        .args(["--json=short", "call", NAME])
        .args(args)
        .current_dir("/")
        .stdin(Stdio::null());
    if me() == 0 {
        c.uid(uid).gid(uid);
    }
    let o = tokio::task::spawn_blocking(move || c.output().unwrap());
    let o = o.await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap().trim().to_owned();
    if o.status.success() {
        Ok(text(o.stdout))
    } else {
        Err(text(o.stderr))
    }
}

async fn ask(uid: u32, bus: &Bus, method: &str, args: &[&str]) -> Result<String, String> {
    let all = [&[PATH, MANAGER, method][..], args].concat();
    as_user(uid, bus, false, &all).await
}

/// The text that a method answered with.
fn answer(json: &str) -> String {
    let v: serde_json::Value = serde_json::from_str(json).unwrap();
    v["data"][0].as_str().unwrap().to_owned()
}

/// A fake daemon with a secret, behind polkit's rule.
async fn secretive(bus: &Bus, access: Access) -> (Arc<Fake>, Service) {
    let fake = Fake::new();
    fake.features.lock().unwrap()[0].spec = managed("cache", "geheim");
    let api = fake.clone();
    let service = serve_with(api, "alpha", Some(&bus.address), access).await;
    (fake, service.unwrap())
}

/// The real polkitd on a bus, with our actions and the given rule only.
struct Polkit {
    child: Child,
    _dir: tempfile::TempDir,
}

impl Polkit {
    fn start(bus: &Bus, rule: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let open = |p: &Path| {
            std::fs::set_permissions(p, std::fs::Permissions::from_mode(0o755)).unwrap();
        };
        open(dir.path());
        for d in ["actions", "rules", "none"] {
            let d = dir.path().join(d);
            std::fs::create_dir(&d).unwrap();
            open(&d);
        }
        let policy = include_str!("../../packaging/polkit/org.drover1.policy");
        std::fs::write(dir.path().join("actions/org.drover1.policy"), policy).unwrap();
        std::fs::write(dir.path().join("rules/10-test.rules"), rule).unwrap();
        // A mount namespace, so that this machine's own rules are neither read nor changed.
        let script = format!(
            "set -e; cd {}; mount --bind actions /usr/share/polkit-1/actions\n\
             mount --bind none /usr/share/polkit-1/rules.d\n\
             mount --bind rules /etc/polkit-1/rules.d; exec {POLKITD}",
            dir.path().display()
        );
        let mut child = Command::new("unshare")
            .args(["--mount", "sh", "-c", &script])
            .env("DBUS_SYSTEM_BUS_ADDRESS", &bus.address)
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        // It says "Connected to the system bus" and then takes its name.
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        Self { child, _dir: dir }
    }
}

impl Drop for Polkit {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn root_an_allowed_and_a_refused_user() {
    if me() != 0 || !Path::new(POLKITD).exists() {
        eprintln!("skipped: needs root and polkitd");
        return;
    }
    let bus = Bus::start();
    let _polkit = Polkit::start(
        &bus,
        "polkit.addRule(function(action, subject) {
             if (subject.user != 'nobody' || action.id.indexOf('org.drover1.') != 0) return;
             if (action.lookup('domain') == 'db') return polkit.Result.NO;
             return polkit.Result.YES;
         });",
    );
    let (fake, _service) = secretive(&bus, Access::polkit()).await;
    wait_for_polkit(&bus).await;

    // Root is not asked about.
    let (c, m) = client(&bus).await;
    assert_eq!(m.disable("web", "cache").await.unwrap(), "done");
    let rows: Vec<FeatureRow> = serde_json::from_str(&m.features().await.unwrap()).unwrap();
    assert_eq!(
        rows[0].spec.managed().unwrap().environment["TOKEN"],
        "geheim"
    );
    drop(c);

    // Allowed: everything, but not for the domain that the rule excludes.
    for (method, args) in [
        ("Disable", &["ss", "web", "cache"][..]),
        ("SetThresholds", &["ssas", "web", "cache", "0"]),
        ("GuestInstall", &["s", "web"]),
        ("Deregister", &["ss", "web", "cache"]),
        ("Migrate", &["ssss", "web", "stuck", "", ""]),
    ] {
        let r = ask(NOBODY, &bus, method, args).await;
        assert!(r.is_ok(), "{method}: {r:?}");
    }
    let moved = "/org/drover1/move/00000000_aaaa";
    let r = as_user(NOBODY, &bus, false, &[moved, "org.drover1.Move", "Abort"]).await;
    assert!(r.is_ok(), "{r:?}");
    let e = ask(NOBODY, &bus, "Enable", &["ss", "db", "cache"]).await;
    let e = e.unwrap_err();
    assert!(e.contains("does not grant org.drover1.enable"), "{e}");

    // Refused: every change and every secret; looking goes.
    fake.features.lock().unwrap()[0].spec = managed("cache", "geheim");
    let before = fake.calls.lock().unwrap().len();
    let spec = serde_json::to_string(&managed("mail", "x")).unwrap();
    for (method, args) in [
        ("Register", &["ss", "web", &spec][..]),
        ("Deregister", &["ss", "web", "cache"]),
        ("Enable", &["ss", "web", "cache"]),
        ("Disable", &["ss", "web", "cache"]),
        ("SetThresholds", &["ssas", "web", "cache", "0"]),
        ("Migrate", &["ssss", "web", "cache", "", ""]),
        ("GuestInstall", &["s", "web"]),
        ("GuestRemove", &["s", "web"]),
        ("Reload", &[]),
    ] {
        let e = ask(GAMES, &bus, method, args).await.unwrap_err();
        assert!(
            e.contains("user 5 may not") && e.contains("password"),
            "{method}: {e}"
        );
    }
    let r = as_user(GAMES, &bus, false, &[moved, "org.drover1.Move", "Abort"]).await;
    assert!(r.unwrap_err().contains("user 5 may not abort"));
    assert_eq!(fake.calls.lock().unwrap().len(), before);
    for (user, sees) in [(NOBODY, "geheim"), (GAMES, HIDDEN)] {
        let text = answer(&ask(user, &bus, "Features", &[]).await.unwrap());
        let rows: Vec<FeatureRow> = serde_json::from_str(&text).unwrap();
        let seen = rows[0].spec.managed().unwrap();
        assert_eq!(seen.environment["TOKEN"], sees);
        assert_eq!(seen.exec[1] == HIDDEN, sees == HIDDEN, "{seen:?}");
        let text = ask(user, &bus, "Hosts", &[]).await.unwrap();
        assert!(!text.contains("geheim"), "{text}");
    }
}

async fn wait_for_polkit(bus: &Bus) {
    let (c, _) = client(bus).await;
    let dbus = zbus::fdo::DBusProxy::new(&c).await.unwrap();
    let name = "org.freedesktop.PolicyKit1";
    for _ in 0..500 {
        if dbus.name_has_owner(name.try_into().unwrap()).await.unwrap() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("polkitd did not take its name");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_polkit_only_root() {
    let bus = Bus::start();
    let (fake, _service) = secretive(&bus, Access::polkit()).await;
    let e = ask(NOBODY, &bus, "Disable", &["ss", "web", "cache"]).await;
    let e = e.unwrap_err();
    assert!(e.contains("only root may, for polkit does not run"), "{e}");
    let text = ask(NOBODY, &bus, "Features", &[]).await.unwrap();
    assert!(text.contains(HIDDEN) && !text.contains("geheim"), "{text}");
    let _ = serve(fake.clone(), "alpha", Some(&bus.address)).await;
    if me() == 0 {
        let (_c, m) = client(&bus).await;
        assert_eq!(m.disable("web", "cache").await.unwrap(), "done");
    }
    let changes = usize::from(me() == 0);
    assert_eq!(fake.calls.lock().unwrap().len(), changes);
}

/// Questions that the fake authority was asked: action, flags, details.
type Asked = Arc<Mutex<Vec<(String, u32, HashMap<String, String>)>>>;

/// An authority with polkit's interface that never answers some questions.
#[derive(Clone, Default)]
struct Authority {
    asked: Asked,
    forgotten: Arc<Mutex<Vec<String>>>,
}

#[zbus::interface(name = "org.freedesktop.PolicyKit1.Authority")]
impl Authority {
    async fn check_authorization(
        &self,
        subject: (String, HashMap<String, zbus::OwnedVariant>),
        action: String,
        details: HashMap<String, String>,
        flags: u32,
        cancel: String,
    ) -> (bool, bool, HashMap<String, String>) {
        assert_eq!(subject.0, "system-bus-name");
        assert!(!cancel.is_empty());
        assert!(
            String::try_from(subject.1["name"].clone())
                .unwrap()
                .starts_with(':')
        );
        self.asked
            .lock()
            .unwrap()
            .push((action.clone(), flags, details));
        match action.as_str() {
            "org.drover1.enable" => std::future::pending().await,
            "org.drover1.disable" => (true, false, HashMap::new()),
            _ => (false, true, HashMap::new()),
        }
    }

    fn cancel_check_authorization(&self, cancel: String) {
        self.forgotten.lock().unwrap().push(cancel);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_polkit_holds_up_nobody() {
    let bus = Bus::start();
    let authority = Authority::default();
    let _polkit = zbus::connection::Builder::address(bus.address.as_str())
        .serve_at("/org/freedesktop/PolicyKit1/Authority", authority.clone())
        .name("org.freedesktop.PolicyKit1")
        .build()
        .await
        .unwrap();
    let access = Access::polkit_within(Duration::from_millis(200));
    let (fake, _service) = secretive(&bus, access).await;
    let feature = ["ss", "web", "cache"];
    let late = ask(NOBODY, &bus, "Enable", &feature);
    let other = ask(NOBODY, &bus, "Disable", &feature);
    let (late, other) = tokio::join!(late, other);
    let e = late.unwrap_err();
    assert!(e.contains("polkit did not answer within 0.2 s"), "{e}");
    assert!(other.is_ok(), "{other:?}");
    assert_eq!(*fake.calls.lock().unwrap(), ["set_enabled web cache false"]);
    while authority.forgotten.lock().unwrap().len() != 1 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    // Who allows it is asked for a password; who does not is told that one is needed.
    let all = [&[PATH, MANAGER, "GuestInstall"][..], &["s", "web"]].concat();
    for (interactive, flags) in [(false, 0), (true, 1)] {
        let e = as_user(NOBODY, &bus, interactive, &all).await.unwrap_err();
        assert!(e.contains("with a password only"), "{e}");
        let asked = authority.asked.lock().unwrap().last().cloned().unwrap();
        assert_eq!(
            (asked.0.as_str(), asked.1),
            ("org.drover1.guest-install", flags)
        );
        assert_eq!(asked.2, HashMap::from([("domain".into(), "web".into())]));
    }
}
