/* What the parts of the guest know of each other.
 *
 * The guest is one small operating-system kernel with one user program, built twice. work.c, user.c and text.c are the
 * same in both builds. Everything that touches the machine stands behind the functions below, and there are two sets of
 * them: hardware/ for a processor and a PC as they are, xen/ for a hypervisor that is asked (Xen's PV interface). */

#ifndef GUEST_H
#define GUEST_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;
typedef long i64;
typedef _Bool bool;
#define true 1
#define false 0

#define PAGE 4096ul

/* Where the kernel is linked, and what the first page of memory is mapped at in both builds. */
#define KERNEL_BASE 0xffffffff80000000ul

/* The user program's part of an address space. All of it lies in the 2 MiB that one lowest-level page table maps. */
#define USER_CODE 0x40000000ul
#define USER_STACK 0x40010000ul
#define USER_CLOCK 0x40012000ul
#define USER_FRESH 0x40100000ul
#define USER_END 0x40200000ul

/* What one run of the user program does. */
#define CALLS_PER_RUN 24
#define FRESH_PAGES 16
#define PHASE_HELLO 0    /* says so on the console */
#define PHASE_TOUCH 1    /* calls, writes to pages that are not there, waits for the timer */
#define PHASE_CHECK 2    /* calls, finds what it wrote, writes to a page that was made read-only */
#define PHASE_TRESPASS 3 /* reads the kernel's memory, and is stopped */
#define PHASE_USURP 4    /* executes a privileged instruction, and is stopped */

/* System calls: number in RAX, arguments in RDI and RSI, result in RAX, as SYSCALL leaves them. */
#define CALL_EXIT 0  /* (value): the run is over */
#define CALL_MIX 1   /* (sum, n): the next number of a sequence that both sides know */
#define CALL_WRITE 2 /* (text, length): to the console */
#define CALL_TIMER 3 /* (microseconds): ask for one tick */

/* What the user program's run ends with when it finds something wrong. */
#define RUN_FAILED 0xbadul
/* And what the kernel ends it with when it has gone too far. */
#define RUN_STOPPED 0x570bul

/* Page-table entries (SDM vol. 3, 4.5). Both builds write the same bits. */
#define PTE_PRESENT 0x001ul
#define PTE_WRITE 0x002ul
#define PTE_USER 0x004ul
#define PTE_ACCESSED 0x020ul
#define PTE_DIRTY 0x040ul
#define PTE_TABLE (PTE_PRESENT | PTE_WRITE | PTE_USER | PTE_ACCESSED | PTE_DIRTY)
#define PTE_ADDRESS 0x000ffffffffff000ul

/* An address space: the root of its page tables, and the one table whose entries change. */
struct space {
    u64 *root;
    u64 *user_root; /* Xen only: what user mode sees has a root of its own */
    u64 *leaf;
};

/* --- What the machine does for the work: twice, in hardware/ and in xen/. --- */

extern const char machine_kind[];
void machine_start(void);
const char *machine_command_line(void);
void machine_stop(bool success) __attribute__((noreturn));
/* The interface's own test; 0 where there is no interface to test. */
bool machine_test_interface(void);

void console_write(const char *text, u64 length);

void space_make(struct space *space);
void space_switch(struct space *space);
void page_map(struct space *space, u64 address, void *page, bool write);
void page_protect(struct space *space, u64 address);
void pages_unmap(struct space *space, u64 address, u64 count);

void timer_arm(u64 microseconds);
void wait_for_interrupt(void);

/* Runs user code until it says CALL_EXIT, and gives the value that it says (in start.S). */
u64 user_run(u64 entry, u64 stack, u64 first, u64 second);
void user_finish(u64 value) __attribute__((noreturn));

/* --- What the work does for the machine: once, in work.c. --- */

void work(void) __attribute__((noreturn));
u64 work_system_call(u64 number, u64 first, u64 second);
bool work_page_fault(u64 address, u64 error);
void work_user_exception(void) __attribute__((noreturn));
void work_tick(void);

/* --- Text and memory: text.c. --- */

void print(const char *text);
void print_number(u64 number);
void print_signed(i64 number);
void print_hex(u64 number);
void panic(const char *why, u64 where, u64 detail) __attribute__((noreturn));
bool command_line_has(const char *word);
u64 command_line_number(const char *name, u64 otherwise);

void *page_take(void);
void page_give(void *page);

/* The user program, as the linker has put it: whole pages of code. */
extern char user_code_start[], user_code_end[];
void user_main(u64 phase, u64 seed);

static inline u64 index_of(u64 address) { return address >> 12 & 511; }

#endif
