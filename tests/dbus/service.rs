//! Signals, the contract, the name, and busctl.

use std::process::Command;
use std::time::Duration;

use drover::api::{ApiEvent, Plan};
use drover::dbus::objects::{FEATURE, HOST, INSTANCE};
use drover::dbus::{DECISIONS, DbusError, MANAGER, MOVE, NAME, PATH, serve};
use futures_util::StreamExt;
use zbus::fdo::{DBusProxy, IntrospectableProxy};

use crate::dbus_support::{Fake, job, name, plan, served};
use crate::support::{client, soon};

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
    let file = include_str!("../../packaging/dbus/org.drover1.xml");
    let all = [
        (PATH, MANAGER),
        (PATH, DECISIONS),
        ("/org/drover1/host/alpha", HOST),
        ("/org/drover1/instance/web", INSTANCE),
        ("/org/drover1/feature/web/cache", FEATURE),
        ("/org/drover1/move/cccccccc_1", MOVE),
    ];
    assert_eq!(file.matches("<interface name=").count(), all.len());
    for (path, interface) in all {
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
