/* The program that runs in user mode. It is compiled on its own as position-independent code, because the kernel maps
 * its pages at USER_CODE, and it is the same in both builds: what a processor does in user mode needs no hypervisor. */

#include "guest.h"

#define IN_USER_PAGES __attribute__((section(".user")))

static const char hello[] __attribute__((section(".user.data"))) = "hello from user mode in address space ";

/* SYSCALL destroys RCX and R11 (SDM vol. 2, SYSCALL). */
static inline __attribute__((always_inline)) u64 system_call(u64 number, u64 first, u64 second) {
    u64 result;
    asm volatile("syscall"
                 : "=a"(result)
                 : "a"(number), "D"(first), "S"(second)
                 : "rcx", "r11", "memory");
    return result;
}

static inline __attribute__((always_inline)) void say_hello(u64 seed) {
    char text[sizeof hello + 1];
    u64 length = 0;
    for (const char *from = hello; *from; from++)
        text[length++] = *from;
    text[length++] = 'A' + (char)(seed & 1);
    text[length++] = '\n';
    system_call(CALL_WRITE, (u64)text, length);
}

/* Entered with a phase and a seed, left by CALL_EXIT. */
IN_USER_PAGES void user_main(u64 phase, u64 seed) {
    u64 sum = seed;
    if (phase == PHASE_TRESPASS)
        sum = *(volatile u64 *)(KERNEL_BASE + 0x100000);
    if (phase == PHASE_USURP)
        asm volatile("cli");
    if (phase == PHASE_HELLO)
        say_hello(seed);
    for (u64 n = 0; n < CALLS_PER_RUN; n++)
        sum = system_call(CALL_MIX, sum, n);
    /* Each first touch of a page ends in the kernel's page-fault handler, which maps one. */
    for (u64 n = 0; n < FRESH_PAGES && phase != PHASE_HELLO; n++) {
        volatile u64 *word = (volatile u64 *)(USER_FRESH + n * PAGE + n * 8);
        if (phase == PHASE_TOUCH)
            *word = seed + n;
        else if (*word != seed + n)
            sum = RUN_FAILED;
    }
    if (phase == PHASE_CHECK) {
        /* The kernel has made this page read-only since; its handler lets the write happen. */
        volatile u64 *first = (volatile u64 *)USER_FRESH;
        *first = sum;
        if (*first != sum)
            sum = RUN_FAILED;
    }
    if (phase == PHASE_TOUCH) {
        /* The clock page is the kernel's, and counts ticks: one must come while this code runs. */
        volatile u64 *clock = (volatile u64 *)USER_CLOCK;
        u64 before = *clock;
        system_call(CALL_TIMER, 50, 0);
        while (*clock == before)
            asm volatile("pause");
    }
    system_call(CALL_EXIT, sum, 0);
    __builtin_unreachable();
}
