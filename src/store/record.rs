//! Values of the state file: version, CRC-32 over table, key and content, content.

const VERSION: u8 = 1;
const HEADER: usize = 5;

fn checksum(table: &str, key: &[u8], content: &[u8]) -> u32 {
    let mut h = crc32fast::Hasher::new();
    h.update(&[VERSION]);
    h.update(table.as_bytes());
    h.update(&(key.len() as u64).to_le_bytes());
    h.update(key);
    h.update(&(content.len() as u64).to_le_bytes());
    h.update(content);
    h.finalize()
}

/// Wraps a value.
pub(super) fn seal(table: &str, key: &[u8], content: &[u8]) -> Vec<u8> {
    let mut v = Vec::with_capacity(HEADER + content.len());
    v.push(VERSION);
    v.extend_from_slice(&checksum(table, key, content).to_le_bytes());
    v.extend_from_slice(content);
    v
}

/// The content of a value, if it is sound and belongs to the key.
pub(super) fn open<'a>(table: &str, key: &[u8], value: &'a [u8]) -> Option<&'a [u8]> {
    let (head, content) = value.split_at_checked(HEADER)?;
    let crc = u32::from_le_bytes(head[1..].try_into().ok()?);
    (head[0] == VERSION && crc == checksum(table, key, content)).then_some(content)
}

/// A key for people.
pub(super) fn shown(table: &str, key: &[u8]) -> String {
    let text = if table == "jobs" {
        key.get(8..).unwrap_or(key)
    } else {
        key
    };
    let text = String::from_utf8_lossy(text).replace('\0', " ");
    format!("'{}'", text.escape_debug())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flips_and_other_keys_are_found() {
        let v = seal("moves_source", b"abc", b"{\"state\":\"committed\"}");
        assert_eq!(open("moves_source", b"abc", &v), Some(&v[HEADER..]));
        assert_eq!(open("moves_target", b"abc", &v), None);
        assert_eq!(open("moves_source", b"abd", &v), None);
        for i in 0..v.len() {
            for bit in 0..8 {
                let mut w = v.clone();
                w[i] ^= 1 << bit;
                assert_eq!(open("moves_source", b"abc", &w), None, "byte {i} bit {bit}");
            }
            assert_eq!(open("moves_source", b"abc", &v[..i]), None);
        }
    }
}
