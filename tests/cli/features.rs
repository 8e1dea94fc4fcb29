//! Features: definitions, switching, use, history; plans, hosts and guests.

use std::io::Write;
use std::process::Stdio;
use std::time::{Duration, Instant};

use drover::api::{FeatureForecast, FeatureRow, Plan};
use drover::feature::FeatureSpec;
use drover::host::HostState;

use crate::dbus_support::{plan, served, usage};
use crate::support::{as_json, bad, command, good, run};

#[tokio::test(flavor = "multi_thread")]
async fn list_and_stats() {
    let (bus, _fake, _service) = served().await;
    let out = good(&bus, &["list"]).await;
    assert_eq!(out.lines().count(), 6);
    assert!(
        out.contains("web     cache    running  helper   nginx.service"),
        "{out}"
    );
    assert_eq!(good(&bus, &["list", "web"]).await, out);
    let e = bad(&bus, 3, &["list", "db"]).await;
    assert!(e.contains("'db'") && e.contains("drover list"), "{e}");
    let rows: Vec<FeatureRow> = as_json(&bus, &["list"]).await;
    assert_eq!(rows[0].usage, Some(usage(1)));

    let out = good(&bus, &["stats", "web", "cache"]).await;
    let row = out.lines().nth(1).unwrap();
    assert!(row.contains("cache") && row.contains("42.5"), "{out}");
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
    assert!(out.contains("2026-01-31 12:00:00"), "{out}");
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
async fn forecasts() {
    let (bus, _fake, _service) = served().await;
    let out = good(&bus, &["forecast", "web", "cache"]).await;
    for part in [
        "cpu > 90 % for 10 s",
        "damped smoothing",
        "0.81",
        "expected above 90.0 % in 4 min",
    ] {
        assert!(out.contains(part), "{part}: {out}");
    }
    // Memory has no threshold, so it is shown only when asked for.
    assert!(!out.contains("too little history"), "{out}");
    let out = good(&bus, &["forecast", "web", "cache", "--resource", "memory"]).await;
    assert!(out.contains("too little history"), "{out}");
    let f: FeatureForecast = as_json(&bus, &["forecast", "web", "cache", "--horizon", "5m"]).await;
    assert_eq!(f.series.len(), 2);
    assert_eq!(f.series[0].steps.len(), 30);
    bad(&bus, 3, &["forecast", "web", "nope"]).await;
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
