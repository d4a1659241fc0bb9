/* CPUID: names, the hypervisor's leaves, and whether the leaves agree with each other and with the instructions. */

#include "detect.h"

bool has_feature(uint64_t feature)
{
    uint32_t leaf = (uint32_t)(feature >> 32);
    uint32_t highest = cpuid(leaf & 0x80000000, 0).reg[EAX];
    if (leaf > highest) {
        return false;
    }
    struct cpuid c = cpuid(leaf, (uint32_t)(feature >> 16) & 0xff);
    return c.reg[feature >> 8 & 3] >> (feature >> 1 & 31) & 1;
}

static bool same(struct cpuid a, struct cpuid b)
{
    return equal(&a, &b, sizeof a);
}

static void detail_leaf(struct cpuid c)
{
    detail("%x %x %x %x", c.reg[EAX], c.reg[EBX], c.reg[ECX], c.reg[EDX]);
}

/* The registers as text, in the order given. */
static void spell(char *text, struct cpuid c, const uint8_t *order, unsigned words)
{
    for (unsigned i = 0; i < words; i++) {
        copy(text + 4 * i, &c.reg[order[i]], 4);
    }
    text[4 * words] = 0;
}

static void vendor_and_brand(void)
{
    static const uint8_t vendor_order[] = {EBX, EDX, ECX}, brand_order[] = {EAX, EBX, ECX, EDX};
    char text[52];
    spell(text, cpuid(0, 0), vendor_order, 3);
    check(equal(text, "GenuineIntel", 12) || equal(text, "AuthenticAMD", 12), "cpuid vendor");
    detail("%s", text);
    spell(text, cpuid(0x80000000, 0), vendor_order, 3);
    bool blank = equal(text, "\0\0\0\0\0\0\0\0\0\0\0", 12);
    check(blank || equal(text, "AuthenticAMD", 12), "cpuid extended vendor");
    for (uint32_t part = 0; part < 3; part++) {
        spell(text + 16 * part, cpuid(0x80000002 + part, 0), brand_order, 4);
    }
    const char *name = product_name((const uint8_t *)text, 48, NULL);
    check(name == NULL, "cpuid brand string");
    detail("%s", text);
    note("brand %s", text);
}

/* Leaves 40000000h to 4FFFFFFFh are promised never to be a processor's (SDM vol. 2, CPUID); hypervisors use them. */
static void hypervisor(void)
{
    check(!has_feature(FEATURE(1, 0, ECX, 31)), "cpuid hypervisor bit");
    uint32_t highest = cpuid(0, 0).reg[EAX];
    struct cpuid beyond = cpuid(highest, 0);
    unsigned wrong = 0;
    uint32_t first = 0;
    /* Every hundredth leaf is where a second interface would begin; its own leaves follow. */
    for (uint32_t base = 0x40000000; base <= 0x40010000; base += 0x100) {
        for (uint32_t leaf = base; leaf < base + 0x10; leaf++) {
            if (!same(cpuid(leaf, 0), beyond)) {
                first = wrong++ == 0 ? leaf : first;
            }
        }
    }
    check(wrong == 0, "cpuid hypervisor leaves");
    detail("leaf %x", first);
    detail_leaf(cpuid(first, 0));
    static const uint32_t strange[] = {0x20000000, 0x4fffffff, 0x5fffffff, 0x7fffffff, 0x80860000, 0x8fffffff,
                                       0xc0000000, 0xc0000001, 0xffffffff};
    for (unsigned i = 0; i < sizeof strange / sizeof *strange; i++) {
        check(same(cpuid(strange[i], 0), beyond), "cpuid leaf %x as the highest basic leaf", strange[i]);
        detail_leaf(cpuid(strange[i], 0));
    }
    uint32_t extended = cpuid(0x80000000, 0).reg[EAX];
    check(same(cpuid(extended + 1, 0), beyond), "cpuid leaf above the highest extended one");
    detail_leaf(cpuid(extended + 1, 0));
}

static bool all_zero(struct cpuid c)
{
    return (c.reg[EAX] | c.reg[EBX] | c.reg[ECX] | c.reg[EDX]) == 0;
}

static void topology(void)
{
    struct cpuid one = cpuid(1, 0), threads = cpuid(0xb, 0), package = cpuid(0xb, 1), none = cpuid(0xb, 2);
    check(one.reg[EBX] >> 24 == (threads.reg[EDX] & 0xff), "cpuid APIC ids of leaves 1 and 0Bh");
    detail("%x %x", one.reg[EBX] >> 24, threads.reg[EDX]);
    check((threads.reg[ECX] >> 8 & 0xff) == 1 && (package.reg[ECX] >> 8 & 0xff) == 2, "cpuid levels of leaf 0Bh");
    check(none.reg[EAX] == 0 && none.reg[EBX] == 0 && none.reg[ECX] == 2, "cpuid leaf 0Bh beyond its levels");
    detail_leaf(none);
    check(threads.reg[EDX] == package.reg[EDX] && package.reg[EDX] == none.reg[EDX], "cpuid x2APIC id at every level");
    bool several = package.reg[EBX] > 1;
    check(several == (one.reg[EDX] >> 28 & 1), "cpuid HTT bit against the number of logical processors");
    uint32_t sharing = 0, level = 0;
    for (uint32_t n = 0; (cpuid(4, n).reg[EAX] & 31) != 0; n++) {
        struct cpuid cache = cpuid(4, n);
        sharing = cache.reg[EAX] >> 14 & 0xfff;
        check((cache.reg[EAX] >> 5 & 7) >= level && (cache.reg[EBX] & 0xfff) == 63, "cpuid cache %u", n);
        detail_leaf(cache);
        level = cache.reg[EAX] >> 5 & 7;
    }
    check(level > 0, "cpuid has caches");
    check(sharing >= (package.reg[EBX] == 0 ? 0 : package.reg[EBX] - 1), "cpuid sharing of the last cache");
    detail("%x against %x", sharing, package.reg[EBX]);
}

static void second_level_cache(void)
{
    for (uint32_t n = 0; (cpuid(4, n).reg[EAX] & 31) != 0; n++) {
        struct cpuid c = cpuid(4, n);
        if ((c.reg[EAX] >> 5 & 7) == 2) {
            uint32_t size = ((c.reg[EBX] >> 22) + 1) * ((c.reg[EBX] >> 12 & 0x3ff) + 1) * 64 * (c.reg[ECX] + 1);
            check(cpuid(0x80000006, 0).reg[ECX] >> 16 == size / 1024, "cpuid level 2 cache in leaves 4 and 80000006h");
            detail("%u KiB", size / 1024);
        }
    }
    check((cpuid(2, 0).reg[EAX] & 0xff) == 1, "cpuid leaf 2 is asked once");
}

/* XSAVE must write what leaf 0Dh says, and nothing behind it. */
static void state_sizes(void)
{
    if (!has_feature(FEATURE(1, 0, ECX, 27))) {
        note("XSAVE is not enabled");
        return;
    }
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    struct cpuid d = cpuid(0xd, 0);
    check((low & ~d.reg[EAX]) == 0 && (low & 1) == 1, "cpuid leaf 0Dh against XCR0");
    uint32_t size = 576;
    for (uint32_t part = 2; part < 32; part++) {
        struct cpuid c = cpuid(0xd, part);
        bool offered = d.reg[EAX] >> part & 1, kernels = cpuid(0xd, 1).reg[ECX] >> part & 1;
        if (offered != (c.reg[EAX] != 0) && !kernels) {
            check(false, "cpuid leaf 0Dh, state component %u", part);
            detail_leaf(c);
        }
        if (low >> part & 1 && c.reg[EAX] + c.reg[EBX] > size) {
            size = c.reg[EAX] + c.reg[EBX];
        }
    }
    check(d.reg[EBX] == size, "cpuid size of the enabled state");
    detail("%x, components end at %x", d.reg[EBX], size);
    check(d.reg[ECX] >= d.reg[EBX], "cpuid size of all state");
    if (size > ROOM_DATA - 64) {
        return;
    }
    fill(room.data, 0xa5, ROOM_DATA);
    /* Header fields must be as XSAVE leaves them: only XSTATE_BV is written, the rest is software's. */
    __asm__ volatile("xsave64 (%0)" : : "r"(room.data), "a"(-1), "d"(-1) : "memory");
    bool kept = true;
    for (uint32_t at = size; at < ROOM_DATA; at++) {
        kept = kept && room.data[at] == 0xa5;
    }
    check(kept, "XSAVE writes nothing behind the size of leaf 0Dh");
    uint64_t header = *(uint64_t *)(void *)(room.data + 512);
    check((header & ~(0xa5a5a5a5a5a5a5a5 | low)) == 0, "XSTATE_BV within XCR0");
    detail("%llx", (unsigned long long)header);
    uint32_t mask = *(uint32_t *)(void *)(room.data + 28);
    check(mask == 0xffff, "MXCSR_MASK");
    detail("%x", mask);
}

static void widths(void)
{
    struct cpuid c = cpuid(0x80000008, 0);
    uint32_t physical = c.reg[EAX] & 0xff, linear = c.reg[EAX] >> 8 & 0xff;
    check(physical >= 36 && physical <= 52, "cpuid physical address width");
    detail("%u", physical);
    check(linear == (has_feature(FEATURE(7, 0, ECX, 16)) ? 57u : 48u), "cpuid linear address width");
    detail("%u", linear);
}

static void clocks(void)
{
    struct cpuid ratio = cpuid(0x15, 0), frequency = cpuid(0x16, 0);
    if (cpuid(0, 0).reg[EAX] < 0x16 || ratio.reg[EAX] == 0 || ratio.reg[ECX] == 0) {
        note("no frequencies in leaves 15h and 16h");
        return;
    }
    uint64_t mhz = (uint64_t)ratio.reg[ECX] * ratio.reg[EBX] / ratio.reg[EAX] / 1000000;
    uint64_t base = frequency.reg[EAX] & 0xffff;
    check(base == 0 || (mhz + 50 >= base && base + 50 >= mhz), "cpuid frequencies of leaves 15h and 16h");
    detail("%llu and %llu MHz", (unsigned long long)mhz, (unsigned long long)base);
}

static void registers(void)
{
    uint64_t rax = 0xdeadbeef00000000, rbx = ~0ull, rcx = 0xdeadbeef00000000, rdx = ~0ull;
    __asm__ volatile("cpuid" : "+a"(rax), "=b"(rbx), "+c"(rcx), "+d"(rdx) : "1"(rbx));
    check((rax | rbx | rcx | rdx) >> 32 == 0, "cpuid clears the upper halves of its registers");
    for (uint32_t n = 1; n < 4; n++) {
        struct cpuid a = cpuid(1, 0), b = cpuid(1, n * 0x55);
        check(same(a, b), "cpuid leaf 1 does not look at ECX, %u", n);
    }
    struct cpuid none = cpuid(7, 0xff);
    check(all_zero(none), "cpuid leaf 7 beyond its subleaves");
    detail_leaf(none);
}

void check_cpuid(void)
{
    vendor_and_brand();
    hypervisor();
    topology();
    second_level_cache();
    state_sizes();
    widths();
    clocks();
    registers();
}
