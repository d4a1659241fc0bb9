//! What firmware leaves in memory for an operating system that is started without it: the BIOS data area, ACPI tables
//! and SMBIOS structures. Plain data; the board writes it.
//!
//! No string in it names a vendor, a product or a virtual machine: the tables describe a plain PC.

mod acpi;
mod bios;
mod dsdt;
pub mod layout;
mod smbios;

use crate::boot::{MemoryMap, Segment};

/// The processor as SMBIOS describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessorIdentity<'a> {
    /// CPUID leaf 0: the vendor's name.
    pub vendor: &'a str,
    /// CPUID leaves 80000002h to 80000004h: the name of the model.
    pub brand: &'a str,
    /// CPUID leaf 1, EAX: family, model, stepping.
    pub signature: u32,
    /// CPUID leaf 1, EDX.
    pub features: u32,
    /// Frequency in MHz.
    pub megahertz: u16,
    /// Whether it has long mode.
    pub is_64: bool,
}

/// The machine that the tables describe.
#[derive(Debug, Clone, Copy)]
pub struct FirmwareConfig<'a> {
    /// Its memory.
    pub memory: &'a MemoryMap,
    /// Number of processors; their local APICs have the ids from 0 on.
    pub processors: u8,
    /// What each of them is.
    pub processor: ProcessorIdentity<'a>,
    /// The machine's UUID, as in RFC 4122, or all zeros for none.
    pub uuid: [u8; 16],
}

/// What the tables became.
#[derive(Debug, Clone)]
pub struct Firmware {
    /// Pieces of guest memory, none of them in RAM that the memory map calls usable, except for the vectors and data area
    /// of the BIOS in the first page.
    pub segments: Vec<Segment<'static>>,
    /// Address of the ACPI root pointer.
    pub rsdp: u64,
}

/// Makes everything.
pub fn build(config: &FirmwareConfig<'_>) -> Firmware {
    let mut segments = bios::build();
    segments.extend(acpi::build(config));
    segments.extend(smbios::build(config));
    Firmware { segments, rsdp: layout::RSDP }
}

/// The byte that makes `bytes` sum to zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum: u8, &byte| sum.wrapping_sub(byte))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn config(memory: &MemoryMap, processors: u8) -> FirmwareConfig<'_> {
        let processor = ProcessorIdentity {
            vendor: "GenuineIntel",
            brand: "x86-64-v2 processor",
            signature: 0x6_06F0,
            features: 0x0FEB_FBFF,
            megahertz: 1000,
            is_64: true,
        };
        FirmwareConfig {
            memory,
            processors,
            processor,
            uuid: *b"\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0A\x0B\x0C\x0D\x0E\x0F\x10",
        }
    }

    /// Writes the segments into a copy of guest memory below 4 GiB, `size` bytes of it.
    pub(crate) fn image(firmware: &Firmware, size: usize) -> Vec<u8> {
        let mut memory = vec![0; size];
        for segment in &firmware.segments {
            let start = segment.address as usize;
            memory[start..start + segment.bytes.len()].copy_from_slice(&segment.bytes);
        }
        memory
    }

    #[test]
    fn segments_are_disjoint_and_out_of_the_way() {
        for (ram, processors) in [(MemoryMap::MIN, 1), (512 << 20, 8), (8 << 30, 255)] {
            let map = MemoryMap::new(ram).unwrap();
            let mut segments = build(&config(&map, processors)).segments;
            segments.sort_by_key(|segment| segment.address);
            for pair in segments.windows(2) {
                assert!(pair[0].end() <= pair[1].address, "{pair:x?}");
            }
            for segment in segments.iter().filter(|segment| segment.address >= layout::PAGE) {
                let usable = |region: &&crate::boot::Region| region.kind == crate::boot::RegionKind::Usable;
                let overlap = map
                    .regions()
                    .iter()
                    .filter(usable)
                    .find(|region| segment.address < region.end() && region.start < segment.end());
                assert!(overlap.is_none(), "{segment:x?} in {overlap:x?}");
            }
        }
    }

    #[test]
    fn nothing_names_a_virtual_machine() {
        // What virt-what, systemd-detect-virt and Linux's own hypervisor probes look for in ACPI and DMI data.
        let names = [
            "qemu",
            "kvm",
            "bochs",
            "bxpc",
            "xen",
            "vmware",
            "vmw",
            "virtualbox",
            "vbox",
            "innotek",
            "oracle",
            "parallels",
            "bhyve",
            "hyper-v",
            "virtual",
            "microsoft",
            "openstack",
            "kubevirt",
            "amazon",
            "google",
            "apple",
            "rhev",
            "ovirt",
            "nutanix",
            "cloud",
            "cldh",
            "firecracker",
            "crosvm",
            "acrn",
            "trapgate",
            "emulat",
            "waet",
            "alibaba",
            "hitachi",
            "red hat",
            "smartstack",
        ];
        let map = MemoryMap::new(64 << 20).unwrap();
        for segment in build(&config(&map, 2)).segments {
            let text = String::from_utf8_lossy(&segment.bytes).to_lowercase();
            for name in names {
                assert!(!text.contains(name), "{name} in {}", segment.what);
            }
        }
    }

    /// The tables' figures are those of the chips.
    #[test]
    fn chips_agree_with_the_layout() {
        use std::sync::Arc;

        use trapgate_devices::pci::{IsaBridge, PciFunction, PirqRouter};
        use trapgate_devices::{Line, NoLine};

        let line = || Arc::new(NoLine) as Arc<dyn Line>;
        let router = PirqRouter::new(std::array::from_fn(|_| line()), (0..16).map(|_| line()).collect());
        let routes = IsaBridge::new(router).config().read(0x60, 4).to_le_bytes();
        assert_eq!(routes, layout::PCI_IRQS);
        assert_eq!(layout::pci_line(layout::ISA_BRIDGE, 0), 0, "INTA# of device 1 is PIRQA");
        assert_eq!(layout::pci_line(2, 3), 0);
    }
}
