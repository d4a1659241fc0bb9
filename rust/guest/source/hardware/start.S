/* From a multiboot loader's 32-bit protected mode to 64-bit C, and all entries to the kernel afterwards. */

#include "../frame.h"

#define BASE 0xffffffff80000000

/* Multiboot Specification 0.6.96, 3.1: what makes a file a kernel. The addresses say where the whole file goes. */
#define MULTIBOOT_MAGIC 0x1badb002
#define MULTIBOOT_ADDRESSES 0x00010000

    .section .boot, "ax"
    .align 4
multiboot_header:
    .long MULTIBOOT_MAGIC, MULTIBOOT_ADDRESSES, -(MULTIBOOT_MAGIC + MULTIBOOT_ADDRESSES)
    .long multiboot_header - BASE, image_start - BASE, image_end - BASE, memory_end - BASE, _start - BASE

/* Control registers (SDM vol. 3, 2.5) and the register that switches long mode on (2.2.1). */
#define CR0_PG_WP_PE 0x80010001
#define CR4_PAE 0x20
#define MSR_EFER 0xc0000080
#define EFER_SCE_LME_NXE 0x901

/* Long mode needs paging, and paging needs page tables: boot_root maps the first 16 MiB where they are and again at BASE. */
    .code32
    .globl _start
_start:
    cli
    mov $CR4_PAE, %eax
    mov %eax, %cr4
    mov $(boot_root - BASE), %eax
    mov %eax, %cr3
    mov $MSR_EFER, %ecx
    rdmsr
    or $EFER_SCE_LME_NXE, %eax
    wrmsr
    mov $CR0_PG_WP_PE, %eax
    mov %eax, %cr0
    lgdt boot_gdt_register - BASE
    ljmp $0x08, $(in_long_mode - BASE)

    .code64
in_long_mode:
    movabs $in_high_half, %rax
    jmp *%rax

    .text
in_high_half:
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    xor %eax, %eax
    mov %eax, %fs
    mov %eax, %gs
    mov $main_stack_top, %rsp
    mov %ebx, multiboot_information(%rip)
    xor %ebp, %ebp
    call work

/* The 48 entries of the interrupt table, 16 bytes apart. Exceptions 8, 10 to 14, 17 and 21 come with an error code
 * (SDM vol. 3, table 6-1); the others get a zero, so that all frames are alike. */
    .globl entries
    .align 16
entries:
    vector = 0
    .rept 48
    .align 16
    .if !((vector == 8) || (vector >= 10 && vector <= 14) || (vector == 17) || (vector == 21))
    push $0
    .endif
    push $vector
    jmp entered
    vector = vector + 1
    .endr

entered:
    save_registers
    cld
    mov %rsp, %rdi
    call trap
    restore_registers
    iretq

/* SYSCALL (SDM vol. 2) leaves everything to the kernel: RCX and R11 are RIP and RFLAGS of the caller, RSP is still the
 * user's. The frame is made to look like an interrupt's, and the way back is SYSRET. */
    .globl system_call_entry
system_call_entry:
    mov %rsp, user_stack(%rip)
    mov $trap_stack_top, %rsp
    push $0x23
    push user_stack(%rip)
    push %r11
    push $0x2b
    push %rcx
    push $0
    push $VECTOR_SYSTEM_CALL
    save_registers
    cld
    mov %rsp, %rdi
    call trap
    restore_registers
    mov 24(%rsp), %rsp
    sysretq

/* user_run(entry, stack, first, second). Interrupts are off from here until SYSRET has put R11 into RFLAGS. */
    .globl user_run
user_run:
    save_callee
    mov %rcx, %rax
    mov %rdi, %rcx
    mov %rsi, %rsp
    mov %rdx, %rdi
    mov %rax, %rsi
    mov $0x202, %r11d
    sysretq

    .globl user_finish
user_finish:
    mov %rdi, %rax
    resume_callee
    ret

    .data
    .align 8
boot_gdt:
    .quad 0, 0x00af9a000000ffff, 0x00cf92000000ffff
boot_gdt_register:
    .word 23
    .long boot_gdt - BASE
    .long 0

/* Entries: present, writable; 2 MiB pages have the size bit as well. */
    .align 4096
    .globl boot_root
boot_root:
    .quad boot_level3 - BASE + 3
    .fill 510, 8, 0
    .quad boot_level3 - BASE + 3
boot_level3:
    .quad boot_level2 - BASE + 3
    .fill 509, 8, 0
    .quad boot_level2 - BASE + 3
    .quad 0
boot_level2:
    page = 0
    .rept 8
    .quad page * 0x200000 + 0x83
    page = page + 1
    .endr
    .fill 504, 8, 0

    .bss
    .align 16
    .skip 16384
main_stack_top:
    .skip 16384
    .globl trap_stack_top
trap_stack_top:
resume_stack:
    .skip 8
user_stack:
    .skip 8
    .globl multiboot_information
multiboot_information:
    .skip 8

    .section .note.GNU-stack, "", @progbits
