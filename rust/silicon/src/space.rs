//! Where things lie. Linear addresses are the same on the host and in the guest, so that no register value has to be
//! translated: what CALL pushes, LEA computes or a fault reports can be compared as it is.

/// Size of a page.
pub const PAGE: u64 = 4096;

/// The page that holds the instruction, filled with INT3; holes on both sides.
pub const CODE: u64 = 0x2000_0000;

/// Data below 2 GiB, which every addressing form reaches.
pub const LOW: u64 = 0x3000_0000;
/// Data that only 64-bit addresses reach.
pub const HIGH: u64 = 0x1234_5000_0000;

/// A data region is, from its base: two writable pages; below the base one read-only page; holes around the three.
pub const WRITABLE: u64 = 2 * PAGE;
/// The same seen from the region's read-only page on.
pub const REGION: u64 = WRITABLE + PAGE;

/// Bytes of a region that differ from case to case; the rest is [`background`].
pub const WINDOW: usize = 2048;

/// Code bytes of a case at most.
pub const CODE_MAX: usize = 256;

/// INT3: what the rest of the code page is filled with, so that every way out of the code ends the case.
pub const FILL: u8 = 0xcc;

/// Two pages of the constant that data pages hold outside a case's window, so that any stretch of one page is a slice.
/// POPF from anywhere in it sets neither TF nor AC, whose bits are bit 0 and bit 2 of their bytes.
pub static BACKGROUND: [u8; 2 * PAGE as usize] = {
    let mut bytes = [0; 2 * PAGE as usize];
    let mut i = 0;
    while i < bytes.len() {
        bytes[i] = ((i as u64 % PAGE).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8 & !5;
        i += 1;
    }
    bytes
};

/// The background of up to a page from an address on.
pub fn background(address: u64, length: usize) -> &'static [u8] {
    &BACKGROUND[(address % PAGE) as usize..][..length]
}
