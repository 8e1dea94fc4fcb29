//! The record of decisions: one file each, in `decisions/` below the state directory. A file has
//! three lines of JSON: the decision in short, its plan, its inputs. Only the first line is kept
//! in memory.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::api::{ApiError, Plan};
use crate::decision::{DecisionRecord, DecisionRow, Inputs};

use super::lock;

/// Bytes of all files together.
const MAX_BYTES: u64 = 64 << 20;

/// Why a decision could not be recorded or read.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The file system.
    #[error("decisions in {path}: {source}")]
    Io {
        /// File or directory.
        path: PathBuf,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// Not one of ours, or damaged.
    #[error("decision {0} is damaged or of another version of Drover")]
    Damaged(PathBuf),
    /// It is not there, or no more.
    #[error("no decision '{0}' is recorded here; 'drover decision' lists them")]
    NotFound(String),
}

impl From<AuditError> for ApiError {
    fn from(e: AuditError) -> Self {
        match e {
            AuditError::NotFound(_) => Self::NotFound(e.to_string()),
            e => Self::Failed(e.to_string()),
        }
    }
}

type Result<T> = std::result::Result<T, AuditError>;

struct Kept {
    row: DecisionRow,
    bytes: u64,
}

/// The recorded decisions of this host.
pub struct Audit {
    dir: PathBuf,
    /// Decisions kept, those that chose a target and the others apart.
    keep: usize,
    /// By file name, hence by time.
    rows: Mutex<BTreeMap<String, Kept>>,
    /// One writes at a time.
    writing: Mutex<()>,
}

fn key(row: &DecisionRow) -> String {
    format!("{:015}-{}.json", row.at_ms.max(0), row.id)
}

fn first_line(path: &Path) -> Option<DecisionRow> {
    let mut line = String::new();
    let file = std::fs::File::open(path).ok()?;
    BufReader::new(file).read_line(&mut line).ok()?;
    serde_json::from_str(&line).ok()
}

impl Audit {
    /// Opens the directory, which is made if need be, and reads what is there.
    pub fn open(state_dir: &Path, keep: usize) -> Result<Self> {
        let dir = state_dir.join("decisions");
        let io = |source| AuditError::Io {
            path: dir.clone(),
            source,
        };
        crate::history::files::make_dir(&dir).map_err(io)?;
        let mut rows = BTreeMap::new();
        for entry in std::fs::read_dir(&dir).map_err(io)? {
            let entry = entry.map_err(io)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.path().extension().is_none_or(|e| e != "json") {
                // Of a write that did not end.
                let _ = std::fs::remove_file(entry.path());
                continue;
            }
            let bytes = entry.metadata().map_or(0, |m| m.len());
            if let Some(row) = first_line(&entry.path()).filter(|row| key(row) == name) {
                rows.insert(name, Kept { row, bytes });
            } else {
                tracing::warn!(file = %entry.path().display(),
                    "a recorded decision is not readable; left where it is");
            }
        }
        let audit = Self {
            dir,
            keep: keep.max(1),
            rows: Mutex::new(rows),
            writing: Mutex::default(),
        };
        audit.prune();
        Ok(audit)
    }

    fn write(&self, name: &str, content: &[u8]) -> Result<()> {
        let path = self.dir.join(name);
        let new = self.dir.join(format!("{name}.new"));
        std::fs::write(&new, content)
            .and_then(|()| std::fs::rename(&new, &path))
            .map_err(|source| AuditError::Io { path, source })
    }

    /// Records a decision. Blocks for the file.
    pub fn add(&self, row: DecisionRow, plan: &Plan, inputs: &Inputs) -> Result<()> {
        let mut text = Vec::new();
        let damaged = |_| AuditError::Damaged(self.dir.join(&row.id));
        for part in [
            serde_json::to_vec(&row),
            serde_json::to_vec(plan),
            serde_json::to_vec(inputs),
        ] {
            text.extend(part.map_err(damaged)?);
            text.push(b'\n');
        }
        let name = key(&row);
        let _turn = lock(&self.writing);
        // Known first: a move that it begins is noted in it.
        let bytes = text.len() as u64;
        lock(&self.rows).insert(name.clone(), Kept { row, bytes });
        self.write(&name, &text)?;
        self.prune();
        Ok(())
    }

    /// Drops the oldest beyond what is kept.
    fn prune(&self) {
        let mut gone = Vec::new();
        {
            let mut rows = lock(&self.rows);
            let mut counts = [0usize; 2];
            let mut bytes = 0;
            let newest_first: Vec<(String, bool, u64)> = rows
                .iter()
                .rev()
                .map(|(n, k)| (n.clone(), k.row.to.is_some(), k.bytes))
                .collect();
            for (name, moved, size) in newest_first {
                let count = &mut counts[usize::from(moved)];
                *count += 1;
                bytes += size;
                if *count > self.keep || bytes > MAX_BYTES {
                    rows.remove(&name);
                    gone.push(name);
                }
            }
        }
        for name in gone {
            let _ = std::fs::remove_file(self.dir.join(name));
        }
    }

    /// All decisions in short, newest first.
    pub fn rows(&self) -> Vec<DecisionRow> {
        lock(&self.rows)
            .values()
            .rev()
            .map(|k| k.row.clone())
            .collect()
    }

    /// The newest decision for which `which` is true.
    pub fn find(&self, which: impl Fn(&DecisionRow) -> bool) -> Option<DecisionRow> {
        let rows = lock(&self.rows);
        rows.values()
            .rev()
            .map(|k| &k.row)
            .find(|r| which(r))
            .cloned()
    }

    fn name_of(&self, id: &str) -> Result<String> {
        let rows = lock(&self.rows);
        let mut found = rows.iter().filter(|(_, k)| k.row.id.starts_with(id));
        match (found.next(), found.next()) {
            (Some((name, _)), None) if !id.is_empty() => Ok(name.clone()),
            _ => Err(AuditError::NotFound(id.to_owned())),
        }
    }

    /// A decision in full, by its identifier or the beginning of it. Blocks for the file.
    pub fn read(&self, id: &str) -> Result<DecisionRecord> {
        let path = self.dir.join(self.name_of(id)?);
        let text = std::fs::read_to_string(&path).map_err(|source| AuditError::Io {
            path: path.clone(),
            source,
        })?;
        let parse = || {
            let mut lines = text.lines();
            Some(DecisionRecord {
                row: serde_json::from_str(lines.next()?).ok()?,
                plan: serde_json::from_str(lines.next()?).ok()?,
                inputs: serde_json::from_str(lines.next()?).ok()?,
            })
        };
        parse().ok_or(AuditError::Damaged(path))
    }

    /// Changes what is said of a decision, in memory and in its file. Blocks for the file.
    pub fn change(&self, id: &str, change: impl FnOnce(&mut DecisionRow)) -> Result<()> {
        let _turn = lock(&self.writing);
        let name = self.name_of(id)?;
        let row = {
            let mut rows = lock(&self.rows);
            let Some(kept) = rows.get_mut(&name) else {
                return Err(AuditError::NotFound(id.to_owned()));
            };
            change(&mut kept.row);
            kept.row.clone()
        };
        let path = self.dir.join(&name);
        let text = std::fs::read_to_string(&path).map_err(|source| AuditError::Io {
            path: path.clone(),
            source,
        })?;
        let rest = text.split_once('\n').map_or("", |(_, rest)| rest);
        let first = serde_json::to_string(&row).map_err(|_| AuditError::Damaged(path))?;
        self.write(&name, format!("{first}\n{rest}").as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::affinity::Demand;
    use crate::api::ModelInfo;
    use crate::decision::{Answer, Ask, BreachCause, ByFn, Cause, Effect, Policy, Score, View};
    use crate::feature::{FeatureName, Resource};
    use crate::host::HostState;
    use crate::rules::Mode;

    fn add(audit: &Audit, at_ms: i64, to: bool) -> String {
        let feature = FeatureName::new("cache").unwrap();
        let view = View {
            me: "a".into(),
            now_ms: at_ms,
            hosts: vec![HostState::new("a")],
            stale_after_ms: 1,
            groups: BTreeMap::new(),
            model: ModelInfo::default(),
        };
        let cause = Cause::Breach(BreachCause {
            resource: Resource::Cpu,
            text: "cpu".into(),
        });
        let ask = Ask::new("g", &feature, cause, Demand::default());
        let (mut plan, inputs) = Inputs::record(
            view,
            Policy::default(),
            &ask,
            &ByFn(&|_, _| Score::default()),
        );
        plan.id = format!("d{at_ms}x");
        let row = DecisionRow {
            id: plan.id.clone(),
            at_ms,
            domain: "g".into(),
            feature: feature.clone(),
            outcome: plan.outcome.clone(),
            reason: plan.reason.clone(),
            mode: Mode::Act,
            to: to.then(|| ("b".into(), "h".into())),
            answer: Answer::None,
            move_id: None,
            for_breach: true,
            resource: Some(Resource::Cpu),
            effect: Effect::default(),
            judged_ms: 0,
        };
        audit.add(row, &plan, &inputs).unwrap();
        plan.id
    }

    #[test]
    fn kept_found_changed_and_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let audit = Audit::open(dir.path(), 3).unwrap();
        let moved = add(&audit, 1, true);
        for at in 10..20 {
            add(&audit, at, false);
        }
        let ids: Vec<_> = audit.rows().into_iter().map(|r| r.id).collect();
        assert_eq!(
            ids,
            ["d19x", "d18x", "d17x", "d1x"],
            "those that moved apart"
        );
        audit
            .change(&moved, |r| r.move_id = Some("m1".into()))
            .unwrap();
        let found = audit.find(|r| r.move_id.as_deref() == Some("m1"));
        assert_eq!(found.unwrap().id, moved);
        drop(audit);

        std::fs::write(dir.path().join("decisions/000-x.json"), "{}").unwrap();
        std::fs::write(dir.path().join("decisions/y.json.new"), "{").unwrap();
        let audit = Audit::open(dir.path(), 3).unwrap();
        assert_eq!(audit.rows().len(), 4);
        let r = audit.read("d1x").unwrap();
        assert_eq!(r.row.move_id.as_deref(), Some("m1"));
        assert!(r.inputs.replay(&r.plan).same);
        assert!(
            matches!(audit.read("d"), Err(AuditError::NotFound(_))),
            "several"
        );
        assert!(matches!(audit.read(""), Err(AuditError::NotFound(_))));
        let file = dir.path().join("decisions").join(key(&r.row));
        std::fs::write(file, "damaged").unwrap();
        assert!(matches!(audit.read("d1x"), Err(AuditError::Damaged(_))));
    }
}
