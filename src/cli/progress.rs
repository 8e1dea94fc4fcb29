//! Progress of what is long: one line at the bottom of the terminal that standard error is.
//! Anywhere else it is quiet, so that scripts and logs see results only.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::screen::plain;
use super::views::jobs;
use crate::api::Job;

/// Time between two drawings while nothing comes.
const TICK: Duration = Duration::from_millis(200);
/// Drawings per second, at most.
const HZ: u8 = 15;
/// Columns below which the bar is left out.
const NARROW: usize = 60;

/// What there is to show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// What is being done.
    pub what: String,
    /// Done and all, in any unit; `None` while nobody knows how much there is.
    pub part: Option<(u64, u64)>,
    /// How it goes.
    pub how: String,
}

/// The line.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    /// Whether the line has a bar now; `None` before anything was shown.
    measured: Option<bool>,
    narrow: bool,
}

impl Progress {
    /// On standard error, if that is a terminal that can be written over.
    pub fn new() -> Self {
        let dumb = std::env::var_os("TERM").is_none_or(|t| t == "dumb");
        let target = if std::io::stderr().is_terminal() && !dumb {
            ProgressDrawTarget::stderr_with_hz(HZ)
        } else {
            ProgressDrawTarget::hidden()
        };
        let narrow = super::screen::error_width().is_some_and(|w| w < NARROW);
        Self {
            bar: ProgressBar::with_draw_target(None, target),
            measured: None,
            narrow,
        }
    }

    /// Whether anybody sees it.
    pub fn visible(&self) -> bool {
        !self.bar.is_hidden()
    }

    /// Shows how it stands.
    pub fn show(&mut self, shown: &Shown) {
        let measured = shown.part.is_some();
        if self.measured != Some(measured) {
            self.bar.set_style(style(measured, self.narrow));
            if self.measured.is_none() {
                self.bar.enable_steady_tick(TICK);
            }
            self.measured = Some(measured);
        }
        if let Some((done, all)) = shown.part {
            self.bar.set_length(all.max(1));
            self.bar.set_position(done.min(all));
        }
        self.bar.set_prefix(plain(&shown.what));
        self.bar.set_message(plain(&shown.how));
    }

    /// Writes something else meanwhile, above the line.
    pub fn aside<T>(&self, write: impl FnOnce() -> T) -> T {
        self.bar.suspend(write)
    }

    /// Takes the line away.
    pub fn end(&mut self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}

fn template(measured: bool, narrow: bool) -> &'static str {
    match (measured, narrow) {
        (true, false) => "{prefix}: [{bar:20}] {percent:>3} % {wide_msg}",
        (true, true) => "{percent:>3} % {wide_msg}",
        (false, false) => "{prefix}: {spinner} {elapsed} {wide_msg}",
        (false, true) => "{spinner} {wide_msg}",
    }
}

fn style(measured: bool, narrow: bool) -> ProgressStyle {
    // The templates are constants, and a test takes each.
    ProgressStyle::with_template(template(measured, narrow))
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
        .tick_chars("-\\|/ ")
}

/// A move under way.
pub fn of_move(job: &Job) -> Shown {
    let d = &job.detail;
    let counted = d.round_total > 0 && jobs::sends(job);
    Shown {
        what: format!("{} {}", job.feature, jobs::arrow(job)),
        part: counted.then_some((d.round_sent, d.round_total)),
        how: jobs::how(job),
    }
}

/// A copy that the daemon tells in words, `copied 3 of 5.1 MiB`, and any other step.
pub fn of_words(what: &str, words: &str) -> Shown {
    let part = words.strip_prefix("copied ").and_then(|rest| {
        let (done, rest) = rest.split_once(" of ")?;
        let all = rest.strip_suffix(" MiB")?;
        let tenths = |t: &str| t.parse::<f64>().ok().map(|v| (v * 10.0).round() as u64);
        Some((tenths(done)?, tenths(all)?))
    });
    Shown {
        what: what.to_owned(),
        part,
        how: words.to_owned(),
    }
}

/// Waits for an answer, and says what for when it takes longer than a second.
pub async fn waiting<T>(what: &str, answer: impl Future<Output = T>) -> T {
    let mut answer = std::pin::pin!(answer);
    if let Ok(done) = tokio::time::timeout(Duration::from_secs(1), &mut answer).await {
        return done;
    }
    let mut progress = Progress::new();
    progress.show(&Shown {
        what: what.to_owned(),
        part: None,
        how: String::new(),
    });
    answer.await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_understood() {
        for measured in [false, true] {
            for narrow in [false, true] {
                ProgressStyle::with_template(template(measured, narrow)).unwrap();
            }
        }
    }

    #[test]
    fn words_of_a_copy_are_a_part() {
        let s = of_words("install", "copied 3 of 5.1 MiB");
        assert_eq!(s.part, Some((30, 51)));
        assert_eq!(of_words("install", "plugging in the ports").part, None);
    }
}
