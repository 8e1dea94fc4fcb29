//! How a feature moves, and the commands of its user that a move runs in the guests.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::feature::HIDDEN;

/// How a feature is moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Its processes move as they are, with memory and connections.
    #[default]
    Live,
    /// A second instance starts at the target beside the running one; then the address changes
    /// hands. Connections are drained, then cut.
    Handover,
    /// It is stopped, its state moves, it is started at the target. Connections are cut.
    Restart,
}

impl Method {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Live, Self::Handover, Self::Restart];

    /// Name as written in definitions.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Handover => "handover",
            Self::Restart => "restart",
        }
    }
}

impl std::fmt::Display for Method {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Method {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|m| m.as_str() == s)
            .ok_or_else(|| format!("no method '{s}': use live, handover or restart"))
    }
}

/// When a command is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HookName {
    /// At the source before the first round; with `handover` also at the target, once the second
    /// instance runs. Failing fails the move.
    Prepare,
    /// At the source right before the freeze. Failing fails the move.
    Quiesce,
    /// At the target: before the commit and with the network still closed, unless the move is
    /// live; then right after it runs there.
    Resume,
    /// At the source after a move that was given up.
    Abort,
    /// At the target, again and again until it succeeds: before the commit unless the move is
    /// live; then after it.
    Health,
}

impl HookName {
    /// Name as written in definitions.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Quiesce => "quiesce",
            Self::Resume => "resume",
            Self::Abort => "abort",
            Self::Health => "health",
        }
    }

    /// Longest time that a definition may give it, seconds.
    pub fn longest_s(self) -> u64 {
        match self {
            // The feature runs meanwhile.
            Self::Prepare => 300,
            _ => 60,
        }
    }
}

/// Time of a command that says nothing about it, seconds.
pub const DEFAULT_S: u64 = 10;
/// Longest time for connections to end by themselves in a handover, milliseconds.
pub const LONGEST_DRAIN_MS: u64 = 60_000;
/// Longest time for a feature's processes to end, seconds.
pub const LONGEST_STOP_S: u64 = 50;
/// Most words of a command, and most bytes of one.
const MAX_WORDS: usize = 64;
const MAX_WORD: usize = 4096;

/// A command. Its words may hold passwords: [`std::fmt::Debug`] leaves them out.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hook {
    /// Absolute path of the program and its arguments.
    pub exec: Vec<String>,
    /// Seconds after which it is killed and counts as failed; for `health` of all attempts.
    #[serde(default = "default_s")]
    pub timeout_s: u64,
}

fn default_s() -> u64 {
    DEFAULT_S
}

impl std::fmt::Debug for Hook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hook")
            .field("program", &self.exec.first())
            .field("timeout_s", &self.timeout_s)
            .finish_non_exhaustive()
    }
}

/// Commands of a feature, run inside the guest.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hooks {
    /// See [`HookName::Prepare`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prepare: Option<Hook>,
    /// See [`HookName::Quiesce`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quiesce: Option<Hook>,
    /// See [`HookName::Resume`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume: Option<Hook>,
    /// See [`HookName::Abort`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abort: Option<Hook>,
    /// See [`HookName::Health`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Hook>,
}

/// No commands.
pub const NONE: Hooks = Hooks {
    prepare: None,
    quiesce: None,
    resume: None,
    abort: None,
    health: None,
};

impl Hooks {
    /// The command of a name.
    pub fn get(&self, name: HookName) -> Option<&Hook> {
        match name {
            HookName::Prepare => self.prepare.as_ref(),
            HookName::Quiesce => self.quiesce.as_ref(),
            HookName::Resume => self.resume.as_ref(),
            HookName::Abort => self.abort.as_ref(),
            HookName::Health => self.health.as_ref(),
        }
    }

    /// Those that there are.
    pub fn all(&self) -> impl Iterator<Item = (HookName, &Hook)> {
        [
            HookName::Prepare,
            HookName::Quiesce,
            HookName::Resume,
            HookName::Abort,
            HookName::Health,
        ]
        .into_iter()
        .filter_map(|n| Some((n, self.get(n)?)))
    }

    /// Longest time that these commands may take together; zero for those that are not there.
    pub fn limit(&self, names: &[HookName]) -> Duration {
        let seconds = names
            .iter()
            .filter_map(|n| self.get(*n))
            .map(|h| h.timeout_s);
        Duration::from_secs(seconds.sum())
    }

    /// For those who may not see secrets: arguments are [`HIDDEN`].
    pub fn hide(&mut self) {
        for hook in [
            &mut self.prepare,
            &mut self.quiesce,
            &mut self.resume,
            &mut self.abort,
            &mut self.health,
        ]
        .into_iter()
        .flatten()
        {
            hook.exec
                .iter_mut()
                .skip(1)
                .for_each(|a| HIDDEN.clone_into(a));
        }
    }

    /// What is wrong with them, if anything.
    pub fn problem(&self) -> Option<String> {
        for (name, hook) in self.all() {
            let n = name.as_str();
            let longest = name.longest_s();
            if hook.exec.first().is_none_or(|p| !p.starts_with('/')) {
                return Some(format!(
                    "hooks.{n}.exec must start with the absolute path of a program"
                ));
            }
            if hook.exec.len() > MAX_WORDS || hook.exec.iter().any(|a| a.len() > MAX_WORD) {
                return Some(format!("hooks.{n}.exec is too long; put it into a script"));
            }
            if hook.exec.iter().any(|a| a.contains(['\n', '\0'])) {
                return Some(format!("hooks.{n}.exec must not contain line breaks"));
            }
            if hook.exec.iter().any(|a| a == HIDDEN) {
                return Some(format!(
                    "the arguments of hooks.{n} are hidden: it was read by someone who may not \
                     see them; read it as root"
                ));
            }
            if !(1..=longest).contains(&hook.timeout_s) {
                return Some(format!("hooks.{n}.timeout_s must be 1 to {longest}"));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(program: &str, timeout_s: u64) -> Hook {
        Hook {
            exec: vec![program.into(), "geheim".into()],
            timeout_s,
        }
    }

    #[test]
    fn commands_are_checked() {
        let ok = |h: Hook| {
            let hooks = Hooks {
                quiesce: Some(h),
                ..NONE
            };
            hooks.problem()
        };
        assert_eq!(ok(hook("/bin/true", 60)), None);
        assert!(ok(hook("true", 1)).unwrap().contains("hooks.quiesce.exec"));
        assert!(ok(hook("/bin/true", 61)).unwrap().contains("1 to 60"));
        assert!(ok(hook("/bin/true", 0)).is_some());
        assert!(ok(hook("/bin/t\n", 1)).is_some());
        let long = Hooks {
            prepare: Some(hook("/bin/true", 300)),
            ..NONE
        };
        assert_eq!(long.problem(), None);
    }

    #[test]
    fn secrets_are_hidden() {
        let mut hooks = Hooks {
            health: Some(hook("/bin/check", 5)),
            ..NONE
        };
        assert!(!format!("{hooks:?}").contains("geheim"));
        hooks.hide();
        assert_eq!(hooks.health.as_ref().unwrap().exec, ["/bin/check", HIDDEN]);
        assert!(hooks.problem().unwrap().contains("hidden"));
    }

    #[test]
    fn times_add_up() {
        let hooks: Hooks = serde_json::from_str(
            r#"{"resume":{"exec":["/bin/a"]},"health":{"exec":["/bin/b"],"timeout_s":3}}"#,
        )
        .unwrap();
        let s = Duration::from_secs;
        assert_eq!(hooks.limit(&[HookName::Resume, HookName::Health]), s(13));
        assert_eq!(hooks.limit(&[HookName::Quiesce]), s(0));
        assert_eq!("restart".parse::<Method>(), Ok(Method::Restart));
        assert!("cold".parse::<Method>().unwrap_err().contains("handover"));
    }
}
