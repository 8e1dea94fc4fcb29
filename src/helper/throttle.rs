//! Slowing a feature down while a move copies it: `cpu.max` of its unit's cgroup.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::paths;
use crate::feature::{FeatureName, FeatureSpec};

/// Period of `cpu.max`, microseconds: what systemd's `CPUQuota=` uses.
const PERIOD_US: u64 = 100_000;
/// Least time left to a feature in each period, microseconds.
const LEAST_US: u64 = 5_000;
/// How long its use is measured.
const MEASURE: Duration = Duration::from_millis(200);

/// What the definition says: the content of `cpu.max` without a throttle.
fn by_definition(spec: &FeatureSpec) -> String {
    match spec.managed().and_then(|m| m.cpu_quota_percent) {
        Some(percent) => format!("{} {PERIOD_US}", u64::from(percent) * PERIOD_US / 100),
        None => format!("max {PERIOD_US}"),
    }
}

/// Content of `cpu.max` that takes `percent` from a use of `used_us` per period.
fn throttled(used_us: u64, percent: u8) -> String {
    let left = used_us * u64::from(100 - percent.min(99)) / 100;
    format!("{} {PERIOD_US}", left.max(LEAST_US))
}

/// CPU time that the feature uses per period at present, microseconds.
pub fn measure(feature: &FeatureName) -> io::Result<u64> {
    let file = paths::cgroup_dir(feature).join("cpu.stat");
    let (begun, before) = (Instant::now(), usage(&file)?);
    std::thread::sleep(MEASURE);
    let used = usage(&file)?.saturating_sub(before);
    let took = begun.elapsed().as_micros().max(1) as u64;
    Ok(used * PERIOD_US / took)
}

fn usage(file: &Path) -> io::Result<u64> {
    let text = std::fs::read_to_string(file)?;
    text.lines()
        .find_map(|l| l.strip_prefix("usage_usec ")?.parse().ok())
        .ok_or_else(|| io::Error::other("cpu.stat has no usage_usec"))
}

/// Takes `percent` from a use of `used_us` per period.
pub fn set(feature: &FeatureName, used_us: u64, percent: u8) -> io::Result<()> {
    write(feature, &throttled(used_us, percent))
}

/// Gives the feature what its definition says. Idempotent; nothing when it does not run here.
pub fn undo(feature: &FeatureName, spec: &FeatureSpec) -> io::Result<()> {
    match write(feature, &by_definition(spec)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

fn write(feature: &FeatureName, limit: &str) -> io::Result<()> {
    let file = paths::cgroup_dir(feature).join("cpu.max");
    if std::fs::read_to_string(&file)?.trim() == limit {
        return Ok(());
    }
    std::fs::write(file, limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_what_the_kernel_takes() {
        let spec: FeatureSpec = serde_json::from_str(
            r#"{"name":"x","workload":{"kind":"managed","exec":["/bin/x"],
                "address":"10.0.0.1/24","cpu_quota_percent":50}}"#,
        )
        .unwrap();
        assert_eq!(by_definition(&spec), "50000 100000");
        assert_eq!(throttled(80_000, 30), "56000 100000");
        assert_eq!(throttled(0, 30), "5000 100000", "never stopped altogether");
        assert_eq!(throttled(80_000, 200), "5000 100000");
        let name = FeatureName::new("not-here").unwrap();
        assert!(undo(&name, &spec).is_ok() && set(&name, 1, 1).is_err());
    }
}
