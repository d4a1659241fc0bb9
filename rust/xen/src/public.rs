//! Numbers and layouts of the interface, as Xen's public headers give them (xen/include/public).

/// `DOMID_SELF`: the caller itself.
pub const DOMID_SELF: u16 = 0x7ff0;
/// The domain that all back-ends are in, for a guest.
pub const BACKEND_DOMID: u16 = 0;

/// First linear address that is the hypervisor's (`HYPERVISOR_VIRT_START`, which is also where M2P is shown).
pub const HYPERVISOR_START: u64 = 0xffff_8000_0000_0000;
/// First address behind the hypervisor's part of linear memory.
pub const HYPERVISOR_END: u64 = 0xffff_8800_0000_0000;
/// Where M2P ends at the latest (`MACH2PHYS_VIRT_END`).
pub const M2P_END: u64 = 0xffff_8040_0000_0000;
/// Where the monitor shows the processor the guest's GDT and LDT; nobody else sees them.
pub const GDT_WINDOW: u64 = 0xffff_8200_0000_0000;
pub const LDT_WINDOW: u64 = 0xffff_8201_0000_0000;

/// `FLAT_KERNEL_CS64`, `FLAT_KERNEL_SS` and the 32-bit code segment of user mode (xen-x86_64.h).
pub const FLAT_CS64: u16 = 0xe033;
pub const FLAT_SS: u16 = 0xe02b;
pub const FLAT_CS32: u16 = 0xe023;
/// First entry of the GDT that is the hypervisor's (`FIRST_RESERVED_GDT_ENTRY`).
pub const FIRST_RESERVED_GDT_ENTRY: usize = 7168;

/// Layout of `shared_info` and `vcpu_info` (xen.h).
pub mod shared {
    pub const SIZE: u64 = 3136;
    pub const VCPU_INFO_SIZE: u64 = 64;
    /// Slots of `vcpu_info` in `shared_info` (`XEN_LEGACY_MAX_VCPUS`).
    pub const LEGACY_VCPUS: usize = 32;
    pub const EVTCHN_PENDING: u64 = 0x800;
    pub const EVTCHN_MASK: u64 = 0xa00;
    pub const WC_VERSION: u64 = 0xc00;
    pub const WC_SEC: u64 = 0xc04;
    pub const WC_NSEC: u64 = 0xc08;
    pub const WC_SEC_HI: u64 = 0xc0c;

    /// Inside `vcpu_info`.
    pub const UPCALL_PENDING: u64 = 0;
    pub const UPCALL_MASK: u64 = 1;
    pub const PENDING_SEL: u64 = 8;
    pub const CR2: u64 = 0x10;
    pub const TIME: u64 = 0x20;
}

/// Virtual interrupts (xen.h).
pub mod virq {
    pub const TIMER: u32 = 0;
    pub const DEBUG: u32 = 1;
    pub const CONSOLE: u32 = 2;
    /// One more than the highest (`NR_VIRQS`).
    pub const COUNT: u32 = 24;
    /// Those of which each vCPU has its own.
    pub const PER_VCPU: [u32; 4] = [TIMER, DEBUG, 7, 13];
    /// Those that only the control domain may bind.
    pub const GLOBAL: [u32; 8] = [2, 3, 4, 6, 8, 9, 10, 12];
}

/// `SCHEDOP_shutdown` reasons (sched.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    PowerOff,
    Reboot,
    Suspend,
    Crash,
    Watchdog,
    SoftReset,
}

impl Shutdown {
    pub fn from_code(code: u32) -> Option<Self> {
        [Self::PowerOff, Self::Reboot, Self::Suspend, Self::Crash, Self::Watchdog, Self::SoftReset]
            .get(code as usize)
            .copied()
    }
}
