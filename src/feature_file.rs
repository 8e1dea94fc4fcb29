//! Feature files: TOML or JSON, thresholds as text or as tables (edge). Files in `features.d` also
//! name the domain, and may say whether the feature is enabled.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toml::Value;

use crate::feature::{FeatureName, FeatureSpec, OverBudget, Workload};
use crate::method::{Hooks, Method};
use crate::rules::Rules;
use crate::threshold;
use crate::toml_text::explain;

/// Why a feature file was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("cannot read {0}: {1}")]
    Read(String, String),
    /// What is in it cannot be right.
    #[error("{0}: {1}")]
    Content(String, String),
    /// It cannot be written as TOML.
    #[error("'{0}' cannot be written as TOML: {1}")]
    Write(String, String),
}

/// A file of `features.d`.
#[derive(Debug, Clone, PartialEq)]
pub struct FileFeature {
    /// The file.
    pub path: PathBuf,
    /// Domain in which the feature is registered at first; later moves are not undone.
    pub domain: String,
    /// Whether it shall run; `None` leaves that to users.
    pub enabled: Option<bool>,
    /// Definition.
    pub spec: FeatureSpec,
}

/// Reads a definition; `name` is the file's name for errors. JSON when it begins with `{`.
pub fn parse(text: &str, name: &str) -> Result<FeatureSpec, FileError> {
    definition(table(text, name)?, text, name)
}

fn bad(name: &str, why: &(impl ToString + ?Sized)) -> FileError {
    FileError::Content(name.to_owned(), why.to_string().trim().to_owned())
}

fn table(text: &str, name: &str) -> Result<Value, FileError> {
    if text.trim_start().starts_with('{') {
        serde_json::from_str(text).map_err(|e| bad(name, &e))
    } else {
        toml::from_str(text).map_err(|e| bad(name, &explain(text, &e)))
    }
}

fn definition(mut value: Value, text: &str, name: &str) -> Result<FeatureSpec, FileError> {
    if let Some(Value::Array(list)) = value.get_mut("thresholds") {
        for item in list {
            if let Value::String(text) = item {
                let t = threshold::parse(text).map_err(|e| bad(name, &e))?;
                *item = Value::try_from(t).map_err(|e| bad(name, &e))?;
            }
        }
    }
    let spec = FeatureSpec::deserialize(value).map_err(|e| bad(name, &explain(text, &e)))?;
    spec.validate().map_err(|e| bad(name, &e))?;
    Ok(spec)
}

/// Reads a file of `features.d`: a definition, and beside it `domain` and perhaps `enabled`.
pub fn parse_placed(text: &str, path: &Path) -> Result<FileFeature, FileError> {
    let name = path.display().to_string();
    let mut value = table(text, &name)?;
    let map = value
        .as_table_mut()
        .ok_or_else(|| bad(&name, "not a table"))?;
    let domain = match map.remove("domain") {
        Some(Value::String(d)) if !d.is_empty() => d,
        Some(_) => return Err(bad(&name, "`domain` must be the name of a libvirt domain")),
        None => {
            return Err(bad(
                &name,
                "the key `domain` is missing: the libvirt domain that has the feature",
            ));
        }
    };
    let enabled = match map.remove("enabled") {
        None => None,
        Some(Value::Boolean(on)) => Some(on),
        Some(_) => return Err(bad(&name, "`enabled` must be true or false")),
    };
    Ok(FileFeature {
        path: path.to_owned(),
        domain,
        enabled,
        spec: definition(value, text, &name)?,
    })
}

/// What a directory of feature files holds.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Directory {
    /// Features by name.
    pub features: BTreeMap<FeatureName, FileFeature>,
    /// What is wrong; a file with an error is not among the features.
    pub errors: Vec<FileError>,
}

/// Reads `DIR/*.toml` in the order of names. A directory that is not there is empty.
pub fn read_dir(dir: &Path) -> Directory {
    let mut found = Directory::default();
    let entries = match std::fs::read_dir(dir) {
        Ok(e) => e,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return found,
        Err(e) => {
            let error = FileError::Read(dir.display().to_string(), e.to_string());
            found.errors.push(error);
            return found;
        }
    };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
    paths.retain(|p| {
        let hidden = p
            .file_name()
            .is_some_and(|n| n.as_encoded_bytes()[0] == b'.');
        p.extension().is_some_and(|e| e == "toml") && !hidden
    });
    paths.sort();
    for path in paths {
        let read = std::fs::read_to_string(&path)
            .map_err(|e| FileError::Read(path.display().to_string(), e.to_string()))
            .and_then(|text| parse_placed(&text, &path));
        match read {
            Ok(f) => match found.features.get(&f.spec.name) {
                None => {
                    found.features.insert(f.spec.name.clone(), f);
                }
                Some(first) => found.errors.push(bad(
                    &path.display().to_string(),
                    &format!(
                        "{} defines a feature '{}' already",
                        first.path.display(),
                        f.spec.name
                    ),
                )),
            },
            Err(e) => found.errors.push(e),
        }
    }
    found
}

/// The file as written: in the order in which people read it.
#[derive(Serialize)]
struct File<'a> {
    name: &'a FeatureName,
    group: &'a str,
    automatic: bool,
    downtime_ms: u64,
    over_budget: OverBudget,
    throttle: bool,
    method: Method,
    drain_ms: u64,
    stop_s: u64,
    thresholds: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    placement: Option<&'a Rules>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hooks: Option<&'a Hooks>,
    workload: &'a Workload,
}

/// Writes a definition as TOML that [`parse`] reads again, thresholds as text.
pub fn dump(spec: &FeatureSpec) -> Result<String, FileError> {
    // Taken apart in full: a field that is added must be written too.
    let FeatureSpec {
        name,
        group,
        workload,
        thresholds,
        automatic,
        downtime_ms,
        over_budget,
        throttle,
        method,
        drain_ms,
        stop_s,
        hooks,
        placement,
    } = spec;
    let file = File {
        name,
        group,
        automatic: *automatic,
        downtime_ms: *downtime_ms,
        over_budget: *over_budget,
        throttle: *throttle,
        method: *method,
        drain_ms: *drain_ms,
        stop_s: *stop_s,
        thresholds: thresholds.iter().map(threshold::format).collect(),
        placement: placement.as_deref(),
        hooks: hooks.as_deref(),
        workload,
    };
    toml::to_string_pretty(&file).map_err(|e| FileError::Write(name.to_string(), e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "name = 'cache'\n\
        [workload]\nkind = 'unit'\nunit = 'cache.service'\n";

    fn write(dir: &Path, name: &str, text: &str) {
        std::fs::write(dir.join(name), text).unwrap();
    }

    #[test]
    fn directories() {
        let dir = tempfile::tempdir().unwrap();
        let d = dir.path();
        assert_eq!(read_dir(&d.join("none")), Directory::default());
        write(
            d,
            "a.toml",
            &format!("domain = 'web'\nenabled = true\n{FILE}"),
        );
        write(d, "b.toml", &format!("domain = 'db'\n{FILE}"));
        write(d, "c.toml", FILE);
        write(d, "d.toml", "domain = 'web'\nname = 'x'\nworkloud = 1\n");
        write(d, "e.toml.bak", "");
        write(d, ".f.toml", "");
        let found = read_dir(d);
        let f = &found.features[&FeatureName::new("cache").unwrap()];
        assert_eq!((f.domain.as_str(), f.enabled), ("web", Some(true)));
        let errors: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
        assert_eq!(errors.len(), 3, "{errors:?}");
        assert!(errors[0].contains("b.toml: ") && errors[0].contains("a.toml defines"));
        assert!(errors[1].contains("c.toml: ") && errors[1].contains("`domain` is missing"));
        for part in ["d.toml: line 3: ", "`workloud`", "did you mean `workload`?"] {
            assert!(errors[2].contains(part), "{part}: {}", errors[2]);
        }
    }
}
