//! Opening the state file: durably made, damage told from a machine that refuses.

use std::any::Any;
use std::io::ErrorKind;
use std::panic::catch_unwind;
use std::path::Path;

use redb::Database;

use super::{StoreError, TABLES};
use crate::history::{Problems, files};

/// redb's page cache, bytes.
const CACHE: usize = 1 << 20;

enum Failure {
    /// Not to be cured by a new file.
    Refused(StoreError),
    /// The file is damaged, and how.
    Broken(String),
}

/// Opens or creates the file; one that cannot be opened is set aside, loudly.
pub(super) fn open(dir: &Path, path: &Path, problems: &Problems) -> Result<Database, StoreError> {
    let io = |e: std::io::Error| StoreError::Io {
        path: path.to_owned(),
        message: e.to_string(),
    };
    files::make_dir(dir).map_err(io)?;
    // The check reads the whole file, which is small. What fails it may still give most records:
    // each has a CRC of its own.
    let checked = attempt(path, true).or_else(|failure| match failure {
        Failure::Broken(why) => {
            let db = attempt(path, false)?;
            problems.report(format!(
                "state file {}: its checksums do not match ({why}): records may be missing; look \
                 at the registered features, and at moves that were under way on both hosts",
                path.display()
            ));
            Ok(db)
        }
        Failure::Refused(e) => Err(Failure::Refused(e)),
    });
    let db = match checked {
        Ok(db) => db,
        Err(Failure::Refused(e)) => return Err(e),
        Err(Failure::Broken(why)) => {
            let aside = files::quarantine(path).map_err(io)?;
            problems.report(format!(
                "state file {} could not be opened ({why}); it was set aside as {} and begun \
                 anew: no feature is registered, and moves that were under way must be looked \
                 after on both hosts",
                path.display(),
                aside.display()
            ));
            attempt(path, false).map_err(|f| match f {
                Failure::Refused(e) => e,
                Failure::Broken(message) => StoreError::Io {
                    path: path.to_owned(),
                    message,
                },
            })?
        }
    };
    files::sync_dir(dir).map_err(io)?;
    Ok(db)
}

/// Opens the file again after a failure while running; it is never set aside then.
pub(super) fn reopen(path: &Path) -> Result<Database, StoreError> {
    attempt(path, false).map_err(|f| match f {
        Failure::Refused(e) => e,
        Failure::Broken(message) => StoreError::Io {
            path: path.to_owned(),
            message,
        },
    })
}

fn attempt(path: &Path, check: bool) -> Result<Database, Failure> {
    let refused = |message: String| {
        Failure::Refused(StoreError::Io {
            path: path.to_owned(),
            message,
        })
    };
    let opened = catch_unwind(|| -> Result<Database, redb::Error> {
        let db = Database::builder()
            .set_cache_size(CACHE)
            .set_check_integrity_on_open(check)
            .create(path)?;
        // All tables are there from the start, and their roots can be read.
        let tx = db.begin_write()?;
        for table in TABLES {
            tx.open_table(table)?;
        }
        tx.commit()?;
        Ok(db)
    });
    match opened {
        Ok(Ok(db)) => Ok(db),
        Ok(Err(redb::Error::DatabaseAlreadyOpen)) => {
            Err(Failure::Refused(StoreError::InUse(path.to_owned())))
        }
        Ok(Err(redb::Error::Io(e)))
            if !matches!(e.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof) =>
        {
            Err(refused(e.to_string()))
        }
        Ok(Err(e @ (redb::Error::UpgradeRequired(_) | redb::Error::LockProtocolMismatch))) => {
            Err(refused(e.to_string()))
        }
        Ok(Err(e)) => Err(Failure::Broken(e.to_string())),
        Err(panic) => Err(Failure::Broken(format!(
            "redb gave up: {}",
            panic_text(&*panic)
        ))),
    }
}

/// What a panic said.
pub(super) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no reason")
}
