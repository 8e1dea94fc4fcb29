//! Feature files, with the errors of the command line.

use super::error::CliError;
use crate::feature::FeatureSpec;
use crate::feature_file::{self, FileError};

impl From<FileError> for CliError {
    fn from(e: FileError) -> Self {
        match e {
            FileError::Read(..) | FileError::Content(..) => Self::Usage(e.to_string()),
            FileError::Write(..) => Self::Failed(e.to_string()),
        }
    }
}

/// Reads a definition; `name` is the file's name for errors. JSON when it begins with `{`.
pub fn parse(text: &str, name: &str) -> Result<FeatureSpec, CliError> {
    Ok(feature_file::parse(text, name)?)
}

/// Writes a definition as TOML that [`parse`] reads again, thresholds as text.
pub fn dump(spec: &FeatureSpec) -> Result<String, CliError> {
    Ok(feature_file::dump(spec)?)
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
