/* MSRs: those of hypervisors, those that must or must not be there by CPUID, and what values they refuse (SDM vol. 4). */

#include "machine.h"

/* Whether all of a range is #GP(0). */
static void absent(const char *name, uint32_t first, uint32_t last)
{
    uint32_t wrong = 0, where = 0;
    uint64_t value = 0, seen = 0;
    for (uint32_t number = first;; number++) {
        if (read_msr(number, &value) != GP) {
            where = wrong++ == 0 ? number : where;
            seen = wrong == 1 ? value : seen;
        }
        if (number == last) {
            break;
        }
    }
    check(wrong == 0, "no MSRs %s (%x to %x)", name, first, last);
    detail("%u, first %x with %llx", wrong, where, (unsigned long long)seen);
}

static void hypervisors(void)
{
    absent("of KVM's first clock", 0x11, 0x12);
    absent("of Hyper-V, KVM and Xen", 0x40000000, 0x400011ff);
    absent("of KVM", 0x4b564d00, 0x4b564dff);
    absent("of another vendor", 0xc0010000, 0xc00111ff);
    absent("between the ranges", 0x3000, 0x30ff);
    absent("at the end", 0xffffff00, 0xffffffff);
    absent("of the other half", 0x80000000, 0x800000ff);
    if (!has_feature(FEATURE(1, 0, ECX, 5))) {
        absent("of VMX", 0x480, 0x493);
    }
    absent("of the x2APIC while it is off", 0x800, 0x8ff);
}

/* Registers that come with a feature (SDM vol. 4, table 2-2). */
static void by_feature(void)
{
    static const struct {
        uint32_t number;
        const char *name;
        uint64_t feature;
    } registers[] = {
        {0x10, "TIME_STAMP_COUNTER", FEATURE(1, 0, EDX, 4)},
        {0x1b, "APIC_BASE", FEATURE(1, 0, EDX, 9)},
        {0x3b, "TSC_ADJUST", FEATURE(7, 0, EBX, 1)},
        {0x48, "SPEC_CTRL", FEATURE(7, 0, EDX, 26)},
        {0xe7, "MPERF", FEATURE(6, 0, ECX, 0)},
        {0xe8, "APERF", FEATURE(6, 0, ECX, 0)},
        {0xfe, "MTRRCAP", FEATURE(1, 0, EDX, 12)},
        {0x10a, "ARCH_CAPABILITIES", FEATURE(7, 0, EDX, 29)},
        {0x122, "TSX_CTRL", FEATURE(7, 0, EBX, 11)},
        {0x174, "SYSENTER_CS", FEATURE(1, 0, EDX, 11)},
        {0x175, "SYSENTER_ESP", FEATURE(1, 0, EDX, 11)},
        {0x176, "SYSENTER_EIP", FEATURE(1, 0, EDX, 11)},
        {0x179, "MCG_CAP", FEATURE(1, 0, EDX, 14)},
        {0x17a, "MCG_STATUS", FEATURE(1, 0, EDX, 14)},
        {0x19a, "CLOCK_MODULATION", FEATURE(1, 0, EDX, 22)},
        {0x1b0, "ENERGY_PERF_BIAS", FEATURE(6, 0, ECX, 3)},
        {0x1b1, "PACKAGE_THERM_STATUS", FEATURE(6, 0, EAX, 6)},
        {0x277, "PAT", FEATURE(1, 0, EDX, 16)},
        {0x2ff, "MTRR_DEF_TYPE", FEATURE(1, 0, EDX, 12)},
        {0x600, "DS_AREA", FEATURE(1, 0, EDX, 21)},
        {0x6a0, "U_CET", FEATURE(7, 0, ECX, 7)},
        {0x6a4, "PL0_SSP", FEATURE(7, 0, ECX, 7)},
        {0x6e0, "TSC_DEADLINE", FEATURE(1, 0, ECX, 24)},
        {0x6e1, "PKRS", FEATURE(7, 0, ECX, 31)},
        {0x770, "PM_ENABLE", FEATURE(6, 0, EAX, 7)},
        {0xc80, "DEBUG_INTERFACE", FEATURE(1, 0, ECX, 11)},
        {0xda0, "XSS", FEATURE(0xd, 1, EAX, 3)},
        {0xc0000080, "EFER", FEATURE(0x80000001, 0, EDX, 20)},
        {0xc0000081, "STAR", FEATURE(0x80000001, 0, EDX, 11)},
        {0xc0000082, "LSTAR", FEATURE(0x80000001, 0, EDX, 29)},
        {0xc0000083, "CSTAR", FEATURE(0x80000001, 0, EDX, 29)},
        {0xc0000084, "FMASK", FEATURE(0x80000001, 0, EDX, 29)},
        {0xc0000100, "FS_BASE", FEATURE(0x80000001, 0, EDX, 29)},
        {0xc0000101, "GS_BASE", FEATURE(0x80000001, 0, EDX, 29)},
        {0xc0000102, "KERNEL_GS_BASE", FEATURE(0x80000001, 0, EDX, 29)},
        {0xc0000103, "TSC_AUX", FEATURE(0x80000001, 0, EDX, 27)},
    };
    for (size_t i = 0; i < sizeof registers / sizeof *registers; i++) {
        uint64_t value;
        bool offered = has_feature(registers[i].feature);
        unsigned vector = read_msr(registers[i].number, &value);
        check(vector == (offered ? DONE : GP), "MSR %s as CPUID says", registers[i].name);
        detail("%s, vector %u", offered ? "offered" : "not offered", vector);
    }
    /* Without an architectural performance monitor none of its registers. */
    if (cpuid(0, 0).reg[EAX] < 10 || (cpuid(10, 0).reg[EAX] & 0xff) == 0) {
        absent("of counters", 0xc1, 0xc8);
        absent("of event selection", 0x186, 0x18d);
        absent("of fixed counters", 0x309, 0x30c);
        absent("of counter control", 0x38d, 0x390);
    }
    uint32_t banks = (uint32_t)msr(0x179) & 0xff;
    absent("of machine-check banks beyond their number", 0x400 + 4 * banks, 0x400 + 4 * banks + 7);
    uint32_t ranges = (uint32_t)msr(0xfe) & 0xff;
    uint64_t value;
    bool all = true;
    for (uint32_t i = 0; i < 2 * ranges; i++) {
        all = all && read_msr(0x200 + i, &value) == DONE;
    }
    check(all, "MSRs of %u variable memory ranges", ranges);
    absent("of more variable ranges", 0x200 + 2 * ranges, 0x21f);
}

/* A write of `old ^ change` that must be #GP(0) and leave the register alone. */
static void refused(uint32_t number, const char *name, uint64_t change)
{
    uint64_t old = 0, now = 0;
    unsigned exists = read_msr(number, &old);
    if (exists != DONE) {
        return;
    }
    unsigned vector = write_msr(number, old ^ change);
    read_msr(number, &now);
    bool counts = number == 0x10;
    check(vector == GP && (counts || now == old), "MSR %s refuses %llx", name, (unsigned long long)change);
    detail("vector %u, value %llx", vector, (unsigned long long)now);
    if (vector == DONE) {
        write_msr(number, old);
    }
}

static void reserved_values(void)
{
    uint32_t physical = cpuid(0x80000008, 0).reg[EAX] & 0xff;
    const uint64_t not_canonical = 0x8000000000000000;
    refused(0x17, "PLATFORM_ID", 1);
    refused(0x1b, "APIC_BASE", 1 << 9);
    refused(0x1b, "APIC_BASE", 1ull << physical);
    refused(0x3a, "FEATURE_CONTROL", 4);
    refused(0x48, "SPEC_CTRL", 1ull << 63);
    refused(0xce, "PLATFORM_INFO", 1);
    refused(0xfe, "MTRRCAP", 1);
    refused(0x10a, "ARCH_CAPABILITIES", 1);
    refused(0x175, "SYSENTER_ESP", not_canonical);
    refused(0x176, "SYSENTER_EIP", not_canonical);
    refused(0x17a, "MCG_STATUS", 1 << 8);
    refused(0x1d9, "DEBUGCTL", 1 << 3);
    refused(0x1d9, "DEBUGCTL", 1ull << 40);
    refused(0x200, "MTRR_PHYSBASE0", 1 << 8);
    refused(0x200, "MTRR_PHYSBASE0", 1ull << physical);
    refused(0x201, "MTRR_PHYSMASK0", 1);
    refused(0x277, "PAT", 6 ^ 2);
    refused(0x277, "PAT", 0x80);
    refused(0x2ff, "MTRR_DEF_TYPE", 1 << 9);
    refused(0xc0000080, "EFER", 1 << 1);
    refused(0xc0000080, "EFER, SVME", 1 << 12);
    refused(0xc0000080, "EFER, LMSLE", 1 << 13);
    refused(0xc0000080, "EFER, FFXSR", 1 << 14);
    refused(0xc0000080, "EFER, LME while paging", 1 << 8);
    refused(0xc0000082, "LSTAR", not_canonical);
    refused(0xc0000083, "CSTAR", not_canonical);
    refused(0xc0000084, "FMASK", 1ull << 32);
    refused(0xc0000100, "FS_BASE", not_canonical);
    refused(0xc0000102, "KERNEL_GS_BASE", not_canonical);
    refused(0xc0000103, "TSC_AUX", 1ull << 32);
    uint64_t value;
    check(read_msr(0x49, &value) == GP && read_msr(0x79, &value) == GP, "command MSRs cannot be read");
    check(write_msr(0x49, 2) == GP, "MSR PRED_CMD refuses 2");
    /* LMA is kept, and is no reason to refuse. */
    uint64_t efer = msr(0xc0000080);
    check(write_msr(0xc0000080, efer & ~(1ull << 10)) == DONE && msr(0xc0000080) == efer, "MSR EFER keeps LMA");
    detail("%llx", (unsigned long long)msr(0xc0000080));
}

static uint64_t counter(void)
{
    uint32_t low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return (uint64_t)high << 32 | low;
}

static void values(void)
{
    uint64_t base = msr(0x1b);
    check((base & ~0x500ull) == 0xfee00800 && base >> 8 & 1, "MSR APIC_BASE");
    detail("%llx", (unsigned long long)base);
    uint64_t misc = msr(0x1a0);
    bool monitor = has_feature(FEATURE(1, 0, ECX, 3));
    check((misc >> 18 & 1) == monitor && !(misc >> 22 & 1), "MSR MISC_ENABLE against CPUID");
    detail("%llx", (unsigned long long)misc);
    check((msr(0x3a) & 1) == 1, "MSR FEATURE_CONTROL is locked, as firmware leaves it");
    check((msr(0x2ff) & 0xc00) == 0xc00, "memory types are enabled, as firmware leaves them");
    detail("%llx", (unsigned long long)msr(0x2ff));
    check((msr(0x277) & 0xff) == 6, "MSR PAT after reset");
    detail("%llx", (unsigned long long)msr(0x277));
    write_msr(0x8b, 0);
    cpuid(1, 0);
    check(msr(0x8b) >> 32 != 0 && (uint32_t)msr(0x8b) == 0, "microcode revision");
    detail("%llx", (unsigned long long)msr(0x8b));
    uint64_t before = counter(), read = msr(0x10), after = counter();
    check(before < read && read < after, "MSR TIME_STAMP_COUNTER against RDTSC");
    uint64_t adjust = msr(0x3b);
    write_msr(0x3b, adjust + (1ull << 40));
    uint64_t moved = counter();
    check(moved - after >= 1ull << 40 && moved - after < (1ull << 40) + (1ull << 36), "MSR TSC_ADJUST moves the counter");
    detail("%llx", (unsigned long long)(moved - after));
    write_msr(0x3b, adjust);
    write_msr(0x10, counter() + (1ull << 41));
    uint64_t shown = msr(0x3b) - adjust;
    check(shown - (1ull << 41) + (1ull << 36) < 1ull << 37, "a write to the counter shows in MSR TSC_ADJUST");
    detail("%llx", (unsigned long long)shown);
    write_msr(0x3b, adjust);
    write_msr(0xc0000103, 0x1234);
    uint32_t low, high, aux;
    __asm__ volatile("rdtscp" : "=a"(low), "=d"(high), "=c"(aux));
    check(aux == 0x1234, "MSR TSC_AUX and RDTSCP");
    write_msr(0xc0000103, 0);
}

/* The APIC's modes and what CPUID and the MSRs say of them (SDM vol. 3, 11.4.3 and 11.12). */
static void apic_modes(void)
{
    const uint32_t APIC_BASE = 0x1b;
    const uint64_t extended = 1 << 10, enabled = 1 << 11;
    uint64_t old = msr(APIC_BASE), value;
    write_msr(APIC_BASE, old & ~enabled);
    check(!has_feature(FEATURE(1, 0, EDX, 9)), "APIC bit of CPUID follows MSR APIC_BASE");
    check(write_msr(APIC_BASE, (old & ~enabled) | extended) == GP, "no x2APIC mode while the APIC is off");
    write_msr(APIC_BASE, old);
    if (!has_feature(FEATURE(1, 0, ECX, 21))) {
        check(write_msr(APIC_BASE, old | extended) == GP, "no x2APIC mode without an x2APIC");
        return;
    }
    check(write_msr(APIC_BASE, old | extended) == DONE && msr(APIC_BASE) == (old | extended), "x2APIC mode");
    check(msr(0x802) == cpuid(0xb, 0).reg[EDX], "x2APIC id by MSR and by CPUID");
    detail("%llx", (unsigned long long)msr(0x802));
    check(read_msr(0x80e, &value) == GP && read_msr(0x831, &value) == GP && read_msr(0x8ff, &value) == GP,
          "no x2APIC MSRs but its registers");
    check(write_msr(0x802, 0) == GP && write_msr(0x808, 0x100) == GP && write_msr(0x80b, 1) == GP,
          "x2APIC MSRs refuse reserved values");
    check(write_msr(APIC_BASE, old) == GP, "no way from x2APIC mode to the other");
    write_msr(APIC_BASE, old & ~enabled);
    write_msr(APIC_BASE, old);
    check(msr(APIC_BASE) == old, "x2APIC mode ends by way of off");
}

void check_msrs(void)
{
    hypervisors();
    by_feature();
    reserved_values();
    values();
    apic_modes();
}
