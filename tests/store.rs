//! The state file: registry, journal, jobs, settings; transactions; kill -9; damage.
#![cfg(feature = "daemon")]
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use drover::api::{Job, JobResult};
use drover::feature::{FeatureName, FeatureSpec, Workload};
use drover::store::{Change, FeatureRecord, JOBS_KEPT, Side, Store, StoreError};

fn name(n: &str) -> FeatureName {
    FeatureName::new(n).unwrap()
}

fn feature(n: &str) -> FeatureRecord {
    FeatureRecord {
        domain: "guest-a".into(),
        spec: FeatureSpec {
            group: "shop".into(),
            ..FeatureSpec::new(
                name(n),
                Workload::Unit {
                    unit: format!("{n}.service"),
                },
            )
        },
        enabled: true,
        moved_at_ms: 0,
    }
}

fn job(n: i64) -> Job {
    Job {
        id: format!("0000-{n:08}"),
        feature: name("cache"),
        from_host: "h1".into(),
        from_domain: "a".into(),
        to_host: "h2".into(),
        to_domain: "b".into(),
        cause: "manual".into(),
        state: "done".into(),
        result: Some(JobResult::Done),
        reason: None,
        rounds: 2,
        bytes_sent: 10,
        freeze_ms: Some(30),
        started_ms: n,
        ended_ms: Some(n + 5),
        history: vec![],
        detail: drover::api::MoveDetail::default(),
    }
}

#[test]
fn round_trips() {
    let dir = tempfile::tempdir().unwrap();
    let id = "0123-4567".to_owned();
    for round in 0..2 {
        let s = Store::open(dir.path()).unwrap();
        assert!(matches!(Store::open(dir.path()), Err(StoreError::InUse(_))));
        if round == 0 {
            s.put_feature("uuid-1", &feature("cache")).unwrap();
            s.put_feature("uuid-1", &feature("search")).unwrap();
            s.put_feature("uuid-2", &feature("cache")).unwrap();
            s.remove_feature("uuid-1", &name("search")).unwrap();
            s.remove_feature("uuid-1", &name("never-there")).unwrap();
            s.put_move(Side::Source, &id, b"{}").unwrap();
            s.put_move(Side::Source, &id, b"{\"state\":1}").unwrap();
            s.put_job(&job(1)).unwrap();
            s.put("model", &[1, 2, 3]).unwrap();
            s.put("gone", &[]).unwrap();
            s.remove("gone").unwrap();
        }
        let features = s.features().unwrap();
        assert_eq!(
            features,
            [
                ("uuid-1".to_owned(), feature("cache")),
                ("uuid-2".to_owned(), feature("cache"))
            ]
        );
        assert_eq!(s.features_of("uuid-2").unwrap(), [feature("cache")]);
        assert_eq!(s.features_of("uuid-").unwrap(), [], "of this one alone");
        assert_eq!(
            s.moves(Side::Source).unwrap(),
            [(id.clone(), b"{\"state\":1}".to_vec())]
        );
        assert_eq!(s.moves(Side::Target).unwrap(), []);
        assert_eq!(s.jobs(9).unwrap(), [job(1)]);
        assert_eq!(s.get("model").unwrap(), Some(vec![1, 2, 3]));
        assert_eq!(s.get("gone").unwrap(), None);
        assert_eq!(s.problems(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_transaction_is_whole_or_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let s = Store::open(dir.path()).unwrap();
    let id = "0123-4567".to_owned();
    s.put_feature("u", &feature("cache")).unwrap();
    let committed = Change::PutMove {
        side: Side::Source,
        id: id.clone(),
        record: b"committed".to_vec(),
    };
    let bad = Change::PutFeature {
        domain_uuid: String::new(),
        record: Box::new(feature("cache")),
    };
    let e = s.transaction(vec![committed.clone(), bad]).unwrap_err();
    assert!(matches!(e, StoreError::Invalid { .. }), "{e}");
    assert_eq!(s.moves(Side::Source).unwrap(), []);
    let remove = Change::RemoveFeature {
        domain_uuid: "u".into(),
        name: name("cache"),
    };
    s.run(move |s| s.transaction(vec![remove, committed]))
        .await
        .unwrap();
    assert_eq!(s.features().unwrap(), []);
    assert_eq!(
        s.moves(Side::Source).unwrap(),
        [(id, b"committed".to_vec())]
    );
}

#[test]
fn the_newest_jobs_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let s = Store::open(dir.path()).unwrap();
    let most = i64::try_from(JOBS_KEPT).unwrap();
    let changes = (0..most + 20)
        .map(|n| Change::PutJob(Box::new(job(n))))
        .collect();
    s.transaction(changes).unwrap();
    s.put_job(&job(most + 20)).unwrap();
    let mut again = job(most + 20);
    again.rounds = 7;
    s.put_job(&again).unwrap();
    let jobs = s.jobs(usize::MAX).unwrap();
    assert_eq!(jobs.len(), JOBS_KEPT);
    assert_eq!(jobs[0], again);
    assert_eq!(jobs[1].started_ms, most + 19);
    assert_eq!(jobs[JOBS_KEPT - 1].started_ms, 21);
    assert_eq!(s.jobs(3).unwrap().len(), 3);
}

#[test]
fn killed_it_keeps_what_was_acknowledged() {
    if let Ok(dir) = std::env::var("DROVER_TEST_DIR") {
        let mut n: u64 = std::env::var("DROVER_TEST_FROM").unwrap().parse().unwrap();
        let s = Store::open(Path::new(&dir)).unwrap();
        loop {
            let feature = feature(&format!("f{}", n % 50));
            s.transaction(vec![
                Change::PutMove {
                    side: Side::Source,
                    id: "current".into(),
                    record: n.to_le_bytes().to_vec(),
                },
                Change::PutSetting {
                    key: "twin".into(),
                    value: n.to_le_bytes().to_vec(),
                },
                Change::PutFeature {
                    domain_uuid: format!("u{n}"),
                    record: Box::new(feature),
                },
            ])
            .unwrap();
            writeln!(std::io::stdout(), "ACKNOWLEDGED {n}").unwrap();
            n += 1;
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let mut from = 0;
    for round in 0..8u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "killed_it_keeps_what_was_acknowledged",
                "--nocapture",
            ])
            .env("DROVER_TEST_DIR", dir.path())
            .env("DROVER_TEST_FROM", from.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let number =
            |l: std::io::Result<String>| l.ok()?.strip_prefix("ACKNOWLEDGED ")?.parse::<u64>().ok();
        let first = lines.by_ref().filter_map(number).nth(9).unwrap();
        std::thread::sleep(Duration::from_millis(10 + round * 61 % 300));
        child.kill().unwrap();
        let last = lines.filter_map(number).fold(first, u64::max);
        child.wait().unwrap();

        let s = Store::open(dir.path()).unwrap();
        let moves = s.moves(Side::Source).unwrap();
        let journal = u64::from_le_bytes(moves[0].1.as_slice().try_into().unwrap());
        // At most the one change that was not acknowledged any more is there too, as a whole.
        assert!(
            journal == last || journal == last + 1,
            "round {round}: {journal} {last}"
        );
        assert_eq!(s.get("twin").unwrap().unwrap(), journal.to_le_bytes());
        assert_eq!(s.features().unwrap().len() as u64, journal + 1);
        assert_eq!(s.problems(), Vec::<String>::new());
        from = journal + 1;
    }
    println!("{from} transactions in 8 rounds");
    assert!(
        from >= 80,
        "only {from} transactions: too few to show anything"
    );
}

/// Flips the first occurrence of `needle` in a file.
fn flip(path: &Path, needle: &[u8]) -> usize {
    let mut bytes = fs::read(path).unwrap();
    let hits: Vec<usize> = (0..bytes.len() - needle.len())
        .filter(|i| bytes[*i..].starts_with(needle))
        .collect();
    for at in &hits {
        bytes[*at] ^= 2;
    }
    fs::write(path, bytes).unwrap();
    hits.len()
}

#[test]
fn a_damaged_record_is_named_and_hides_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let ids: Vec<String> = (0..5).map(|n| format!("aaaa-000{n}")).collect();
    let s = Store::open(dir.path()).unwrap();
    for id in &ids {
        s.put_move(Side::Target, id, format!("content of {id}!").as_bytes())
            .unwrap();
    }
    s.put("model", b"weights of the model").unwrap();
    drop(s);
    let path = dir.path().join("state.redb");
    assert!(flip(&path, b"content of aaaa-0003!") > 0);
    assert!(flip(&path, b"weights of the model") > 0);
    let s = Store::open(dir.path()).unwrap();
    let left: Vec<String> = s
        .moves(Side::Target)
        .unwrap()
        .into_iter()
        .map(|m| m.0)
        .collect();
    assert_eq!(left, [&ids[0][..], &ids[1], &ids[2], &ids[4]]);
    assert_eq!(s.damaged_moves(Side::Target).unwrap(), [ids[3].clone()]);
    let e = s.get("model").unwrap_err();
    assert!(
        e.to_string().ends_with("settings 'model' is damaged"),
        "{e}"
    );
    let problems = s.problems().join("\n");
    assert!(
        problems.contains("moves_target 'aaaa-0003' is damaged"),
        "{problems}"
    );
    // Written anew it is whole.
    s.put("model", b"new").unwrap();
    s.remove_move(Side::Target, &ids[3]).unwrap();
    assert_eq!(s.get("model").unwrap(), Some(b"new".to_vec()));
    assert_eq!(s.damaged_moves(Side::Target).unwrap(), Vec::<String>::new());
}

#[test]
fn any_damage_is_survived_and_nothing_wrong_is_read() {
    let base = tempfile::tempdir().unwrap();
    let origin = base.path().join("origin");
    let s = Store::open(&origin).unwrap();
    let content = |n: usize| format!("value-{n}").repeat(20).into_bytes();
    for n in 0..60 {
        s.put(&format!("key-{n}"), &content(n)).unwrap();
        s.put_move(Side::Target, &format!("{n:08}"), &content(n))
            .unwrap();
    }
    drop(s);
    let whole = fs::read(origin.join("state.redb")).unwrap();
    let mut seed = 11u64;
    let mut random = move |n: usize| {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % n
    };
    let (mut set_aside, mut left_out) = (0, 0);
    for trial in 0..60 {
        let dir = base.path().join(format!("trial-{trial}"));
        fs::create_dir(&dir).unwrap();
        let mut bytes = whole.clone();
        match trial % 4 {
            0 => bytes.truncate(random(whole.len())),
            // The header and the first pages.
            1 => bytes[random(512)] ^= 1 << random(8),
            _ => {
                for _ in 0..20 {
                    let at = random(whole.len());
                    bytes[at] ^= 1 << random(8);
                }
            }
        }
        fs::write(dir.join("state.redb"), bytes).unwrap();
        let s = Store::open(&dir).unwrap();
        let (mut missing, mut errors) = (0, 0);
        for n in 0..60 {
            match s.get(&format!("key-{n}")) {
                Ok(Some(v)) => assert_eq!(v, content(n)),
                Ok(None) => missing += 1,
                Err(_) => errors += 1,
            }
        }
        match s.moves(Side::Target) {
            Ok(moves) => {
                for (id, v) in &moves {
                    assert_eq!(*v, content(id.parse().unwrap()));
                }
                missing += 60 - moves.len();
            }
            Err(_) => errors += 1,
        }
        let named = !s.problems().is_empty();
        assert!(
            missing == 0 || named,
            "trial {trial}: {missing} records missing, and not a word"
        );
        left_out += missing + errors;
        let aside = dir.join("state.redb.broken-1").exists();
        assert_eq!(aside, s.problems().iter().any(|p| p.contains("begun anew")));
        set_aside += usize::from(aside);
        // A file set aside leaves a new one that works.
        if aside {
            s.put("new", b"1").unwrap();
            assert_eq!(s.get("new").unwrap(), Some(b"1".to_vec()));
        }
        drop(s);
        fs::remove_dir_all(&dir).unwrap();
    }
    println!("60 damaged files: {set_aside} set aside, {left_out} records left out");
    assert!(set_aside > 0 && left_out > 0);
}
