//! Files around the partitions: names, the manifest of acknowledged points, durable renames,
//! free space.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};

/// `2025-01-31`, UTC, for a day number (days since the epoch).
pub(super) fn day_name(day: i64) -> String {
    let z = day + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let d = doy - (153 * mp + 2) / 5 + 1;
    let m = if mp < 10 { mp + 3 } else { mp - 9 };
    let y = yoe + era * 400 + i64::from(m <= 2);
    format!("{y:04}-{m:02}-{d:02}")
}

/// Day number of a name, with what follows the date.
pub(super) fn parse_day(name: &str) -> Option<(i64, &str)> {
    let (date, rest) = name.split_at_checked(10)?;
    let b = date.as_bytes();
    if b[4] != b'-' || b[7] != b'-' {
        return None;
    }
    let y: i64 = date[..4].parse().ok()?;
    let m: i64 = date[5..7].parse().ok()?;
    let d: i64 = date[8..].parse().ok()?;
    if !((1..=12).contains(&m) && (1..=31).contains(&d)) {
        return None;
    }
    let y = if m <= 2 { y - 1 } else { y };
    let era = y.div_euclid(400);
    let yoe = y.rem_euclid(400);
    let doy = (153 * (if m > 2 { m - 3 } else { m + 9 }) + 2) / 5 + d - 1;
    let day = era * 146_097 + yoe * 365 + yoe / 4 - yoe / 100 + doy - 719_468;
    (day_name(day) == date).then_some((day, rest))
}

/// Makes a directory's entries durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Makes every file and directory below `dir`, and `dir` in its parent, durable.
pub(super) fn sync_tree(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            sync_tree(&path)?;
        } else {
            File::open(&path)?.sync_all()?;
        }
    }
    sync_dir(dir)?;
    dir.parent().map_or(Ok(()), sync_dir)
}

/// Makes a directory (mode 0700) with its parents, durably.
pub(crate) fn make_dir(dir: &Path) -> io::Result<()> {
    if !dir.is_dir() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)?;
        if let Some(parent) = dir.parent().filter(|p| !p.as_os_str().is_empty()) {
            sync_dir(parent)?;
        }
    }
    Ok(())
}

/// Replaces a file's content: after a crash it has either the old or the new content.
pub(super) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let tmp = path.with_extension("tmp");
    let mut f = File::create(&tmp)?;
    f.write_all(content)?;
    f.sync_all()?;
    fs::rename(&tmp, path)?;
    path.parent().map_or(Ok(()), sync_dir)
}

/// Moves a file or directory out of the way under the first free name `PATH.broken-N` and returns
/// that name.
pub(crate) fn quarantine(path: &Path) -> io::Result<PathBuf> {
    for n in 1..10_000 {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".broken-{n}"));
        let to = PathBuf::from(name);
        if to.symlink_metadata().is_err() {
            fs::rename(path, &to)?;
            if let Some(parent) = path.parent() {
                sync_dir(parent)?;
            }
            return Ok(to);
        }
    }
    Err(io::Error::other("too many quarantined copies"))
}

/// Copies a sled directory without its snapshots, which sled can rebuild.
pub(super) fn copy_without_snapshots(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_without_snapshots(&entry.path(), &target)?;
        } else if !entry.file_name().to_string_lossy().starts_with("snap.") {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// Bytes of the files below a directory.
pub(super) fn size_of(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else {
        return 0;
    };
    entries
        .flatten()
        .map(|e| match e.metadata() {
            Ok(m) if m.is_dir() => size_of(&e.path()),
            Ok(m) => m.len(),
            Err(_) => 0,
        })
        .sum()
}

/// MiB that may still be written to the file system of `dir`.
pub(super) fn free_mib(dir: &Path) -> io::Result<u64> {
    let s = nix::sys::statvfs::statvfs(dir)?;
    Ok(s.blocks_available() as u64 * s.fragment_size() as u64 / (1 << 20))
}

/// High-water mark of a partition, kept outside it: what was acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Mark {
    /// Sequence number of the last append.
    pub(super) seq: u64,
    /// Points.
    pub(super) points: u64,
    /// Time of the newest point, milliseconds since the epoch.
    pub(super) last_ms: i64,
    /// It is packed.
    pub(super) packed: bool,
    /// Time of the oldest point; 0 when that is not known.
    pub(super) first_ms: i64,
}

/// Bytes of one of the two places in a mark's file; a disk writes so much whole or not at all.
const PLACE: usize = 512;

impl Mark {
    /// Writes it durably. The file has two places that are written in turns, where they are: one
    /// that a crash tears leaves the one before, and nothing of the file system has to change.
    pub(super) fn write(self, path: &Path) -> io::Result<()> {
        let before = match fs::read(path) {
            Ok(text) => Self::newest(&text).filter(|_| text.len() == 2 * PLACE),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(e),
        };
        let Some((turn, _)) = before else {
            // Of an earlier version, damaged, or none.
            let mut both = self.line(0);
            both.extend_from_slice(&[b' '; PLACE]);
            return replace(path, &both);
        };
        let f = fs::OpenOptions::new().write(true).open(path)?;
        let turn = turn.wrapping_add(1);
        f.write_all_at(&self.line(turn), turn % 2 * PLACE as u64)?;
        f.sync_data()
    }

    fn line(self, turn: u64) -> Vec<u8> {
        let packed = if self.packed { "packed" } else { "open" };
        let body = format!(
            "2 {} {} {} {packed} {} {turn}",
            self.seq, self.points, self.last_ms, self.first_ms
        );
        let mut line = format!("{body} {:08x}", crc32fast::hash(body.as_bytes())).into_bytes();
        line.resize(PLACE - 1, b' ');
        line.push(b'\n');
        line
    }

    /// `Ok(None)` when there is none, an error of kind `InvalidData` when it is damaged.
    pub(super) fn read(path: &Path) -> io::Result<Option<Self>> {
        let text = match fs::read(path) {
            Ok(t) => t,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        match Self::newest(&text) {
            Some((_, mark)) => Ok(Some(mark)),
            None => Err(io::Error::new(io::ErrorKind::InvalidData, "damaged mark")),
        }
    }

    /// The newest sound one in a file, with its turn.
    fn newest(text: &[u8]) -> Option<(u64, Self)> {
        let places = text.chunks(PLACE).filter_map(Self::parse);
        places.max_by_key(|(turn, _)| *turn)
    }

    fn parse(place: &[u8]) -> Option<(u64, Self)> {
        let text = String::from_utf8_lossy(place);
        let (body, crc) = text.trim_end().rsplit_once(' ')?;
        if format!("{:08x}", crc32fast::hash(body.as_bytes())) != crc {
            return None;
        }
        let mut parts = body.split(' ');
        let version = parts.next()?;
        if !["1", "2"].contains(&version) {
            return None;
        }
        let mark = Self {
            seq: parts.next()?.parse().ok()?,
            points: parts.next()?.parse().ok()?,
            last_ms: parts.next()?.parse().ok()?,
            // Not in marks of the first version of the format.
            packed: parts.next() == Some("packed"),
            first_ms: parts.next().and_then(|w| w.parse().ok()).unwrap_or(0),
        };
        let turn = parts.next().and_then(|w| w.parse().ok()).unwrap_or(0);
        Some((turn, mark))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days() {
        assert_eq!(day_name(0), "1970-01-01");
        assert_eq!(day_name(1_735_689_599_999 / 86_400_000), "2024-12-31");
        assert_eq!(day_name(1_735_689_600_000 / 86_400_000), "2025-01-01");
        for day in (0..40_000).step_by(13) {
            assert_eq!(parse_day(&day_name(day)), Some((day, "")));
        }
        assert_eq!(parse_day("2024-02-29.mark"), Some((19_782, ".mark")));
        for bad in [
            "2023-02-29",
            "2023-13-01",
            "lock",
            "2023-1-001",
            "20x3-01-01",
        ] {
            assert_eq!(parse_day(bad), None, "{bad}");
        }
    }

    #[test]
    fn marks() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.mark");
        assert_eq!(Mark::read(&path).unwrap(), None);
        for (seq, packed) in [(4, false), (5, false), (5, true), (6, true)] {
            let mark = Mark {
                seq,
                points: 400,
                last_ms: 99,
                packed,
                first_ms: 7,
            };
            mark.write(&path).unwrap();
            assert_eq!(Mark::read(&path).unwrap(), Some(mark));
        }
        // Turns 0 to 3 were written: the last is in the second place, the one before in the first.
        let sound = fs::read(&path).unwrap();
        assert_eq!(sound.len(), 2 * PLACE);
        for torn in [0, 1, 40] {
            let mut bytes = sound.clone();
            bytes[PLACE + torn..].fill(0);
            fs::write(&path, bytes).unwrap();
            assert_eq!(Mark::read(&path).unwrap().unwrap().seq, 5, "{torn}");
        }
        let mut bytes = sound;
        (bytes[2], bytes[PLACE + 2]) = (bytes[2] ^ 1, bytes[PLACE + 2] ^ 1);
        fs::write(&path, bytes).unwrap();
        assert!(Mark::read(&path).is_err());
        // As earlier versions wrote it.
        let body = "1 4 400 99 packed 7";
        let line = format!("{body} {:08x}\n", crc32fast::hash(body.as_bytes()));
        fs::write(&path, line).unwrap();
        let mut mark = Mark::read(&path).unwrap().unwrap();
        assert_eq!((mark.seq, mark.packed), (4, true));
        mark.seq = 5;
        mark.write(&path).unwrap();
        assert_eq!(Mark::read(&path).unwrap(), Some(mark));
    }
}
