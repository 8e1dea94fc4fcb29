//! Bounds-checked reading and writing of the state's binary form (little-endian, closed by a
//! CRC-32 over everything before it).

use super::AffinityError;

/// Collects the bytes of a block.
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    /// Starts a block with its magic, format version and the schema's hash.
    pub(crate) fn new(magic: [u8; 4], version: u16, schema: u64) -> Self {
        let mut w = Self(magic.to_vec());
        w.u16(version);
        w.u64(schema);
        w
    }
    pub(crate) fn u16(&mut self, v: u16) {
        self.0.extend(v.to_le_bytes());
    }
    pub(crate) fn u32(&mut self, v: u32) {
        self.0.extend(v.to_le_bytes());
    }
    pub(crate) fn u64(&mut self, v: u64) {
        self.0.extend(v.to_le_bytes());
    }
    pub(crate) fn i64(&mut self, v: i64) {
        self.0.extend(v.to_le_bytes());
    }
    pub(crate) fn f32(&mut self, v: f32) {
        self.0.extend(v.to_le_bytes());
    }
    pub(crate) fn f64(&mut self, v: f64) {
        self.0.extend(v.to_le_bytes());
    }
    /// Length (32 bits) and bytes.
    pub(crate) fn bytes(&mut self, v: &[u8]) {
        self.u32(u32::try_from(v.len()).unwrap_or(u32::MAX));
        self.0.extend(v);
    }
    /// Appends the checksum.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        let crc = crc32fast::hash(&self.0);
        self.u32(crc);
        self.0
    }
}

/// Takes a block apart.
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Checks checksum, magic, version and schema.
    pub(crate) fn open(
        data: &'a [u8],
        magic: [u8; 4],
        version: u16,
        schema: u64,
    ) -> Result<Self, AffinityError> {
        let damaged = || AffinityError::Damaged("it is cut off".into());
        let (body, crc) = data.split_last_chunk::<4>().ok_or_else(damaged)?;
        if crc32fast::hash(body) != u32::from_le_bytes(*crc) {
            return Err(AffinityError::Damaged("its checksum is wrong".into()));
        }
        let mut r = Self(body);
        if r.array::<4>()? != magic {
            return Err(AffinityError::Damaged("it is something else".into()));
        }
        let found = r.u16()?;
        if found != version {
            return Err(AffinityError::Version {
                found,
                known: version,
            });
        }
        if r.u64()? != schema {
            return Err(AffinityError::Schema);
        }
        Ok(r)
    }
    fn array<const L: usize>(&mut self) -> Result<[u8; L], AffinityError> {
        let (head, tail) = self
            .0
            .split_first_chunk::<L>()
            .ok_or_else(|| AffinityError::Damaged("it ends too early".into()))?;
        self.0 = tail;
        Ok(*head)
    }
    pub(crate) fn u16(&mut self) -> Result<u16, AffinityError> {
        self.array().map(u16::from_le_bytes)
    }
    pub(crate) fn u32(&mut self) -> Result<u32, AffinityError> {
        self.array().map(u32::from_le_bytes)
    }
    pub(crate) fn u64(&mut self) -> Result<u64, AffinityError> {
        self.array().map(u64::from_le_bytes)
    }
    pub(crate) fn i64(&mut self) -> Result<i64, AffinityError> {
        self.array().map(i64::from_le_bytes)
    }
    pub(crate) fn f32(&mut self) -> Result<f32, AffinityError> {
        self.array().map(f32::from_le_bytes)
    }
    pub(crate) fn f64(&mut self) -> Result<f64, AffinityError> {
        self.array().map(f64::from_le_bytes)
    }
    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], AffinityError> {
        let n = self.u32()? as usize;
        if n > self.0.len() {
            return Err(AffinityError::Damaged("a length is too large".into()));
        }
        let (head, tail) = self.0.split_at(n);
        self.0 = tail;
        Ok(head)
    }
    pub(crate) fn text(&mut self) -> Result<String, AffinityError> {
        String::from_utf8(self.bytes()?.to_vec())
            .map_err(|_| AffinityError::Damaged("a text is not UTF-8".into()))
    }
    /// Everything must have been read.
    pub(crate) fn end(self) -> Result<(), AffinityError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(AffinityError::Damaged("it is too long".into()))
        }
    }
}
