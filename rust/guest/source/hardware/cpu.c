/* The processor's tables, and what happens at every entry to the kernel: hardware build. */

#include "hardware.h"

const char machine_kind[] = "hardware build";

/* Descriptors (SDM vol. 3, 3.4.5): long mode looks at type, privilege, presence and the L bit alone. The last is twice as
 * long as the others and names the task-state segment. */
static u64 gdt[8] = {
    0,
    0x00af9a000000ffff, /* kernel code */
    0x00cf92000000ffff, /* kernel data */
    0,                  /* 32-bit user code, which SYSRET could go to: there is none */
    0x00cff2000000ffff, /* user data */
    0x00affa000000ffff, /* user code */
};

/* The task-state segment (7.7): the only part that is used is the stack for entries from user mode. */
static struct {
    u32 reserved;
    u64 stack[3];
    u64 unused[9];
    u16 reserved_too, bitmap;
} __attribute__((packed)) task_state;

/* A gate (6.14.1) of the interrupt table. */
static struct gate {
    u16 offset_low, selector;
    u8 stack, type;
    u16 offset_middle;
    u32 offset_high, reserved;
} idt[48];

struct table_register {
    u16 limit;
    u64 base;
} __attribute__((packed));

extern char entries[], system_call_entry[];
extern u32 multiboot_information;

static void load_gdt(void) {
    u64 base = (u64)&task_state;
    u64 limit = sizeof task_state - 1;
    task_state.stack[0] = (u64)trap_stack_top;
    task_state.bitmap = sizeof task_state;
    /* An available 64-bit TSS is type 9. */
    gdt[6] = limit | (base & 0xffffff) << 16 | 0x89ul << 40 | (base >> 24 & 0xff) << 56;
    gdt[7] = base >> 32;
    struct table_register table = {sizeof gdt - 1, (u64)gdt};
    asm volatile("lgdt %0" : : "m"(table));
    asm volatile("ltr %w0" : : "r"(TASK_STATE));
}

static void load_idt(void) {
    for (u64 n = 0; n < 48; n++) {
        /* Interrupt gates (type 14): interrupts are off in the handler. */
        u64 at = (u64)entries + n * 16;
        idt[n] = (struct gate){(u16)at, KERNEL_CODE, 0, 0x8e, (u16)(at >> 16), (u32)(at >> 32), 0};
    }
    struct table_register table = {sizeof idt - 1, (u64)idt};
    asm volatile("lidt %0" : : "m"(table));
}

/* SDM vol. 3, 5.8.8: where SYSCALL goes, the selectors that it and SYSRET load, the flags that it clears. */
#define MSR_STAR 0xc0000081
#define MSR_LSTAR 0xc0000082
#define MSR_FMASK 0xc0000084
#define FLAGS_CLEARED 0x47700 /* AC, NT, IOPL, DF, IF, TF */

void machine_start(void) {
    load_gdt();
    load_idt();
    write_msr(MSR_STAR, (u64)(USER_BELOW_DATA | 3) << 48 | (u64)KERNEL_CODE << 32);
    write_msr(MSR_LSTAR, (u64)system_call_entry);
    write_msr(MSR_FMASK, FLAGS_CLEARED);
    devices_start();
}

/* Every way into the kernel ends here. */
void trap(struct frame *frame) {
    switch (frame->vector) {
    case VECTOR_SYSTEM_CALL:
        frame->rax = work_system_call(frame->rax, frame->rdi, frame->rsi);
        return;
    case VECTOR_PAGE_FAULT: {
        u64 address = read_cr2();
        if (!work_page_fault(address, frame->error))
            panic("page fault", frame->rip, address);
        return;
    }
    case VECTOR_TIMER:
        work_tick();
        timer_acknowledge();
        return;
    }
    if ((frame->cs & 3) == 3)
        work_user_exception();
    panic("unexpected exception", frame->rip, frame->vector);
}

/* Interrupts are on only here and in user mode. STI takes effect after the instruction that follows it, so no interrupt
 * can come between it and HLT and be slept through (SDM vol. 2, STI). */
void wait_for_interrupt(void) { asm volatile("sti; hlt; cli" : : : "memory"); }

/* Multiboot 3.3: bit 2 of the first word says that the fifth is the address of the command line. The loader puts the
 * kernel's name before it. */
const char *machine_command_line(void) {
    const u32 *information = (const u32 *)(KERNEL_BASE + multiboot_information);
    return information[0] & 4 ? (const char *)(KERNEL_BASE + information[4]) : "";
}

bool machine_test_interface(void) {
    print("there is no hypervisor interface here to test\n");
    return false;
}
