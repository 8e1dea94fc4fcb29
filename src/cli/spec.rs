//! Feature files: TOML or JSON, thresholds as text or as tables.

use serde::{Deserialize, Serialize};
use toml::Value;

use super::error::CliError;
use crate::feature::{FeatureName, FeatureSpec, Workload};
use crate::rules::Rules;
use crate::threshold;

/// Reads a definition; `name` is the file's name for errors. JSON when it begins with `{`.
pub fn parse(text: &str, name: &str) -> Result<FeatureSpec, CliError> {
    let bad = |why: String| CliError::Usage(format!("{name}: {}", why.trim()));
    let mut value: Value = if text.trim_start().starts_with('{') {
        serde_json::from_str(text).map_err(|e| bad(e.to_string()))?
    } else {
        toml::from_str(text).map_err(|e| bad(e.to_string()))?
    };
    if let Some(Value::Array(list)) = value.get_mut("thresholds") {
        for item in list {
            if let Value::String(text) = item {
                let t = threshold::parse(text).map_err(|e| bad(e.to_string()))?;
                *item = Value::try_from(t).map_err(|e| bad(e.to_string()))?;
            }
        }
    }
    let spec = FeatureSpec::deserialize(value).map_err(|e| bad(e.to_string()))?;
    spec.validate().map_err(|e| bad(e.to_string()))?;
    Ok(spec)
}

/// The file as written: in the order in which people read it.
#[derive(Serialize)]
struct File<'a> {
    name: &'a FeatureName,
    group: &'a str,
    automatic: bool,
    downtime_ms: u64,
    thresholds: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    placement: Option<&'a Rules>,
    workload: &'a Workload,
}

/// Writes a definition as TOML that [`parse`] reads again, thresholds as text.
pub fn dump(spec: &FeatureSpec) -> Result<String, CliError> {
    // Taken apart in full: a field that is added must be written too.
    let FeatureSpec {
        name,
        group,
        workload,
        thresholds,
        automatic,
        downtime_ms,
        placement,
    } = spec;
    let file = File {
        name,
        group,
        automatic: *automatic,
        downtime_ms: *downtime_ms,
        thresholds: thresholds.iter().map(threshold::format).collect(),
        placement: placement.as_deref(),
        workload,
    };
    toml::to_string_pretty(&file)
        .map_err(|e| CliError::Failed(format!("'{name}' cannot be written as TOML: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feature::{Resource, Threshold};

    const FILE: &str = r#"
name = "cache"
thresholds = ["cpu > 80 % for 10 s", { resource = "memory", limit = 512, for_s = 60 }]

[workload]
kind = "managed"
exec = ["/usr/bin/cached", "-v"]
address = "192.0.2.10/24"
environment = { HOME = "/var/lib/cache" }
"#;

    #[test]
    fn toml_with_both_kinds_of_thresholds() {
        let spec = parse(FILE, "cache.toml").unwrap();
        assert_eq!(
            spec.thresholds,
            [
                Threshold {
                    resource: Resource::Cpu,
                    limit: 80.0,
                    for_s: 10.0
                },
                Threshold {
                    resource: Resource::Memory,
                    limit: 512.0,
                    for_s: 60.0
                }
            ]
        );
        assert_eq!(spec.managed().unwrap().exec[1], "-v");
    }

    #[test]
    fn dump_reads_back() {
        let spec = parse(FILE, "cache.toml").unwrap();
        let text = dump(&spec).unwrap();
        assert!(text.starts_with("name = \"cache\"\n"), "{text}");
        assert!(text.contains("cpu > 80 % for 10 s"), "{text}");
        assert_eq!(parse(&text, "dump").unwrap(), spec);
        let json = serde_json::to_string(&spec).unwrap();
        assert_eq!(parse(&json, "json").unwrap(), spec);
    }

    #[test]
    fn errors_name_file_and_key() {
        for (text, part) in [
            ("name = ", "f.toml"),
            ("{\"name\": 1", "f.toml"),
            (
                "name = \"a\"\nnaem = 1\n[workload]\nkind = \"unit\"\nunit = \"a.service\"",
                "naem",
            ),
            (
                "name = \"A\"\n[workload]\nkind = \"unit\"\nunit = \"a.service\"",
                "'A'",
            ),
            (
                "name = \"a\"\nthresholds = [\"cpu\"]\n[workload]\nkind = \"unit\"\nunit = \"a\"",
                "'cpu'",
            ),
            (
                "name = \"a\"\n[workload]\nkind = \"managed\"\nexec = [\"x\"]\naddress = \"10.0.0.1/8\"",
                "absolute",
            ),
        ] {
            let e = parse(text, "f.toml").unwrap_err();
            assert_eq!(e.code(), 2);
            assert!(e.to_string().contains(part), "{e}");
        }
    }
}
