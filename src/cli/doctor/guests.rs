//! What facts about guests and features mean. Pure.

use super::finding::Finding;
use crate::api::FeatureRow;
use crate::host::{FeatureStatus, HelperState, InstanceState, MeterLevel};

/// Most features whose history is read.
pub const MAX_HISTORIES: usize = 100;

/// What is known of a running domain.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DomainFacts {
    /// Name.
    pub name: String,
    /// Whether its guest agent answers; `None` when libvirt could not be asked.
    pub agent: Option<Result<(), String>>,
    /// Whether the helper's channels are plugged in; `None` when libvirt could not be asked.
    pub channels: Option<Result<bool, String>>,
    /// As droverd knows it, if droverd answers.
    pub instance: Option<InstanceState>,
}

impl DomainFacts {
    /// Drover has something in it; other guests are none of its business.
    fn used(&self) -> bool {
        matches!(self.channels, Some(Ok(true)))
            || self.instance.as_ref().is_some_and(|i| {
                !i.features.is_empty() || matches!(i.helper, HelperState::Connected { .. })
            })
    }
}

/// A running domain; `daemon` is droverd's version, if it answers.
pub fn domain(d: &DomainFacts, daemon: Option<&str>) -> Vec<Finding> {
    let about = format!("domain {}", d.name);
    if let Some(Err(e)) = &d.channels {
        return vec![Finding::told(about, e, "see \"virsh dumpxml\" of it")];
    }
    if !d.used() {
        return vec![Finding::ok(about, "runs without the helper")];
    }
    let mut found = Vec::new();
    match &d.agent {
        None => {}
        Some(Ok(())) => found.push(Finding::ok(about.clone(), "guest agent answers")),
        // The helper works without it, but cannot be installed or replaced.
        Some(Err(e)) => found.push(Finding::warning(
            about.clone(),
            e,
            "install and start qemu-guest-agent in the guest: the helper is installed through it",
        )),
    }
    let install = format!("run \"drover guest install {}\"", d.name);
    if d.channels == Some(Ok(false)) {
        found.push(Finding::error(
            about,
            "has features, but the helper's channels are not plugged in",
            install,
        ));
        return found;
    }
    let Some(i) = &d.instance else {
        return found;
    };
    match &i.helper {
        HelperState::Absent { reason } => found.push(Finding::told(about, reason, &install)),
        HelperState::Connected { version } if daemon.is_some_and(|v| v != version) => {
            found.push(Finding::warning(
                about.clone(),
                format!(
                    "helper has version {version}, droverd has {}",
                    daemon.unwrap_or_default()
                ),
                format!("{install}, which replaces it"),
            ));
        }
        HelperState::Connected { version } => found.push(Finding::ok(
            about.clone(),
            format!("helper connected, version {version}"),
        )),
    }
    let about = format!("domain {}", d.name);
    match i.metering.level {
        MeterLevel::Agent => found.push(Finding::warning(
            about.clone(),
            "is metered through the guest agent: seldom, and without network",
            &install,
        )),
        MeterLevel::Guest | MeterLevel::None
            if i.features
                .iter()
                .any(|f| f.status != FeatureStatus::Disabled) =>
        {
            found.push(Finding::told(about.clone(), &i.metering.reason, &install));
        }
        _ => {}
    }
    if let Some(c) = &i.capabilities {
        found.push(match (c.criu.as_str(), c.criu_problem.as_str()) {
            ("", _) => Finding::warning(
                about,
                "has no criu: features cannot be moved from or to it",
                "install criu in the guest and run \"drover guest install\" again",
            ),
            (version, "") => Finding::ok(about, format!("criu {version} is good")),
            (version, problem) => Finding::warning(
                about,
                format!("criu {version}: {problem}"),
                "features cannot be moved from or to it until \"criu check\" in the guest is content",
            ),
        });
    }
    found
}

/// A feature that should run and be metered, when it is not; `interval_s` is the meter's.
pub fn feature(f: &FeatureRow, now_ms: i64, interval_s: f64) -> Option<Finding> {
    let about = format!("feature {}/{}", f.domain, f.spec.name);
    match f.status {
        FeatureStatus::Stopped => Some(Finding::error(
            about,
            "enabled, but it does not run",
            format!(
                "see \"systemctl status drover-{}\" in the guest, or disable it",
                f.spec.name
            ),
        )),
        FeatureStatus::Unknown => Some(Finding::warning(
            about,
            "its guest does not tell whether it runs",
            format!("see \"drover guest status {}\"", f.domain),
        )),
        FeatureStatus::Running => {
            let late_ms = (interval_s * 3_000.0) as i64 + 5_000;
            let age = f.usage.map(|u| now_ms - u.at_ms);
            if age.is_some_and(|a| a <= late_ms) {
                return Some(Finding::ok(about, "runs and is metered"));
            }
            Some(Finding::warning(
                about,
                match age {
                    Some(a) => format!("runs, but was last metered {} s ago", a / 1_000),
                    None => "runs, but was not metered yet".to_owned(),
                },
                "if this stays, see \"journalctl -u drover-guest\" in the guest",
            ))
        }
        FeatureStatus::Disabled | FeatureStatus::Moving | FeatureStatus::Arriving => None,
    }
}

/// The history, by features whose part of it cannot be read.
pub fn history(bad: &[(String, String)], features: usize) -> Finding {
    match bad.first() {
        None => Finding::ok(
            "history",
            format!("readable for {} features", features.min(MAX_HISTORIES)),
        ),
        Some((name, why)) => Finding::error(
            "history",
            format!("{} of {features} features, first {name}: {why}", bad.len()),
            "\"journalctl -u droverd\" names what is damaged",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Severity::{self, Error, Ok as Fine, Warning};
    use super::*;
    use crate::feature::{FeatureName, FeatureSpec, Workload};
    use crate::host::GuestCapabilities;
    use crate::usage::Usage;

    fn instance(version: &str, criu: &str, problem: &str) -> InstanceState {
        InstanceState {
            vcpus: 1.0,
            memory_mib: 1.0,
            helper: HelperState::Connected {
                version: version.into(),
            },
            capabilities: Some(GuestCapabilities {
                criu: criu.into(),
                criu_problem: problem.into(),
                ..GuestCapabilities::default()
            }),
            ..InstanceState::new("web")
        }
    }

    fn judge(d: &DomainFacts) -> Vec<Severity> {
        let all = domain(d, Some("1")).into_iter();
        all.map(|f| f.severity).collect()
    }

    #[test]
    fn domains() {
        let mut d = DomainFacts {
            name: "web".into(),
            agent: Some(Err("does not answer".into())),
            channels: Some(Ok(false)),
            instance: None,
        };
        assert_eq!(judge(&d), [Fine], "none of Drover's business");
        d.channels = Some(Ok(true));
        assert_eq!(judge(&d), [Warning], "no agent");
        d.agent = Some(Ok(()));
        d.instance = Some(instance("1", "4.1", ""));
        assert_eq!(judge(&d), [Fine, Fine, Fine]);
        d.instance = Some(instance("0", "4.1", "no userfaultfd"));
        assert_eq!(judge(&d), [Fine, Warning, Warning]);
        d.instance = Some(instance("1", "", ""));
        assert_eq!(judge(&d), [Fine, Fine, Warning]);
        let mut absent = instance("1", "", "");
        absent.capabilities = None;
        absent.helper = HelperState::Absent {
            reason: "silent".into(),
        };
        d.instance = Some(absent);
        assert_eq!(judge(&d), [Fine, Error]);
        d.channels = Some(Err("no answer".into()));
        assert_eq!(judge(&d), [Error]);
    }

    #[test]
    fn channels_missing_where_features_are() {
        let mut i = instance("1", "4.1", "");
        i.helper = HelperState::Connected {
            version: "1".into(),
        };
        let d = DomainFacts {
            name: "web".into(),
            agent: None,
            channels: Some(Ok(false)),
            instance: Some(i),
        };
        assert_eq!(judge(&d), [Error]);
    }

    #[test]
    fn features() {
        let mut row = FeatureRow {
            host: "h1".into(),
            domain: "web".into(),
            spec: FeatureSpec::new(
                FeatureName::new("cache").unwrap(),
                Workload::Unit {
                    unit: "x.service".into(),
                },
            ),
            status: FeatureStatus::Running,
            usage: Some(Usage {
                at_ms: 100_000,
                ..Usage::default()
            }),
            breach: None,
            metered: crate::host::Metering::default(),
        };
        let judge = |row: &FeatureRow, now| feature(row, now, 5.0).map(|f| f.severity);
        assert_eq!(judge(&row, 120_000), Some(Fine));
        assert_eq!(judge(&row, 120_001), Some(Warning));
        row.usage = None;
        assert_eq!(judge(&row, 0), Some(Warning));
        row.status = FeatureStatus::Stopped;
        assert_eq!(judge(&row, 0), Some(Error));
        row.status = FeatureStatus::Disabled;
        assert_eq!(judge(&row, 0), None);
    }

    #[test]
    fn histories() {
        assert_eq!(history(&[], 3).severity, Fine);
        assert_eq!(
            history(&[("web/cache".into(), "damaged".into())], 3).severity,
            Error
        );
    }
}
