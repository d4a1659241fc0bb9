/* Control and debug registers: bits that are fixed, bits that are refused, and what they switch. */

#include "machine.h"

static void cr0(void)
{
    uint64_t old = read_cr(0);
    check(old == 0x80050033, "cr0 as written");
    detail("%llx", (unsigned long long)old);
    /* Reserved bits of the low half are ignored, ET stays one. */
    check(write_cr(0, (old | 1 << 10 | 1 << 28 | 1 << 6) & ~0x10ull) == DONE && read_cr(0) == old, "cr0 reserved bits and ET");
    detail("%llx", (unsigned long long)read_cr(0));
    static const struct {
        const char *name;
        uint64_t set, clear;
    } refused[] = {
        {"the upper half", 1ull << 32, 0}, {"bit 63", 1ull << 63, 0}, {"NW without CD", 1 << 29, 0},
        {"PG without PE", 0, 1},           {"no PG in 64-bit code", 0, 1u << 31},
    };
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        unsigned vector = write_cr(0, (old | refused[i].set) & ~refused[i].clear);
        check(vector == GP && read_cr(0) == old, "cr0 refuses %s", refused[i].name);
        detail("vector %u", vector);
    }
    /* LMSW with zero: PE stays. */
    struct state state = fresh_state();
    run(RING0_64, &state, "\x0f\x01\xf0", 3);
    check(state.vector == DONE && read_cr(0) == (old & ~0xeull), "lmsw does not clear PE");
    detail("%llx", (unsigned long long)read_cr(0));
    write_cr(0, old);
    uint64_t word = 0;
    __asm__ volatile("smsw %0" : "=r"(word));
    check(word == old, "smsw shows all of cr0");
    detail("%llx", (unsigned long long)word);
}

static void floating_point_switches(void)
{
    static const struct {
        const char *name, *code;
        size_t length;
        unsigned task_switched, emulated, unsupported;
    } instructions[] = {
        {"fninit", "\xdb\xe3", 2, NM, NM, DONE},
        {"wait", "\x9b", 1, NM, DONE, DONE},
        {"emms", "\x0f\x77", 2, NM, UD, DONE},
        {"xorps", "\x0f\x57\xc0", 3, NM, UD, UD},
        {"pause", "\xf3\x90", 2, DONE, DONE, DONE},
        {"sfence", "\x0f\xae\xf8", 3, DONE, DONE, DONE},
        {"popcnt", "\xf3\x0f\xb8\xc0", 4, DONE, DONE, DONE},
        {"crc32", "\xf2\x0f\x38\xf0\xc0", 5, DONE, DONE, DONE},
    };
    uint64_t cr0 = read_cr(0), cr4 = read_cr(4);
    for (size_t i = 0; i < sizeof instructions / sizeof *instructions; i++) {
        struct state state[3];
        write_cr(0, cr0 | 8);
        state[0] = fresh_state();
        run(RING3_64, &state[0], instructions[i].code, instructions[i].length);
        write_cr(0, (cr0 | 4) & ~2ull);
        state[1] = fresh_state();
        run(RING3_64, &state[1], instructions[i].code, instructions[i].length);
        write_cr(0, cr0);
        write_cr(4, cr4 & ~(1ull << 9));
        state[2] = fresh_state();
        run(RING3_64, &state[2], instructions[i].code, instructions[i].length);
        write_cr(4, cr4);
        bool good = state[0].vector == instructions[i].task_switched && state[1].vector == instructions[i].emulated &&
                    state[2].vector == instructions[i].unsupported;
        check(good, "%s with TS, with EM, without OSFXSR", instructions[i].name);
        detail("vectors %u %u %u", (unsigned)state[0].vector, (unsigned)state[1].vector, (unsigned)state[2].vector);
    }
}

/* Each bit of CR4 can be set exactly if CPUID offers what it is for (SDM vol. 3, 2.5). */
static void cr4_bits(void)
{
    static const uint64_t features[64] = {
        [0] = FEATURE(1, 0, EDX, 1),   [1] = FEATURE(1, 0, EDX, 1),   [2] = FEATURE(1, 0, EDX, 4),
        [3] = FEATURE(1, 0, EDX, 2),   [4] = FEATURE(1, 0, EDX, 3),   [5] = FEATURE(1, 0, EDX, 6),
        [6] = FEATURE(1, 0, EDX, 7),   [7] = FEATURE(1, 0, EDX, 13),  [8] = FEATURE(1, 0, EDX, 5),
        [9] = FEATURE(1, 0, EDX, 24),  [10] = FEATURE(1, 0, EDX, 25), [11] = FEATURE(7, 0, ECX, 2),
        [12] = FEATURE(7, 0, ECX, 16), [13] = FEATURE(1, 0, ECX, 5),  [14] = FEATURE(1, 0, ECX, 6),
        [16] = FEATURE(7, 0, EBX, 0),  [17] = FEATURE(1, 0, ECX, 17), [18] = FEATURE(1, 0, ECX, 26),
        [19] = FEATURE(7, 0, ECX, 23), [20] = FEATURE(7, 0, EBX, 7),  [21] = FEATURE(7, 0, EBX, 20),
        [22] = FEATURE(7, 0, ECX, 3),  [24] = FEATURE(7, 0, ECX, 31), [25] = FEATURE(7, 0, EDX, 5),
    };
    uint64_t old = read_cr(4);
    for (unsigned bit = 0; bit < 64; bit++) {
        bool offered = features[bit] != 0 && has_feature(features[bit]);
        /* SMEP and SMAP would strike this program, whose pages are all open to ring 3; LA57 cannot change in long mode. */
        bool own = (bit == 20 || bit == 21 || bit == 12) && offered;
        if (own || old >> bit & 1) {
            continue;
        }
        unsigned vector = write_cr(4, old | 1ull << bit);
        uint64_t now = read_cr(4);
        write_cr(4, old);
        bool good = offered ? vector == DONE && now == (old | 1ull << bit) : vector == GP && now == old;
        /* CET needs CR0.WP, which is set. */
        if (bit == 23) {
            offered = has_feature(FEATURE(7, 0, ECX, 7)) || has_feature(FEATURE(7, 0, EDX, 20));
            good = offered ? vector == DONE : vector == GP;
        }
        check(good, "cr4 bit %u as CPUID says", bit);
        detail("vector %u, value %llx", vector, (unsigned long long)now);
    }
    check(write_cr(4, old & ~(1ull << 5)) == GP && read_cr(4) == old, "cr4 keeps PAE in long mode");
    if (old >> 18 & 1) {
        write_cr(4, old & ~(1ull << 18));
        check(!has_feature(FEATURE(1, 0, ECX, 27)), "OSXSAVE of CPUID follows cr4");
        struct state state = fresh_state();
        run(RING3_64, &state, "\x0f\x01\xd0", 3);
        check(state.vector == UD, "xgetbv without OSXSAVE");
        write_cr(4, old);
    }
    write_cr(4, old | 1 << 2);
    struct state state = fresh_state();
    run(RING3_64, &state, "\x0f\x31", 2);
    check(state.vector == GP && state.error == 0, "rdtsc with TSD in ring 3");
    detail_state(&state);
    state = fresh_state();
    run(RING0_64, &state, "\x0f\x31", 2);
    check(state.vector == DONE, "rdtsc with TSD in ring 0");
    detail_state(&state);
    write_cr(4, old);
}

static void cr2_cr3_cr8(void)
{
    write_cr(2, 0x123456789abcdef0);
    check(read_cr(2) == 0x123456789abcdef0, "cr2 holds any number");
    uint64_t old = read_cr(3);
    uint32_t physical = cpuid(0x80000008, 0).reg[EAX] & 0xff;
    check(write_cr(3, old | 1ull << physical) == GP, "cr3 refuses addresses beyond the physical ones");
    check(write_cr(3, old | 1ull << 62) == GP, "cr3 refuses bit 62");
    check(write_cr(3, old | 1ull << 63) == GP, "cr3 refuses bit 63 without PCIDs");
    bool all = true;
    for (uint64_t value = 16; value-- > 0;) {
        all = all && write_cr(8, value) == DONE && read_cr(8) == value;
    }
    check(all, "cr8 holds 0 to 15");
    check(write_cr(8, 16) == GP && write_cr(8, 1ull << 63) == GP, "cr8 refuses more");
    /* The task priority is the same thing. */
    volatile uint32_t *priority = (volatile uint32_t *)0xfee00080;
    write_cr(8, 5);
    check(*priority == 0x50, "cr8 and the task-priority register");
    detail("%x", *priority);
    write_cr(8, 0);
}

void check_control_registers(void)
{
    cr0();
    floating_point_switches();
    cr4_bits();
    cr2_cr3_cr8();
}

enum { DR6_CLEAR = 0xffff0ff0, DR7_CLEAR = 0x400, BS = 1 << 14, BD = 1 << 13 };

static void fixed_bits(void)
{
    write_dr(6, 0);
    check(read_dr(6) == DR6_CLEAR, "dr6 of zeros");
    detail("%llx", (unsigned long long)read_dr(6));
    write_dr(6, 0xffffffff);
    check(read_dr(6) == 0xffffefff, "dr6 of ones");
    detail("%llx", (unsigned long long)read_dr(6));
    write_dr(6, DR6_CLEAR);
    write_dr(7, 0);
    check(read_dr(7) == DR7_CLEAR, "dr7 of zeros");
    detail("%llx", (unsigned long long)read_dr(7));
    /* Breakpoints on ports (R/W 2) that nothing reads; GD left out. */
    write_dr(7, 0xffffdc00);
    check(read_dr(7) == 0xffff0400, "dr7 of ones");
    detail("%llx", (unsigned long long)read_dr(7));
    write_dr(7, DR7_CLEAR);
    check(write_dr(6, 1ull << 32) == GP && write_dr(7, 1ull << 32) == GP, "dr6 and dr7 refuse the upper half");
    write_dr(3, 0xfedcba9876543210);
    check(read_dr(3) == 0xfedcba9876543210, "dr3 holds any number");
    write_dr(3, 0);
    uint64_t old = read_cr(4);
    struct state state = fresh_state();
    run(RING0_64, &state, "\x0f\x21\xe0", 3);
    check(state.vector == UD, "dr4 with DE");
    detail_state(&state);
    write_cr(4, old & ~8ull);
    check(read_dr(4) == read_dr(6) && read_dr(5) == read_dr(7), "dr4 and dr5 without DE");
    write_cr(4, old);
}

/* The vector, where, and DR6 after a piece of code with breakpoint 0 on something. */
static void breakpoint(const char *name, enum mode mode, uint64_t address, uint32_t kind, const char *code, size_t length,
                       long at, uint32_t bits)
{
    struct state state = fresh_state();
    write_dr(6, DR6_CLEAR);
    write_dr(0, address);
    write_dr(7, DR7_CLEAR | 2 | kind << 16);
    copy(room.code, code, length);
    run(mode, &state, code, length);
    uint64_t seen = read_dr(6);
    write_dr(7, DR7_CLEAR);
    write_dr(6, DR6_CLEAR);
    check(state.vector == DB && ended_at(&state) == at && seen == (DR6_CLEAR | bits), "%s (%s)", name, mode_names[mode]);
    detail_state(&state);
    detail("dr6 %llx", (unsigned long long)seen);
}

static void breakpoints(void)
{
    uint64_t code = (uintptr_t)room.code, data = (uintptr_t)room.data;
    for (enum mode mode = 0; mode < MODES; mode++) {
        breakpoint("breakpoint on code", mode, code + 2, 0, "\x90\x90\x90", 3, 2, 1);
        breakpoint("breakpoint on cpuid", mode, code + 1, 0, "\x90\x0f\xa2", 3, 1, 1);
        breakpoint("breakpoint on a store", mode, data + 4, 0xd, "\x89\x43\x04\x90\x90", 5, 3, 1);
        breakpoint("breakpoint on a load", mode, data + 4, 0xf, "\x8b\x43\x06\x90\x90", 5, 3, 1);
        if (!is_ring3(mode)) {
            breakpoint("breakpoint on a port", mode, 0x80, 0x2, "\xe6\x80\x90\x90", 4, 2, 1);
        }
        struct state state = fresh_state();
        static const char step[] = "\x9c\x81\x0c\x24\x00\x01\x00\x00\x9d\x0f\xa2\x90";
        write_dr(6, DR6_CLEAR);
        run(mode, &state, step, sizeof step - 1);
        check(read_dr(6) == (DR6_CLEAR | BS), "dr6 after a single step (%s)", mode_names[mode]);
        detail("%llx", (unsigned long long)read_dr(6));
        write_dr(6, DR6_CLEAR);
        state = fresh_state();
        run(mode, &state, "\xf1", 1);
        check(read_dr(6) == DR6_CLEAR && ended_at(&state) == 1, "dr6 after int1 (%s)", mode_names[mode]);
        detail("%llx", (unsigned long long)read_dr(6));
    }
    struct state state = fresh_state();
    write_dr(7, DR7_CLEAR | 1 << 13);
    run(RING0_64, &state, "\x0f\x21\xc0", 3);
    /* The exception has cleared GD, so this does not fault. */
    uint64_t seen = read_dr(6);
    check(state.vector == DB && ended_at(&state) == 0 && seen == (DR6_CLEAR | BD), "general detect");
    detail_state(&state);
    detail("dr6 %llx", (unsigned long long)seen);
    write_dr(7, DR7_CLEAR);
    write_dr(6, DR6_CLEAR);
}

void check_debug_registers(void)
{
    fixed_bits();
    breakpoints();
}
