//! What the host's processor is, where its maker makes a difference.

use std::sync::LazyLock;

/// Whether the host's processor is AMD's, or of its design. No where it is not an x86 processor.
pub static AMD: LazyLock<bool> = LazyLock::new(is_amd);

#[cfg(target_arch = "x86_64")]
fn is_amd() -> bool {
    [*b"Auth", *b"Hygo"].map(u32::from_le_bytes).contains(&std::arch::x86_64::__cpuid(0).ebx)
}

#[cfg(not(target_arch = "x86_64"))]
fn is_amd() -> bool {
    false
}
