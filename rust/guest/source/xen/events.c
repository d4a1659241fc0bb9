/* Events, time and the console: Xen PV build. One bit in shared memory takes the place of an interrupt line, and a ring
 * in shared memory that of a serial port; a call is made only to ring the bell. */

#include "xen.h"

/* Where M2P is shown: the list that leads from machine frames back to pages of the guest's (arch-x86/xen-x86_64.h). */
#define MACHINE_TO_PHYSICAL ((const u64 *)0xffff800000000000)

static u32 timer_port;

static struct console_ring *console;

static i64 event_channel(u32 command, u32 port) {
    u32 argument = port;
    return hypercall(EVENT_CHANNEL_OP, command, (u64)&argument, 0, 0);
}

/* The timer's events come by a port of the guest's choice. */
void timer_bind(void) {
    struct {
        u32 virq, vcpu, port;
    } bind = {VIRQ_TIMER, 0, 0};
    must(hypercall(EVENT_CHANNEL_OP, EVENT_BIND_VIRQ, (u64)&bind, 0, 0), "the timer cannot be bound");
    timer_port = bind.port;
    __atomic_fetch_and(&shared_info->pending[timer_port / 64], ~(1ul << timer_port % 64), __ATOMIC_SEQ_CST);
    must(event_channel(EVENT_UNMASK, timer_port), "the timer cannot be unmasked");
}

void events_start(void) {
    console = (struct console_ring *)(KERNEL_BASE + MACHINE_TO_PHYSICAL[start_info->console_mfn] * PAGE);
    for (u64 n = 0; n < 64; n++)
        shared_info->mask[n] = ~0ul;
    /* Every vCPU starts with a tick each 10 ms that nobody here has asked for. */
    must(hypercall(VCPU_OP, VCPU_STOP_PERIODIC_TIMER, 0, 0, 0), "the periodic timer cannot be stopped");
    timer_bind();
}

/* The counterpart of an interrupt handler. What would be an acknowledgement to an interrupt controller, a port access that
 * has to be caught, is an exchange in memory. */
void events_handle(void) {
    this_vcpu->upcall_pending = 0;
    u64 words = __atomic_exchange_n(&this_vcpu->pending_select, 0, __ATOMIC_SEQ_CST);
    for (u64 word = 0; word < 64; word++) {
        if (!(words >> word & 1))
            continue;
        u64 events = shared_info->pending[word] & ~shared_info->mask[word];
        __atomic_fetch_and(&shared_info->pending[word], ~events, __ATOMIC_SEQ_CST);
        if (word == timer_port / 64 && events >> timer_port % 64 & 1)
            work_tick();
    }
}

/* System time in nanoseconds: a point of time that the hypervisor has written down, and what the time-stamp counter has
 * counted since (xen.h, struct vcpu_time_info). The version is odd while the record changes. */
u64 system_time(void) {
    const struct vcpu_info *vcpu = this_vcpu;
    for (;;) {
        u32 version = vcpu->time_version;
        asm volatile("" : : : "memory");
        u32 low, high;
        asm volatile("rdtsc" : "=a"(low), "=d"(high));
        u64 delta = ((u64)high << 32 | low) - vcpu->tsc_timestamp;
        delta = vcpu->tsc_shift < 0 ? delta >> -vcpu->tsc_shift : delta << vcpu->tsc_shift;
        u64 time = vcpu->system_time + (u64)((unsigned __int128)delta * vcpu->tsc_to_system_mul >> 32);
        asm volatile("" : : : "memory");
        if (!(version & 1) && version == vcpu->time_version)
            return time;
    }
}

void timer_arm(u64 microseconds) {
    struct {
        u64 at;
        u32 flags, pad;
    } timer = {system_time() + microseconds * 1000, 0, 0};
    must(hypercall(VCPU_OP, VCPU_SET_SINGLESHOT_TIMER, 0, (u64)&timer, 0), "the timer cannot be set");
}

/* STI; HLT; CLI in one: the call lets events in, waits for one, and leaves them let in. The flag itself is a byte in
 * shared memory, and setting it needs no call. */
void wait_for_interrupt(void) {
    must(hypercall(SCHED_OP, SCHED_BLOCK, 0, 0, 0), "the processor cannot wait");
    this_vcpu->upcall_mask = 1;
}

/* As much as there is room for goes into the ring, and one call tells the other side of it. */
void console_write(const char *text, u64 length) {
    while (length) {
        u32 producer = console->out_producer;
        u32 room = sizeof console->out - (producer - console->out_consumer);
        for (; length && room; length--, room--)
            console->out[producer++ % sizeof console->out] = *text++;
        __atomic_store_n(&console->out_producer, producer, __ATOMIC_RELEASE);
        must(event_channel(EVENT_SEND, start_info->console_event_channel), "the console cannot be told");
        if (length)
            hypercall(SCHED_OP, SCHED_YIELD, 0, 0, 0);
    }
}
