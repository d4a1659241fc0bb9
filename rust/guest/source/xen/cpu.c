/* Where the hypervisor enters the kernel, and what happens there: Xen PV build. Compare hardware/cpu.c: the tables that
 * it writes for the processor to read become arguments of calls. */

#include "xen.h"

const char machine_kind[] = "Xen PV build";

extern char divide_entry[], breakpoint_entry[], invalid_opcode_entry[], device_not_available_entry[];
extern char protection_entry[], page_fault_entry[], event_entry[], system_call_entry[];

/* Set by start.S, from RSI. */
struct start_info *start_info;

volatile u64 expected_trap, caught_trap;
struct frame caught_frame;
void (*nmi_handler)(struct frame *frame);

/* Instead of an interrupt table. The selector is of no consequence: the kernel has one code segment. */
static void set_trap_table(void) {
    static struct trap_info traps[] = {
        {0, TRAP_MASKS_EVENTS, 0xe033, 0, (u64)divide_entry},
        {3, TRAP_MASKS_EVENTS, 0xe033, 0, (u64)breakpoint_entry},
        {6, TRAP_MASKS_EVENTS, 0xe033, 0, (u64)invalid_opcode_entry},
        {7, TRAP_MASKS_EVENTS, 0xe033, 0, (u64)device_not_available_entry},
        {13, TRAP_MASKS_EVENTS, 0xe033, 0, (u64)protection_entry},
        {VECTOR_PAGE_FAULT, TRAP_MASKS_EVENTS, 0xe033, 0, (u64)page_fault_entry},
        {0, 0, 0, 0, 0},
    };
    must(hypercall(SET_TRAP_TABLE, (u64)traps, 0, 0, 0), "set_trap_table failed");
}

static void register_callback(u16 type, const char *entry) {
    struct {
        u16 type, flags;
        u32 pad;
        u64 address;
    } callback = {type, CALLBACK_MASKS_EVENTS, 0, (u64)entry};
    must(hypercall(CALLBACK_OP, CALLBACK_REGISTER, (u64)&callback, 0, 0), "callback_op failed");
}

void machine_start(void) {
    memory_start();
    set_trap_table();
    /* Instead of the vectors of an interrupt controller, and of MSR_LSTAR. */
    register_callback(CALLBACK_EVENT, event_entry);
    register_callback(CALLBACK_SYSCALL, system_call_entry);
    /* Instead of the stack in a task-state segment. */
    must(hypercall(STACK_SWITCH, 0xe02b, (u64)trap_stack_top, 0, 0), "stack_switch failed");
    events_start();
}

/* Every way into the kernel ends here. */
void trap(struct frame *frame) {
    if (expected_trap == frame->rip && frame->vector < 32) {
        caught_trap = frame->vector;
        caught_frame = *frame;
        frame->rip = frame->rbx;
        return;
    }
    switch (frame->vector) {
    case VECTOR_SYSTEM_CALL:
        frame->rax = work_system_call(frame->rax, frame->rdi, frame->rsi);
        return;
    case VECTOR_PAGE_FAULT: {
        /* MOV from CR2 would fault; the hypervisor has left the address in shared memory, where it costs nothing. */
        u64 address = this_vcpu->cr2;
        if (!work_page_fault(address, frame->error))
            panic("page fault", frame->rip, address);
        return;
    }
    case VECTOR_NMI:
        if (!nmi_handler)
            break;
        nmi_handler(frame);
        return;
    case VECTOR_TIMER:
        events_handle();
        return;
    }
    /* The selector of a frame shows privilege 0 for the kernel, which runs at 3 like its programs. */
    if ((frame->cs & 3) == 3)
        work_user_exception();
    panic("unexpected exception", frame->rip, frame->vector);
}

const char *machine_command_line(void) { return start_info->command_line; }

void machine_stop(bool success) {
    u32 reason = success ? SHUTDOWN_POWEROFF : SHUTDOWN_CRASH;
    for (;;)
        hypercall(SCHED_OP, SCHED_SHUTDOWN, (u64)&reason, 0, 0);
}
