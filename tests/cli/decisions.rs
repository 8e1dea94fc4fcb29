//! Scores, the matrix, recorded decisions, advice, emptying a host.

use drover::decision::{Cell, DecisionRecord, DrainStatus};

use crate::dbus_support::served;
use crate::support::{as_json, bad, good};

#[tokio::test(flavor = "multi_thread")]
async fn looking() {
    let (bus, _fake, _service) = served().await;
    let out = good(&bus, &["score", "web", "cache", "--explain"]).await;
    assert!(
        out.contains("0.810") && out.contains("no model to explain"),
        "{out}"
    );
    bad(&bus, 3, &["score", "db"]).await;
    let out = good(&bus, &["matrix"]).await;
    assert!(out.contains("yes") && out.contains("has no criu"), "{out}");
    let cells: Vec<Cell> = as_json(&bus, &["matrix", "cache"]).await;
    assert_eq!(cells.len(), 1);

    let out = good(&bus, &["decision"]).await;
    assert!(
        out.contains("0a1b2c3d4e5f") && out.contains("proposed"),
        "{out}"
    );
    assert_eq!(good(&bus, &["advice"]).await, out);
    let out = good(&bus, &["decision", "0a1b"]).await;
    assert!(out.contains("Mode:     advise"), "{out}");
    let d: DecisionRecord = as_json(&bus, &["decision", "0a1b"]).await;
    assert!(d.inputs.replay(&d.plan).same);
    let out = good(&bus, &["decision", "0a1b", "--replay"]).await;
    assert!(out.contains("The decision is the same"), "{out}");
    let e = bad(&bus, 3, &["decision", "ff"]).await;
    assert!(e.contains("'ff'"), "{e}");
}

#[tokio::test(flavor = "multi_thread")]
async fn acting() {
    let (bus, fake, _service) = served().await;
    let out = good(&bus, &["approve", "0a1b"]).await;
    assert!(out.contains("runs on beta/web2"), "{out}");
    assert_eq!(fake.calls.lock().unwrap()[0], "approve 0a1b2c3d4e5f");

    assert_eq!(
        good(&bus, &["drain", "--status"]).await,
        "'alpha' accepts moves\n"
    );
    let e = bad(&bus, 2, &["drain", "beta"]).await;
    assert!(e.contains("on 'beta'"), "{e}");
    let out = good(&bus, &["drain", "alpha"]).await;
    assert!(out.contains("pinned to alpha"), "{out}");
    let s: DrainStatus = as_json(&bus, &["drain", "--status"]).await;
    assert!(s.draining && s.settled());
    let r = crate::support::drover(&bus, &["drain", "--wait"]).await;
    assert_eq!(r.code, 4, "something is left: {}", r.err);
    assert_eq!(
        good(&bus, &["drain", "--undo"]).await,
        "'alpha' accepts moves\n"
    );
    let calls = fake.calls.lock().unwrap().clone();
    assert!(
        calls.ends_with(&["drain true".into(), "drain false".into()]),
        "{calls:?}"
    );
}
