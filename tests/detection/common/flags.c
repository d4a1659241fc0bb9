/* EFLAGS: what POPF and PUSHF may change and show, single-stepping, alignment checks, and images pushed by exceptions. */

#include "detect.h"

enum {
    F_CF = 1 << 0, F_FIXED = 1 << 1, F_PF = 1 << 2, F_AF = 1 << 4, F_ZF = 1 << 6, F_SF = 1 << 7, F_TF = 1 << 8,
    F_IF = 1 << 9, F_DF = 1 << 10, F_OF = 1 << 11, F_IOPL = 3 << 12, F_NT = 1 << 14, F_RF = 1 << 16, F_VM = 1 << 17,
    F_AC = 1 << 18, F_VIF = 1 << 19, F_VIP = 1 << 20, F_ID = 1 << 21
};

/* POPF of EDX, then PUSHF into the first word of the data; the flags are cleaned before the end. */
SNIPPET(popf_64, 64, "push rdx; popfq; pushfq; pop [rbx]; push 2; popfq");
SNIPPET(popf_32, 32, "push edx; popfd; pushfd; pop [ebx]; push 2; popfd");
SNIPPET(popf16_64, 64, "push dx; popfw; pushfq; pop [rbx]; push 2; popfq");
SNIPPET(popf16_32, 32, "push dx; popfw; pushfd; pop [ebx]; push 2; popfd");

static uint32_t popped(enum mode mode, bool wide, uint64_t flags, uint32_t image)
{
    struct state state = fresh_state();
    state.rflags = flags;
    state.gpr[RDX] = image;
    fill(room.data, 0, 16);
    if (wide) {
        is_64(mode) ? RUN(mode, &state, popf_64) : RUN(mode, &state, popf_32);
    } else {
        is_64(mode) ? RUN(mode, &state, popf16_64) : RUN(mode, &state, popf16_32);
    }
    return state.vector == DONE ? *(uint32_t *)(void *)room.data : 0xffffffff;
}

/* SDM vol. 2, POPF, table "Effect of POPF/POPFD on the EFLAGS Register". TF is left out: it would step. */
static void pop_flags(enum mode mode)
{
    bool outer = is_ring3(mode);
    uint32_t status = F_CF | F_PF | F_AF | F_ZF | F_SF | F_DF | F_OF | F_NT;
    /* A Linux process runs with IF set, the bare machine's code without. */
    uint32_t start = popped(mode, true, 2, 2) & F_IF;
    uint32_t kept = outer ? start : 0;
    uint32_t all = popped(mode, true, 2, ~(uint32_t)F_TF & ~(uint32_t)F_IF);
    check(all == (F_FIXED | status | F_AC | F_ID | kept | (outer ? 0 : F_IOPL)), "popf of ones (%s)", mode_names[mode]);
    detail("%x", all);
    uint32_t none = popped(mode, true, 2, 0);
    check(none == (F_FIXED | kept), "popf of zeros (%s)", mode_names[mode]);
    detail("%x", none);
    uint32_t interrupts = popped(mode, true, 2, F_IF);
    check(interrupts == (F_FIXED | (outer ? start : F_IF)), "popf of IF (%s)", mode_names[mode]);
    detail("%x", interrupts);
    uint32_t word = popped(mode, false, 2, 0xffff & ~F_TF & ~F_IF);
    check(word == (F_FIXED | status | kept | (outer ? 0 : F_IOPL)), "popf of a word of ones (%s)", mode_names[mode]);
    detail("%x", word);
}

/* PUSHF; OR of TF into the image; POPF: the instruction after it runs, then comes #DB. The bytes are the same in all widths. */
#define STEP "\x9c\x81\x0c\x24\x00\x01\x00\x00\x9d"
enum { STEP_LENGTH = 9 };

struct step {
    const char *name, *code;
    /* All of the code, and what of it runs before the trap is due. */
    uint8_t length, due;
    bool ring0_only;
};
#define TRAPS(name, code) {name, STEP code "\x90\x90\x90", sizeof(STEP code) - 1 + 3, STEP_LENGTH + sizeof(code) - 1, false}
#define TRAPS0(name, code) {name, STEP code "\x90\x90\x90", sizeof(STEP code) - 1 + 3, STEP_LENGTH + sizeof(code) - 1, true}

/* A monitor that runs some instructions itself is apt to lose the trap after them. */
static const struct step steps[] = {
    TRAPS("nop", "\x90"),
    TRAPS("cpuid", "\x0f\xa2"),
    TRAPS("rdtsc", "\x0f\x31"),
    TRAPS("rdtscp", "\x0f\x01\xf9"),
    TRAPS("xgetbv", "\x0f\x01\xd0"),
    TRAPS("pushf", "\x9c"),
    TRAPS("popf that clears TF", "\x9d"),
    TRAPS("sidt", "\x0f\x01\x0b"),
    TRAPS("smsw", "\x0f\x01\xe0"),
    TRAPS("str", "\x0f\x00\xc8"),
    TRAPS("lsl", "\x0f\x03\xc0"),
    TRAPS("verr", "\x0f\x00\xe0"),
    TRAPS("pause", "\xf3\x90"),
    TRAPS("jump", "\xeb\x00"),
    TRAPS("fninit", "\xdb\xe3"),
    TRAPS("wait", "\x9b"),
    TRAPS("rdrand", "\x0f\xc7\xf0"),
    TRAPS("clflush", "\x0f\xae\x3b"),
    TRAPS("mfence", "\x0f\xae\xf0"),
    TRAPS("xchg with memory", "\x87\x03"),
    TRAPS0("in", "\xe4\x80"),
    TRAPS0("out", "\xe6\x80"),
    TRAPS0("cli", "\xfa"),
    TRAPS0("mov from cr0", "\x0f\x20\xc0"),
    TRAPS0("mov from cr4", "\x0f\x20\xe0"),
    TRAPS0("mov from dr0", "\x0f\x21\xc0"),
    TRAPS0("clts", "\x0f\x06"),
    TRAPS0("wbinvd", "\x0f\x09"),
    TRAPS0("invlpg", "\x0f\x01\x3b"),
    TRAPS0("rdmsr", "\x0f\x32"),
};

static void single_steps(enum mode mode)
{
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        const struct step *step = &steps[i];
        if (step->ring0_only && is_ring3(mode)) {
            continue;
        }
        struct state state = fresh_state();
        state.gpr[RCX] = step->code[STEP_LENGTH + 1] == '\x32' ? 0x10 : 0;
        run(mode, &state, step->code, step->length);
        check(state.vector == DB && ended_at(&state) == step->due, "single step over %s (%s)", step->name,
              mode_names[mode]);
        detail_state(&state);
    }
    /* Each iteration of a repeated instruction is a step; RIP stays on it but for the last one. */
    struct state state = fresh_state();
    static const char rep[] = STEP "\xf3\xaa\x90";
    state.gpr[RCX] = 3;
    run(mode, &state, rep, sizeof rep - 1);
    check(state.vector == DB && ended_at(&state) == STEP_LENGTH && state.gpr[RCX] == 2, "single step over rep stosb (%s)",
          mode_names[mode]);
    detail_state(&state);
    detail("count %llu", (unsigned long long)state.gpr[RCX]);
    /* MOV to SS holds the trap back until after the next instruction. */
    state = fresh_state();
    static const char shadow[] = "\x8c\xd0" STEP "\x8e\xd0\x0f\xa2\x90";
    run(mode, &state, shadow, sizeof shadow - 1);
    check(state.vector == DB && ended_at(&state) == sizeof shadow - 2, "single step over mov to ss and cpuid (%s)",
          mode_names[mode]);
    detail_state(&state);
    /* INT n through a gate, and INT1, clear TF on their way: no second trap stands behind them. */
    state = fresh_state();
    run(mode, &state, STEP "\xcc", STEP_LENGTH + 1);
    check(state.vector == BP && ended_at(&state) == STEP_LENGTH + 1, "single step over int3 (%s)", mode_names[mode]);
    detail_state(&state);
    state = fresh_state();
    run(mode, &state, STEP "\x0f\x0b", STEP_LENGTH + 2);
    check(state.vector == UD && ended_at(&state) == STEP_LENGTH, "single step over ud2 (%s)", mode_names[mode]);
    detail_state(&state);
    check(state.rflags >> 8 & 1, "TF in the image of a fault (%s)", mode_names[mode]);
    detail("%llx", (unsigned long long)state.rflags);
}

/* RF is set in the image that a fault pushes and clear in that of a trap (SDM vol. 3, 19.3.1.1). */
static void resume_flag(enum mode mode)
{
    struct state state = fresh_state();
    run(mode, &state, "\x0f\x0b\x90", 3);
    check(state.rflags >> 16 & 1, "RF in the image of #UD (%s)", mode_names[mode]);
    detail("%llx", (unsigned long long)state.rflags);
    state = fresh_state();
    run(mode, &state, "\xcc", 1);
    check(!(state.rflags >> 16 & 1), "RF in the image of #BP (%s)", mode_names[mode]);
    detail("%llx", (unsigned long long)state.rflags);
    state = fresh_state();
    run(mode, &state, STEP "\x90\x90", STEP_LENGTH + 2);
    check(!(state.rflags >> 16 & 1) && state.rflags >> 8 & 1, "RF and TF in the image of a step (%s)", mode_names[mode]);
    detail("%llx", (unsigned long long)state.rflags);
}

/* With CR0.AM and EFLAGS.AC, misaligned accesses of ring 3 are #AC(0) and those of ring 0 are not. */
static void alignment(enum mode mode)
{
    /* PUSHF; OR of AC; POPF; MOV of 4 bytes from 1 beyond the data. */
    static const char load[] = "\x9c\x81\x0c\x24\x00\x00\x04\x00\x9d\x8b\x43\x01";
    /* The same, and a store. */
    static const char store[] = "\x9c\x81\x0c\x24\x00\x00\x04\x00\x9d\x89\x43\x03";
    static const char *const codes[] = {load, store};
    for (unsigned i = 0; i < 2; i++) {
        struct state state = fresh_state();
        run(mode, &state, codes[i], sizeof load - 1);
        bool good = is_ring3(mode) ? state.vector == AC && state.error == 0 && ended_at(&state) == 9 : state.vector == DONE;
        check(good, "misaligned %s with AC (%s)", i ? "store" : "load", mode_names[mode]);
        detail_state(&state);
    }
}

SNIPPET(lahf_64, 64, "mov eax, 0xff00; sahf; lahf; mov [rbx], eax; push 2; popfq");
SNIPPET(lahf_32, 32, "mov eax, 0xff00; sahf; lahf; mov [ebx], eax; push 2; popfd");

static void lahf(enum mode mode)
{
    struct state state = fresh_state();
    is_64(mode) ? RUN(mode, &state, lahf_64) : RUN(mode, &state, lahf_32);
    check(state.vector == DONE && *(uint32_t *)(void *)room.data == 0xd700, "lahf after sahf of ones (%s)", mode_names[mode]);
    detail("%x", *(uint32_t *)(void *)room.data);
}

/* The counter goes forward, and RDTSCP waits for no one. */
static void counter(void)
{
    uint64_t last = 0;
    bool forward = true;
    for (unsigned i = 0; i < 1000; i++) {
        uint32_t low, high;
        __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
        uint64_t now = (uint64_t)high << 32 | low;
        forward = forward && now > last;
        last = now;
    }
    check(forward, "the time-stamp counter goes forward");
}

void check_flags(void)
{
    for (enum mode mode = 0; mode < MODES; mode++) {
        if (offers(mode)) {
            pop_flags(mode);
            single_steps(mode);
            resume_flag(mode);
            alignment(mode);
            lahf(mode);
        }
    }
    counter();
}
