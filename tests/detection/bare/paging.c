/* Page faults: their error codes and addresses, reserved bits as wide as CPUID says, accessed and dirty bits. */

#include "machine.h"

enum { P = 1, RW = 2, US = 4, ACCESSED = 0x20, DIRTY = 0x40 };
static const uint64_t NX = 1ull << 63;

/* Error code bits (SDM vol. 3, 4.7). */
enum { E_P = 1, E_W = 2, E_U = 4, E_RSVD = 8, E_I = 0x10 };

static void set_entry(uint64_t flags)
{
    *entry_under_test() = (uintptr_t)page_under_test | flags;
    __asm__ volatile("invlpg (%0)" : : "r"(page_under_test) : "memory");
}

/* MOV EAX from [EBX + 8], MOV to it, and a call of the page. */
static const char *const codes[3] = {"\x8b\x43\x08", "\x89\x43\x08", "\xff\xe3\x90"};
static const char *const kinds[3] = {"load", "store", "fetch"};

static void attempt(const char *name, enum mode mode, unsigned kind, uint64_t flags, unsigned error, uint64_t marks)
{
    struct state state = fresh_state();
    /* The page holds UD2, which a fetch ends in. */
    set_entry(P | RW | US);
    copy(page_under_test, "\x0f\x0b", 2);
    set_entry(flags);
    state.gpr[RBX] = (uintptr_t)page_under_test;
    run(mode, &state, codes[kind], 3);
    uint64_t marked = *entry_under_test() & (ACCESSED | DIRTY);
    bool fetched = kind == 2 && state.vector == UD && state.rip == (uintptr_t)page_under_test;
    uint64_t address = (uintptr_t)page_under_test + (kind == 2 ? 0 : 8);
    bool good = error == DONE ? state.vector == DONE || fetched
                              : state.vector == PF && state.error == error && state.address == address;
    check(good && marked == marks, "%s, %s (%s)", name, kinds[kind], mode_names[mode]);
    detail_state(&state);
    detail("address %llx, marks %llx", (unsigned long long)state.address, (unsigned long long)marked);
}

void check_paging(void)
{
    uint32_t physical = cpuid(0x80000008, 0).reg[EAX] & 0xff;
    for (enum mode mode = 0; mode < MODES; mode++) {
        unsigned user = is_ring3(mode) ? E_U : 0;
        for (unsigned kind = 0; kind < 3; kind++) {
            unsigned write = kind == 1 ? E_W : 0, fetch = kind == 2 ? E_I : 0;
            uint64_t used = ACCESSED | (kind == 1 ? DIRTY : 0);
            attempt("page", mode, kind, P | RW | US, DONE, used);
            attempt("absent page", mode, kind, 0, user | write | fetch, 0);
            attempt("absent page with all other bits", mode, kind, 0x7ffffffffffffffe & ~(ACCESSED | DIRTY),
                    user | write | fetch, 0);
            attempt("page of ring 0", mode, kind, P | RW, user ? E_P | user | write | fetch : DONE, user ? 0 : used);
            attempt("read-only page", mode, kind, P | US, write ? E_P | user | write : DONE, write ? 0 : used);
            attempt("page without code", mode, kind, P | RW | US | NX, fetch ? E_P | user | fetch : DONE, fetch ? 0 : used);
            attempt("page beyond the physical addresses", mode, kind, P | RW | US | 1ull << physical,
                    E_P | E_RSVD | user | write | fetch, 0);
            attempt("page with bit 51 of its address", mode, kind, P | RW | US | 1ull << 51,
                    E_P | E_RSVD | user | write | fetch, 0);
            attempt("page with ignored bits", mode, kind, P | RW | US | 0x7ff0000000000e00, DONE, used);
        }
    }
    set_entry(P | RW | US);
}
