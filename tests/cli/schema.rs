//! The JSON output is what docs/json.md says: every value that it lists is there, of its type.
//! New ones may be added; `DROVER_BLESS=1` writes the page anew.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use serde_json::Value;

use crate::dbus_support::{Fake, job, managed, served};
use crate::support::{drover, good};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/json.md");

/// Commands as they are run, and as the page calls them.
const COMMANDS: [&[&str]; 22] = [
    &["list"],
    &["stats"],
    &["dumpfile", "web", "cache"],
    &["define", "FILE", "--domain", "web"],
    &["enable", "web", "cache"],
    &["disable", "web", "cache"],
    &["threshold", "web", "cache"],
    &["history", "web", "cache"],
    &["forecast", "web", "cache"],
    &["plan", "web", "cache"],
    &["check", "web", "cache", "--rehearse"],
    &["migrate", "web", "same"],
    &["jobs"],
    &["jobinfo", "aaaaaaaa"],
    &["jobabort", "bbbbbbbb"],
    &["hosts"],
    &["guest", "status", "web"],
    &["guest", "install", "web"],
    &["reload"],
    &["config", "check", "CONFIG"],
    &["simulate", "--traces", "TRACE"],
    &["version"],
];

fn kind(v: &Value) -> &'static str {
    match v {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "text",
        Value::Array(_) => "list",
        Value::Object(_) => "object",
    }
}

/// Paths of all values with their types; of lists all elements together.
fn flat(at: &str, v: &Value, out: &mut BTreeMap<String, &'static str>) {
    match v {
        Value::Object(map) => {
            for (key, v) in map {
                let dot = if at.is_empty() { "" } else { "." };
                flat(&format!("{at}{dot}{key}"), v, out);
            }
        }
        Value::Array(list) if !list.is_empty() => {
            for v in list {
                flat(&format!("{at}[]"), v, out);
            }
        }
        v => {
            let known = out.entry(at.to_owned()).or_insert("null");
            if *known == "null" {
                *known = kind(v);
            }
        }
    }
}

/// Sections of the page: command, then path and type.
fn sections(page: &str) -> BTreeMap<String, Vec<(String, String)>> {
    let mut found: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    let mut current = String::new();
    for line in page.lines() {
        if let Some(name) = line.strip_prefix("## drover ") {
            name.clone_into(&mut current);
            found.entry(current.clone()).or_default();
        } else if let Some((path, kind)) = line.split_once("  ")
            && !current.is_empty()
            && !line.starts_with(' ')
        {
            let entry = (path.to_owned(), kind.trim().to_owned());
            found.entry(current.clone()).or_default().push(entry);
        }
    }
    found
}

fn prepare(fake: &Fake) {
    fake.features.lock().unwrap()[0].spec = managed("cache", "x");
    let spec = &mut fake.features.lock().unwrap()[0].spec;
    spec.thresholds = vec![drover::threshold::parse("cpu > 80 % for 10 s").unwrap()];
    let mut old = job("aaaaaaaa-1", "cache");
    old.history = vec![drover::api::RoundRow::default()];
    fake.tell(&old);
    fake.tell(&job("bbbbbbbb-1", "mail"));
}

#[tokio::test(flavor = "multi_thread")]
async fn output_is_as_documented() {
    let (bus, fake, _service) = served().await;
    prepare(&fake);
    let dir = tempfile::tempdir().unwrap();
    let (file, config) = (dir.path().join("f.json"), dir.path().join("c.toml"));
    let spec = serde_json::to_string(&managed("mail", "x")).unwrap();
    std::fs::write(&file, spec).unwrap();
    std::fs::write(&config, "[host]\nname = 'a'\n").unwrap();
    let trace = dir.path().join("trace.csv");
    let heading: Vec<String> = (0..20).map(|t| format!(",t{t}")).collect();
    let heading = heading.concat();
    let row = ",50".repeat(20);
    std::fs::write(&trace, format!("vm{heading}\na{row}\nb{row}\n")).unwrap();
    // The objects follow the events.
    while drover(&bus, &["jobabort", "bbbbbbbb"]).await.code != 0 {}
    fake.calls.lock().unwrap().clear();
    fake.tell(&job("bbbbbbbb-2", "mail"));
    let mut seen = BTreeMap::new();
    for command in COMMANDS {
        let replace = |a: &&str| match *a {
            "FILE" => file.to_str().unwrap().to_owned(),
            "CONFIG" => config.to_str().unwrap().to_owned(),
            "TRACE" => trace.to_str().unwrap().to_owned(),
            "bbbbbbbb" => "bbbbbbbb-2".to_owned(),
            a => a.to_owned(),
        };
        let mut args = vec!["--format".to_owned(), "json".to_owned()];
        args.extend(command.iter().map(replace));
        if command[0] == "reload" {
            fake.calls.lock().unwrap().clear();
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let text = good(&bus, &args).await;
        let mut paths = BTreeMap::new();
        flat("", &serde_json::from_str(&text).unwrap(), &mut paths);
        seen.insert(command.join(" "), paths);
    }
    let page = std::fs::read_to_string(PAGE).unwrap_or_default();
    if std::env::var_os("DROVER_BLESS").is_some() {
        bless(&page, &seen);
        return;
    }
    let documented = sections(&page);
    for (command, paths) in &seen {
        let listed = documented
            .get(command)
            .unwrap_or_else(|| panic!("{command} is not in docs/json.md"));
        assert!(!listed.is_empty(), "{command}");
        for (path, kind) in listed {
            let there = paths
                .get(path)
                .unwrap_or_else(|| panic!("drover {command}: {path} is gone from the output"));
            let same = *there == kind || *there == "null" || kind == "null";
            assert!(same, "drover {command}: {path} is {there}, not {kind}");
        }
    }
}

fn bless(page: &str, seen: &BTreeMap<String, BTreeMap<String, &'static str>>) {
    let mut text = page
        .split("## drover ")
        .next()
        .unwrap_or_default()
        .to_owned();
    for command in COMMANDS {
        let name = command.join(" ");
        writeln!(text, "## drover {name}\n\n```text").unwrap();
        let width = seen[&name].keys().map(String::len).max().unwrap_or(0);
        for (path, kind) in &seen[&name] {
            writeln!(text, "{path:width$}  {kind}").unwrap();
        }
        text.push_str("```\n\n");
    }
    std::fs::write(Path::new(PAGE), text.trim_end().to_owned() + "\n").unwrap();
}
