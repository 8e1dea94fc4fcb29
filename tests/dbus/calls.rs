//! Methods, properties, errors, and who may change things.

use drover::api::{FeatureForecast, FeatureRow, Plan};
use drover::dbus::client::MoveProxy;
use drover::dbus::{Access, serve_with};
use drover::host::HostState;
use drover::usage::Usage;

use crate::dbus_support::{Bus, Fake, forecast, job, me, plan, served, unit, usage};
use crate::support::{client, error_of, soon};

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
    let f = m.forecast("web", "cache").await.unwrap();
    let f: FeatureForecast = serde_json::from_str(&f).unwrap();
    assert_eq!(f, forecast("cache"));
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
    assert_eq!(error_of(m.forecast("web", "nope").await).0, "NotFound");
    assert_eq!(error_of(m.forecast("web", "No Name").await).0, "Invalid");
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

/// The fake's history of `slow` takes 30 s; nobody else waits for it.
#[tokio::test]
async fn a_slow_call_holds_up_no_other() {
    let (bus, _fake, _service) = served().await;
    let (_c, m) = client(&bus).await;
    let slow = m.history("web", "slow", 0, 1, 1);
    let quick = async {
        for _ in 0..20 {
            m.plan("web", "cache").await.unwrap();
        }
    };
    tokio::select! {
        biased;
        r = slow => panic!("the slow call came back first: {r:?}"),
        () = soon(quick) => {}
    }
}
