/* Instructions that only a kernel on hardware may use. Each of them is a place where a hypervisor must step in. */

#ifndef HARDWARE_H
#define HARDWARE_H

#include "../guest.h"
#include "../frame.h"

static inline void port_write8(u16 port, u8 value) { asm volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }

static inline void port_write16(u16 port, u16 value) { asm volatile("outw %0, %1" : : "a"(value), "Nd"(port)); }

static inline u8 port_read8(u16 port) {
    u8 value;
    asm volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline void write_msr(u32 number, u64 value) {
    asm volatile("wrmsr" : : "c"(number), "a"((u32)value), "d"((u32)(value >> 32)));
}

static inline u64 read_cr2(void) {
    u64 value;
    asm volatile("mov %%cr2, %0" : "=r"(value));
    return value;
}

static inline void write_cr3(u64 value) { asm volatile("mov %0, %%cr3" : : "r"(value) : "memory"); }

static inline void invalidate_page(u64 address) { asm volatile("invlpg (%0)" : : "r"(address) : "memory"); }

/* The selectors that cpu.c puts into the descriptor table. SYSRET wants user data right before user code. */
#define KERNEL_CODE 0x08
#define KERNEL_DATA 0x10
#define USER_BELOW_DATA 0x18
#define USER_DATA 0x20
#define USER_64_CODE 0x28
#define TASK_STATE 0x30

void devices_start(void);
void timer_acknowledge(void);

#endif
