//! Who may do what. Reading is for all that the bus lets in, except for secrets; everything else
//! is a [`Verb`] with an action of polkit (`packaging/polkit/org.drover1.policy`).
//!
//! Root may do everything, whatever polkit says. Without polkit only root may.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use zbus::Connection;
use zbus::message::{Flags, Header};

use super::error::Error;
use super::polkit::{self, Answer};

/// What needs a right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    /// See arguments and environment of features.
    Inspect,
    /// Register a feature.
    Register,
    /// Remove a registration.
    Deregister,
    /// Start and meter.
    Enable,
    /// Stop.
    Disable,
    /// Set thresholds.
    Threshold,
    /// Begin a move.
    Move,
    /// Cancel a move.
    Cancel,
    /// Install the helper into a guest.
    GuestInstall,
    /// Remove the helper from a guest.
    GuestRemove,
    /// Empty a host, or end that.
    Drain,
    /// Read the configuration anew.
    Reload,
}

impl Verb {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Inspect,
        Self::Register,
        Self::Deregister,
        Self::Enable,
        Self::Disable,
        Self::Threshold,
        Self::Move,
        Self::Cancel,
        Self::GuestInstall,
        Self::GuestRemove,
        Self::Drain,
        Self::Reload,
    ];

    /// The action's name in polkit.
    pub fn action(self) -> &'static str {
        match self {
            Self::Inspect => "org.drover1.inspect",
            Self::Register => "org.drover1.register",
            Self::Deregister => "org.drover1.deregister",
            Self::Enable => "org.drover1.enable",
            Self::Disable => "org.drover1.disable",
            Self::Threshold => "org.drover1.threshold",
            Self::Move => "org.drover1.move",
            Self::Cancel => "org.drover1.cancel",
            Self::GuestInstall => "org.drover1.guest-install",
            Self::GuestRemove => "org.drover1.guest-remove",
            Self::Drain => "org.drover1.drain",
            Self::Reload => "org.drover1.reload",
        }
    }

    fn phrase(self) -> &'static str {
        match self {
            Self::Inspect => "see the environment of features",
            Self::Register => "define",
            Self::Deregister => "undefine",
            Self::Enable => "enable",
            Self::Disable => "disable",
            Self::Threshold => "set thresholds of",
            Self::Move => "migrate",
            Self::Cancel => "abort the move",
            Self::GuestInstall => "install the helper into",
            Self::GuestRemove => "remove the helper from",
            Self::Drain => "drain",
            Self::Reload => "reload the configuration",
        }
    }
}

/// A verb and its object, as details with names: polkit's rules can look at them.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Verb.
    pub verb: Verb,
    /// For instance `domain` and `feature`; their values, joined, name the object to people.
    pub details: &'a [(&'a str, &'a str)],
}

impl fmt::Display for Asked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.verb.phrase())?;
        let object: Vec<&str> = self.details.iter().map(|d| d.1).collect();
        if object.is_empty() {
            Ok(())
        } else {
            write!(f, " '{}'", object.join("/"))
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Rule {
    Users(Vec<u32>),
    Polkit { timeout: Duration },
}

/// The rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access(Rule);

/// Longest wait for polkit when nobody is asked for a password.
const POLKIT: Duration = Duration::from_secs(5);
/// Longest wait for somebody to give a password.
const INTERACTIVE: Duration = Duration::from_secs(120);

impl Access {
    /// Root, and whom polkit lets.
    pub fn polkit() -> Self {
        Self::polkit_within(POLKIT)
    }

    /// The same, with a limit of one's own for polkit's answer.
    pub fn polkit_within(timeout: Duration) -> Self {
        Self(Rule::Polkit { timeout })
    }

    /// The given users only.
    pub fn users(uids: &[u32]) -> Self {
        Self(Rule::Users(uids.to_vec()))
    }

    /// Asks the bus who sent `header`, and checks. `Refused` with the way out when they may not.
    pub async fn sender(
        &self,
        connection: &Connection,
        header: &Header<'_>,
        verb: Verb,
        details: &[(&str, &str)],
    ) -> Result<(), Error> {
        let asked = Asked { verb, details };
        let interactive = header
            .primary()
            .flags()
            .contains(Flags::ALLOW_INTERACTIVE_AUTH);
        let (uid, verdict) = self.decide(connection, header, asked, interactive).await;
        match &verdict {
            Ok(()) => {
                tracing::debug!(uid, action = verb.action(), %asked, "allowed on the bus");
            }
            Err(why) => {
                tracing::warn!(uid, action = verb.action(), %asked, %why, "refused on the bus");
            }
        }
        verdict
    }

    /// Whether the sender may see secrets; nobody is asked for a password for that.
    pub async fn may_inspect(&self, connection: &Connection, header: &Header<'_>) -> bool {
        let asked = Asked {
            verb: Verb::Inspect,
            details: &[],
        };
        let (uid, verdict) = self.decide(connection, header, asked, false).await;
        tracing::trace!(uid, may = verdict.is_ok(), "secrets asked for");
        verdict.is_ok()
    }

    async fn decide(
        &self,
        connection: &Connection,
        header: &Header<'_>,
        asked: Asked<'_>,
        interactive: bool,
    ) -> (Option<u32>, Result<(), Error>) {
        let Some(sender) = header.sender() else {
            return (None, Err(unknown(asked)));
        };
        let Some(uid) = user(connection, sender).await else {
            return (None, Err(unknown(asked)));
        };
        let timeout = match &self.0 {
            Rule::Users(uids) if uids.contains(&uid) => return (Some(uid), Ok(())),
            Rule::Users(_) => return (Some(uid), refused(uid, asked, "only root may")),
            Rule::Polkit { .. } if uid == 0 => return (Some(uid), Ok(())),
            Rule::Polkit { timeout } => *timeout,
        };
        let limit = if interactive { INTERACTIVE } else { timeout };
        let details: HashMap<&str, &str> = asked.details.iter().copied().collect();
        let action = asked.verb.action();
        let answer = polkit::check(
            connection,
            sender.as_str(),
            action,
            details,
            interactive,
            limit,
        )
        .await;
        (Some(uid), verdict(uid, asked, answer))
    }
}

fn verdict(uid: u32, asked: Asked<'_>, answer: Answer) -> Result<(), Error> {
    let action = asked.verb.action();
    match answer {
        Answer::Yes => Ok(()),
        Answer::No => refused(uid, asked, &format!("polkit does not grant {action}")),
        Answer::Challenge => refused(
            uid,
            asked,
            &format!("polkit grants {action} with a password only, and cannot ask for one here"),
        ),
        Answer::Absent => refused(uid, asked, "only root may, for polkit does not run here"),
        Answer::Silent(limit) => Err(Error::Timeout(format!(
            "user {uid} may not {asked}: polkit did not answer within {} s; see \"systemctl \
             status polkit\", or run it as root",
            limit.as_secs_f64()
        ))),
        Answer::Failed(why) => refused(uid, asked, &format!("polkit failed ({why})")),
    }
}

fn refused(uid: u32, asked: Asked<'_>, why: &str) -> Result<(), Error> {
    Err(Error::Refused(format!(
        "user {uid} may not {asked}: {why}; run it as root, for instance with sudo"
    )))
}

fn unknown(asked: Asked<'_>) -> Error {
    Error::Refused(format!(
        "an unknown user may not {asked}: the bus did not tell who asks"
    ))
}

/// The sender's user, `None` when the bus does not tell in time.
async fn user(connection: &Connection, sender: &zbus::names::UniqueName<'_>) -> Option<u32> {
    let asked = async {
        let bus = "org.freedesktop.DBus";
        let path = "/org/freedesktop/DBus";
        let method = "GetConnectionUnixUser";
        let reply = connection
            .call_method(Some(bus), path, Some(bus), method, sender)
            .await?;
        reply.body().deserialize::<u32>()
    };
    match tokio::time::timeout(Duration::from_secs(5), asked).await {
        Ok(Ok(uid)) => Some(uid),
        Ok(Err(error)) => {
            tracing::warn!(%error, "the bus does not tell the sender's user");
            None
        }
        Err(_) => {
            tracing::warn!("the bus did not tell the sender's user within 5 s");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_has_an_action_in_the_policy() {
        let policy = include_str!("../../packaging/polkit/org.drover1.policy");
        let listed = policy.matches("<action id=").count();
        assert_eq!(listed, Verb::ALL.len());
        for verb in Verb::ALL {
            let tag = format!("<action id=\"{}\">", verb.action());
            assert_eq!(policy.matches(&tag).count(), 1, "{tag}");
        }
    }

    #[test]
    fn refusals_name_user_verb_and_way_out() {
        let asked = Asked {
            verb: Verb::Enable,
            details: &[("domain", "web"), ("feature", "cache")],
        };
        assert_eq!(verdict(1000, asked, Answer::Yes), Ok(()));
        for (answer, part) in [
            (Answer::No, "does not grant org.drover1.enable"),
            (Answer::Challenge, "password"),
            (Answer::Absent, "only root may"),
            (Answer::Failed("x".into()), "(x)"),
        ] {
            let Err(Error::Refused(why)) = verdict(1000, asked, answer) else {
                panic!("not refused");
            };
            for part in ["user 1000 may not enable 'web/cache'", part, "sudo"] {
                assert!(why.contains(part), "{part}: {why}");
            }
        }
        let late = verdict(1000, asked, Answer::Silent(Duration::from_secs(5)));
        assert!(matches!(late, Err(Error::Timeout(_))));
    }
}
