/* The bare machine of the detection program: descriptor tables, page tables, registers of ring 0. */
#ifndef MACHINE_H
#define MACHINE_H

#include "../common/detect.h"

/* Selectors of the program's own GDT. */
enum {
    CODE64_0 = 0x08,
    DATA_0 = 0x10,
    CODE32_0 = 0x18,
    CODE32_3 = 0x20 | 3,
    DATA_3 = 0x28 | 3,
    CODE64_3 = 0x30 | 3,
    TASK = 0x38,
    /* Data of ring 3: 4096 bytes at the data page, and all but the lowest 4096 of 64 KiB, growing down. */
    SMALL_3 = 0x48 | 3,
    DOWN_3 = 0x50 | 3,
    /* Code of ring 3, 32-bit, that ends 16 bytes after the beginning of the code page. */
    SHORT_3 = 0x58 | 3,
    ABSENT_3 = 0x60 | 3,
    READ_ONLY_3 = 0x68 | 3,
    /* A call gate to CODE64_0, 100h bytes into the code page. */
    GATE_3 = 0x70 | 3,
    GDT_LIMIT = 0x7f
};

struct selectors {
    uint16_t cs, data;
};

/* The state that an exception left, with its selectors. */
extern uint64_t trapped_cs, trapped_ss;
/* As `execute`, with segments of one's own. */
void execute_with(const struct selectors *selectors, struct state *state);

/* A page that is mapped by a table entry of its own: `entry` is where. */
extern uint8_t *page_under_test;
uint64_t *entry_under_test(void);

struct table {
    uint16_t limit;
    uint64_t base;
} __attribute__((packed));

extern struct table gdt_pointer, idt_pointer;
extern uint8_t task_state[0x2100];
enum { TASK_LIMIT = 0x67 };

/* Register access that gives the exception's vector, or DONE. */
unsigned read_msr(uint32_t number, uint64_t *value);
unsigned write_msr(uint32_t number, uint64_t value);
uint64_t msr(uint32_t number);
unsigned write_cr(unsigned number, uint64_t value);
uint64_t read_cr(unsigned number);
unsigned write_dr(unsigned number, uint64_t value);
uint64_t read_dr(unsigned number);

static inline uint8_t in8(uint16_t port)
{
    uint8_t value;
    __asm__ volatile("in %%dx, %%al" : "=a"(value) : "d"(port));
    return value;
}
static inline uint16_t in16(uint16_t port)
{
    uint16_t value;
    __asm__ volatile("in %%dx, %%ax" : "=a"(value) : "d"(port));
    return value;
}
static inline uint32_t in32(uint16_t port)
{
    uint32_t value;
    __asm__ volatile("in %%dx, %%eax" : "=a"(value) : "d"(port));
    return value;
}
static inline void out8(uint16_t port, uint8_t value)
{
    __asm__ volatile("out %%al, %%dx" : : "a"(value), "d"(port));
}
static inline void out16(uint16_t port, uint16_t value)
{
    __asm__ volatile("out %%ax, %%dx" : : "a"(value), "d"(port));
}
static inline void out32(uint16_t port, uint32_t value)
{
    __asm__ volatile("out %%eax, %%dx" : : "a"(value), "d"(port));
}

/* The checks of ring 0. */
void check_msrs(void);
void check_control_registers(void);
void check_debug_registers(void);
void check_segments(void);
void check_paging(void);
void check_ports(void);
void check_pci(void);
void check_tables(void);

#endif
