/* Ports, PCI functions, and the tables and strings that firmware leaves: what each says of who made it. */

#include "machine.h"

/* Ports that chips of a PC or its ACPI tables account for; every other one must float. */
static const struct {
    uint16_t first, last;
} known[] = {
    {0x00, 0x1f},   {0x20, 0x21},   {0x40, 0x43},   {0x60, 0x61},   {0x64, 0x64},   {0x70, 0x77},   {0x80, 0x8f},
    {0x92, 0x92},   {0xa0, 0xa1},   {0xc0, 0xdf},   {0xf0, 0xf0},   {0x2f8, 0x2ff}, {0x3f8, 0x3ff}, {0x4d0, 0x4d1},
    {0xcf8, 0xcff},
};

static bool is_known(uint32_t port, uint16_t power, uint16_t bus)
{
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (port >= known[i].first && port <= known[i].last) {
            return true;
        }
    }
    return (port >= power && port < power + 0x40u) || (port >= bus && port < bus + 0x10u);
}

static uint32_t config(uint32_t bus, uint32_t device, uint32_t function, uint32_t offset)
{
    out32(0xcf8, 1u << 31 | bus << 16 | device << 11 | function << 8 | offset);
    return in32(0xcfc);
}

/* What the power-management function of the chipset decodes. */
static uint16_t region_of(uint32_t offset)
{
    for (uint32_t device = 0; device < 32; device++) {
        for (uint32_t function = 0; function < 8; function++) {
            if (config(0, device, function, 0) == 0x71138086) {
                return (uint16_t)(config(0, device, function, offset) & 0xffc0);
            }
        }
    }
    return 0xffff;
}

static void vmware(void)
{
    struct state state = fresh_state();
    state.gpr[RAX] = 0x564d5868;
    state.gpr[RBX] = 0x12345678;
    state.gpr[RCX] = 10;
    state.gpr[RDX] = 0x5658;
    run(RING0_64, &state, "\xed", 1);
    bool good = state.vector == DONE && state.gpr[RAX] == 0xffffffff && state.gpr[RBX] == 0x12345678 &&
                state.gpr[RCX] == 10 && state.gpr[RDX] == 0x5658;
    check(good, "VMware's port 5658h");
    detail("%llx %llx", (unsigned long long)state.gpr[RAX], (unsigned long long)state.gpr[RBX]);
}

void check_ports(void)
{
    vmware();
    check(in8(0xe9) == 0xff, "the debug console of Bochs at E9h");
    detail("%x", in8(0xe9));
    check(in16(0x10) != 0x49d2, "Xen's port 10h");
    out16(0x510, 0);
    check(in8(0x511) == 0xff, "QEMU's configuration port 511h");
    uint16_t power = region_of(0x40), bus = region_of(0x90);
    uint32_t answered = 0, first = 0;
    for (uint32_t port = 0; port < 0x10000; port++) {
        if (!is_known(port, power, bus) && in8((uint16_t)port) != 0xff) {
            first = answered++ == 0 ? port : first;
        }
    }
    check(answered == 0, "every other port reads ones");
    detail("%u do not, first %x", answered, first);
    check(in32(0x5658) == 0xffffffff && in16(0x402) == 0xffff, "wider reads of ports that float");
}

void check_pci(void)
{
    uint32_t functions = 0;
    for (uint32_t bus = 0; bus < 4; bus++) {
        for (uint32_t device = 0; device < 32; device++) {
            for (uint32_t function = 0; function < 8; function++) {
                uint32_t id = config(bus, device, function, 0), subsystem = config(bus, device, function, 0x2c);
                if (id == 0xffffffff) {
                    continue;
                }
                functions++;
                check(!virtual_pci_vendor(id & 0xffff) && !virtual_pci_vendor(subsystem & 0xffff), "PCI %u:%u.%u", bus, device,
                      function);
                detail("%x, subsystem %x", id, subsystem);
            }
        }
    }
    check(functions > 0, "PCI has functions");
}

static uint32_t word_at(const uint8_t *bytes, size_t offset)
{
    uint32_t word;
    copy(&word, bytes + offset, 4);
    return word;
}

static bool sums_to_zero(const uint8_t *bytes, size_t length)
{
    uint8_t sum = 0;
    for (size_t i = 0; i < length; i++) {
        sum = (uint8_t)(sum + bytes[i]);
    }
    return sum == 0;
}

static void no_product(const char *name, const uint8_t *bytes, size_t length)
{
    size_t where = 0;
    const char *product = product_name(bytes, length, &where);
    check(product == NULL, "names in %s", name);
    if (product != NULL) {
        detail("%s at %x", product, (unsigned)where);
    }
}

static const uint8_t *low_memory(uint32_t address)
{
    /* The compiler knows no object there. */
    uintptr_t at = address;
    __asm__("" : "+r"(at));
    return (const uint8_t *)at;
}

static const uint8_t *find(const char *mark, size_t size)
{
    for (uint32_t at = 0xf0000; at < 0x100000; at += 16) {
        if (equal(low_memory(at), mark, size)) {
            return low_memory(at);
        }
    }
    return NULL;
}

static void acpi_table(const uint8_t *table)
{
    char name[] = "ACPI table ....";
    copy(name + 11, table, 4);
    uint32_t length = word_at(table, 4);
    no_product(name, table, length);
    check(equal(table, "FACS", 4) || sums_to_zero(table, length), "checksum of %s", name);
    /* "Windows ACPI Emulated Devices Table": its presence says virtual machine. */
    check(!equal(table, "WAET", 4), "%s is none of a virtual machine's", name);
    if (equal(table, "FACP", 4)) {
        acpi_table(low_memory(word_at(table, 40)));
        no_product("the FACS", low_memory(word_at(table, 36)), 64);
        /* Hypervisor vendor identity (ACPI 6.0). */
        check(length < 276 || (word_at(table, 268) | word_at(table, 272)) == 0, "hypervisor identity of the FADT");
    }
}

static void acpi(void)
{
    const uint8_t *pointer = find("RSD PTR ", 8);
    check(pointer != NULL && sums_to_zero(pointer, 20), "ACPI root pointer");
    if (pointer == NULL) {
        return;
    }
    no_product("the ACPI root pointer", pointer, 36);
    const uint8_t *root = low_memory(word_at(pointer, 16));
    no_product("the RSDT", root, word_at(root, 4));
    for (uint32_t at = 36; at < word_at(root, 4); at += 4) {
        acpi_table(low_memory(word_at(root, at)));
    }
}

/* The structures one after the other: a formatted part, then strings that end with an empty one (DSP0134, 6.1). */
static void smbios(void)
{
    const uint8_t *entry = find("_SM_", 4);
    check(entry != NULL && sums_to_zero(entry, entry[5]), "SMBIOS entry point");
    if (entry == NULL) {
        return;
    }
    const uint8_t *at = low_memory(word_at(entry, 0x18));
    size_t length = entry[0x16] | (size_t)entry[0x17] << 8;
    no_product("SMBIOS", at, length);
    for (const uint8_t *end = at + length; at + 4 <= end && at[0] != 127;) {
        if (at[0] == 0) {
            check(at[1] < 0x14 || !(at[0x13] & 1 << 4), "SMBIOS says virtual machine");
        }
        if (at[0] == 4) {
            check(word_at(at, 8) == cpuid(1, 0).reg[EAX] && word_at(at, 12) == cpuid(1, 0).reg[EDX],
                  "SMBIOS and CPUID on the processor");
            detail("%x %x", word_at(at, 8), word_at(at, 12));
        }
        at += at[1];
        while (at + 2 <= end && (at[0] | at[1]) != 0) {
            at++;
        }
        at += 2;
    }
}

static uint8_t cmos(uint8_t at)
{
    out8(0x70, at);
    return in8(0x71);
}

/* The clock's memory as a BIOS leaves it: valid, with the checksum of the AT over 10h to 2Dh. */
static void clock_memory(void)
{
    check(cmos(0x0d) == 0x80, "the clock's memory is valid");
    uint16_t base = (uint16_t)(cmos(0x15) | cmos(0x16) << 8), sum = 0;
    check(base == 640 || base == 639, "base memory by the clock's memory");
    detail("%u KiB", base);
    for (uint8_t at = 0x10; at < 0x2e; at++) {
        sum = (uint16_t)(sum + cmos(at));
    }
    check(sum == (uint16_t)(cmos(0x2e) << 8 | cmos(0x2f)), "checksum of the clock's memory");
    detail("%x", sum);
    unsigned refreshed = 0;
    for (unsigned i = 0; i < 100000 && refreshed < 3; i++) {
        uint8_t before = in8(0x61) & 0x10;
        refreshed += before != (in8(0x61) & 0x10);
    }
    check(refreshed == 3, "the refresh bit of port 61h toggles");
}

static void interrupt_controllers(void)
{
    volatile uint32_t *local = (volatile uint32_t *)0xfee00000, *io = (volatile uint32_t *)0xfec00000;
    check((local[0x20 / 4] >> 24) == cpuid(1, 0).reg[EBX] >> 24, "local APIC's id");
    uint32_t version = local[0x30 / 4];
    check((version & 0xf0) == 0x10 && (version >> 16 & 0xff) >= 3, "local APIC's version");
    detail("%x", version);
    io[0] = 1;
    check((io[4] & 0xff) >= 0x11 && (io[4] >> 16 & 0xff) >= 23, "I/O APIC's version");
    detail("%x", io[4]);
}

void check_tables(void)
{
    acpi();
    smbios();
    no_product("the BIOS's memory", low_memory(0xc0000), 0x40000);
    no_product("the BIOS's data", low_memory(0x400), 0x100);
    check(equal(low_memory(0xffff5 + 2), "/", 1), "the BIOS has a date");
    clock_memory();
    interrupt_controllers();
}
