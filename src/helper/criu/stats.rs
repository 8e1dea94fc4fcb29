//! criu's statistics (`stats-dump`) and the page counts in its `pagemap` images.

use std::path::Path;

use prost::Message;

/// Magic numbers before a statistics entry: the common one of service images and its own.
const MAGIC_SERVICE: u32 = 0x5510_5940;
const MAGIC_STATS: u32 = 0x5709_3306;
const MAGIC_COMMON: u32 = 0x5456_4319;
const MAGIC_PAGEMAP: u32 = 0x5608_4025;
/// Size of a page in images, bytes.
pub const PAGE: u64 = 4096;

/// Statistics of a dump (`dump_stats_entry`), times in microseconds.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DumpStats {
    /// Until all tasks were stopped.
    #[prost(uint32, required, tag = "1")]
    pub freezing_us: u32,
    /// While tasks were stopped.
    #[prost(uint32, required, tag = "2")]
    pub frozen_us: u32,
    /// For taking memory.
    #[prost(uint32, required, tag = "3")]
    pub memdump_us: u32,
    /// For writing memory.
    #[prost(uint32, required, tag = "4")]
    pub memwrite_us: u32,
    /// Pages looked at.
    #[prost(uint64, required, tag = "5")]
    pub pages_scanned: u64,
    /// Pages that an earlier round has.
    #[prost(uint64, required, tag = "6")]
    pub pages_skipped: u64,
    /// Pages written.
    #[prost(uint64, required, tag = "7")]
    pub pages_written: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Entry {
    #[prost(message, optional, tag = "1")]
    dump: Option<DumpStats>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Pagemap {
    #[prost(uint32, required, tag = "2")]
    nr_pages: u32,
    #[prost(bool, optional, tag = "3")]
    in_parent: Option<bool>,
    #[prost(uint32, optional, tag = "4")]
    flags: Option<u32>,
    #[prost(uint64, optional, tag = "5")]
    nr_pages_64: Option<u64>,
}

fn word(b: &[u8]) -> Option<(u32, &[u8])> {
    let (head, tail) = b.split_first_chunk::<4>()?;
    Some((u32::from_le_bytes(*head), tail))
}

fn entry(b: &[u8]) -> Option<(&[u8], &[u8])> {
    let (n, rest) = word(b)?;
    rest.split_at_checked(n as usize)
}

/// Reads a `stats-dump` image; `None` when it is not one.
pub fn parse(image: &[u8]) -> Option<DumpStats> {
    let (first, rest) = word(image)?;
    let (second, rest) = word(rest)?;
    if first != MAGIC_SERVICE || second != MAGIC_STATS {
        return None;
    }
    Entry::decode(entry(rest)?.0).ok()?.dump
}

/// What the dump whose statistics are in `dir` took; zeroes when they are not there.
pub fn read(dir: &Path) -> DumpStats {
    let image = std::fs::read(dir.join("stats-dump")).ok();
    image.and_then(|b| parse(&b)).unwrap_or_default()
}

/// Counts (pages in this image, pages left to the parent) in a `pagemap` image; `None` when it
/// is not one.
pub fn count_pages(image: &[u8]) -> Option<(u64, u64)> {
    const PARENT: u32 = 1;
    const PRESENT: u32 = 4;
    let (first, rest) = word(image)?;
    let (second, rest) = word(rest)?;
    if first != MAGIC_COMMON || second != MAGIC_PAGEMAP {
        return None;
    }
    let (_head, mut rest) = entry(rest)?;
    let (mut present, mut parent) = (0u64, 0u64);
    while !rest.is_empty() {
        let (bytes, tail) = entry(rest)?;
        rest = tail;
        let p = Pagemap::decode(bytes).ok()?;
        let n = p.nr_pages_64.unwrap_or(u64::from(p.nr_pages));
        let flags = p.flags.unwrap_or(0);
        if p.in_parent.unwrap_or(false) || flags & PARENT != 0 {
            parent = parent.saturating_add(n);
        } else if p.flags.is_none() || flags & PRESENT != 0 {
            present = present.saturating_add(n);
        }
    }
    Some((present, parent))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn image(magic: [u32; 2], entries: &[Vec<u8>]) -> Vec<u8> {
        let mut b = Vec::new();
        for m in magic {
            b.extend_from_slice(&m.to_le_bytes());
        }
        for e in entries {
            b.extend_from_slice(&(e.len() as u32).to_le_bytes());
            b.extend_from_slice(e);
        }
        b
    }

    #[test]
    fn statistics() {
        let dump = DumpStats {
            frozen_us: 12_000,
            pages_written: 77,
            pages_skipped: 5,
            ..DumpStats::default()
        };
        let e = Entry {
            dump: Some(dump.clone()),
        };
        let b = image([MAGIC_SERVICE, MAGIC_STATS], &[e.encode_to_vec()]);
        assert_eq!(parse(&b), Some(dump));
        assert_eq!(parse(&b[..b.len() - 1]), None);
    }

    #[test]
    fn pages() {
        let e = |n, flags| {
            Pagemap {
                nr_pages: n,
                in_parent: None,
                flags: Some(flags),
                nr_pages_64: None,
            }
            .encode_to_vec()
        };
        let b = image(
            [MAGIC_COMMON, MAGIC_PAGEMAP],
            &[vec![0x08, 1], e(10, 4), e(3, 1), e(2, 4)],
        );
        assert_eq!(count_pages(&b), Some((12, 3)));
    }

    proptest! {
        #[test]
        fn never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut b = image([MAGIC_COMMON, MAGIC_PAGEMAP], &[vec![]]);
            b.extend_from_slice(&bytes);
            let _ = (parse(&b), count_pages(&b), parse(&bytes), count_pages(&bytes));
        }
    }
}
