/* The "red pill" and its kin: SIDT, SGDT, SLDT, STR, SMSW, LAR, LSL, VERR and VERW in ring 3. */

#include "environment.h"

struct table {
    uint16_t limit;
    uint64_t base;
} __attribute__((packed));

static struct table stored(const char *code, size_t length, enum mode mode)
{
    struct state state = fresh_state();
    fill(room.data, 0xa5, 16);
    run(mode, &state, code, length);
    struct table table;
    copy(&table, room.data, sizeof table);
    return table;
}

/* Linux has its tables in the CPU entry area, at the top of the address space (Documentation/x86/x86_64/mm.rst). */
static void tables(void)
{
    static const char sidt[] = "\x0f\x01\x0b", sgdt[] = "\x0f\x01\x03";
    struct table idt = stored(sidt, 3, RING3_64), gdt = stored(sgdt, 3, RING3_64);
    check(idt.limit == 0xfff && idt.base == 0xfffffe0000000000, "sidt");
    detail("%x %llx", idt.limit, (unsigned long long)idt.base);
    check(gdt.limit == 0x7f && gdt.base >> 40 == 0xfffffe, "sgdt");
    detail("%x %llx", gdt.limit, (unsigned long long)gdt.base);
    /* In 32-bit code six bytes are stored, with the low half of the base. */
    struct table low = stored(sidt, 3, RING3_32);
    check(low.limit == 0xfff && (uint32_t)low.base == 0 && low.base >> 32 == 0xa5a5a5a5, "sidt in 32-bit code");
    detail("%x %llx", low.limit, (unsigned long long)low.base);
}

static uint64_t value_of(const char *code, size_t length, uint64_t rax, uint64_t rcx, bool *zero)
{
    struct state state = fresh_state();
    state.gpr[RAX] = rax;
    state.gpr[RCX] = rcx;
    run(RING3_64, &state, code, length);
    if (zero != NULL) {
        *zero = state.rflags >> 6 & 1;
    }
    return state.vector == DONE ? state.gpr[RAX] : ~0ull;
}

static void registers(void)
{
    uint64_t ldt = value_of("\x48\x0f\x00\xc0", 4, ~0ull, 0, NULL), task = value_of("\x48\x0f\x00\xc8", 4, ~0ull, 0, NULL);
    check(ldt == 0, "sldt");
    detail("%llx", (unsigned long long)ldt);
    check(task == 0x40, "str");
    detail("%llx", (unsigned long long)task);
    uint64_t word = value_of("\x48\x0f\x01\xe0", 4, 0, 0, NULL);
    check(word == 0x80050033, "smsw");
    detail("%llx", (unsigned long long)word);
}

/* Selectors of Linux's GDT (asm/segment.h) with what ring 3 may see of them. */
static void rights(void)
{
    static const struct {
        uint16_t selector;
        bool visible, readable, writable;
        uint32_t access, limit;
    } selectors[] = {
        {0x00, false, false, false, 0, 0},
        {0x10, false, false, false, 0, 0},
        {0x18, false, false, false, 0, 0},
        {0x23, true, true, false, 0xcffb00, 0xffffffff},
        {0x2b, true, true, true, 0xcff300, 0xffffffff},
        {0x33, true, true, false, 0xaffb00, 0xffffffff},
        {0x40, false, false, false, 0, 0},
        {0x83, false, false, false, 0, 0},
        {0x07, false, false, false, 0, 0},
    };
    for (size_t i = 0; i < sizeof selectors / sizeof *selectors; i++) {
        uint16_t selector = selectors[i].selector;
        bool zero;
        uint64_t access = value_of("\x0f\x02\xc1", 3, 0x55, selector, &zero);
        bool good = zero == selectors[i].visible && access == (zero ? selectors[i].access : 0x55);
        check(good, "lar of %x", selector);
        detail("%llx", (unsigned long long)access);
        uint64_t limit = value_of("\x0f\x03\xc1", 3, 0x55, selector, &zero);
        check(zero == selectors[i].visible && limit == (zero ? selectors[i].limit : 0x55), "lsl of %x", selector);
        detail("%llx", (unsigned long long)limit);
        value_of("\x0f\x00\xe1", 3, 0, selector, &zero);
        check(zero == selectors[i].readable, "verr of %x", selector);
        value_of("\x0f\x00\xe9", 3, 0, selector, &zero);
        check(zero == selectors[i].writable, "verw of %x", selector);
    }
    /* The limit of this one is the number of the processor, as in TSC_AUX. */
    bool zero;
    uint64_t limit = value_of("\x0f\x03\xc1", 3, 0, 0x7b, &zero);
    uint32_t low, high, aux;
    __asm__ volatile("rdtscp" : "=a"(low), "=d"(high), "=c"(aux));
    check(zero && limit == aux, "processor number by lsl and by rdtscp");
    detail("%llx %x", (unsigned long long)limit, aux);
}

void check_descriptor_tables(void)
{
    if (has_feature(FEATURE(7, 0, ECX, 2))) {
        note("UMIP: the kernel may answer for SIDT and its kin");
    }
    tables();
    registers();
    rights();
}
