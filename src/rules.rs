//! What an administrator says about where a feature may be, and how Drover may decide about it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::feature::FeatureName;

/// What Drover does with a decision to move. Ordered from the freest to the most careful.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// It moves the feature.
    #[default]
    Act,
    /// It proposes the move; `drover approve` does it.
    Advise,
    /// It only records what it would have done.
    Shadow,
}

impl Mode {
    /// Name as in files and output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Act => "act",
            Self::Advise => "advise",
            Self::Shadow => "shadow",
        }
    }
}

/// The `placement` of a feature's definition. Hosts are named as in the peers' configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rules {
    /// Only these hosts; empty allows all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pin: Vec<String>,
    /// Never these hosts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<String>,
    /// Labels that a host must have, with these values.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Features it should share a host with; a wish that counts in the score.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub near: Vec<FeatureName>,
    /// Features it must not share a host with; it holds for both, whoever says so.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub apart: Vec<FeatureName>,
    /// Features of higher priority are decided first.
    #[serde(skip_serializing_if = "is_zero")]
    pub priority: i32,
    /// What is done with decisions about it; the host's own `decision.mode` holds too, the more
    /// careful of both counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
}

/// Nothing is said.
pub static NONE: Rules = Rules {
    pin: Vec::new(),
    exclude: Vec::new(),
    labels: BTreeMap::new(),
    near: Vec::new(),
    apart: Vec::new(),
    priority: 0,
    mode: None,
};

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
fn is_zero(n: &i32) -> bool {
    *n == 0
}

impl Rules {
    /// Why the rules cannot be right, if so.
    pub fn problem(&self, own: &FeatureName) -> Option<String> {
        if let Some(h) = self.pin.iter().find(|h| self.exclude.contains(h)) {
            return Some(format!(
                "placement pins it to host '{h}' and excludes that host"
            ));
        }
        if self.apart.contains(own) || self.near.contains(own) {
            return Some("placement.near and placement.apart name other features".into());
        }
        if let Some(f) = self.near.iter().find(|f| self.apart.contains(f)) {
            return Some(format!("placement wants '{f}' near and apart"));
        }
        let empty = |s: &String| s.is_empty();
        if self.pin.iter().chain(&self.exclude).any(empty)
            || self.labels.iter().any(|(k, v)| empty(k) || empty(v))
        {
            return Some("placement has an empty host or label".into());
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contradictions_are_found() {
        let own = FeatureName::new("cache").unwrap();
        let problem = |json: &str| {
            serde_json::from_str::<Rules>(json)
                .unwrap()
                .problem(&own)
                .unwrap_or_default()
        };
        assert_eq!(problem("{}"), "");
        assert!(problem(r#"{"pin":["a"],"exclude":["a"]}"#).contains("host 'a'"));
        assert!(problem(r#"{"apart":["cache"]}"#).contains("other features"));
        assert!(problem(r#"{"near":["db"],"apart":["db"]}"#).contains("'db'"));
        assert!(problem(r#"{"labels":{"zone":""}}"#).contains("empty"));
        assert!(serde_json::from_str::<Rules>(r#"{"pinn":[]}"#).is_err());
        let all = r#"{"pin":["a"],"labels":{"zone":"x"},"priority":3,"mode":"advise"}"#;
        let rules: Rules = serde_json::from_str(all).unwrap();
        assert_eq!(serde_json::to_string(&rules).unwrap(), all);
        assert!(NONE == Rules::default() && NONE != rules);
        assert!(Mode::Shadow > Mode::Advise && Mode::Advise > Mode::Act);
    }
}
