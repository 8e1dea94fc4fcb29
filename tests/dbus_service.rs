//! The service `org.drover1` on a private bus, in front of a fake daemon.
#![cfg(feature = "daemon")]
#![allow(
    clippy::unwrap_used,
    clippy::many_single_char_names,
    reason = "short names of one test each"
)]

mod dbus_support;

use std::process::Command;
use std::time::Duration;

use dbus_support::{Bus, Fake, job, me, name, plan, served, unit, usage};
use drover::api::{ApiEvent, FeatureRow, Job, JobResult, Plan};
use drover::dbus::client::{ManagerProxy, MoveProxy};
use drover::dbus::{Access, DbusError, MANAGER, MOVE, NAME, PATH, connect, serve, serve_with};
use drover::host::HostState;
use drover::usage::Usage;
use futures_util::StreamExt;
use zbus::Connection;
use zbus::fdo::{DBusProxy, IntrospectableProxy, ObjectManagerProxy, PropertiesProxy};

async fn client(bus: &Bus) -> (Connection, ManagerProxy<'static>) {
    let c = connect(Some(&bus.address), Some(Duration::from_secs(10)))
        .await
        .unwrap();
    let m = ManagerProxy::new(&c).await.unwrap();
    (c, m)
}

/// The name of a D-Bus error, without the prefix, and its text.
fn error_of<T: std::fmt::Debug>(r: zbus::Result<T>) -> (String, String) {
    match r.unwrap_err() {
        zbus::Error::MethodError(n, text, _) => (
            n.as_str()
                .strip_prefix("org.drover1.Error.")
                .unwrap()
                .to_owned(),
            text.unwrap(),
        ),
        e => panic!("not an error of org.drover1: {e:?}"),
    }
}

async fn soon<T>(f: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), f)
        .await
        .expect("within 10 s")
}

#[tokio::test]
async fn reads() {
    let (bus, _fake, _service) = served().await;
    let (_c, m) = client(&bus).await;
    let hosts: Vec<HostState> = serde_json::from_str(&m.hosts().await.unwrap()).unwrap();
    assert_eq!(hosts[0].name, "alpha");
    let rows: Vec<FeatureRow> = serde_json::from_str(&m.features().await.unwrap()).unwrap();
    assert_eq!(rows.len(), 5);
    let h = m.history("web", "cache", 1000, 3000, 2).await.unwrap();
    let h: Vec<Usage> = serde_json::from_str(&h).unwrap();
    assert_eq!(h, [usage(1000), usage(2000)]);
    let p: Plan = serde_json::from_str(&m.plan("web", "cache").await.unwrap()).unwrap();
    assert_eq!(p, plan("cache"));
    assert_eq!(m.jobs().await.unwrap(), "[]");
    assert_eq!(m.version().await.unwrap(), env!("CARGO_PKG_VERSION"));
    assert_eq!(m.host_name().await.unwrap(), "alpha");
}

#[tokio::test]
async fn changes() {
    let (bus, fake, _service) = served().await;
    let (_c, m) = client(&bus).await;
    let spec = serde_json::to_string(&unit("mail")).unwrap();
    assert_eq!(m.register("web", &spec).await.unwrap(), "done");
    assert_eq!(m.register("web", &spec).await.unwrap(), "already");
    assert_eq!(m.enable("web", "mail").await.unwrap(), "already");
    assert_eq!(m.disable("web", "mail").await.unwrap(), "done");
    let t = [
        "cpu > 80 % for 10 s".to_owned(),
        "memory > 512 MiB for 1 min".to_owned(),
    ];
    assert_eq!(m.set_thresholds("web", "mail", &t).await.unwrap(), "done");
    let row = fake.features.lock().unwrap().last().cloned().unwrap();
    assert_eq!(row.spec.thresholds[1].limit, 512.0);
    assert_eq!(row.spec.thresholds[1].for_s, 60.0);
    assert_eq!(m.deregister("web", "mail").await.unwrap(), "done");
    let answer = m.guest_install("web").await.unwrap();
    assert_eq!(answer, "helper 0.1.0 runs in 'web'");
    let answer = m.guest_remove("web").await.unwrap();
    assert_eq!(answer, "helper removed from 'web'");
    assert_eq!(
        *fake.calls.lock().unwrap(),
        [
            "register web mail",
            "register web mail",
            "set_enabled web mail true",
            "set_enabled web mail false",
            "set_thresholds web mail 2",
            "deregister web mail",
            "guest_install web",
            "guest_remove web",
        ]
    );
}

#[tokio::test]
async fn errors() {
    let (bus, fake, _service) = served().await;
    let (_c, m) = client(&bus).await;
    let (n, text) = error_of(m.enable("web", "nope").await);
    assert_eq!(
        (n.as_str(), text.as_str()),
        ("NotFound", "no feature 'nope' in 'web'")
    );
    let (n, text) = error_of(m.enable("web", "Not A Name").await);
    assert_eq!(n, "Invalid");
    assert!(text.contains("'Not A Name'"), "{text}");
    assert_eq!(error_of(m.register("web", "{").await).0, "Invalid");
    let bad = r#"{"name":"a","workload":{"kind":"managed","exec":["x"],"address":"10.0.0.1/24"}}"#;
    let (n, text) = error_of(m.register("web", bad).await);
    assert_eq!(n, "Invalid");
    assert!(text.contains("absolute path"), "{text}");
    let mut other = unit("cache");
    other.downtime_ms = 7;
    let other = serde_json::to_string(&other).unwrap();
    assert_eq!(error_of(m.register("web", &other).await).0, "Refused");
    assert_eq!(error_of(m.deregister("web", "stuck").await).0, "Busy");
    assert_eq!(error_of(m.guest_install("hung").await).0, "Timeout");
    let (n, text) = error_of(m.set_thresholds("web", "cache", &["cpu 80".into()]).await);
    assert_eq!(n, "Invalid");
    assert!(text.contains("cpu 80"), "{text}");
    let twice = [
        "cpu > 1 % for 1 s".to_owned(),
        "cpu > 2 % for 1 s".to_owned(),
    ];
    assert_eq!(
        error_of(m.set_thresholds("web", "cache", &twice).await).0,
        "Invalid"
    );
    assert_eq!(
        error_of(m.history("web", "cache", 5, 4, 1).await).0,
        "Invalid"
    );
    assert_eq!(error_of(m.plan("web", "nope").await).0, "NotFound");
    assert_eq!(
        error_of(m.migrate("web", "cache", "gamma", "").await).0,
        "Refused"
    );
    assert_eq!(
        error_of(m.migrate("web", "cache", "", "x").await).0,
        "Invalid"
    );
    assert!(
        !fake
            .calls
            .lock()
            .unwrap()
            .iter()
            .any(|c| c.starts_with("set_thresholds"))
    );
}

#[tokio::test]
async fn move_from_start_to_end() {
    let (bus, fake, _service) = served().await;
    let (c, m) = client(&bus).await;
    let om = ObjectManagerProxy::new(&c, NAME, PATH).await.unwrap();
    let mut added = om.receive_interfaces_added().await.unwrap();
    let mut progress = m.receive_move_progress().await.unwrap();
    let mut ended = m.receive_move_ended().await.unwrap();

    let expected = "/org/drover1/move/00000000_aaaa";
    let props = PropertiesProxy::new(&c, NAME, expected).await.unwrap();
    let mut changed = props.receive_properties_changed().await.unwrap();

    let path = m.migrate("web", "cache", "beta", "web2").await.unwrap();
    assert_eq!(path.as_str(), expected);
    let a = soon(added.next()).await.unwrap();
    assert_eq!(a.args().unwrap().object_path.as_str(), path.as_str());

    let p = soon(progress.next()).await.unwrap();
    let now: Job = serde_json::from_str(p.args().unwrap().json).unwrap();
    assert_eq!((now.rounds, now.state.as_str()), (1, "pre-copy"));
    let e = soon(ended.next()).await.unwrap();
    let e = e.args().unwrap();
    assert_eq!(
        (e.job.as_str(), e.result, e.reason),
        (path.as_str(), "done", "")
    );

    let change = soon(changed.next()).await.unwrap();
    let change = change.args().unwrap();
    assert_eq!(change.interface_name.as_str(), MOVE);
    assert!(change.changed_properties.contains_key("State"));
    assert!(change.changed_properties.contains_key("BytesSent"));
    assert!(
        !change.changed_properties.contains_key("ToHost"),
        "it did not change"
    );

    // The object stays, also in the object manager.
    let one = MoveProxy::new(&c, path.clone()).await.unwrap();
    let last: Job = serde_json::from_str(&one.json().await.unwrap()).unwrap();
    assert_eq!(last.result, Some(JobResult::Done));
    assert_eq!(one.result().await.unwrap(), "done");
    let objects = om.get_managed_objects().await.unwrap();
    let mine = &objects[&path];
    let mine = mine.iter().find(|(i, _)| i.as_str() == MOVE).unwrap().1;
    assert_eq!(i64::try_from(mine["FreezeMs"].clone()).unwrap(), 37);
    assert_eq!(u32::try_from(mine["Rounds"].clone()).unwrap(), 2);
    assert_eq!(u64::try_from(mine["BytesSent"].clone()).unwrap(), 2_097_152);
    for (p, v) in [
        ("Feature", "cache"),
        ("FromHost", "alpha"),
        ("FromDomain", "web"),
        ("ToHost", "beta"),
        ("ToDomain", "web2"),
    ] {
        assert_eq!(String::try_from(mine[p].clone()).unwrap(), v);
    }
    assert_eq!(
        fake.calls.lock().unwrap()[0],
        "migrate web cache Some(\"beta\") Some(\"web2\")"
    );
}

#[tokio::test]
async fn abort() {
    let (bus, fake, _service) = served().await;
    let (c, m) = client(&bus).await;
    let mut ended = m.receive_move_ended().await.unwrap();
    let path = m.migrate("web", "stuck", "", "").await.unwrap();
    assert_eq!(fake.calls.lock().unwrap()[0], "migrate web stuck None None");
    MoveProxy::new(&c, path.clone())
        .await
        .unwrap()
        .abort()
        .await
        .unwrap();
    let e = soon(ended.next()).await.unwrap();
    let e = e.args().unwrap();
    assert_eq!((e.job.as_str(), e.result), (path.as_str(), "canceled"));
    assert_eq!(e.reason, "canceled by a user");

    let mut late = job("bbbbbbbb-1", "stuck");
    late.state = "committed".into();
    let mut progress = m.receive_move_progress().await.unwrap();
    fake.tell(&late);
    let p = soon(progress.next()).await.unwrap();
    let path = p.args().unwrap().job.to_owned();
    let (n, text) = error_of(MoveProxy::new(&c, path).await.unwrap().abort().await);
    assert_eq!(n, "Refused");
    assert!(text.contains("bbbbbbbb-1"), "{text}");
}

#[tokio::test]
async fn ended_moves_are_bounded() {
    let (bus, fake, _service) = served().await;
    let (c, m) = client(&bus).await;
    let mut ended = m.receive_move_ended().await.unwrap();
    for n in 0..103 {
        let mut j = job(&format!("{n:08}"), "cache");
        j.result = Some(JobResult::Done);
        fake.tell(&j);
        soon(ended.next()).await.unwrap();
    }
    let om = ObjectManagerProxy::new(&c, NAME, PATH).await.unwrap();
    let objects = om.get_managed_objects().await.unwrap();
    let paths: Vec<&str> = objects
        .keys()
        .map(|p| p.as_str())
        .filter(|p| p.contains("/move/"))
        .collect();
    assert_eq!(paths.len(), 100);
    assert!(!paths.contains(&"/org/drover1/move/00000002"));
    assert!(paths.contains(&"/org/drover1/move/00000003"));
}

#[tokio::test]
async fn moves_under_way_have_objects_from_the_start() {
    let bus = Bus::start();
    let fake = Fake::new();
    let mut old = job("aaaaaaaa-1", "cache");
    old.result = Some(JobResult::Failed);
    fake.jobs
        .lock()
        .unwrap()
        .extend([job("aaaaaaaa-2", "slow"), old]);
    let _service = serve(fake, "alpha", Some(&bus.address)).await.unwrap();
    let (c, _m) = client(&bus).await;
    let om = ObjectManagerProxy::new(&c, NAME, PATH).await.unwrap();
    let objects = om.get_managed_objects().await.unwrap();
    let moves = objects.keys().filter(|p| p.as_str().contains("/move/"));
    let moves: Vec<&str> = moves.map(|p| p.as_str()).collect();
    assert_eq!(moves, ["/org/drover1/move/aaaaaaaa_2"]);
}

#[tokio::test]
async fn signals() {
    let (bus, fake, _service) = served().await;
    let (_c, m) = client(&bus).await;
    let mut breach = m.receive_breach().await.unwrap();
    let mut decision = m.receive_decision().await.unwrap();
    let mut feature = m.receive_feature_changed().await.unwrap();
    let mut instance = m.receive_instance_changed().await.unwrap();
    let mut peer = m.receive_peer_changed().await.unwrap();
    let events = [
        ApiEvent::Breach {
            domain: "web".into(),
            feature: name("cache"),
            what: "cpu 93 % > 80 % for 10 s".into(),
            active: true,
        },
        ApiEvent::Decision {
            plan: plan("cache"),
        },
        ApiEvent::Feature {
            domain: "web".into(),
            feature: name("cache"),
            what: "enabled".into(),
        },
        ApiEvent::Instance {
            domain: "web".into(),
            what: "helper connected".into(),
        },
        ApiEvent::Peer {
            host: "beta".into(),
            what: "came".into(),
        },
    ];
    for e in events {
        fake.events.send(e).unwrap();
    }
    let s = soon(breach.next()).await.unwrap();
    let a = s.args().unwrap();
    assert_eq!(
        (a.domain, a.feature, a.what, a.active),
        ("web", "cache", "cpu 93 % > 80 % for 10 s", true)
    );
    let s = soon(decision.next()).await.unwrap();
    let a = s.args().unwrap();
    assert_eq!((a.domain, a.feature, a.outcome), ("web", "cache", "move"));
    assert_eq!(a.reason, plan("cache").reason);
    let p: Plan = serde_json::from_str(a.plan_json).unwrap();
    assert_eq!(p, plan("cache"));
    let s = soon(feature.next()).await.unwrap();
    let a = s.args().unwrap();
    assert_eq!((a.domain, a.feature, a.what), ("web", "cache", "enabled"));
    let s = soon(instance.next()).await.unwrap();
    let a = s.args().unwrap();
    assert_eq!((a.domain, a.what), ("web", "helper connected"));
    let s = soon(peer.next()).await.unwrap();
    let a = s.args().unwrap();
    assert_eq!((a.host, a.what), ("beta", "came"));
}

#[tokio::test]
async fn others_may_read_but_not_change() {
    let bus = Bus::start();
    let fake = Fake::new();
    // Nobody who connects here has this user id.
    let access = Access::users(&[me() + 1]);
    let _service = serve_with(fake.clone(), "alpha", Some(&bus.address), access)
        .await
        .unwrap();
    let (c, m) = client(&bus).await;
    fake.tell(&job("aaaaaaaa-2", "slow"));
    m.hosts().await.unwrap();
    m.plan("web", "cache").await.unwrap();
    let spec = serde_json::to_string(&unit("mail")).unwrap();
    let answers = [
        m.register("web", &spec).await,
        m.deregister("web", "cache").await,
        m.enable("web", "cache").await,
        m.disable("web", "cache").await,
        m.set_thresholds("web", "cache", &[]).await,
        m.migrate("web", "cache", "", "")
            .await
            .map(|p| p.to_string()),
        m.guest_install("web").await,
        m.guest_remove("web").await,
        MoveProxy::new(&c, "/org/drover1/move/aaaaaaaa_2")
            .await
            .unwrap()
            .abort()
            .await
            .map(|()| String::new()),
    ];
    for a in answers {
        let (n, text) = error_of(a);
        assert_eq!(n, "Refused");
        assert!(text.contains(&format!("user {}", me())), "{text}");
    }
    assert_eq!(*fake.calls.lock().unwrap(), Vec::<String>::new());
}

/// The interfaces of ours in an introspection text: tags without comments and space between.
fn contract(xml: &str, interface: &str) -> Vec<String> {
    let mut plain = String::new();
    let mut rest = xml;
    while let Some((before, after)) = rest.split_once("<!--") {
        plain.push_str(before);
        rest = after.split_once("-->").unwrap().1;
    }
    plain.push_str(rest);
    let start = format!("<interface name=\"{interface}\">");
    let body = plain.split_once(&start).unwrap().1;
    let body = body.split_once("</interface>").unwrap().0;
    // `<method name="x">\n</method>` and `<method name="x"/>` are the same.
    let body = body.replace("/>", " />");
    let mut out: Vec<String> = Vec::new();
    for tag in body.split('<').skip(1) {
        let tag = tag.split('>').next().unwrap();
        let words: Vec<&str> = tag.split_whitespace().collect();
        let tag = words.join(" ");
        let open = tag.trim_end_matches(" /").to_owned();
        if !open.starts_with('/') {
            out.push(open);
        }
    }
    out
}

#[tokio::test]
async fn introspection_is_the_contract() {
    let (bus, fake, _service) = served().await;
    let (c, m) = client(&bus).await;
    let mut progress = m.receive_move_progress().await.unwrap();
    fake.tell(&job("cccccccc-1", "cache"));
    soon(progress.next()).await.unwrap();
    let file = include_str!("../packaging/dbus/org.drover1.xml");
    for (path, interface) in [(PATH, MANAGER), ("/org/drover1/move/cccccccc_1", MOVE)] {
        let p = IntrospectableProxy::builder(&c)
            .destination(NAME)
            .path(path)
            .build()
            .await
            .unwrap();
        let xml = p.introspect().await.unwrap();
        let served = contract(&xml, interface);
        assert!(served.len() > 10, "{xml}");
        assert_eq!(served, contract(file, interface), "{interface}");
    }
}

#[tokio::test]
async fn one_owner_and_gone_when_dropped() {
    let (bus, fake, service) = served().await;
    let (c, _m) = client(&bus).await;
    let again = serve(fake.clone(), "alpha", Some(&bus.address)).await;
    assert!(matches!(again, Err(DbusError::Taken)), "{again:?}");
    let dbus = DBusProxy::new(&c).await.unwrap();
    assert!(dbus.name_has_owner(NAME.try_into().unwrap()).await.unwrap());
    drop(service);
    soon(async {
        while dbus.name_has_owner(NAME.try_into().unwrap()).await.unwrap() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    // Nobody listens to the daemon's events any more, and the name can be taken anew.
    soon(async {
        while fake.events.receiver_count() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    serve(fake, "alpha", Some(&bus.address)).await.unwrap();
}

#[tokio::test]
async fn no_bus() {
    let e = serve(Fake::new(), "alpha", Some("unix:path=/nonexistent/bus")).await;
    let text = e.unwrap_err().to_string();
    assert!(text.contains("/nonexistent/bus"), "{text}");
}

/// systemd's busctl, as an administrator would use it.
#[tokio::test(flavor = "multi_thread")]
async fn busctl() {
    if Command::new("busctl").arg("--version").output().is_err() {
        eprintln!("skipped: busctl (of systemd) is not installed");
        return;
    }
    let (bus, _fake, _service) = served().await;
    let run = |args: &[&str]| {
        let out = Command::new("busctl")
            .arg(format!("--address={}", bus.address))
            .args(args)
            .output()
            .unwrap();
        let err = String::from_utf8(out.stderr).unwrap();
        (
            out.status.success(),
            String::from_utf8(out.stdout).unwrap(),
            err,
        )
    };
    let (ok, out, err) = run(&["introspect", NAME, PATH]);
    assert!(ok, "{err}");
    for member in [
        ".Migrate",
        ".SetThresholds",
        ".Version",
        ".MoveEnded",
        ".GetManagedObjects",
    ] {
        assert!(out.contains(member), "{member} in {out}");
    }
    let (ok, out, err) = run(&["call", NAME, PATH, MANAGER, "Disable", "ss", "web", "cache"]);
    assert!(ok, "{err}");
    assert_eq!(out.trim(), "s \"done\"");
    let (ok, _, err) = run(&["call", NAME, PATH, MANAGER, "Plan", "ss", "web", "nope"]);
    assert!(!ok);
    assert!(err.contains("no feature 'nope' in 'web'"), "{err}");
    let (ok, out, err) = run(&["get-property", NAME, PATH, MANAGER, "HostName"]);
    assert!(ok, "{err}");
    assert_eq!(out.trim(), "s \"alpha\"");
}
