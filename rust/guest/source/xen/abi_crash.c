/* The interface's test: what no kernel can carry on from. The hypervisor ends the domain, and says of what it died; if a
 * kernel comes back from one of these, it finds something wrong. "abi crash=N" on the command line chooses. */

#include "abi.h"

#define USER_CODE_SELECTOR 0xe033
#define USER_DATA_SELECTOR 0xe02b

static void exception_without_handler(void) {
    hypercall(SET_TRAP_TABLE, 0, 0, 0, 0);
    asm volatile("ud2");
}

static void return_without_frame(void) {
    asm volatile("mov %0, %%rsp; mov $23, %%eax; syscall" : : "r"(NOWHERE) : "memory");
}

static void return_to_user_without_tables(void) {
    u64 frame[] = {0, 0, 0, 0, USER_CODE, USER_CODE_SELECTOR, 0x202, USER_STACK, USER_DATA_SELECTOR};
    mmuext(NEW_USER_BASEPTR, 0);
    asm volatile("mov %0, %%rsp; mov $23, %%eax; syscall" : : "r"(frame) : "memory");
}

static void exception_without_stack(void) {
    asm volatile("mov %0, %%rsp; ud2" : : "r"(NOWHERE) : "memory");
}

static void exception_on_the_hypervisors_stack(void) {
    asm volatile("mov %0, %%rsp; ud2" : : "r"(HYPERVISOR_START + 0x1000) : "memory");
}

/* A frame may not be written into a page table, which the kernel itself cannot write to either. */
static void exception_on_a_page_table(void) {
    asm volatile("mov %0, %%rsp; ud2" : : "r"(start_info->pt_base + PAGE) : "memory");
}

static void event_without_callback(void) {
    hypercall(4, 0, 0, 0, 0);
    hypercall(SET_TIMER_OP, 1, 0, 0, 0);
    hypercall(SCHED_OP, SCHED_BLOCK, 0, 0, 0);
}

void crash(u64 number) {
    static void (*const ways[])(void) = {
        exception_without_handler,
        return_without_frame,
        return_to_user_without_tables,
        exception_without_stack,
        exception_on_the_hypervisors_stack,
        exception_on_a_page_table,
        event_without_callback,
    };
    if (number < sizeof ways / sizeof *ways)
        ways[number]();
    expect_true("a domain that was to be ended", false);
}
