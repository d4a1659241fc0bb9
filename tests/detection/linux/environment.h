/* What a process can look at around it. */
#ifndef ENVIRONMENT_H
#define ENVIRONMENT_H

#include "../common/detect.h"

/* Descriptor tables, selectors and CR0 as SIDT and its kin show them, with the values that Linux gives them on hardware. */
void check_descriptor_tables(void);
/* What the kernel says of the machine: /proc, /sys, its log. */
void check_kernel(void);
/* Strings in the BIOS's memory, in ACPI and SMBIOS tables. */
void check_firmware(void);
void check_pci(void);
/* I/O ports at which virtual machines answer. Needs root. */
void check_ports(void);

#endif
