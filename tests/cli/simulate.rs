//! `drover simulate`: needs no bus.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::{Ran, command, run};

async fn drover(args: &[&str]) -> Ran {
    run(command("unix:path=/nonexistent", args)).await
}

/// Twelve VMs over 40 steps; from step 20 on three of them are busy.
fn trace(dir: &Path) -> PathBuf {
    let heading: Vec<String> = (0..40).map(|t| format!(",t{t}")).collect();
    let heading = heading.concat();
    let mut text = format!("vm{heading}\n");
    for vm in 0..12 {
        let cell = |t| if vm < 3 && t >= 20 { ",95" } else { ",20" };
        let row: String = (0..40).map(cell).collect();
        writeln!(text, "vm{vm}{row}").unwrap();
    }
    let path = dir.join("trace.csv");
    std::fs::write(&path, text).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn compares_policies_and_draws() {
    let dir = tempfile::tempdir().unwrap();
    let (trace, picture) = (trace(dir.path()), dir.path().join("p.svg"));
    let (trace, picture) = (trace.to_str().unwrap(), picture.to_str().unwrap());
    let common = [
        "simulate",
        "--traces",
        trace,
        "--hosts",
        "3",
        "--host-cpus",
        "2",
    ];
    let mut args = common.to_vec();
    args.extend(["--picture", picture]);
    let r = drover(&args).await;
    assert_eq!((r.code, r.err.as_str()), (0, ""), "{}", r.out);
    for name in [
        "none",
        "threshold:0.85",
        "lr-mmt:1.4",
        "drover-no-model",
        "oracle",
    ] {
        assert!(r.out.contains(name), "{}", r.out);
    }
    let svg = std::fs::read_to_string(picture).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("drover-no-forecast"));

    // The same seed gives the same answer, the time of a decision aside.
    let mut args = vec!["--format", "json"];
    args.extend(common);
    args.extend(["--policy", "threshold:0.7,drover", "--seed", "7"]);
    let mut answers = Vec::new();
    for _ in 0..2 {
        let r = drover(&args).await;
        assert_eq!((r.code, r.err.as_str()), (0, ""));
        let mut v: Value = serde_json::from_str(&r.out).unwrap();
        for p in v["policies"].as_array_mut().unwrap() {
            p["decision_ms"] = Value::Null;
            p["decision_max_ms"] = Value::Null;
        }
        answers.push(v);
    }
    assert_eq!(answers[0], answers[1]);
    assert_eq!(answers[0]["policies"][0]["policy"], "threshold");
    assert_eq!(answers[0]["policies"][0]["parameter"], 0.7);
    assert_eq!(answers[0]["hosts"], 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_what_is_wrong_and_where() {
    let dir = tempfile::tempdir().unwrap();
    let bad = dir.path().join("bad.csv");
    std::fs::write(&bad, "vm,t0,t1\na,1,2\nb,1,much\n").unwrap();
    let bad = bad.to_str().unwrap();
    let good = trace(dir.path());
    let good = good.to_str().unwrap();
    for (args, code, text) in [
        (vec!["--traces", bad], 2, "bad.csv:3: 'much'"),
        (vec!["--traces", "/nonexistent.csv"], 3, "/nonexistent.csv"),
        (
            vec!["--traces", good, "--warm-up", "1d"],
            2,
            "40 steps of 300 s",
        ),
        (
            vec!["--traces", good, "--policy", "best"],
            2,
            "drover-no-model",
        ),
        (vec!["--traces", good, "--hosts", "1"], 2, "2..=10000"),
        (
            vec![
                "--traces",
                good,
                "--picture",
                "/nonexistent/p.svg",
                "--policy",
                "none",
            ],
            1,
            "/nonexistent/p.svg",
        ),
    ] {
        let mut all = vec!["simulate"];
        all.extend(args);
        let r = drover(&all).await;
        assert_eq!(r.code, code, "{all:?}: {}", r.err);
        assert!(r.err.contains(text), "{all:?}: {}", r.err);
    }
}
