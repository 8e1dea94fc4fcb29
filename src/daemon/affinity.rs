//! The affinity model beside the daemon's main path: rows from and for peers, training on a
//! thread of low priority within a CPU budget, and the file that keeps what was learnt.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::affinity::{Affinity, AffinityError, Batch, Settings, Snapshot, Trained};
use crate::api::ModelInfo;
use crate::config::Config;

use super::{Daemon, clock, lock};

/// Rows asked of a peer at a time.
const ROWS: u32 = 500;
/// Batches asked of a peer before each training.
const BATCHES: usize = 8;
/// Priority of the training's thread: the lowest.
const NICE: i32 = 19;

fn path(config: &Config) -> PathBuf {
    config.history.state_dir.join("affinity.bin")
}

fn previous(path: &Path) -> PathBuf {
    path.with_extension("previous")
}

/// The affinity with what an earlier run learned.
pub(super) fn load(config: &Config) -> Affinity {
    let m = &config.model;
    let settings = Settings {
        horizon_s: m.horizon_s,
        reservoir: m.reservoir,
        rows_min: m.rows_min,
        rows_full: m.rows_full,
        ..Settings::default()
    };
    let path = path(config);
    read(&path, &settings)
        .or_else(|| read(&previous(&path), &settings))
        .unwrap_or_else(|| Affinity::new(settings))
}

/// Reads and checks one file; what cannot be used is said.
fn read(path: &Path, settings: &Settings) -> Option<Affinity> {
    let bytes = match fs::read(path) {
        Ok(b) => b,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return None,
        Err(e) => {
            tracing::warn!(file = %path.display(), error = %e, "affinity not read");
            return None;
        }
    };
    Affinity::from_bytes(settings.clone(), &bytes)
        .inspect_err(|e| tracing::warn!(file = %path.display(), error = %e, "affinity not taken"))
        .ok()
}

/// Writes a file so that a crash leaves the old one or the new one; the old one is kept beside it.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    if path.exists() {
        fs::rename(path, previous(path))?;
    }
    fs::rename(&new, path)?;
    if let Some(dir) = path.parent() {
        File::open(dir)?.sync_all()?;
    }
    Ok(())
}

/// Writes what was learned. Blocks for the file.
pub(super) fn save(daemon: &Daemon) {
    let image = lock(&daemon.affinity).image();
    let path = path(&daemon.config);
    if let Err(e) = replace(&path, &image.to_bytes()) {
        tracing::error!(file = %path.display(), error = %e,
            "what the affinity learned cannot be written");
    }
}

/// CPU time of this thread.
fn thread_time() -> Duration {
    use nix::time::{ClockId, clock_gettime};
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// Trains on a thread of its own, of the lowest priority, so that metering goes first; within
/// `budget` of CPU time. The answer comes through the channel.
pub fn train_apart(
    snapshot: Snapshot,
    budget: Duration,
    now_ms: i64,
) -> io::Result<tokio::sync::oneshot::Receiver<Result<Trained, AffinityError>>> {
    apart("training", budget, move |go| snapshot.train(now_ms, go))
}

/// Works on a thread of its own, of the lowest priority. The work asks now and then whether it may
/// go on, which it may for `budget` of CPU time. The answer comes through the channel.
pub(super) fn apart<T: Send + 'static>(
    name: &str,
    budget: Duration,
    work: impl FnOnce(&mut dyn FnMut() -> bool) -> T + Send + 'static,
) -> io::Result<tokio::sync::oneshot::Receiver<T>> {
    let (answer, receiver) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            // SAFETY: changes the priority of the calling thread only (on Linux `who` 0 is that).
            unsafe { nix::libc::setpriority(nix::libc::PRIO_PROCESS, 0, NICE) };
            let begun = thread_time();
            let done = work(&mut || thread_time().saturating_sub(begun) < budget);
            // Nobody waits when the daemon ends.
            let _ = answer.send(done);
        })?;
    Ok(receiver)
}

impl Daemon {
    /// Rows of this host after a time (milliseconds since the epoch), as JSON; only those of
    /// groups that the peer may have.
    pub(super) fn rows_for(&self, peer: &str, after: u64, limit: usize) -> String {
        let groups = self.peers().map(|p| p.groups(peer)).unwrap_or_default();
        let after = i64::try_from(after).unwrap_or(i64::MAX);
        let may = |r: &crate::affinity::Row| groups.contains(&r.group);
        let batch = lock(&self.affinity)
            .reservoir()
            .since(Some(self.name()), after, limit, may);
        serde_json::to_string(&batch).unwrap_or_default()
    }

    /// The model in use; without one, the rows collected so far.
    pub(super) fn model_info(&self) -> ModelInfo {
        let affinity = lock(&self.affinity);
        let mut info = affinity.info();
        if info.rows == 0 {
            info.rows = affinity.reservoir().len() as u64;
        }
        info
    }

    async fn fetch_rows(&self, seen: &mut BTreeMap<String, u64>) {
        let Some(peers) = self.peers() else { return };
        // A row is dated by its inputs and is complete a horizon later: ones that were not yet
        // complete when a later one was fetched are asked for again.
        let overlap = (self.config.model.horizon_s * 3000.0) as u64;
        for host in peers.names() {
            let mut after = seen
                .get(&host)
                .map_or(0, |newest| newest.saturating_sub(overlap));
            for _ in 0..BATCHES {
                let Ok(text) = peers.rows(&host, after, ROWS).await else {
                    break;
                };
                let batch: Batch = match serde_json::from_str(&text) {
                    Ok(b) => b,
                    Err(e) => {
                        tracing::warn!(%host, error = %e, "a peer's affinity rows are not readable");
                        break;
                    }
                };
                let (count, newest) = (batch.rows.len(), batch.rows.iter().map(|r| r.at_ms).max());
                if batch.rows.iter().any(|r| r.host != host) {
                    tracing::warn!(%host, "a peer's affinity rows are refused: not all are its own");
                    break;
                }
                match lock(&self.affinity).merge(batch, clock::now_ms()) {
                    Ok(n) => tracing::debug!(%host, rows = n, "affinity rows of a peer"),
                    Err(e) => {
                        tracing::warn!(%host, error = %e, "a peer's affinity rows are refused");
                        break;
                    }
                }
                if let Some(at) = newest.and_then(|at| u64::try_from(at).ok()) {
                    seen.insert(host.clone(), at);
                    after = at;
                }
                if count < ROWS as usize {
                    break;
                }
            }
        }
    }
}

/// Trains the model again and again, on rows of all hosts.
pub(super) async fn training(daemon: Arc<Daemon>) {
    let mut seen = BTreeMap::new();
    loop {
        let every = Duration::from_secs(daemon.config.model.train_every_s.max(1));
        tokio::time::sleep(every).await;
        let budget = Duration::from_secs_f64(daemon.config.model.budget_s.max(0.1));
        daemon.fetch_rows(&mut seen).await;
        let snapshot = lock(&daemon.affinity).snapshot();
        let trained = match train_apart(snapshot, budget, clock::now_ms()) {
            Ok(answer) => answer.await,
            Err(e) => {
                tracing::error!(error = %e, "no thread for the training");
                continue;
            }
        };
        match trained {
            Ok(Ok(trained)) => {
                let (error, constant) = (trained.error, trained.constant_error);
                let champion = trained.champion_error;
                let won = lock(&daemon.affinity).adopt(trained);
                tracing::info!(won, error, champion, constant, info = ?daemon.model_info(),
                    "affinity model trained");
            }
            Ok(Err(e)) => tracing::debug!(error = %e, "affinity model not trained"),
            Err(_) => tracing::error!("training ended abnormally"),
        }
        let daemon = Arc::clone(&daemon);
        let _ = tokio::task::spawn_blocking(move || save(&daemon)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_file_gives_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("affinity.bin");
        let settings = Settings::default();
        assert!(read(&path, &settings).is_none());
        let bytes = Affinity::new(settings.clone()).to_bytes();
        replace(&path, &bytes).unwrap();
        assert!(read(&path, &settings).is_some());
        replace(&path, &bytes[..bytes.len() - 1]).unwrap();
        assert!(read(&path, &settings).is_none());
        assert!(read(&previous(&path), &settings).is_some());
    }

    #[tokio::test]
    async fn training_apart_answers() {
        let snapshot = Affinity::new(Settings::default()).snapshot();
        let answer = train_apart(snapshot, Duration::from_secs(1), 0).unwrap();
        assert!(matches!(
            answer.await,
            Ok(Err(AffinityError::TooFewRows { .. }))
        ));
    }
}
