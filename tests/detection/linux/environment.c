/* What the kernel and the firmware say of the machine, and the devices and ports that are there. */

#define _GNU_SOURCE
#include "environment.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/klog.h>
#include <unistd.h>

static uint8_t buffer[1 << 20];

/* Reads a file, or what there is of it; gives its length, -1 if there is none. */
static ssize_t contents(const char *path)
{
    int file = open(path, O_RDONLY);
    if (file < 0) {
        return -1;
    }
    size_t length = 0;
    ssize_t got;
    while (length < sizeof buffer - 1 && (got = read(file, buffer + length, sizeof buffer - 1 - length)) > 0) {
        length += (size_t)got;
    }
    close(file);
    buffer[length] = 0;
    return (ssize_t)length;
}

static void check_text(const char *name, size_t length)
{
    size_t where;
    const char *product = product_name(buffer, length, &where);
    check(product == NULL, "%s", name);
    if (product != NULL) {
        detail("%s at %x", product, (unsigned)where);
    }
}

static void check_file(const char *path)
{
    ssize_t length = contents(path);
    if (length < 0) {
        note("no %s", path);
    } else {
        check_text(path, (size_t)length);
    }
}

static void check_files_of(const char *folder)
{
    DIR *files = opendir(folder);
    if (files == NULL) {
        note("no %s", folder);
        return;
    }
    for (struct dirent *entry; (entry = readdir(files)) != NULL;) {
        char path[600];
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        if (entry->d_name[0] != '.' && entry->d_type != DT_DIR && entry->d_type != DT_LNK) {
            check_file(path);
        }
    }
    closedir(files);
}

static bool is_empty(const char *folder)
{
    DIR *files = opendir(folder);
    if (files == NULL) {
        return true;
    }
    bool empty = true;
    for (struct dirent *entry; (entry = readdir(files)) != NULL;) {
        empty = empty && entry->d_name[0] == '.';
    }
    closedir(files);
    return empty;
}

/* The kernel's log, without its version and command line and what it lists as compiled in. */
static void kernel_log(void)
{
    enum { READ_ALL = 3 };
    int length = klogctl(READ_ALL, (char *)buffer, sizeof buffer - 1);
    if (length < 0) {
        note("no kernel log");
        return;
    }
    buffer[length] = 0;
    static const char *const signs[] = {"Hypervisor detected", "paravirtualized kernel on KVM", "paravirtualized kernel on Xen",
                                        "kvm-clock", "kvm-guest", "Hyper-V", "VMware", "vmware", "QEMU", "Xen:", "VirtualBox",
                                        "hypervisor", "virtio", "Jailhouse", "ACRN"};
    for (size_t i = 0; i < sizeof signs / sizeof *signs; i++) {
        check(strstr((char *)buffer, signs[i]) == NULL, "kernel log: %s", signs[i]);
    }
    check(strstr((char *)buffer, "paravirtualized kernel on bare hardware") != NULL, "kernel log: bare hardware");
}

void check_kernel(void)
{
    static const char *const absent[] = {"/sys/hypervisor", "/proc/xen", "/sys/bus/vmbus/devices", "/sys/bus/xen/devices",
                                         "/sys/bus/virtio/devices", "/sys/firmware/qemu_fw_cfg", "/proc/device-tree",
                                         "/proc/vz", "/dev/vmci", "/sys/class/virtio-ports"};
    for (size_t i = 0; i < sizeof absent / sizeof *absent; i++) {
        check(is_empty(absent[i]), "%s", absent[i]);
    }
    ssize_t length = contents("/proc/cpuinfo");
    check(length > 0 && strstr((char *)buffer, "hypervisor") == NULL, "/proc/cpuinfo: hypervisor");
    check_file("/proc/iomem");
    check_file("/proc/ioports");
    check_file("/proc/interrupts");
    check_file("/proc/bus/input/devices");
    check_file("/sys/devices/system/clocksource/clocksource0/available_clocksource");
    kernel_log();
}

/* Every table is looked through, so that a name in the AML of a device is found as well. */
void check_firmware(void)
{
    check_files_of("/sys/class/dmi/id");
    check_files_of("/sys/firmware/dmi/tables");
    check_files_of("/sys/firmware/acpi/tables");
    /* Type 0, characteristics extension byte 2, bit 4: "this is a virtual machine" (DSP0134, 7.1.2.2). */
    ssize_t length = contents("/sys/firmware/dmi/entries/0-0/raw");
    if (length < 0x14) {
        note("no SMBIOS structure of type 0 (%d)", (int)length);
    } else {
        check((buffer[0x13] & 1 << 4) == 0, "SMBIOS says virtual machine");
    }
    int memory = open("/dev/mem", O_RDONLY);
    if (memory < 0) {
        note("no /dev/mem");
        return;
    }
    for (off_t at = 0xc0000; at < 0x100000; at += 0x10000) {
        ssize_t got = pread(memory, buffer, 0x10000, at);
        char name[40];
        snprintf(name, sizeof name, "memory at %llx", (long long)at);
        if (got > 0) {
            check_text(name, (size_t)got);
        } else {
            note("%s cannot be read: %s", name, strerror(errno));
        }
    }
    close(memory);
}

static unsigned hexadecimal(const char *device, const char *file)
{
    char path[600];
    snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/%s", device, file);
    return contents(path) > 0 ? (unsigned)strtoul((char *)buffer, NULL, 16) : 0;
}

void check_pci(void)
{
    DIR *devices = opendir("/sys/bus/pci/devices");
    if (devices == NULL) {
        note("no PCI");
        return;
    }
    for (struct dirent *entry; (entry = readdir(devices)) != NULL;) {
        if (entry->d_name[0] == '.') {
            continue;
        }
        unsigned vendor = hexadecimal(entry->d_name, "vendor"), subsystem = hexadecimal(entry->d_name, "subsystem_vendor");
        check(!virtual_pci_vendor(vendor) && !virtual_pci_vendor(subsystem), "PCI device %s", entry->d_name);
        detail("vendor %x, subsystem vendor %x", vendor, subsystem);
    }
    closedir(devices);
}

/* VMware's port answers programs of any privilege; a processor says #GP without IOPL, and nothing is there with it. */
static void vmware_port(void)
{
    uint32_t magic = 0x564d5868, eax = magic, ebx = 0x12345678, ecx = 10, edx = 0x5658;
    __asm__ volatile("in %%dx, %%eax" : "+a"(eax), "+b"(ebx), "+c"(ecx), "+d"(edx));
    check(eax == 0xffffffff && ebx == 0x12345678 && ecx == 10 && edx == 0x5658, "VMware's port 5658h");
    detail("%x %x %x %x", eax, ebx, ecx, edx);
}

void check_ports(void)
{
    if (iopl(3) != 0) {
        note("no I/O privilege: %s", strerror(errno));
        return;
    }
    vmware_port();
    check(inb(0xe9) == 0xff, "the debug console of Bochs at E9h");
    detail("%x", inb(0xe9));
    check(inw(0x10) != 0x49d2, "Xen's port 10h");
    outw(0, 0x510);
    check(inb(0x511) == 0xff, "QEMU's configuration port 511h");
    detail("%x", inb(0x511));
    static const uint16_t silent[] = {0xb2, 0xb3, 0xf4, 0x1ce, 0x1cf, 0x402, 0x501, 0x505, 0x510, 0x514, 0x5658, 0x5659,
                                      0xae00, 0xaf00, 0xb004, 0xcd8, 0xcd9, 0xcda};
    for (size_t i = 0; i < sizeof silent / sizeof *silent; i++) {
        check(inb(silent[i]) == 0xff, "port %x reads ones", silent[i]);
        detail("%x", inb(silent[i]));
    }
}
