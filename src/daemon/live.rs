//! The configuration in force, replaced as a whole by a reload.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use crate::config::{Config, Loaded};

/// Keys, or beginnings of keys, that are read whenever they are needed. All others are read at the
/// start only.
const RELOADABLE: [&str; 8] = [
    "decision.",
    "features.",
    "forecast.confidence",
    "forecast.lead_s",
    "forecast.min_points",
    "model.budget_s",
    "model.train_every_s",
    "moves.",
];

/// Reads as a [`Config`]. A reload does not free what it replaces, so that readers need neither a
/// lock nor a copy: some kilobytes per reload that changed something.
#[derive(Debug)]
pub struct Live {
    path: PathBuf,
    now: RwLock<(&'static Config, toml::Table)>,
}

impl Deref for Live {
    type Target = Config;

    fn deref(&self) -> &Config {
        self.now.read().unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Live {
    /// In force from now on.
    pub fn new(loaded: Loaded) -> Self {
        Self {
            path: loaded.path,
            now: RwLock::new((Box::leak(Box::new(loaded.config)), loaded.table)),
        }
    }

    /// The file it came from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Keys whose values differ, and those of them that need a restart.
    pub fn differences(&self, new: &Loaded) -> (Vec<String>, Vec<String>) {
        let now = self.now.read().unwrap_or_else(PoisonError::into_inner);
        let keys = crate::config::changed_keys(&now.1, &new.table);
        let fixed = |k: &&String| !RELOADABLE.iter().any(|r| k.starts_with(r));
        let restart = keys.iter().filter(fixed).cloned().collect();
        (keys, restart)
    }

    /// Replaces it.
    pub fn replace(&self, new: Loaded) {
        let mut now = self.now.write().unwrap_or_else(PoisonError::into_inner);
        if *now.0 != new.config {
            now.0 = Box::leak(Box::new(new.config));
        }
        now.1 = new.table;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loaded(text: &str) -> Loaded {
        Loaded::parse(text, Path::new("x.toml")).unwrap()
    }

    #[test]
    fn what_needs_a_restart() {
        let live = Live::new(loaded("[host]\nname = 'a'\n[decision]\nreserve = 0.2\n"));
        assert_eq!(live.decision.reserve, 0.2);
        let new = loaded(
            "[host]\nname = 'a'\n[decision]\nmin_gain = 0.2\n[decision.weights]\nbalance = 0.1\n\
             [meter]\ninterval_s = 9\n",
        );
        let (keys, restart) = live.differences(&new);
        let all = [
            "decision.min_gain",
            "decision.reserve",
            "decision.weights.balance",
        ];
        assert_eq!(keys, [&all[..], &["meter.interval_s"]].concat());
        assert_eq!(restart, ["meter.interval_s"]);
        let before: &Config = &live;
        let held = before.decision.reserve;
        live.replace(new);
        assert_eq!((held, live.decision.reserve), (0.2, 0.1));
        let again = loaded("[host]\nname = 'a'\n");
        assert_eq!(live.differences(&again).0.len(), 3);
    }
}
