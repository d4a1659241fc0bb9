/* How a domain builder finds and starts the guest, and all entries to the kernel afterwards: Xen PV build.
 *
 * There is no way from real mode here: the guest begins in 64-bit mode, with page tables, on a stack, and its kernel runs
 * without privilege. */

#include "../frame.h"

/* ELF notes (xen/include/public/elfnote.h): what the builder wants to know of a kernel. */
.macro note type
    .align 4
    .long 4, 2f - 1f, \type
    .asciz "Xen"
1:
.endm
.macro end_note
2:  .align 4
.endm

    .section .note.Xen, "a", @note
    note 1                      /* ENTRY */
    .quad _start
    end_note
    note 3                      /* VIRT_BASE: where the first page of memory is to be mapped */
    .quad 0xffffffff80000000
    end_note
    note 4                      /* PADDR_OFFSET */
    .quad 0
    end_note
    note 5                      /* XEN_VERSION */
    .asciz "xen-3.0"
    end_note
    note 6                      /* GUEST_OS */
    .asciz "trapgate"
    end_note
    note 8                      /* LOADER */
    .asciz "generic"
    end_note

#define HYPERCALL_IRET 23
#define USER_CODE_SELECTOR 0xe033
#define USER_DATA_SELECTOR 0xe02b
#define FLAGS_IF 0x200

    .text
    .globl _start
_start:
    cld
    mov %rsi, start_info(%rip)
    mov $main_stack_top, %rsp
    xor %ebp, %ebp
    call work

/* The hypervisor enters with RCX and R11 on top of the stack, because it comes by way of SYSRET, which destroys them.
 * Without the two the frame is as the processor makes it. */
.macro entry name, vector, has_error
    .globl \name
\name:
    pop %rcx
    pop %r11
    .if !\has_error
    push $0
    .endif
    push $\vector
    jmp entered
.endm

    entry divide_entry, 0, 0
    entry nmi_entry, VECTOR_NMI, 0
    entry breakpoint_entry, 3, 0
    entry invalid_opcode_entry, 6, 0
    entry device_not_available_entry, 7, 0
    entry protection_entry, 13, 1
    entry page_fault_entry, VECTOR_PAGE_FAULT, 1
    entry event_entry, VECTOR_TIMER, 0
    entry system_call_entry, VECTOR_SYSTEM_CALL, 0

/* The way back is a hypercall: IRET without privilege could not go to the user's page tables, nor let events in again.
 * It takes its arguments from the stack, below what IRET would find there. */
entered:
    save_registers
    cld
    mov %rsp, %rdi
    call trap
    restore_registers
    push $0
    push %rcx
    push %r11
    push %rax
    mov $HYPERCALL_IRET, %eax
    syscall

/* user_run(entry, stack, first, second): the first entry to user mode is made up as a return to it. */
    .globl user_run
user_run:
    save_callee
    push $USER_DATA_SELECTOR
    push %rsi
    push $FLAGS_IF
    push $USER_CODE_SELECTOR
    push %rdi
    push $0
    push $0
    push $0
    push $0
    mov %rdx, %rdi
    mov %rcx, %rsi
    mov $HYPERCALL_IRET, %eax
    syscall

    .globl user_finish
user_finish:
    mov %rdi, %rax
    resume_callee
    ret

    .bss
    .align 16
    .skip 16384
main_stack_top:
    .skip 16384
    .globl trap_stack_top
trap_stack_top:
resume_stack:
    .skip 8

    .section .note.GNU-stack, "", @progbits
