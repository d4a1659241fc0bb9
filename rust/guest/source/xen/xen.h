/* The hypervisor's side of the interface, as far as the guest uses it: numbers of calls, structures in shared memory.
 * Numbers and layouts are those of xen/include/public; each comment names the header. */

#ifndef XEN_H
#define XEN_H

#include "../guest.h"
#include "../frame.h"

/* Hypercalls (xen.h). */
#define SET_TRAP_TABLE 0
#define MMU_UPDATE 1
#define SET_GDT 2
#define STACK_SWITCH 3
#define SET_DEBUGREG 8
#define GET_DEBUGREG 9
#define UPDATE_DESCRIPTOR 10
#define MEMORY_OP 12
#define MULTICALL 13
#define UPDATE_VA_MAPPING 14
#define SET_TIMER_OP 15
#define XEN_VERSION 17
#define CONSOLE_IO 18
#define GRANT_TABLE_OP 20
#define VM_ASSIST 21
#define IRET 23
#define VCPU_OP 24
#define SET_SEGMENT_BASE 25
#define MMUEXT_OP 26
#define NMI_OP 28
#define SCHED_OP 29
#define CALLBACK_OP 30
#define EVENT_CHANNEL_OP 32
#define PHYSDEV_OP 33

/* The caller's own domain, where a call asks whose memory is meant (xen.h). */
#define DOMID_SELF 0x7ff0

/* A hypercall is SYSCALL from kernel mode: number in RAX, arguments in RDI, RSI, RDX, R10, R8, result in RAX, negative
 * for an error (arch-x86/xen-x86_64.h). */
static inline i64 hypercall(u64 number, u64 a, u64 b, u64 c, u64 d) {
    i64 result;
    register u64 fourth asm("r10") = d;
    asm volatile("syscall"
                 : "=a"(result)
                 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(fourth)
                 : "rcx", "r11", "memory");
    return result;
}

/* A call that the guest cannot go on without. */
static inline void must(i64 result, const char *what) {
    if (result < 0)
        panic(what, 0, (u64)-result);
}

/* What the builder tells the guest (xen.h, struct start_info). */
struct start_info {
    char magic[32];
    u64 nr_pages, shared_info;
    u32 flags, pad;
    u64 store_mfn;
    u32 store_event_channel, pad2;
    u64 console_mfn;
    u32 console_event_channel, pad3;
    u64 pt_base, nr_pt_frames, mfn_list, mod_start, mod_len;
    char command_line[1024];
};

/* A vCPU's part of the page that guest and hypervisor share (xen.h). */
struct vcpu_info {
    volatile u8 upcall_pending, upcall_mask;
    u8 pad[6];
    volatile u64 pending_select, cr2, pad2;
    volatile u32 time_version, pad3;
    volatile u64 tsc_timestamp, system_time;
    volatile u32 tsc_to_system_mul;
    volatile signed char tsc_shift;
    volatile u8 time_flags, pad4[2];
};

struct shared_info {
    struct vcpu_info vcpu[32];
    volatile u64 pending[64], mask[64];
    volatile u32 wall_version, wall_seconds, wall_nanoseconds, wall_seconds_high;
};

/* The console's ring (io/console.h): indices run freely and are masked where they are used. */
struct console_ring {
    char in[1024], out[2048];
    volatile u32 in_consumer, in_producer, out_consumer, out_producer;
};

/* Elements of lists that calls take (xen.h). */
struct trap_info {
    u8 vector, flags;
    u16 cs;
    u32 pad;
    u64 address;
};
#define TRAP_MASKS_EVENTS 4

struct mmu_update {
    u64 pointer, value;
};
#define MMU_NORMAL 0

struct mmuext_op {
    u32 command, pad;
    u64 first, second;
};
#define PIN_L1_TABLE 0
#define PIN_L4_TABLE 3
#define UNPIN_TABLE 4
#define NEW_BASEPTR 5
#define TLB_FLUSH_LOCAL 6
#define INVLPG_LOCAL 7
#define NEW_USER_BASEPTR 15

struct multicall_entry {
    u64 number;
    i64 result;
    u64 arguments[6];
};

/* What update_va_mapping flushes (xen.h, UVMF_*). */
#define FLUSH_NONE 0
#define FLUSH_PAGE 2

/* Commands (sched.h, vcpu.h, event_channel.h, callback.h). */
#define SCHED_YIELD 0
#define SCHED_BLOCK 1
#define SCHED_SHUTDOWN 2
#define SHUTDOWN_POWEROFF 0
#define SHUTDOWN_CRASH 3
#define VCPU_STOP_PERIODIC_TIMER 7
#define VCPU_SET_SINGLESHOT_TIMER 8
#define EVENT_BIND_VIRQ 1
#define EVENT_SEND 4
#define EVENT_UNMASK 9
#define VIRQ_TIMER 0
#define CALLBACK_REGISTER 0
#define CALLBACK_EVENT 0
#define CALLBACK_SYSCALL 2
#define CALLBACK_MASKS_EVENTS 1
#define ASSIST_ENABLE 0
#define ASSIST_WRITABLE_PAGE_TABLES 2

/* Inside the guest: memory.c, events.c. */
extern struct start_info *start_info;
extern struct shared_info *shared_info;
extern struct vcpu_info *this_vcpu;
u64 system_time(void);
u64 machine_frame(const void *page);
void memory_start(void);
void events_start(void);
void events_handle(void);
void timer_bind(void);
i64 mmuext(u32 command, u64 first);

/* What abi.c needs of trap(): the instruction that faulted is passed over, and vector and frame are kept; and who handles
 * NMIs. */
extern volatile u64 expected_trap, caught_trap;
extern struct frame caught_frame;
extern void (*nmi_handler)(struct frame *frame);

#endif
