//! `jobs`, `jobinfo`, and what `migrate` says on the way.

use std::collections::HashSet;
use std::io::{self, Write};

use super::super::screen::{Screen, Style, plain};
use super::super::table::{Cell, Table};
use super::super::time::{span, utc, utc_short};
use super::{NONE, bytes};
use crate::api::{Job, JobResult};

/// A result in a word.
pub fn result(r: JobResult) -> &'static str {
    match r {
        JobResult::Done => "done",
        JobResult::Canceled => "canceled",
        JobResult::Timeout => "timeout",
        JobResult::Failed => "failed",
        JobResult::Skipped => "skipped",
    }
}

fn route(j: &Job) -> (String, String) {
    (
        format!("{}/{}", j.from_host, j.from_domain),
        format!("{}/{}", j.to_host, j.to_domain),
    )
}

fn frozen(j: &Job) -> String {
    j.freeze_ms.map_or(NONE.to_owned(), |ms| format!("{ms} ms"))
}

fn lasted(j: &Job) -> String {
    j.ended_ms
        .map_or(NONE.to_owned(), |e| span((e - j.started_ms).max(0)))
}

/// Least number of characters, from 8, that tells the identifiers apart: enough for `jobinfo`.
fn short(jobs: &[Job]) -> usize {
    let longest = jobs.iter().map(|j| j.id.len()).max().unwrap_or(0);
    let apart = |n: usize| {
        let mut seen = HashSet::new();
        jobs.iter()
            .all(|j| seen.insert(j.id.get(..n).unwrap_or(&j.id)))
    };
    (8..longest).find(|n| apart(*n)).unwrap_or(longest)
}

/// `drover jobs`.
pub fn jobs(out: &mut dyn Write, jobs: &[Job], screen: &Screen) -> io::Result<()> {
    let short = short(jobs);
    let mut t = Table::new(&[
        "Id",
        "Feature",
        "From",
        "To",
        "State",
        ">Rounds",
        ">Sent",
        ">Frozen",
        "Started (UTC)",
        "Cause",
    ]);
    for j in jobs {
        let (from, to) = route(j);
        let state = match j.result {
            None => Cell::new(&j.state),
            Some(r @ (JobResult::Done | JobResult::Skipped)) => {
                Cell::styled(result(r), Style::Good)
            }
            Some(r) => Cell::styled(result(r), Style::Bad),
        };
        t.row(vec![
            Cell::new(j.id.get(..short).unwrap_or(&j.id)),
            Cell::new(j.feature.as_str()),
            from.into(),
            to.into(),
            state,
            j.rounds.to_string().into(),
            bytes(j.bytes_sent).into(),
            frozen(j).into(),
            utc_short(j.started_ms).into(),
            Cell::new(&j.cause),
        ]);
    }
    t.write(out, screen)
}

/// `drover jobinfo`.
pub fn info(out: &mut dyn Write, j: &Job, screen: &Screen) -> io::Result<()> {
    let (from, to) = route(j);
    let rounds = j.rounds.to_string();
    let sent = bytes(j.bytes_sent);
    let started = utc(j.started_ms, true);
    let ended = j.ended_ms.map_or(NONE.to_owned(), |e| utc(e, true));
    let pairs = [
        ("Id", j.id.as_str()),
        ("Feature", j.feature.as_str()),
        ("From", &from),
        ("To", &to),
        ("Cause", &j.cause),
        ("State", &j.state),
        ("Result", j.result.map_or(NONE, result)),
        ("Reason", j.reason.as_deref().unwrap_or(NONE)),
        ("Warning", j.detail.warning.as_deref().unwrap_or(NONE)),
        ("Method", j.detail.method.as_str()),
        ("Attempts", &attempts(j)),
        ("Rounds", &rounds),
        ("Sent", &sent),
        ("Frozen", &frozen(j)),
        ("Freeze", &parts(j)),
        ("Started", &started),
        ("Ended", &ended),
        ("Lasted", &lasted(j)),
    ];
    for (name, value) in pairs {
        writeln!(out, "{:<10}{}", format!("{name}:"), plain(value))?;
    }
    if j.history.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    let mut t = Table::new(&[
        ">Round",
        ">Sent",
        ">Pages written",
        ">Pages skipped",
        ">Time",
    ]);
    for r in &j.history {
        t.row(vec![
            r.round.to_string().into(),
            bytes(r.bytes).into(),
            r.pages_written.to_string().into(),
            r.pages_skipped.to_string().into(),
            span(i64::try_from(r.total_ms).unwrap_or(i64::MAX)).into(),
        ]);
    }
    t.write(out, screen)
}

/// How many attempts there were, and why those before the last were given up.
fn attempts(j: &Job) -> String {
    let d = &j.detail;
    let mut text = d.attempt.max(1).to_string();
    if !d.retried.is_empty() {
        text = format!("{text} (before: {})", d.retried.join("; "));
    }
    text
}

/// Where the freeze went, or how long it is expected to be.
fn parts(j: &Job) -> String {
    match (j.detail.freeze, j.detail.predicted_freeze_ms) {
        (Some(f), _) => format!(
            "dump {}, send {}, restore {}, commit {}, resume {} ms",
            f.dump_ms, f.send_ms, f.restore_ms, f.commit_ms, f.resume_ms
        ),
        (None, Some(ms)) => format!("predicted {ms} ms"),
        (None, None) => NONE.to_owned(),
    }
}

/// Where a move comes from and goes to.
pub fn arrow(j: &Job) -> String {
    let (from, to) = route(j);
    format!("{from} -> {to}")
}

/// Whether its memory is being sent, so that the bytes of the round say how it goes.
pub fn sends(j: &Job) -> bool {
    matches!(j.state.as_str(), "pre-copy" | "freezing")
}

/// How a move under way goes: state, rounds, bytes, the freeze that is expected.
pub fn how(j: &Job) -> String {
    let mut parts = vec![j.state.clone()];
    let d = &j.detail;
    if j.rounds > 0 {
        parts.push(format!("round {}, {} sent", j.rounds, bytes(j.bytes_sent)));
    }
    if d.round_total > 0 && sends(j) {
        parts.push(format!(
            "{} of {} of this round",
            bytes(d.round_sent.min(d.round_total)),
            bytes(d.round_total)
        ));
    }
    if d.attempt > 1 {
        parts.push(format!("attempt {}", d.attempt));
    }
    if d.throttle_percent > 0 {
        parts.push(format!("slowed down by {} %", d.throttle_percent));
    }
    if let Some(ms) = d.predicted_freeze_ms.filter(|_| d.freeze.is_none()) {
        parts.push(format!("freeze of {ms} ms predicted"));
    }
    parts.join(", ")
}

/// A move under way in a line.
pub fn progress(j: &Job) -> String {
    plain(&format!("{}: {}: {}", j.feature, arrow(j), how(j)))
}

/// A move that ended well in a sentence.
pub fn success(j: &Job) -> String {
    let (from, to) = route(j);
    let line = match j.result {
        Some(JobResult::Skipped) => format!(
            "Nothing to do for '{}' on {from}: {}",
            j.feature,
            j.reason.as_deref().unwrap_or("it is there already")
        ),
        _ => format!(
            "'{}' runs on {to}: frozen {}, {} rounds, {} sent, {} in all (move {})",
            j.feature,
            frozen(j),
            j.rounds,
            bytes(j.bytes_sent),
            lasted(j),
            j.id
        ),
    };
    plain(&line)
}

/// A move that did not end well in a sentence.
pub fn failure(j: &Job) -> String {
    let word = match j.result {
        Some(JobResult::Canceled) => "was canceled",
        Some(JobResult::Timeout) => "took too long",
        _ => "failed",
    };
    let (from, to) = route(j);
    let reason = j.reason.as_deref().unwrap_or("no reason given");
    plain(&format!(
        "the move of '{}' from {from} to {to} {word}: {reason}; see \"drover jobinfo {}\"",
        j.feature, j.id
    ))
}

#[cfg(test)]
mod tests {
    use super::super::testing::text;
    use super::*;
    use crate::api::RoundRow;
    use crate::feature::FeatureName;

    fn job() -> Job {
        Job {
            id: "0a1b2c3d-1".into(),
            feature: FeatureName::new("cache").unwrap(),
            from_host: "alpha".into(),
            from_domain: "web".into(),
            to_host: "beta".into(),
            to_domain: "web2".into(),
            cause: "manual".into(),
            state: "pre-copy".into(),
            result: None,
            reason: None,
            rounds: 2,
            bytes_sent: 3_145_728,
            freeze_ms: None,
            started_ms: 951_827_405_000,
            ended_ms: None,
            detail: crate::api::MoveDetail::default(),
            history: vec![RoundRow {
                round: 1,
                bytes: 2_097_152,
                pages_written: 512,
                pages_skipped: 3,
                total_ms: 250,
            }],
        }
    }

    #[test]
    fn lines() {
        assert_eq!(
            progress(&job()),
            "cache: alpha/web -> beta/web2: pre-copy, round 2, 3.0 MiB sent"
        );
        let mut j = job();
        j.result = Some(JobResult::Done);
        j.freeze_ms = Some(37);
        j.ended_ms = Some(j.started_ms + 1500);
        assert_eq!(
            success(&j),
            "'cache' runs on beta/web2: frozen 37 ms, 2 rounds, 3.0 MiB sent, 1.5 s in all (move 0a1b2c3d-1)"
        );
        j.result = Some(JobResult::Failed);
        j.reason = Some("criu:\ncannot".into());
        assert_eq!(
            failure(&j),
            "the move of 'cache' from alpha/web to beta/web2 failed: criu: cannot; see \"drover jobinfo 0a1b2c3d-1\""
        );
    }

    #[test]
    fn tables() {
        let out = text(|o, s| jobs(o, &[job()], s));
        assert_eq!(
            out.lines().nth(1).unwrap(),
            "0a1b2c3d  cache    alpha/web  beta/web2  pre-copy       2  3.0 MiB       -  2000-02-29 12:30:05  manual"
        );
        let mut other = job();
        other.id = "0a1b2c3d-2".into();
        assert_eq!(short(&[job(), other]), 10);
        let out = text(|o, s| info(o, &job(), s));
        assert!(out.contains("State:    pre-copy\n"), "{out}");
        assert!(
            out.contains("    1  2.0 MiB            512              3  250 ms\n"),
            "{out}"
        );
    }
}
