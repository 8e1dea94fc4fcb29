//! Registry of features, journal of moves, ended jobs and small settings, in one redb file.
//!
//! Every change is durable when it returns, against kill and power cut, and a [transaction]
//! (Store::transaction) of several changes happens as a whole or not at all. Every value carries
//! a CRC-32 over its table, key and content, because redb returns a flipped value without a word:
//! a damaged record is left out of what is read, logged as an error and listed by
//! [`Store::problems`], and the others are read as ever.
//!
//! Only a file that cannot be opened at all is set aside (`state.redb.broken-1`) and begun anew,
//! with an error that says what that means.
//!
//! [transaction]: Store::transaction

mod change;
mod open;
mod record;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition, TableError};

use crate::api::Job;
use crate::feature::FeatureName;
use crate::history::Problems;
use crate::wire::guest::MoveId;

/// Ended jobs kept, the newest ones.
pub const JOBS_KEPT: usize = 500;

type Table = TableDefinition<'static, &'static [u8], &'static [u8]>;
const FEATURES: Table = TableDefinition::new("features");
const MOVES_SOURCE: Table = TableDefinition::new("moves_source");
const MOVES_TARGET: Table = TableDefinition::new("moves_target");
const JOBS: Table = TableDefinition::new("jobs");
const SETTINGS: Table = TableDefinition::new("settings");
const TABLES: [Table; 5] = [FEATURES, MOVES_SOURCE, MOVES_TARGET, JOBS, SETTINGS];

pub use change::{Change, FeatureRecord, Side};

/// Why the store refused or failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The file could not be opened, read or written; nothing of the change was done.
    #[error("state file {path}: {message}")]
    Io {
        /// File or directory.
        path: PathBuf,
        /// The system's or redb's words.
        message: String,
    },
    /// Another process has it open.
    #[error("state file {0} is in use by another process: stop the other droverd first")]
    InUse(PathBuf),
    /// A single record that was asked for is damaged.
    #[error("state file {path}: {record} is damaged")]
    Damaged {
        /// File.
        path: PathBuf,
        /// Which record.
        record: String,
    },
    /// A key or record that cannot be stored.
    #[error("cannot store {what}: {message}")]
    Invalid {
        /// What.
        what: String,
        /// Why.
        message: String,
    },
}

type Result<T> = std::result::Result<T, StoreError>;

/// Keys and values.
type Rows = Vec<(Vec<u8>, Vec<u8>)>;

/// Handle to the state file; clones share it. Calls block for one or two fsyncs; from async code
/// use [`Store::run`].
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    /// `None` after a failure of which redb does not recover, until it is opened anew.
    db: Mutex<Option<Database>>,
    problems: Problems,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("path", &self.inner.path)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// Opens or creates `DIR/state.redb`.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join("state.redb");
        let problems = Problems::default();
        let db = open::open(dir, &path, &problems)?;
        Ok(Self {
            inner: Arc::new(Inner {
                path,
                db: Mutex::new(Some(db)),
                problems,
            }),
        })
    }

    /// Runs blocking calls on a thread for such, within tokio. An error when the runtime ends.
    pub async fn run<T, F>(&self, f: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Self) -> Result<T> + Send + 'static,
    {
        let store = self.clone();
        let path = self.inner.path.clone();
        tokio::task::spawn_blocking(move || f(&store))
            .await
            .map_err(|e| StoreError::Io {
                path,
                message: e.to_string(),
            })?
    }

    /// Does all changes or none, in their order. Durable when it returns; after an error none of
    /// them was done, unless the error is of the disk, when reading tells.
    pub fn transaction(&self, changes: Vec<Change>) -> Result<()> {
        let writes = changes
            .into_iter()
            .map(Change::into_write)
            .collect::<Result<Vec<_>>>()?;
        let prune = writes.iter().any(|w| is(w.table, JOBS));
        self.with("change", |db| {
            let mut tx = db.begin_write()?;
            tx.set_durability(Durability::Immediate)?;
            for w in &writes {
                let mut table = tx.open_table(w.table)?;
                match &w.value {
                    Some(v) => {
                        let sealed = record::seal(&name_of(w.table), &w.key, v);
                        table.insert(w.key.as_slice(), sealed.as_slice())?;
                    }
                    None => {
                        table.remove(w.key.as_slice())?;
                    }
                }
            }
            if prune {
                let mut jobs = tx.open_table(JOBS)?;
                let mut count = 0;
                for item in jobs.iter()? {
                    item?;
                    count += 1;
                }
                for _ in JOBS_KEPT..count {
                    jobs.pop_first()?;
                }
            }
            tx.commit()?;
            Ok(())
        })
    }

    /// Registers or replaces a feature of a domain.
    pub fn put_feature(&self, domain_uuid: &str, record: &FeatureRecord) -> Result<()> {
        self.transaction(vec![Change::PutFeature {
            domain_uuid: domain_uuid.to_owned(),
            record: Box::new(record.clone()),
        }])
    }

    /// Removes a feature of a domain; nothing when it is not there.
    pub fn remove_feature(&self, domain_uuid: &str, name: &FeatureName) -> Result<()> {
        self.transaction(vec![Change::RemoveFeature {
            domain_uuid: domain_uuid.to_owned(),
            name: name.clone(),
        }])
    }

    /// All features with their domains' UUIDs, sorted by UUID and name.
    pub fn features(&self) -> Result<Vec<(String, FeatureRecord)>> {
        let (rows, _) = self.read_all(FEATURES)?;
        Ok(rows
            .into_iter()
            .filter_map(|(key, json)| {
                let uuid = key.split(|b| *b == 0).next().unwrap_or_default();
                let uuid = String::from_utf8_lossy(uuid).into_owned();
                Some((uuid, self.parse("features", &key, &json)?))
            })
            .collect())
    }

    /// The features of one domain, sorted by name; no other is read.
    pub fn features_of(&self, domain_uuid: &str) -> Result<Vec<FeatureRecord>> {
        let (rows, _) = self.read_below(FEATURES, format!("{domain_uuid}\0").as_bytes())?;
        let records = rows.into_iter();
        Ok(records
            .filter_map(|(key, json)| self.parse("features", &key, &json))
            .collect())
    }

    /// Writes a move's journal record.
    pub fn put_move(&self, side: Side, id: &MoveId, record: &[u8]) -> Result<()> {
        self.transaction(vec![Change::PutMove {
            side,
            id: id.clone(),
            record: record.to_owned(),
        }])
    }

    /// Removes a move's journal record; nothing when it is not there.
    pub fn remove_move(&self, side: Side, id: &MoveId) -> Result<()> {
        self.transaction(vec![Change::RemoveMove {
            side,
            id: id.clone(),
        }])
    }

    /// The journal of a side. Damaged records are left out: see [`Store::damaged_moves`].
    pub fn moves(&self, side: Side) -> Result<Vec<(MoveId, Vec<u8>)>> {
        let (rows, _) = self.read_all(side.table())?;
        Ok(rows
            .into_iter()
            .map(|(key, v)| (String::from_utf8_lossy(&key).into_owned(), v))
            .collect())
    }

    /// Identifiers, as far as they can be read, of moves whose record is damaged. Such a move is
    /// in doubt: ask the other side, never assume.
    pub fn damaged_moves(&self, side: Side) -> Result<Vec<MoveId>> {
        Ok(self.read_all(side.table())?.1)
    }

    /// Records an ended job, or replaces it.
    pub fn put_job(&self, job: &Job) -> Result<()> {
        self.transaction(vec![Change::PutJob(Box::new(job.clone()))])
    }

    /// Ended jobs, newest first, at most `limit`.
    pub fn jobs(&self, limit: usize) -> Result<Vec<Job>> {
        let (rows, _) = self.read_all(JOBS)?;
        Ok(rows
            .into_iter()
            .rev()
            .filter_map(|(key, json)| self.parse("jobs", &key, &json))
            .take(limit)
            .collect())
    }

    /// Writes a setting.
    pub fn put(&self, key: &str, value: &[u8]) -> Result<()> {
        self.transaction(vec![Change::PutSetting {
            key: key.to_owned(),
            value: value.to_owned(),
        }])
    }

    /// Reads a setting; [`StoreError::Damaged`] when it is there but damaged.
    pub fn get(&self, key: &str) -> Result<Option<Vec<u8>>> {
        let raw = self.with("read", |db| {
            let tx = db.begin_read()?;
            match tx.open_table(SETTINGS) {
                Ok(t) => Ok(t.get(key.as_bytes())?.map(|v| v.value().to_vec())),
                Err(TableError::TableDoesNotExist(_)) => Ok(None),
                Err(e) => Err(e.into()),
            }
        })?;
        let Some(raw) = raw else { return Ok(None) };
        if let Some(v) = record::open("settings", key.as_bytes(), &raw) {
            return Ok(Some(v.to_vec()));
        }
        self.damaged("settings", key.as_bytes());
        Err(StoreError::Damaged {
            path: self.inner.path.clone(),
            record: format!("settings '{key}'"),
        })
    }

    /// Removes a setting; nothing when it is not there.
    pub fn remove(&self, key: &str) -> Result<()> {
        self.transaction(vec![Change::RemoveSetting {
            key: key.to_owned(),
        }])
    }

    /// What went wrong since it was opened, oldest first, for the administrator.
    pub fn problems(&self) -> Vec<String> {
        self.inner.problems.list()
    }

    /// Sound rows of a table in the order of their keys, and the keys of damaged ones as text.
    fn read_all(&self, table: Table) -> Result<(Rows, Vec<String>)> {
        self.read_below(table, b"")
    }

    /// The same of the keys that begin so.
    fn read_below(&self, table: Table, prefix: &[u8]) -> Result<(Rows, Vec<String>)> {
        let name = name_of(table);
        let raw = self.with("read", |db| {
            let tx = db.begin_read()?;
            let t = match tx.open_table(table) {
                Ok(t) => t,
                Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
                Err(e) => return Err(e.into()),
            };
            let mut rows = Vec::new();
            for item in t.range(prefix..)? {
                let (k, v) = item?;
                if !k.value().starts_with(prefix) {
                    break;
                }
                rows.push((k.value().to_vec(), v.value().to_vec()));
            }
            Ok(rows)
        })?;
        let (mut sound, mut damaged) = (Vec::with_capacity(raw.len()), Vec::new());
        for (key, value) in raw {
            if let Some(v) = record::open(&name, &key, &value) {
                let v = v.to_vec();
                sound.push((key, v));
            } else {
                self.damaged(&name, &key);
                damaged.push(String::from_utf8_lossy(&key).into_owned());
            }
        }
        Ok((sound, damaged))
    }

    fn parse<T: serde::de::DeserializeOwned>(
        &self,
        table: &str,
        key: &[u8],
        json: &[u8],
    ) -> Option<T> {
        match serde_json::from_slice(json) {
            Ok(v) => Some(v),
            Err(e) => {
                self.inner.problems.report(format!(
                    "state file {}: {table} {} is of another version of Drover: {e}",
                    self.inner.path.display(),
                    record::shown(table, key)
                ));
                None
            }
        }
    }

    fn damaged(&self, table: &str, key: &[u8]) {
        self.inner.problems.report(format!(
            "state file {}: {table} {} is damaged and left out",
            self.inner.path.display(),
            record::shown(table, key)
        ));
    }

    /// Runs something of redb's. It may panic on damaged files, and after an I/O error it refuses
    /// everything until it is opened anew.
    fn with<T>(
        &self,
        what: &str,
        f: impl FnOnce(&Database) -> std::result::Result<T, redb::Error>,
    ) -> Result<T> {
        let path = &self.inner.path;
        let mut slot = self.inner.db.lock().unwrap_or_else(PoisonError::into_inner);
        let db = match slot.take() {
            Some(db) => db,
            None => open::reopen(path)?,
        };
        let message = match catch_unwind(AssertUnwindSafe(|| f(&db))) {
            Ok(Ok(v)) => {
                *slot = Some(db);
                return Ok(v);
            }
            Ok(Err(e)) => e.to_string(),
            Err(panic) => format!("redb gave up: {}", open::panic_text(&*panic)),
        };
        tracing::warn!("state file {}: {what} failed: {message}", path.display());
        // Closing writes to the file, which may go wrong again.
        if catch_unwind(AssertUnwindSafe(|| drop(db))).is_err() {
            tracing::warn!(
                "state file {}: could not be closed in order",
                path.display()
            );
        }
        Err(StoreError::Io {
            path: path.clone(),
            message,
        })
    }
}

fn name_of(table: Table) -> String {
    redb::TableHandle::name(&table).to_owned()
}

fn is(a: Table, b: Table) -> bool {
    redb::TableHandle::name(&a) == redb::TableHandle::name(&b)
}
