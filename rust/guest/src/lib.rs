//! A small operating system of our own, in two builds of one source: one for a PC as it is, one for a hypervisor that it
//! calls (Xen's PV interface). Both do the same work: system calls, page faults, switches of address spaces, timer ticks,
//! text on the console. The sources are in `source/`: `work.c` and `user.c` are shared, `hardware/` and `xen/` are what
//! "modifying a guest" means, file beside file.
//!
//! They are compiled for x86-64 by the host's C compiler whatever the host is, when this crate is built; `build.rs` says how.
//! Where no compiler can, both are empty.

/// The unmodified build: a multiboot kernel for `full` mode; empty if there was no compiler for it.
pub const FULL: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hardware.elf"));

/// The para-virtual build: a kernel for `para` mode; empty if there was no compiler for it.
pub const PARA: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/xen.elf"));

/// Why both are empty, as part of a sentence; empty if they are not.
pub const PROBLEM: &str = include_str!(concat!(env!("OUT_DIR"), "/problem"));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_two_files_or_a_reason_why_not() {
        assert_eq!(FULL.is_empty(), PARA.is_empty());
        assert_eq!(PROBLEM.is_empty(), !FULL.is_empty());
        for file in [FULL, PARA] {
            assert!(file.is_empty() || file.starts_with(b"\x7fELF\x02\x01"));
            assert!(file.len() < 64 << 10, "{} bytes", file.len());
        }
    }

    #[test]
    fn only_one_of_them_is_for_hardware() {
        const MULTIBOOT: [u8; 4] = 0x1BAD_B002u32.to_le_bytes();
        let has = |file: &[u8], what: &[u8]| file.windows(what.len()).any(|window| window == what);
        if !FULL.is_empty() {
            assert!(has(FULL, &MULTIBOOT) && !has(FULL, b"Xen\0"));
            assert!(has(PARA, b"Xen\0") && !has(PARA, &MULTIBOOT));
        }
    }
}
