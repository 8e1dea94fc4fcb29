//! Messages that travel compressed between hosts: `u32 length unpacked | LZ4 block`.
//!
//! Only between daemons that agreed on it when the bulk connection was made. The length is
//! checked before anything is unpacked, so a peer cannot make this side take more memory than for
//! a message that comes as it is.

/// Word for LZ4 blocks in the greeting of a bulk connection.
pub const LZ4: &str = "lz4";

/// Why a packed message is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PackedError {
    /// It ends before its length.
    #[error("packed bulk message cut short")]
    Short,
    /// It says that it is longer than a message may be.
    #[error("packed bulk message of {0} bytes")]
    Long(usize),
    /// It is no LZ4 block of that length.
    #[error("packed bulk message is damaged: {0}")]
    Damaged(String),
}

/// Room that packing `bytes` may need at most.
pub fn room(bytes: usize) -> usize {
    4 + lz4_flex::block::get_maximum_output_size(bytes)
}

/// Packs `bytes` into `out`, of which at least [`room`] bytes are there; how many it takes.
/// `None` when there is too little room.
pub fn pack(bytes: &[u8], out: &mut [u8]) -> Option<usize> {
    let (head, rest) = out.split_first_chunk_mut::<4>()?;
    *head = u32::try_from(bytes.len()).ok()?.to_le_bytes();
    let n = lz4_flex::block::compress_into(bytes, rest).ok()?;
    Some(4 + n)
}

/// Unpacks what [`pack`] made, at most `most` bytes, into `out`.
pub fn unpack(packed: &[u8], most: usize, out: &mut Vec<u8>) -> Result<(), PackedError> {
    let (head, rest) = packed.split_first_chunk::<4>().ok_or(PackedError::Short)?;
    let length = u32::from_le_bytes(*head) as usize;
    if length > most {
        return Err(PackedError::Long(length));
    }
    out.clear();
    out.resize(length, 0);
    let n = lz4_flex::block::decompress_into(rest, out)
        .map_err(|e| PackedError::Damaged(e.to_string()))?;
    if n != length {
        return Err(PackedError::Damaged(format!(
            "{n} bytes instead of {length}"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_lying_length_takes_no_memory() {
        let mut out = Vec::new();
        let mut lie = u32::MAX.to_le_bytes().to_vec();
        lie.push(0);
        assert_eq!(
            unpack(&lie, 1 << 20, &mut out),
            Err(PackedError::Long(u32::MAX as usize))
        );
        assert_eq!(unpack(&[1, 2], 9, &mut out), Err(PackedError::Short));
        assert_eq!(out.capacity(), 0);
    }

    proptest! {
        #[test]
        fn round_trip(unit in proptest::collection::vec(any::<u8>(), 0..300), n in 0usize..40) {
            let bytes = unit.repeat(n);
            let mut packed = vec![0; room(bytes.len())];
            let n = pack(&bytes, &mut packed).unwrap();
            let mut back = Vec::new();
            unpack(&packed[..n], bytes.len(), &mut back).unwrap();
            prop_assert_eq!(back, bytes);
        }
        #[test]
        fn hostile_blocks_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200),
                                      length in 0u32..5000) {
            let mut packed = length.to_le_bytes().to_vec();
            packed.extend_from_slice(&bytes);
            let mut out = Vec::new();
            let _ = unpack(&packed, 4096, &mut out);
            prop_assert!(out.len() <= 4096);
        }
    }
}
