/*
 * The bare machine: entry by the Linux 64-bit boot protocol, the way into a piece of code of any ring and width, and the gates
 * by which every exception comes back from it.
 */

    .intel_syntax noprefix
    .code64

    .section .text.start, "ax"
    .globl _start
_start:
    cli
    cld
    lea rsp, [rip + monitor_stack]
    call start
1:  cli
    hlt
    jmp 1b

    .text

/* void leave(const struct state *state, const struct selectors *selectors): IRETQ to the code with all registers loaded. */
    .globl leave
leave:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov [rip + monitor_rsp], rsp
    mov byte ptr [rip + away], 1
    movzx eax, word ptr [rsi + 2]
    mov ds, eax
    mov es, eax
    push rax
    push [rdi + 4 * 8]
    push [rdi + 17 * 8]
    movzx eax, word ptr [rsi]
    push rax
    push [rdi + 16 * 8]
    mov rax, [rdi]
    mov rcx, [rdi + 1 * 8]
    mov rdx, [rdi + 2 * 8]
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
    mov rdi, [rdi + 7 * 8]
    iretq

/* Every gate leads to a stub of 16 bytes that makes the stack the same for all vectors: vector, error code, IRETQ's frame. */
    .balign 16
    .globl stubs
stubs:
    .set vector, 0
    .rept 256
    .balign 16
    .if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21)
    push 0
    .endif
    push vector
    jmp common
    .set vector, vector + 1
    .endr

    .balign 16
common:
    cmp byte ptr [rip + away], 0
    jne 1f
    /* The monitor itself faulted. */
    mov rdi, rsp
    call crashed
1:  mov byte ptr [rip + away], 0
    mov [rip + trapped], rax
    mov [rip + trapped + 1 * 8], rcx
    mov [rip + trapped + 2 * 8], rdx
    mov [rip + trapped + 3 * 8], rbx
    mov [rip + trapped + 5 * 8], rbp
    mov [rip + trapped + 6 * 8], rsi
    mov [rip + trapped + 7 * 8], rdi
    mov [rip + trapped + 8 * 8], r8
    mov [rip + trapped + 9 * 8], r9
    mov [rip + trapped + 10 * 8], r10
    mov [rip + trapped + 11 * 8], r11
    mov [rip + trapped + 12 * 8], r12
    mov [rip + trapped + 13 * 8], r13
    mov [rip + trapped + 14 * 8], r14
    mov [rip + trapped + 15 * 8], r15
    pop [rip + trapped + 18 * 8]
    pop [rip + trapped + 19 * 8]
    pop [rip + trapped + 16 * 8]
    pop rax
    mov [rip + trapped_cs], rax
    pop [rip + trapped + 17 * 8]
    pop [rip + trapped + 4 * 8]
    pop rax
    mov [rip + trapped_ss], rax
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov rsp, [rip + monitor_rsp]
    push 2
    popfq
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret

    .bss
    .balign 64
    .globl trapped, trapped_cs, trapped_ss, exception_stack
/* struct state */
trapped:
    .skip 21 * 8
trapped_cs:
    .skip 8
trapped_ss:
    .skip 8
monitor_rsp:
    .skip 8
away:
    .skip 8
    .balign 64
    .skip 0x4000
monitor_stack:
    .skip 0x2000
exception_stack:

    .section .note.GNU-stack, "", @progbits
