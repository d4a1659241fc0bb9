/* The interface's test: every hypercall with right and with wrong arguments, and the instructions that the hypervisor
 * carries out. What the answers must be is Xen's (xen/include/public, and the code that serves each call). */

#ifndef ABI_H
#define ABI_H

#include "xen.h"

/* Error numbers (errno.h). */
#define EPERM 1
#define ENOENT 2
#define ENXIO 6
#define EACCES 13
#define EFAULT 14
#define EBUSY 16
#define EEXIST 17
#define EINVAL 22
#define ENOSYS 38
#define ENODATA 61
#define EOPNOTSUPP 95

/* Nothing is mapped here: inside the range of the kernel's tables, behind what the builder has mapped. */
#define NOWHERE 0xffffffffbff00000ul
/* Not canonical, and the first address of the hypervisor's own. */
#define NOT_CANONICAL 0x0000900000000000ul
#define HYPERVISOR_START 0xffff800000000000ul

void expect(const char *what, i64 got, i64 wanted);
void expect_either(const char *what, i64 got, i64 one, i64 other);
void expect_error(const char *what, i64 got);
void expect_true(const char *what, bool holds);

/* A page of the guest's with nothing in it. */
void *fresh_page(void);
i64 map_page(void *page, u64 entry);
/* The entry that maps a page at its own address, as it is and without the right to write. */
u64 writable_entry(const void *page);
u64 read_only_entry(const void *page);
/* Whether a port's bit is set, and take it back. */
bool take_event(u32 port);

void crash(u64 number);
void test_start(void);
void test_numbers(void);
void test_small_calls(void);
void test_processor(void);
void test_vectors(void);
void test_nmi(void);
void test_page_tables(void);
void test_memory(void);
void test_events(void);
void test_vcpu(void);

#define NO_TRAP 1000ul

/* Executes an instruction that may fault, and gives the vector or NO_TRAP. EAX, ECX and EDX are its arguments and what it
 * leaves there; trap() goes on at RBX. */
#define TRY(instruction, eax, ecx, edx) TRY_AT("1f", instruction, eax, ecx, edx)

/* The same for INT n, whose frame points behind it. */
#define TRY_SOFTWARE(instruction, eax, ecx, edx) TRY_AT("2f", instruction, eax, ecx, edx)

#define TRY_AT(trap_at, instruction, eax, ecx, edx)                                                                  \
    ({                                                                                                               \
        caught_trap = NO_TRAP;                                                                                       \
        asm volatile("lea 2f(%%rip), %%rbx\n\t"                                                                      \
                     "lea " trap_at "(%%rip), %%r8\n\t"                                                              \
                     "mov %%r8, expected_trap(%%rip)\n"                                                              \
                     "1: " instruction "\n"                                                                          \
                     "2:"                                                                                            \
                     : "+a"(eax), "+c"(ecx), "+d"(edx)                                                               \
                     :                                                                                               \
                     : "rbx", "r8", "memory");                                                                       \
        expected_trap = 0;                                                                                           \
        caught_trap;                                                                                                 \
    })

#endif
