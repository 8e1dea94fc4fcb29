//! How far the tiers are rolled up, durably.

use std::io;
use std::path::{Path, PathBuf};

use super::files;
use super::period::{DAY_MS, HOUR_MS};

/// Everything before these times is in the next tier, durably.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rolled {
    /// Points are rolled up to minutes before this time, a full hour.
    pub(super) minute_ms: i64,
    /// Minutes are rolled up to quarters of an hour before this time, a full day.
    pub(super) quarter_ms: i64,
}

impl Default for Rolled {
    fn default() -> Self {
        Self {
            minute_ms: i64::MIN,
            quarter_ms: i64::MIN,
        }
    }
}

impl Rolled {
    fn path(dir: &Path) -> PathBuf {
        dir.join("rolled")
    }

    /// Reads it; nothing is rolled up when it is missing or damaged: rolling up again does no harm.
    pub(super) fn read(dir: &Path) -> Self {
        let parse = || {
            let text = std::fs::read_to_string(Self::path(dir)).ok()?;
            let (body, crc) = text.trim_end().rsplit_once(' ')?;
            if format!("{:08x}", crc32fast::hash(body.as_bytes())) != crc {
                return None;
            }
            let mut parts = body.split(' ');
            (parts.next()? == "1").then_some(())?;
            Some(Self {
                minute_ms: parts.next()?.parse().ok()?,
                quarter_ms: parts.next()?.parse().ok()?,
            })
        };
        parse().unwrap_or_default()
    }

    /// Writes it durably.
    pub(super) fn write(self, dir: &Path) -> io::Result<()> {
        let body = format!("1 {} {}", self.minute_ms, self.quarter_ms);
        let line = format!("{body} {:08x}\n", crc32fast::hash(body.as_bytes()));
        files::replace(&Self::path(dir), line.as_bytes())
    }

    /// Points of `at_ms` are about to come: its hour and day must be rolled up (again). Whether
    /// that changed anything.
    pub(super) fn lower(&mut self, at_ms: i64) -> bool {
        let before = *self;
        self.minute_ms = self.minute_ms.min(at_ms.div_euclid(HOUR_MS) * HOUR_MS);
        self.quarter_ms = self.quarter_ms.min(at_ms.div_euclid(DAY_MS) * DAY_MS);
        *self != before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_lasts_and_damage_is_nothing_rolled() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Rolled::read(dir.path()), Rolled::default());
        let mut r = Rolled {
            minute_ms: 50 * HOUR_MS,
            quarter_ms: 2 * DAY_MS,
        };
        r.write(dir.path()).unwrap();
        assert_eq!(Rolled::read(dir.path()), r);
        assert!(!r.lower(50 * HOUR_MS));
        assert!(r.lower(49 * HOUR_MS + 5));
        assert_eq!((r.minute_ms, r.quarter_ms), (49 * HOUR_MS, 2 * DAY_MS));
        assert!(r.lower(5));
        assert_eq!((r.minute_ms, r.quarter_ms), (0, 0));
        let path = Rolled::path(dir.path());
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[3] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(Rolled::read(dir.path()), Rolled::default());
    }
}
