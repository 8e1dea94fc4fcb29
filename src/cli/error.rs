//! Errors of the command line and their exit codes.

use std::io;
use std::time::Duration;

use crate::dbus::DbusError;

/// Why a command did not do what was asked. The text names the thing and the next step.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// It failed.
    #[error("{0}")]
    Failed(String),
    /// What was given cannot be right.
    #[error("{0}")]
    Usage(String),
    /// Not there.
    #[error("{0}")]
    NotFound(String),
    /// Refused, or not now.
    #[error("{0}")]
    Refused(String),
    /// No answer in time.
    #[error("{0}")]
    Timeout(String),
    /// A move was canceled.
    #[error("{0}")]
    Canceled(String),
    /// `doctor` found warnings and nothing worse.
    #[error("there are warnings")]
    Warnings,
    /// `doctor` found errors.
    #[error("there are errors")]
    Unwell,
    /// Standard output cannot be written.
    #[error("cannot write to standard output: {0}")]
    Output(#[source] io::Error),
}

impl From<io::Error> for CliError {
    /// Commands write to standard output with `?`; other files map their errors themselves.
    fn from(e: io::Error) -> Self {
        Self::Output(e)
    }
}

impl CliError {
    /// The exit code, as `drover --help` documents it.
    pub fn code(&self) -> u8 {
        match self {
            Self::Output(_) if self.is_closed_pipe() => 0,
            Self::Failed(_) | Self::Output(_) | Self::Unwell => 1,
            Self::Usage(_) => 2,
            Self::NotFound(_) => 3,
            Self::Refused(_) => 4,
            Self::Timeout(_) => 5,
            Self::Canceled(_) => 6,
            Self::Warnings => 7,
        }
    }

    /// Whether the reader of standard output went away, as `head` does.
    pub fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Output(e) if e.kind() == io::ErrorKind::BrokenPipe)
    }

    /// Whether nothing is to be said on standard error: nobody reads, or the output said it.
    pub fn is_told(&self) -> bool {
        self.is_closed_pipe() || matches!(self, Self::Warnings | Self::Unwell)
    }

    /// What a failed call means for the user; `timeout` is the longest wait of the call.
    pub fn from_bus(e: &zbus::Error, timeout: Duration) -> Self {
        match e {
            zbus::Error::MethodError(name, text, _) => {
                let text = text.clone().unwrap_or_else(|| name.to_string());
                match name.strip_prefix("org.drover1.Error.") {
                    Some("NotFound") => Self::NotFound(with_hint(
                        text,
                        "\"drover list\" and \"drover jobs\" show what is there",
                    )),
                    Some("Invalid") => Self::Usage(text),
                    Some("Refused") => Self::Refused(text),
                    Some("Busy") => {
                        Self::Refused(with_hint(text, "\"drover jobs\" shows what is under way"))
                    }
                    Some("Timeout") => Self::Timeout(text),
                    Some(_) => Self::Failed(format!("{text}; see \"journalctl -u droverd\"")),
                    None => Self::Failed(format!("{name}: {text}")),
                }
            }
            zbus::Error::FDO(f) => Self::from_fdo(f, timeout),
            zbus::Error::InputOutput(io) if io.kind() == io::ErrorKind::TimedOut => {
                Self::no_answer(timeout)
            }
            e => Self::Failed(format!(
                "the connection to droverd failed: {e}; see \"systemctl status droverd\""
            )),
        }
    }

    fn from_fdo(e: &zbus::fdo::Error, timeout: Duration) -> Self {
        use zbus::fdo::Error as F;
        match e {
            F::ServiceUnknown(_) | F::NameHasNoOwner(_) => Self::not_running(),
            F::AccessDenied(_) | F::AuthFailed(_) => Self::Refused(
                "the bus does not let this user do that: run it as root, for instance with sudo"
                    .to_owned(),
            ),
            F::Timeout(_) | F::TimedOut(_) => Self::no_answer(timeout),
            F::NoReply(_) | F::Disconnected(_) => Self::Failed(
                "droverd stopped before it answered; see \"systemctl status droverd\"".to_owned(),
            ),
            F::UnknownMethod(t) | F::UnknownInterface(t) | F::UnknownProperty(t) => Self::Failed(
                format!("droverd does not know this: {t}; compare with \"drover version\""),
            ),
            e => Self::Failed(format!("{e}; see \"systemctl status droverd\"")),
        }
    }

    fn no_answer(timeout: Duration) -> Self {
        Self::Timeout(format!(
            "droverd did not answer within {} s; see \"systemctl status droverd\" or give a longer --timeout",
            timeout.as_secs_f64()
        ))
    }

    /// The daemon is not on the bus.
    pub fn not_running() -> Self {
        Self::Failed(
            "droverd is not running on this host; see \"systemctl status droverd\"".to_owned(),
        )
    }
}

impl From<DbusError> for CliError {
    fn from(e: DbusError) -> Self {
        match e {
            DbusError::Connect { bus, source } => Self::Failed(format!(
                "cannot connect to the {bus}: {source}; see \"systemctl status dbus\""
            )),
            e => Self::Failed(e.to_string()),
        }
    }
}

/// Adds where to look, unless the daemon's message names a command already.
fn with_hint(text: String, hint: &str) -> String {
    if text.contains("'drover ") || text.contains("'virsh ") {
        text
    } else {
        format!("{text}; {hint}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fdo_errors() {
        let t = Duration::from_secs(30);
        let of = |e: zbus::fdo::Error| CliError::from_bus(&zbus::Error::FDO(Box::new(e)), t);
        let e = of(zbus::fdo::Error::ServiceUnknown("x".into()));
        assert_eq!(e.code(), 1);
        assert!(e.to_string().contains("systemctl status droverd"), "{e}");
        assert_eq!(of(zbus::fdo::Error::AccessDenied("x".into())).code(), 4);
        let io = io::Error::from(io::ErrorKind::TimedOut);
        let e = CliError::from_bus(&zbus::Error::InputOutput(io.into()), t);
        assert_eq!(e.code(), 5);
        assert!(e.to_string().contains("30 s"), "{e}");
    }

    #[test]
    fn closed_pipe_is_no_failure() {
        assert_eq!(CliError::Output(io::ErrorKind::BrokenPipe.into()).code(), 0);
        assert_eq!(
            CliError::Output(io::ErrorKind::StorageFull.into()).code(),
            1
        );
    }
}
