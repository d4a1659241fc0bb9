/* Leaves for a piece of code with all of its registers loaded; a signal handler comes back from it. */

    .intel_syntax noprefix
    .text

/* void enter(const struct state *state, void *target, int compatibility) */
    .globl enter
enter:
    mov [rip + target], rsi
    mov word ptr [rip + target + 4], 0
    test edx, edx
    jz 1f
    /* 64-bit programs have null data segments; 32-bit code cannot do without. */
    mov eax, ss
    mov ds, eax
    mov es, eax
    /* __USER32_CS. */
    mov word ptr [rip + target + 4], 0x23
1:
    mov rsp, [rdi + 4 * 8]
    mov eax, edx
    push [rdi + 17 * 8]
    popfq
    mov rdx, [rdi + 2 * 8]
    mov rcx, [rdi + 1 * 8]
    mov rbx, [rdi + 3 * 8]
    mov rbp, [rdi + 5 * 8]
    mov rsi, [rdi + 6 * 8]
    mov r8, [rdi + 8 * 8]
    mov r9, [rdi + 9 * 8]
    mov r10, [rdi + 10 * 8]
    mov r11, [rdi + 11 * 8]
    mov r12, [rdi + 12 * 8]
    mov r13, [rdi + 13 * 8]
    mov r14, [rdi + 14 * 8]
    mov r15, [rdi + 15 * 8]
    push [rdi]
    mov rdi, [rdi + 7 * 8]
    cmp word ptr [rip + target + 4], 0
    /* LEA and MOV keep the flags; the stack pointer is put back where it belongs. */
    jne 2f
    pop rax
    jmp [rip + target]
2:
    pop rax
    ljmp [rip + target]

    .bss
    .balign 8
target:
    .skip 8

    .section .note.GNU-stack, "", @progbits
