/* The interface's test: what the parts share, and the calls that every number must answer. */

#include "abi.h"

static u64 checks, mismatches;

static void mismatch(const char *what, i64 got, i64 wanted) {
    mismatches++;
    print("mismatch: ");
    print(what);
    print(" gives ");
    print_signed(got);
    print(", not ");
    print_signed(wanted);
    print("\n");
}

void expect(const char *what, i64 got, i64 wanted) {
    checks++;
    if (got != wanted)
        mismatch(what, got, wanted);
}

void expect_either(const char *what, i64 got, i64 one, i64 other) {
    checks++;
    if (got != one && got != other)
        mismatch(what, got, one);
}

/* Refused, with an error number that Xen's versions do not agree about. */
void expect_error(const char *what, i64 got) {
    checks++;
    if (got >= 0 || got < -4095)
        mismatch(what, got, -EINVAL);
}

void expect_true(const char *what, bool holds) {
    checks++;
    if (!holds)
        mismatch(what, 0, 1);
}

void *fresh_page(void) { return page_take(); }

u64 writable_entry(const void *page) {
    return machine_frame(page) * PAGE | PTE_PRESENT | PTE_WRITE | PTE_USER | PTE_ACCESSED;
}

u64 read_only_entry(const void *page) { return writable_entry(page) & ~PTE_WRITE; }

i64 map_page(void *page, u64 entry) {
    return hypercall(UPDATE_VA_MAPPING, (u64)page, entry, FLUSH_PAGE, 0);
}

bool take_event(u32 port) {
    u64 bit = 1ul << port % 64;
    return __atomic_fetch_and(&shared_info->pending[port / 64], ~bit, __ATOMIC_SEQ_CST) & bit;
}

/* Numbers that are nobody's, that are for the control domain, or that a guest of this kind has no use for. */
void test_numbers(void) {
    static const u8 not_there[] = {6, 11, 16, 19, 22, 27, 31, 34, 37, 38, 39, 41, 42, 43, 44, 45, 46, 47, 49, 50, 55, 56, 63};
    for (u64 n = 0; n < sizeof not_there; n++)
        expect("a number without a call", hypercall(not_there[n], 0, 0, 0, 0), -ENOSYS);
    static const u64 far[] = {64, 127, 128, 0x80000000, 0xffffffff, 1ul << 32, 1ul << 63, ~0ul};
    for (u64 n = 0; n < sizeof far / sizeof *far; n++)
        expect("a number out of range", hypercall(far[n], 0, 0, 0, 0), -ENOSYS);
    expect("platform_op", hypercall(7, NOWHERE, 0, 0, 0), -EPERM);
    expect_either("sysctl", hypercall(35, NOWHERE, 0, 0, 0), -EPERM, -ENOSYS);
    expect_either("domctl", hypercall(36, NOWHERE, 0, 0, 0), -EPERM, -ENOSYS);
    expect_either("xenpmu_op", hypercall(40, 0, 0, 0, 0), -ENOSYS, -EOPNOTSUPP);
    expect("mca", hypercall(48, NOWHERE, 0, 0, 0), -EPERM);
}

bool machine_test_interface(void) {
    u64 way = command_line_number("crash=", NO_TRAP);
    if (way != NO_TRAP)
        crash(way);
    test_start();
    test_numbers();
    test_small_calls();
    test_processor();
    test_vectors();
    test_nmi();
    test_page_tables();
    test_memory();
    test_events();
    /* Last, because it moves what the others look at. */
    test_vcpu();
    print("checks: ");
    print_number(checks);
    print("\n");
    return !mismatches;
}
