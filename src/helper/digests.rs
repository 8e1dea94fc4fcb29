//! Sizes and sums of files, kept as long as a file is not touched: on an emulated guest reading
//! redis and its libraries takes longer than a freeze may, and each move asks for them twice.

use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use super::moves::lock;
use crate::wire::guest::FileDigest;
use crate::wire::sum::Sum;

/// Most files that are remembered.
const MOST: usize = 4096;
/// A file that changed less than this ago may change again within the same tick of the clock.
const SETTLED: Duration = Duration::from_secs(2);

/// What tells one content of a file from another without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mark {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
    modified: (i64, i64),
}

impl Mark {
    fn of(m: &Metadata) -> Self {
        Self {
            device: m.dev(),
            inode: m.ino(),
            size: m.size(),
            changed: (m.ctime(), m.ctime_nsec()),
            modified: (m.mtime(), m.mtime_nsec()),
        }
    }

    /// Whether the last change is long enough ago.
    fn settled(&self) -> bool {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        now.is_ok_and(|now| now.saturating_sub(SETTLED).as_secs().cast_signed() > self.changed.0)
    }
}

static KNOWN: Mutex<Option<HashMap<PathBuf, (Mark, u64)>>> = Mutex::new(None);

/// Size and sum of a plain file.
pub fn of(path: &Path) -> io::Result<FileDigest> {
    let mut file = fs::File::open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::other("it is not a plain file"));
    }
    let mark = Mark::of(&meta);
    let digest = |sum, size| FileDigest {
        path: path.display().to_string(),
        size,
        sum,
    };
    if let Some((known, sum)) = lock(&KNOWN).as_ref().and_then(|k| k.get(path))
        && *known == mark
    {
        return Ok(digest(*sum, mark.size));
    }
    let (mut sum, mut size) = (Sum::new(), 0);
    let mut buf = vec![0; 256 << 10];
    loop {
        let n = file.read(&mut buf)?;
        if n == 0 {
            break;
        }
        sum.update(&buf[..n]);
        size += n as u64;
    }
    let sum = sum.finish();
    if mark.settled() && size == mark.size && Mark::of(&file.metadata()?) == mark {
        let mut known = lock(&KNOWN);
        let known = known.get_or_insert_default();
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(path.to_owned(), (mark, sum));
    }
    Ok(digest(sum, size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_changed_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("libx.so");
        fs::write(&path, "one").unwrap();
        let one = of(&path).unwrap();
        assert_eq!((one.size, one.sum), (3, crate::wire::sum::of(b"one")));
        // Fresh files are not remembered, whatever the clock's ticks.
        fs::write(&path, "two").unwrap();
        assert_eq!(of(&path).unwrap().sum, crate::wire::sum::of(b"two"));
        assert!(of(dir.path()).is_err());
        assert!(of(&dir.path().join("absent")).is_err());
    }

    #[test]
    fn an_untouched_file_is_read_once() {
        let path = std::env::current_exe().unwrap();
        let first = of(&path).unwrap();
        let mark = Mark::of(&fs::metadata(&path).unwrap());
        let known = lock(&KNOWN).as_ref().and_then(|k| k.get(&path).cloned());
        // A test binary that was just built has not settled yet.
        assert_eq!(known, mark.settled().then_some((mark, first.sum)));
        assert_eq!(of(&path).unwrap(), first);
    }
}
