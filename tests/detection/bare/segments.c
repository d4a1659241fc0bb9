/* Descriptor tables, segment limits and rights, the task state and its I/O bitmap. */

#include "machine.h"

static void stored_tables(void)
{
    struct table idt = {0, 0}, gdt = {0, 0};
    uint64_t ldt = ~0ull, task = ~0ull;
    __asm__ volatile("sidt %0; sgdt %1; sldt %2; str %3" : "=m"(idt), "=m"(gdt), "+r"(ldt), "+r"(task));
    check(equal(&idt, &idt_pointer, sizeof idt), "sidt gives what lidt took");
    detail("%x %llx", idt.limit, (unsigned long long)idt.base);
    check(equal(&gdt, &gdt_pointer, sizeof gdt), "sgdt gives what lgdt took");
    detail("%x %llx", gdt.limit, (unsigned long long)gdt.base);
    check((uint16_t)ldt == 0 && (uint16_t)task == TASK, "sldt and str");
    detail("%llx %llx", (unsigned long long)ldt, (unsigned long long)task);
    const uint8_t *entry = (const uint8_t *)(uintptr_t)gdt.base + TASK;
    check(entry[5] == 0x8b, "ltr marks the task busy");
    detail("%x", entry[5]);
    struct table limits[] = {{0, 0x1000}, {0xffff, 0xffff800000000000}, {7, 0xffffffff}};
    for (unsigned i = 0; i < 3; i++) {
        struct table seen = {1, 1};
        __asm__ volatile("lidt %1; sidt %0; lidt %2" : "=m"(seen) : "m"(limits[i]), "m"(idt_pointer));
        check(equal(&seen, &limits[i], sizeof seen), "idt of limit %x", limits[i].limit);
        detail("%x %llx", seen.limit, (unsigned long long)seen.base);
    }
    /* In ring 3, from 32-bit code: six bytes. */
    struct state state = fresh_state();
    fill(room.data, 0xa5, 16);
    run(RING3_32, &state, "\x0f\x01\x0b", 3);
    struct table low;
    copy(&low, room.data, sizeof low);
    check(low.limit == idt_pointer.limit && (uint32_t)low.base == (uint32_t)idt_pointer.base && low.base >> 32 == 0xa5a5a5a5,
          "sidt in 32-bit code of ring 3");
    detail("%x %llx", low.limit, (unsigned long long)low.base);
}

struct attempt {
    const char *name;
    struct selectors selectors;
    const char *code;
    size_t length;
    unsigned vector, error;
};
#define ATTEMPT(name, cs, data, code, vector, error) {name, {cs, data}, code, sizeof code - 1, vector, error}

static void limits(void)
{
    static const struct attempt attempts[] = {
        /* MOV of a byte, then of 4 bytes, around the limit of a segment of 4096 bytes. */
        ATTEMPT("last byte below the limit", CODE32_3, SMALL_3, "\xa0\xff\x0f\x00\x00", DONE, 0),
        ATTEMPT("byte beyond the limit", CODE32_3, SMALL_3, "\xa0\x00\x10\x00\x00", GP, 0),
        ATTEMPT("word across the limit", CODE32_3, SMALL_3, "\xa1\xfd\x0f\x00\x00", GP, 0),
        ATTEMPT("store across the limit", CODE32_3, SMALL_3, "\xa3\xfd\x0f\x00\x00", GP, 0),
        ATTEMPT("segment that grows down, below", CODE32_3, DOWN_3, "\xa0\xff\x0f\x00\x00", GP, 0),
        ATTEMPT("segment that grows down, first byte", CODE32_3, DOWN_3, "\xa0\x00\x10\x00\x00", DONE, 0),
        ATTEMPT("segment that grows down, above", CODE32_3, DOWN_3, "\xa0\x00\x00\x01\x00", GP, 0),
        ATTEMPT("stack beyond the limit", CODE32_3, SMALL_3, "\xbc\x02\x10\x00\x00\x50", SS, 0),
        ATTEMPT("stack operand beyond the limit", CODE32_3, SMALL_3, "\x36\xa0\x00\x10\x00\x00", SS, 0),
        ATTEMPT("no limit in 64-bit code", CODE64_3, SMALL_3, "\x8a\x83\x00\x10\x00\x00", DONE, 0),
        ATTEMPT("store to code", CODE32_3, DATA_3, "\x2e\x89\x03", GP, 0),
        ATTEMPT("load from absent data", CODE32_3, DATA_3, "\xb8\x63\x00\x00\x00\x8e\xd8", NP, 0x60),
        ATTEMPT("absent stack", CODE32_3, DATA_3, "\xb8\x63\x00\x00\x00\x8e\xd0", SS, 0x60),
        ATTEMPT("read-only stack", CODE32_3, DATA_3, "\xb8\x6b\x00\x00\x00\x8e\xd0", GP, 0x68),
        ATTEMPT("store to read-only data", CODE32_3, DATA_3, "\xb8\x6b\x00\x00\x00\x8e\xd8\x89\x03", GP, 0),
        ATTEMPT("data of ring 0", CODE32_3, DATA_3, "\xb8\x10\x00\x00\x00\x8e\xd8", GP, 0x10),
        ATTEMPT("task as data", CODE32_3, DATA_3, "\xb8\x3b\x00\x00\x00\x8e\xd8", GP, 0x38),
        ATTEMPT("null data in 32-bit code", CODE32_3, DATA_3, "\x31\xc0\x8e\xd8\x8b\x03", GP, 0),
        ATTEMPT("null data in 64-bit code", CODE64_3, DATA_3, "\x31\xc0\x8e\xd8\x8b\x03", DONE, 0),
        ATTEMPT("far call to ring 0", CODE32_3, DATA_3, "\x9a\x00\x00\x00\x00\x18\x00", GP, 0x18),
        ATTEMPT("far jump to data", CODE32_3, DATA_3, "\xea\x00\x00\x00\x00\x2b\x00", GP, 0x28),
        ATTEMPT("branch beyond the limit", SHORT_3, DATA_3, "\xe9\x00\x01\x00\x00", GP, 0),
        ATTEMPT("code that runs into the limit", SHORT_3, DATA_3, "\x90\x90\x90\x90\x90\x90\x90\x90\x90\x90\x90\x90\x90\x90\x90\x90",
                GP, 0),
    };
    for (size_t i = 0; i < sizeof attempts / sizeof *attempts; i++) {
        const struct attempt *attempt = &attempts[i];
        struct state state = fresh_state();
        bool based = attempt->selectors.cs == SHORT_3;
        fill(room.data, 0, ROOM_DATA);
        /* With a stack segment that is small, the stack pointer is an offset. */
        if (attempt->selectors.data != DATA_3 && attempt->selectors.cs == CODE32_3) {
            state.gpr[RSP] = 0x800;
        }
        copy(room.code, attempt->code, attempt->length);
        copy(room.code + attempt->length, "\x0f\x0b", 2);
        state.rip = based ? 0 : (uintptr_t)room.code;
        execute_with(&attempt->selectors, &state);
        bool done = state.vector == UD && state.rip == (uintptr_t)room.code + attempt->length;
        unsigned vector = done ? DONE : (unsigned)state.vector;
        check(vector == attempt->vector && (done || state.error == attempt->error), "%s", attempt->name);
        detail_state(&state);
    }
}

/* A far call from ring 3 through a gate: to 64-bit code of ring 0 on the stack that the task names. */
static void call_gate(void)
{
    for (enum mode mode = RING3_64; mode < MODES; mode++) {
        struct state state = fresh_state();
        static const uint16_t pointer[3] = {0, 0, GATE_3};
        copy(room.data, pointer, sizeof pointer);
        copy(room.code + 0x100, "\x0f\x0b", 2);
        run(mode, &state, "\xff\x1b", 2);
        const uint64_t *frame = (const uint64_t *)(uintptr_t)state.gpr[RSP];
        bool entered = state.vector == UD && ended_at(&state) == 0x100 && trapped_cs == CODE64_0;
        check(entered && frame[0] == (uintptr_t)room.code + 2 && (frame[3] & 0xffff) == DATA_3, "call gate (%s)",
              mode_names[mode]);
        detail_state(&state);
        detail("cs %llx", (unsigned long long)trapped_cs);
    }
}

static uint64_t asked(const char *code, size_t length, uint16_t selector, bool *zero)
{
    struct state state = fresh_state();
    state.gpr[RAX] = 0x55;
    state.gpr[RCX] = selector;
    run(RING3_64, &state, code, length);
    *zero = state.rflags >> 6 & 1;
    return state.vector == DONE ? state.gpr[RAX] : ~0ull;
}

static void rights(void)
{
    static const struct {
        uint16_t selector;
        bool visible, readable, writable;
        uint32_t access, limit;
    } selectors[] = {
        {0, false, false, false, 0, 0},
        {CODE64_0, false, false, false, 0, 0},
        {TASK | 3, false, false, false, 0, 0},
        {CODE32_3, true, true, false, 0xcffb00, 0xffffffff},
        {DATA_3, true, true, true, 0xcff300, 0xffffffff},
        {CODE64_3, true, true, false, 0xaffb00, 0xffffffff},
        {SMALL_3, true, true, true, 0x40f300, 0xfff},
        {DOWN_3, true, true, true, 0x00f700, 0xfff},
        {ABSENT_3, true, true, true, 0xcf7300, 0xffffffff},
        {READ_ONLY_3, true, true, false, 0xcff100, 0xffffffff},
        {GDT_LIMIT + 1, false, false, false, 0, 0},
    };
    for (size_t i = 0; i < sizeof selectors / sizeof *selectors; i++) {
        uint16_t selector = selectors[i].selector;
        bool zero[4];
        uint64_t access = asked("\x0f\x02\xc1", 3, selector, &zero[0]), limit = asked("\x0f\x03\xc1", 3, selector, &zero[1]);
        asked("\x0f\x00\xe1", 3, selector, &zero[2]);
        asked("\x0f\x00\xe9", 3, selector, &zero[3]);
        bool visible = selectors[i].visible;
        bool good = zero[0] == visible && zero[1] == visible && zero[2] == selectors[i].readable &&
                    zero[3] == selectors[i].writable && access == (visible ? selectors[i].access : 0x55) &&
                    limit == (visible ? selectors[i].limit : 0x55);
        check(good, "lar, lsl, verr and verw of %x", selector);
        detail("%llx %llx %u%u%u%u", (unsigned long long)access, (unsigned long long)limit, zero[0], zero[1], zero[2], zero[3]);
    }
}

/* Gives the task state a limit, for its I/O bitmap; a busy task cannot be loaded. */
static void load_task(uint32_t limit)
{
    uint8_t *entry = (uint8_t *)(uintptr_t)gdt_pointer.base + TASK;
    entry[0] = (uint8_t)limit;
    entry[1] = (uint8_t)(limit >> 8);
    entry[5] = 0x89;
    __asm__ volatile("ltr %w0" : : "r"(TASK) : "memory");
}

static void port_map(void)
{
    uint16_t at = 0x68;
    uint8_t *map = task_state + at;
    copy(task_state + 0x66, &at, 2);
    fill(map, 0xff, 0x2001);
    map[0x80 / 8] = 0xfe;
    load_task(sizeof task_state - 1);
    static const struct {
        const char *name, *code;
        size_t length;
        unsigned vector;
    } accesses[] = {
        {"in from an open port", "\xe4\x80", 2, DONE},
        {"in from a closed port", "\xe4\x81", 2, GP},
        {"in across open and closed ports", "\x66\xe5\x80", 3, GP},
        {"in from a port beyond the map", "\xba\xff\xff\x00\x00\xec", 6, GP},
        {"cli in ring 3", "\xfa", 1, GP},
    };
    for (enum mode mode = RING3_64; mode < MODES; mode++) {
        for (size_t i = 0; i < sizeof accesses / sizeof *accesses; i++) {
            struct state state = fresh_state();
            run(mode, &state, accesses[i].code, accesses[i].length);
            check(state.vector == accesses[i].vector && (state.vector == DONE || state.error == 0), "%s (%s)",
                  accesses[i].name, mode_names[mode]);
            detail_state(&state);
        }
        /* With IOPL 3 the map is not asked, and POPF may change IF. */
        struct state state = fresh_state();
        state.rflags = 0x3002;
        run(mode, &state, "\xe4\x81\xfb\xfa", 4);
        check(state.vector == DONE, "in, sti and cli with IOPL 3 (%s)", mode_names[mode]);
        detail_state(&state);
    }
    load_task(TASK_LIMIT);
}

void check_segments(void)
{
    stored_tables();
    limits();
    call_gate();
    rights();
    port_map();
}
