//! What firmware leaves in memory for an operating system that is started without it: the BIOS data area, ACPI tables
//! and SMBIOS structures. Plain data; the board writes it.

pub mod layout;
