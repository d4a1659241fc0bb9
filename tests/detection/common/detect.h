/*
 * What the detection programs share. Each check prints its name with "ok", or "FOUND" and what gave the machine away.
 *
 * A processor is asked by running pieces of machine code at a chosen privilege and width; the platform (a Linux process, or
 * the bare machine) catches whatever exception ends a piece.
 */
#ifndef DETECT_H
#define DETECT_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Reporting. */

void check(bool good, const char *format, ...);
/* Adds to the check that failed last what was seen. */
void detail(const char *format, ...);
void note(const char *format, ...);
void summary(void);
/* Understands %s %d %u %x %llx %c; the platform prints. */
void print(const char *format, ...);
void put_text(const char *text, size_t length);

/* Running code. */

enum mode { RING0_64, RING0_32, RING3_64, RING3_32, MODES };

enum reg { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15 };

/* Vectors of exceptions (SDM vol. 3, table 6-1); DONE is a piece of code that came to its end. */
enum vector { DE = 0, DB = 1, BP = 3, OF = 4, BR = 5, UD = 6, NM = 7, DF = 8, TS = 10, NP = 11, SS = 12, GP = 13, PF = 14,
              MF = 16, AC = 17, XM = 19, DONE = 0x100 };

struct state {
    uint64_t gpr[16];
    uint64_t rip, rflags;
    /* How it ended: vector, error code, linear address of a page fault. */
    uint64_t vector, error, address;
};

/* Pages below 4 GiB that every mode may use: code to run, data, a stack that grows down from `stack`. */
struct room {
    uint8_t *code, *data, *stack;
};

enum { ROOM_CODE = 0x1000, ROOM_DATA = 0x2000, ROOM_STACK = 0x2000 };

extern struct room room;
/* Whether this platform can run code in a mode. */
bool offers(enum mode mode);
/* Runs from state->rip until an exception. */
void execute(enum mode mode, struct state *state);

extern const char *const mode_names[MODES];

static inline bool is_64(enum mode mode) { return mode == RING0_64 || mode == RING3_64; }
static inline bool is_ring3(enum mode mode) { return mode == RING3_64 || mode == RING3_32; }

/* A state with RBX at the data and all else zero. */
struct state fresh_state(void);
/* Copies code to the room with an UD2 behind it and runs it; at that UD2 the vector is DONE. */
void run(enum mode mode, struct state *state, const void *code, size_t length);
/* Where RIP ended, from the start of the code. */
static inline long ended_at(const struct state *state) { return (long)(state->rip - (uintptr_t)room.code); }
/* As "#GP(0)" for details. */
void detail_state(const struct state *state);

/* A piece of code in the assembler's Intel syntax for 32 or 64 bits. */
#define SNIPPET(id, bits, text)                                                                                                \
    extern const uint8_t id##_start[], id##_end[];                                                                             \
    __asm__(".pushsection .rodata\n.intel_syntax noprefix\n.code" #bits "\n" #id "_start:\n" text "\n" #id                     \
            "_end:\n.code64\n.att_syntax\n.popsection")
#define RUN(mode, state, id) run(mode, state, id##_start, (size_t)(id##_end - id##_start))

/* Processor identification. */

struct cpuid {
    uint32_t reg[4];
};
enum { EAX, EBX, ECX, EDX };

static inline struct cpuid cpuid(uint32_t leaf, uint32_t subleaf)
{
    struct cpuid c;
    __asm__ volatile("cpuid"
                     : "=a"(c.reg[EAX]), "=b"(c.reg[EBX]), "=c"(c.reg[ECX]), "=d"(c.reg[EDX])
                     : "a"(leaf), "c"(subleaf));
    return c;
}

/* A feature bit as leaf, subleaf, register, bit in one number. */
#define FEATURE(leaf, subleaf, reg, bit)                                                                                       \
    ((uint64_t)(leaf) << 32 | (uint64_t)(subleaf) << 16 | (uint64_t)(reg) << 8 | (uint64_t)(bit) << 1 | 1)
bool has_feature(uint64_t feature);

/* The checks. */

void check_cpuid(void);
void check_opcodes(void);
void check_flags(void);
void check_fpu(void);
/* The name of a virtual machine product in a piece of memory, or null; `where` is set to its offset. */
const char *product_name(const uint8_t *bytes, size_t length, size_t *where);
/* Vendors of virtual devices, by PCI vendor number; null for others. */
const char *virtual_pci_vendor(uint32_t vendor);

/* Small library: the bare machine has no other. */
size_t length_of(const char *text);
bool equal(const void *a, const void *b, size_t length);
void fill(void *to, uint8_t value, size_t length);
void copy(void *to, const void *from, size_t length);

#endif
