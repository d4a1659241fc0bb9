/* What every entry to the kernel puts on its stack, the same in both builds. The last five words are what the processor
 * pushes (SDM vol. 3, figure 6-9); Xen pushes the same five on its behalf. */

#define VECTOR_NMI 2
#define VECTOR_PAGE_FAULT 14
#define VECTOR_TIMER 32
#define VECTOR_SYSTEM_CALL 256

#ifdef __ASSEMBLER__

.macro save_registers
    push %rax
    push %rbx
    push %rcx
    push %rdx
    push %rsi
    push %rdi
    push %rbp
    push %r8
    push %r9
    push %r10
    push %r11
    push %r12
    push %r13
    push %r14
    push %r15
.endm

/* Leaves RSP at the frame's RIP: vector and error code are dropped. */
.macro restore_registers
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %r11
    pop %r10
    pop %r9
    pop %r8
    pop %rbp
    pop %rdi
    pop %rsi
    pop %rdx
    pop %rcx
    pop %rbx
    pop %rax
    add $16, %rsp
.endm

/* What a C function may expect to keep, for user_run and user_finish. */
.macro save_callee
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, resume_stack(%rip)
.endm

.macro resume_callee
    mov resume_stack(%rip), %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
.endm

#else

struct frame {
    u64 r15, r14, r13, r12, r11, r10, r9, r8, rbp, rdi, rsi, rdx, rcx, rbx, rax;
    u64 vector, error;
    u64 rip, cs, rflags, rsp, ss;
};

void trap(struct frame *frame);
extern char trap_stack_top[];

#endif
