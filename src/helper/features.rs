//! The features this guest knows: one definition per file on tmpfs, so that the helper finds
//! them again after a restart and `drover-guest run` finds its own.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::feature::{FeatureName, FeatureSpec};
use crate::helper::paths;

/// Why a definition could not be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum FeatureFileError {
    /// Reading or writing failed.
    #[error("definition of feature '{0}': {1}")]
    Io(String, io::Error),
    /// Not known here.
    #[error("feature '{0}' is not defined in this guest")]
    Unknown(String),
    /// The file is not a definition.
    #[error("definition of feature '{0}' is damaged: {1}")]
    Damaged(String, String),
}

/// Directory of the definitions.
pub fn directory() -> PathBuf {
    Path::new(paths::RUN).join("features")
}

/// Makes the helper's directories, mode 0700.
pub fn prepare() -> io::Result<()> {
    for dir in [PathBuf::from(paths::RUN), directory()] {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)?;
    }
    Ok(())
}

/// Keeps a definition, replacing an older one of the same name.
pub fn put(spec: &FeatureSpec) -> Result<(), FeatureFileError> {
    let name = spec.name.to_string();
    spec.validate()
        .map_err(|e| FeatureFileError::Damaged(name.clone(), e.to_string()))?;
    let text = serde_json::to_vec(spec)
        .map_err(|e| FeatureFileError::Damaged(name.clone(), e.to_string()))?;
    prepare()
        .and_then(|()| write_atomically(&paths::feature_json(&spec.name), &text))
        .map_err(|e| FeatureFileError::Io(name, e))
}

/// The definition of one feature.
pub fn get(name: &FeatureName) -> Result<FeatureSpec, FeatureFileError> {
    match fs::read(paths::feature_json(name)) {
        Ok(text) => parse(name.as_str(), &text),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            Err(FeatureFileError::Unknown(name.to_string()))
        }
        Err(e) => Err(FeatureFileError::Io(name.to_string(), e)),
    }
}

/// All definitions; damaged files are left out with a warning.
pub fn all() -> Vec<FeatureSpec> {
    all_in(&directory())
}

/// Forgets a definition. Idempotent.
pub fn remove(name: &FeatureName) -> Result<(), FeatureFileError> {
    remove_file(&paths::feature_json(name)).map_err(|e| FeatureFileError::Io(name.to_string(), e))
}

/// Makes the known features exactly these.
pub fn replace(specs: &[FeatureSpec]) -> Result<(), FeatureFileError> {
    for spec in specs {
        if get(&spec.name).ok().as_ref() != Some(spec) {
            put(spec)?;
        }
    }
    for known in all() {
        if !specs.iter().any(|s| s.name == known.name) {
            remove(&known.name)?;
        }
    }
    Ok(())
}

/// PID of the feature's first process in the guest's PID namespace.
pub fn pid(name: &FeatureName) -> Option<i32> {
    let text = fs::read_to_string(paths::feature_pid(name)).ok()?;
    text.trim().parse().ok().filter(|p| *p > 1)
}

/// The same while that process lives.
pub fn running(name: &FeatureName) -> Option<i32> {
    pid(name).filter(|p| Path::new(&format!("/proc/{p}")).exists())
}

/// Where the supervisor leaves a sentence when the workload ended by itself or did not start.
pub fn exit_file(name: &FeatureName) -> PathBuf {
    directory().join(format!("{name}.exit"))
}

/// The workload's standard output and error: a FIFO that its supervisor reads.
pub fn log_fifo(name: &FeatureName) -> PathBuf {
    directory().join(format!("{name}.log"))
}

/// Writes a file so that a reader finds the old or the new content, mode 0600.
pub fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    write_with_mode(path, content, 0o600)
}

/// The same with the mode of the new file.
pub fn write_with_mode(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let temporary = path.with_extension(format!("new{}", std::process::id()));
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&temporary)?;
    io::Write::write_all(&mut file, content)?;
    fs::rename(&temporary, path)
}

/// Removes a file that may be absent.
pub fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn parse(name: &str, text: &[u8]) -> Result<FeatureSpec, FeatureFileError> {
    let spec: FeatureSpec = serde_json::from_slice(text)
        .map_err(|e| FeatureFileError::Damaged(name.to_owned(), e.to_string()))?;
    if spec.name.as_str() == name {
        Ok(spec)
    } else {
        let why = format!("it names '{}'", spec.name);
        Err(FeatureFileError::Damaged(name.to_owned(), why))
    }
}

fn all_in(directory: &Path) -> Vec<FeatureSpec> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut specs: Vec<FeatureSpec> = entries
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let file = entry.file_name();
            let name = file.to_str()?.strip_suffix(".json")?.to_owned();
            let text = fs::read(entry.path()).ok()?;
            parse(&name, &text)
                .inspect_err(|e| tracing::warn!("{e}; leaving it out"))
                .ok()
        })
        .collect();
    specs.sort_by(|a, b| a.name.cmp(&b.name));
    specs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_good_definitions_and_leaves_damaged_ones_out() {
        let dir = tempfile::tempdir().unwrap();
        let good = r#"{"name":"web","workload":{"kind":"unit","unit":"nginx.service"}}"#;
        fs::write(dir.path().join("web.json"), good).unwrap();
        fs::write(dir.path().join("other.json"), good).unwrap();
        fs::write(dir.path().join("bad.json"), "{").unwrap();
        fs::write(dir.path().join("web.pid"), "12").unwrap();
        let specs = all_in(dir.path());
        assert_eq!(specs.len(), 1);
        assert_eq!(specs[0].name.as_str(), "web");
    }

    #[test]
    fn writes_atomically_and_privately() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("web.json");
        write_atomically(&file, b"one").unwrap();
        write_atomically(&file, b"two").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"two");
        assert_eq!(
            fs::metadata(&file).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        remove_file(&file).unwrap();
        remove_file(&file).unwrap();
    }
}
