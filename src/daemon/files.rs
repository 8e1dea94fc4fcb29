//! Features from files (`features.d`), and reloads.
//!
//! A file registers its feature once. From then on it counts where the feature is on this host:
//! what contradicts it is refused here, and set right at start and at a reload. A feature that
//! moved to another host is left alone there; the file counts again when it comes back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::api::{Api, ApiError, Reloaded, Result};
use crate::config::Loaded;
use crate::feature::{FeatureName, FeatureSpec, Threshold};
use crate::feature_file::{self, Directory, FileFeature};
use crate::store::FeatureRecord;

use super::serve_api::Service;
use super::{Daemon, lock};

/// Where the store keeps the names of features that files registered.
const KEY: &str = "features.d";
/// Pause before what could not be done is tried again: a domain may appear, a helper connect.
const AGAIN: Duration = Duration::from_secs(5);

/// The files in force.
#[derive(Debug, Default)]
pub(super) struct Files {
    features: BTreeMap<FeatureName, FileFeature>,
    /// Those that are not as their file says yet, with the reason that was last told.
    pending: BTreeMap<FeatureName, String>,
}

/// What somebody wants of a feature.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wish<'a> {
    Registered(&'a FeatureSpec),
    Gone,
    Enabled(bool),
    Thresholds(&'a [Threshold]),
}

impl Files {
    /// Refuses what contradicts the feature's file.
    fn check(&self, name: &FeatureName, wish: Wish<'_>) -> Result<()> {
        let Some(file) = self.features.get(name) else {
            return Ok(());
        };
        let agrees = match wish {
            Wish::Registered(spec) => file.spec == *spec,
            Wish::Gone => false,
            Wish::Enabled(on) => file.enabled.is_none_or(|e| e == on),
            Wish::Thresholds(t) => file.spec.thresholds == t,
        };
        if agrees {
            return Ok(());
        }
        let (path, how) = (
            file.path.display(),
            match wish {
                Wish::Gone => "remove that file first",
                _ => "change that file",
            },
        );
        Err(ApiError::Refused(format!(
            "feature '{name}' comes from {path}: {how}, then run 'drover reload'"
        )))
    }
}

impl Daemon {
    /// Refuses what contradicts the feature's file.
    pub(super) fn agrees_with_file(&self, name: &FeatureName, wish: Wish<'_>) -> Result<()> {
        lock(&self.files).check(name, wish)
    }

    /// A feature of this host by name: its domain and record.
    fn here(&self, name: &FeatureName) -> Option<(String, FeatureRecord)> {
        let instances = lock(&self.instances);
        let mut found = instances.iter();
        found.find_map(|(d, i)| Some((d.clone(), i.features.get(name)?.record.clone())))
    }

    async fn placed(&self) -> BTreeSet<String> {
        match self.store.run(|s| s.get(KEY)).await {
            Ok(Some(bytes)) => serde_json::from_slice(&bytes).unwrap_or_default(),
            Ok(None) => BTreeSet::new(),
            Err(e) => {
                tracing::error!(error = %e, "which features came from files cannot be read");
                BTreeSet::new()
            }
        }
    }

    async fn remember(&self, placed: &BTreeSet<String>) -> Result<()> {
        let bytes = serde_json::to_vec(placed).unwrap_or_default();
        let done = self.store.run(move |s| s.put(KEY, &bytes)).await;
        done.map_err(|e| ApiError::Failed(format!("the registry cannot be written: {e}")))
    }

    /// What a reload cannot do to features that are here.
    fn conflicts(&self, files: &BTreeMap<FeatureName, FileFeature>) -> Vec<String> {
        let mut found = Vec::new();
        for (name, file) in files {
            let Some((domain, record)) = self.here(name) else {
                continue;
            };
            if record.enabled && !only_thresholds_differ(&record.spec, &file.spec) {
                found.push(format!(
                    "{}: feature '{domain}/{name}' is enabled with another definition; disable it first",
                    file.path.display()
                ));
            }
        }
        found
    }
}

fn only_thresholds_differ(a: &FeatureSpec, b: &FeatureSpec) -> bool {
    let same = FeatureSpec {
        thresholds: b.thresholds.clone(),
        ..a.clone()
    };
    same == *b
}

impl Service {
    /// Brings a feature in line with its file; what was done, in words.
    async fn place(
        &self,
        file: &FileFeature,
        placed: &mut BTreeSet<String>,
    ) -> Result<Vec<String>> {
        let name = &file.spec.name;
        let mut done = Vec::new();
        let domain = match self.0.here(name) {
            // Registered by the file before, so it moved away.
            None if placed.contains(name.as_str()) => return Ok(done),
            None => {
                self.register(&file.domain, file.spec.clone()).await?;
                done.push(format!("{}/{name} registered", file.domain));
                file.domain.clone()
            }
            Some((domain, record)) => {
                if record.spec == file.spec {
                } else if only_thresholds_differ(&record.spec, &file.spec) {
                    let thresholds = file.spec.thresholds.clone();
                    self.set_thresholds(&domain, name, thresholds).await?;
                    done.push(format!("{domain}/{name} thresholds set"));
                } else {
                    self.register(&domain, file.spec.clone()).await?;
                    done.push(format!("{domain}/{name} defined anew"));
                }
                domain
            }
        };
        if placed.insert(name.to_string()) {
            self.0.remember(placed).await?;
        }
        let enabled = self.0.here(name).is_some_and(|(_, r)| r.enabled);
        if let Some(on) = file.enabled
            && on != enabled
        {
            self.set_enabled(&domain, name, on).await?;
            let word = if on { "enabled" } else { "disabled" };
            done.push(format!("{domain}/{name} {word}"));
        }
        Ok(done)
    }

    /// Places the features of `names`; what was done and what was not.
    async fn place_all(&self, names: Vec<FeatureName>) -> (Vec<String>, Vec<String>) {
        let mut placed = self.0.placed().await;
        let (mut done, mut problems) = (Vec::new(), Vec::new());
        for name in names {
            let Some(file) = lock(&self.0.files).features.get(&name).cloned() else {
                continue;
            };
            match self.place(&file, &mut placed).await {
                Ok(what) => {
                    done.extend(what);
                    lock(&self.0.files).pending.remove(&name);
                }
                Err(e) => {
                    let why = format!("{}: {e}", file.path.display());
                    let mut files = lock(&self.0.files);
                    let told = files.pending.insert(name.clone(), why.clone());
                    if told.as_ref() != Some(&why) {
                        tracing::warn!(feature = %name, %why, "not as its file says; trying again");
                        problems.push(why);
                    }
                }
            }
        }
        for what in &done {
            tracing::info!(%what, "feature files");
        }
        (done, problems)
    }

    /// Takes the files of a directory into force. Features whose file is gone stay, and are the
    /// users' again.
    async fn take(&self, files: BTreeMap<FeatureName, FileFeature>) -> (Vec<String>, Vec<String>) {
        let mut placed = self.0.placed().await;
        let before = placed.len();
        placed.retain(|p| files.keys().any(|n| n.as_str() == p));
        if placed.len() != before
            && let Err(e) = self.0.remember(&placed).await
        {
            tracing::error!(error = %e, "feature files");
        }
        let names = files.keys().cloned().collect();
        let gone: Vec<FeatureName> = {
            let mut now = lock(&self.0.files);
            let gone = now.features.keys().filter(|n| !files.contains_key(n));
            let gone = gone.cloned().collect();
            *now = Files {
                features: files,
                pending: BTreeMap::new(),
            };
            gone
        };
        let (mut done, problems) = self.place_all(names).await;
        for name in gone {
            if let Some((domain, _)) = self.0.here(&name) {
                done.push(format!(
                    "{domain}/{name} has no file any more and stays; 'drover undefine {domain} {name}' removes it"
                ));
            }
        }
        (done, problems)
    }

    /// Reads configuration and feature files anew. All or nothing: whatever is wrong, or needs a
    /// restart, leaves everything as it is.
    pub(super) async fn reload_now(&self) -> Result<Reloaded> {
        let _one = self.0.reloading.lock().await;
        let path = self.0.config.path().to_owned();
        let nothing = |why: String| format!("nothing was changed: {why}");
        let read = tokio::task::spawn_blocking(move || {
            let loaded = Loaded::read(&path)?;
            let dir = feature_file::read_dir(&loaded.config.features.dir);
            Ok::<_, crate::config::ConfigError>((loaded, dir))
        });
        let (loaded, Directory { features, errors }) = read
            .await
            .map_err(|e| ApiError::Failed(nothing(e.to_string())))?
            .map_err(|e| ApiError::Invalid(nothing(e.with_cause())))?;
        if !errors.is_empty() {
            let all: Vec<String> = errors.iter().map(ToString::to_string).collect();
            return Err(ApiError::Invalid(nothing(all.join("; "))));
        }
        let (keys, restart) = self.0.config.differences(&loaded);
        if !restart.is_empty() {
            return Err(ApiError::Refused(nothing(format!(
                "{} cannot change while droverd runs; \"systemctl restart droverd\" takes everything",
                restart.join(", ")
            ))));
        }
        let conflicts = self.0.conflicts(&features);
        if !conflicts.is_empty() {
            return Err(ApiError::Refused(nothing(conflicts.join("; "))));
        }
        self.0.config.replace(loaded);
        tracing::info!(?keys, "configuration reloaded");
        let (features, problems) = self.take(features).await;
        Ok(Reloaded {
            keys,
            features,
            problems,
        })
    }
}

/// Takes the feature files at start, and tries again what could not be done.
pub(super) async fn follow(daemon: Arc<Daemon>) {
    let service = Service(daemon);
    let dir = service.0.config.features.dir.clone();
    let read = tokio::task::spawn_blocking(move || feature_file::read_dir(&dir));
    match read.await {
        Ok(Directory { features, errors }) => {
            for error in errors {
                tracing::error!(%error, "a feature file is left out");
            }
            let _one = service.0.reloading.lock().await;
            service.take(features).await;
        }
        Err(e) => tracing::error!(error = %e, "feature files are not read"),
    }
    loop {
        tokio::time::sleep(AGAIN).await;
        let names: Vec<FeatureName> = lock(&service.0.files).pending.keys().cloned().collect();
        if !names.is_empty() {
            let _one = service.0.reloading.lock().await;
            service.place_all(names).await;
        }
    }
}

/// Reloads on SIGHUP; the log tells how it went.
pub(super) async fn signalled(daemon: Arc<Daemon>, mut signals: mpsc::Receiver<()>) {
    let service = Service(daemon);
    while signals.recv().await.is_some() {
        match service.reload_now().await {
            Ok(r) => tracing::info!(keys = ?r.keys, features = ?r.features, "reloaded"),
            Err(error) => tracing::error!(%error, "not reloaded"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feature::Workload;

    #[test]
    fn what_contradicts_a_file_is_refused() {
        let name = FeatureName::new("cache").unwrap();
        let unit = "cache.service".to_owned();
        let mut spec = FeatureSpec::new(name.clone(), Workload::Unit { unit });
        spec.thresholds = vec![crate::threshold::parse("cpu > 80 % for 10 s").unwrap()];
        let file = FileFeature {
            path: "/etc/drover/features.d/cache.toml".into(),
            domain: "web".into(),
            enabled: Some(true),
            spec: spec.clone(),
        };
        let mut files = Files::default();
        assert_eq!(files.check(&name, Wish::Gone), Ok(()));
        files.features.insert(name.clone(), file);
        for fine in [
            Wish::Registered(&spec),
            Wish::Enabled(true),
            Wish::Thresholds(&spec.thresholds),
        ] {
            assert_eq!(files.check(&name, fine), Ok(()));
        }
        let mut other = spec.clone();
        other.automatic = false;
        for refused in [
            Wish::Registered(&other),
            Wish::Gone,
            Wish::Enabled(false),
            Wish::Thresholds(&[]),
        ] {
            let e = files.check(&name, refused).unwrap_err().to_string();
            assert!(
                e.contains("features.d/cache.toml") && e.contains("drover reload"),
                "{e}"
            );
        }
        assert!(!only_thresholds_differ(&spec, &other));
        other = spec.clone();
        other.thresholds.clear();
        assert!(only_thresholds_differ(&spec, &other));
    }
}
