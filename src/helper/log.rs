//! Log output of the helper: one line per event on standard error, with the priority prefix that
//! journald understands (sd-daemon(3)). No filter syntax: `DROVER_LOG` names the level.

use std::fmt::{self, Write as _};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// Writes events up to a level to standard error.
struct Journal(LevelFilter);

/// Installs the log output; the level is that of `DROVER_LOG`, by default `info`.
pub fn install() {
    let level = std::env::var("DROVER_LOG")
        .ok()
        .and_then(|l| l.parse().ok())
        .unwrap_or(LevelFilter::INFO);
    // Fails only when one is installed already, which then goes on.
    let _ = tracing::subscriber::set_global_default(Journal(level));
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = if field.name() == "message" {
            write!(self.0, "{value:?}")
        } else {
            write!(self.0, " {}={value:?}", field.name())
        };
    }
}

impl Subscriber for Journal {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.0
    }
    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.0)
    }
    fn event(&self, event: &Event<'_>) {
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        let mut line = Line(String::new());
        event.record(&mut line);
        eprintln!("<{priority}>{}", line.0.replace('\n', " "));
    }
    // Spans are not used in the helper.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}
