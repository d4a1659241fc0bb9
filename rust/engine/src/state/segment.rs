//! Segment registers with their hidden parts, and descriptors as they lie in memory (SDM vol. 3, 3.4).

use serde::{Deserialize, Serialize};

/// A segment register, LDTR or TR with its descriptor cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Segment {
    pub selector: u16,
    pub base: u64,
    /// Limit in bytes, granularity applied.
    pub limit: u32,
    /// Bits 8 to 23 of the descriptor's second word, moved down: type 0-3, S 4, DPL 5-6, P 7, AVL 12, L 13, D/B 14, G 15.
    pub access: u16,
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Table {
    pub base: u64,
    pub limit: u16,
}

/// A segment or gate descriptor's eight bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor(pub u64);

impl Segment {
    /// A flat segment of 4 GiB with the given selector and access word.
    pub fn flat(selector: u16, access: u16) -> Self {
        Segment { selector, base: 0, limit: u32::MAX, access }
    }
    pub fn kind(&self) -> u8 {
        (self.access & 15) as u8
    }
    pub fn is_code_or_data(&self) -> bool {
        self.access & 0x10 != 0
    }
    pub fn dpl(&self) -> u8 {
        (self.access >> 5 & 3) as u8
    }
    pub fn present(&self) -> bool {
        self.access & 0x80 != 0
    }
    pub fn is_code(&self) -> bool {
        self.access & 0x18 == 0x18
    }
    /// L: 64-bit code.
    pub fn long(&self) -> bool {
        self.access & 0x2000 != 0
    }
    /// D/B: 32-bit code or stack, expand-down limit of 4 GiB.
    pub fn big(&self) -> bool {
        self.access & 0x4000 != 0
    }
    pub fn expand_down(&self) -> bool {
        self.access & 0x1c == 0x14
    }
    pub fn readable(&self) -> bool {
        self.access & 8 == 0 || self.access & 2 != 0
    }
    pub fn writable(&self) -> bool {
        self.access & 0x1a == 0x12
    }
    /// Unusable: loaded with a null selector.
    pub fn is_null(&self) -> bool {
        self.access & 0x80 == 0
    }
    /// Base 0 and limit 4 GiB, and loaded.
    pub fn is_flat(&self) -> bool {
        self.base == 0 && self.limit == u32::MAX && self.present() && !self.expand_down()
    }

    /// Whether `size` bytes at `offset` are inside the limit (SDM vol. 3, 5.3).
    pub fn contains(&self, offset: u32, size: u32) -> bool {
        let last = u64::from(offset) + u64::from(size) - 1;
        if self.expand_down() {
            let top = if self.big() { u64::from(u32::MAX) } else { 0xffff };
            u64::from(offset) > u64::from(self.limit) && last <= top
        } else {
            last <= u64::from(self.limit)
        }
    }
}

impl Descriptor {
    pub fn base(self) -> u64 {
        (self.0 >> 16 & 0xff_ffff) | (self.0 >> 56 & 0xff) << 24
    }
    /// Limit in bytes, granularity applied.
    pub fn limit(self) -> u32 {
        let raw = (self.0 & 0xffff) as u32 | (self.0 >> 32) as u32 & 0xf_0000;
        if self.0 >> 55 & 1 != 0 { raw << 12 | 0xfff } else { raw }
    }
    pub fn access(self) -> u16 {
        (self.0 >> 40) as u16 & 0xf0ff
    }
    pub fn kind(self) -> u8 {
        (self.0 >> 40 & 15) as u8
    }
    pub fn is_code_or_data(self) -> bool {
        self.0 >> 44 & 1 != 0
    }
    pub fn is_code(self) -> bool {
        self.is_code_or_data() && self.0 >> 43 & 1 != 0
    }
    /// Conforming code or expand-down data.
    pub fn conforming(self) -> bool {
        self.0 >> 42 & 1 != 0
    }
    /// Readable code or writable data.
    pub fn read_write(self) -> bool {
        self.0 >> 41 & 1 != 0
    }
    pub fn dpl(self) -> u8 {
        (self.0 >> 45 & 3) as u8
    }
    pub fn present(self) -> bool {
        self.0 >> 47 & 1 != 0
    }
    pub fn long(self) -> bool {
        self.0 >> 53 & 1 != 0
    }
    pub fn big(self) -> bool {
        self.0 >> 54 & 1 != 0
    }
    /// The segment register's content after a load of this descriptor.
    pub fn segment(self, selector: u16) -> Segment {
        Segment { selector, base: self.base(), limit: self.limit(), access: self.access() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flat_code_descriptor_unfolds() {
        let d = Descriptor(0x00af_9b00_0000_ffff);
        assert!(d.is_code() && d.present() && d.long() && !d.big() && d.dpl() == 0);
        assert_eq!((d.base(), d.limit()), (0, u32::MAX));
        let s = d.segment(0x10);
        assert!(s.is_code() && s.long() && s.is_flat());
    }

    #[test]
    fn expand_down_limits_are_from_above() {
        let s = Segment { selector: 0, base: 0, limit: 0xfff, access: 0x4096 };
        assert!(s.expand_down() && !s.contains(0xfff, 1) && s.contains(0x1000, 4) && s.contains(u32::MAX, 1));
        assert!(!s.contains(u32::MAX, 2));
        let small = Segment { access: 0x0096, ..s };
        assert!(small.contains(0xfffe, 2) && !small.contains(0xffff, 2));
    }
}
