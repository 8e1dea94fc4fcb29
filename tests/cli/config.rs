//! `config check` and `reload`.

use crate::dbus_support::{Bus, served};
use crate::support::{as_json, bad, drover, good};

#[tokio::test(flavor = "multi_thread")]
async fn check() {
    let bus = Bus::start();
    let dir = tempfile::tempdir().unwrap();
    let (file, features) = (
        dir.path().join("drover.toml"),
        dir.path().join("features.d"),
    );
    std::fs::create_dir(&features).unwrap();
    let valid = format!(
        "[host]\nname = 'h1'\n[features]\ndir = '{}'\n",
        features.display()
    );
    std::fs::write(&file, &valid).unwrap();
    let path = file.to_str().unwrap();
    let feature = "domain = 'web'\nname = 'mail'\n[workload]\nkind = 'unit'\nunit = 'm.service'\n";
    std::fs::write(features.join("mail.toml"), feature).unwrap();
    let out = good(&bus, &["config", "check", path]).await;
    assert_eq!(out, format!("{path}: valid, with 1 features from files\n"));
    let v: serde_json::Value = as_json(&bus, &["config", "check", path]).await;
    assert_eq!((&v["valid"], &v["features"]), (&true.into(), &1.into()));

    std::fs::write(
        features.join("z.toml"),
        feature.replace("workload", "worklaod"),
    )
    .unwrap();
    let e = bad(&bus, 2, &["config", "check", path]).await;
    assert!(
        e.contains("z.toml: line 3: ") && e.contains("did you mean `workload`?"),
        "{e}"
    );
    std::fs::write(&file, format!("{valid}[decision]\nreserv = 1\n")).unwrap();
    let e = bad(&bus, 2, &["config", "check", path]).await;
    assert!(
        e.contains("line 6: ") && e.contains("did you mean `reserve`?"),
        "{e}"
    );
    let r = drover(&bus, &["config", "check", path, "--format=json"]).await;
    assert_eq!(r.code, 2);
    let v: serde_json::Value = serde_json::from_str(&r.out).unwrap();
    assert_eq!(v["errors"].as_array().unwrap().len(), 1);
    let e = bad(&bus, 2, &["config", "check", "/nonexistent"]).await;
    assert!(e.contains("No such file"), "{e}");
}

#[tokio::test(flavor = "multi_thread")]
async fn reload() {
    let (bus, _fake, _service) = served().await;
    let out = good(&bus, &["reload"]).await;
    assert_eq!(
        out,
        "Changed: decision.reserve\nFeature web/cache enabled\n\
         Not yet, trying again: mail.toml: no domain 'mail'\n"
    );
    let e = bad(&bus, 2, &["reload"]).await;
    assert!(
        e.contains("nothing was changed") && e.contains("line 3"),
        "{e}"
    );
}
