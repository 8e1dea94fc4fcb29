//! How much a guest may say, and how what it says is trimmed. Pure.

use crate::sample::MeterFrame;
use crate::wire::guest::{Event, GuestStatus, Message, Preflight, Reply};

/// Frames per second that are not the answer to a call.
pub(super) const EVENTS_PER_S: f64 = 200.0;
/// Bytes per second on the control port.
pub(super) const BYTES_PER_S: f64 = (4 << 20) as f64;
/// Bytes per second on the bulk port that nobody wants, before the port is read more slowly.
pub(super) const UNWANTED_BYTES_PER_S: f64 = (32 << 20) as f64;
/// Seconds' worth that may come at once.
const BURST_S: f64 = 2.0;
/// Most features in a meter frame or a status.
const MAX_FEATURES: usize = 512;
/// Most entries of other lists.
const MAX_LIST: usize = 4096;
/// Longest message of an error, characters.
const MAX_MESSAGE: usize = 4096;
/// Longest short text (versions, names), characters.
const MAX_WORD: usize = 128;

/// A token bucket: an average rate with bursts of [`BURST_S`] seconds.
#[derive(Debug)]
pub(super) struct Bucket {
    rate: f64,
    tokens: f64,
    at_s: f64,
}

impl Bucket {
    /// A full bucket for `rate` per second at `now_s`.
    pub fn new(rate: f64, now_s: f64) -> Self {
        Self {
            rate,
            tokens: rate * BURST_S,
            at_s: now_s,
        }
    }

    /// Takes `n` at `now_s`; false when the rate is exceeded.
    pub fn take(&mut self, n: f64, now_s: f64) -> bool {
        let filled = self.tokens + (now_s - self.at_s).max(0.0) * self.rate;
        self.at_s = self.at_s.max(now_s);
        self.tokens = filled.min(self.rate * BURST_S) - n;
        self.tokens >= 0.0
    }
}

fn text(t: &mut String, most: usize) {
    // Line breaks stay in messages (criu's log), other control characters go.
    if t.len() > most || t.contains(|c: char| c.is_control() && c != '\n') {
        *t = t
            .chars()
            .filter(|c| !c.is_control() || *c == '\n')
            .take(most)
            .collect();
    }
}

fn words<'a>(list: impl IntoIterator<Item = &'a mut String>) {
    for t in list {
        text(t, MAX_WORD);
        t.retain(|c| c != '\n');
    }
}

/// Trims a message to what the rest of Drover may have to deal with.
pub(super) fn trim(message: &mut Message) {
    match message {
        Message::Response { reply, .. } => trim_reply(reply),
        Message::Event { event } => match event {
            Event::Meter(MeterFrame { features, .. }) => features.truncate(MAX_FEATURES),
            Event::Exited { status, .. } => words([status]),
            Event::Started | Event::Progress { .. } => {}
        },
    }
}

fn trim_reply(reply: &mut Reply) {
    match reply {
        Reply::Hello {
            version, boot_id, ..
        } => words([version, boot_id]),
        Reply::Status(GuestStatus { features, moves }) => {
            features.truncate(MAX_FEATURES);
            moves.truncate(MAX_FEATURES);
        }
        Reply::Capabilities {
            kernel,
            criu,
            criu_problem,
            cpu_flags,
            systemd,
        } => {
            words([kernel, criu, cpu_flags, systemd]);
            text(criu_problem, MAX_MESSAGE);
        }
        Reply::Preflight(Preflight {
            problems, files, ..
        }) => {
            problems.truncate(MAX_LIST);
            for p in problems {
                text(p, MAX_MESSAGE);
            }
            files.truncate(MAX_LIST);
            for f in files {
                text(&mut f.path, MAX_MESSAGE);
            }
        }
        Reply::Error { message, .. } => text(message, MAX_MESSAGE),
        Reply::Done | Reply::Round(_) | Reply::Ready { .. } | Reply::Running { .. } => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_lets_the_average_through() {
        let mut b = Bucket::new(10.0, 0.0);
        assert!((0..20).all(|_| b.take(1.0, 0.0)), "burst");
        assert!(!b.take(1.0, 0.0), "more than the burst");
        let mut b = Bucket::new(10.0, 0.0);
        assert!((0..1000).all(|i| b.take(1.0, i as f64 * 0.1)), "average");
        // A clock that goes back fills nothing.
        let mut b = Bucket::new(1.0, 100.0);
        assert!(b.take(2.0, 0.0) && !b.take(1.0, 50.0));
    }

    #[test]
    fn texts_are_cut_and_cleaned() {
        let mut m = Message::Response {
            id: 1,
            reply: Reply::Error {
                kind: crate::wire::guest::ErrorKind::Failed,
                message: format!("a\x1b[31m\nb{}", "ä".repeat(9000)),
            },
        };
        trim(&mut m);
        let Message::Response {
            reply: Reply::Error { message, .. },
            ..
        } = m
        else {
            panic!()
        };
        assert!(message.starts_with("a[31m\nbä"));
        assert_eq!(message.chars().count(), MAX_MESSAGE);
    }
}
