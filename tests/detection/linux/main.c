/*
 * The detection program as a process of Linux's: everything that an unprivileged program can find out, then what root can.
 * Static, so that it runs in any initial RAM file system.
 */

#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include "environment.h"

void enter(const struct state *state, void *target, int compatibility);

static struct state *running;
static sigjmp_buf back;

void put_text(const char *text, size_t length)
{
    fwrite(text, 1, length, stdout);
}

bool offers(enum mode mode)
{
    return mode == RING3_64 || mode == RING3_32;
}

static void caught(int number, siginfo_t *information, void *context)
{
    /* AC and DF of the piece of code must not stay on. */
    __asm__ volatile("push $2; popfq" ::: "cc", "memory");
    static const int order[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                  REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    const greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    (void)information;
    if (running == NULL) {
        static const char text[] = "detection: the program itself crashed\n";
        (void)!write(1, text, sizeof text - 1);
        _exit(128 + number);
    }
    for (int i = 0; i < 16; i++) {
        running->gpr[i] = (uint64_t)registers[order[i]];
    }
    running->rip = (uint64_t)registers[REG_RIP];
    running->rflags = (uint64_t)registers[REG_EFL];
    running->vector = (uint64_t)registers[REG_TRAPNO];
    running->error = (uint64_t)registers[REG_ERR];
    running->address = (uint64_t)registers[REG_CR2];
    siglongjmp(back, 1);
}

void execute(enum mode mode, struct state *state)
{
    running = state;
    if (sigsetjmp(back, 1) == 0) {
        enter(state, (void *)(uintptr_t)state->rip, mode == RING3_32);
    }
    running = NULL;
}

static void prepare(void)
{
    size_t size = ROOM_CODE + ROOM_DATA + ROOM_STACK + 0x1000;
    uint8_t *memory = mmap(NULL, size, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    static uint8_t signal_stack[1 << 16];
    stack_t stack = {.ss_sp = signal_stack, .ss_size = sizeof signal_stack};
    if (memory == MAP_FAILED || sigaltstack(&stack, NULL) != 0) {
        perror("detect");
        exit(2);
    }
    room = (struct room){.code = memory, .data = memory + ROOM_CODE, .stack = memory + size - 0x1000};
    struct sigaction action = {.sa_sigaction = caught, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    static const int signals[] = {SIGSEGV, SIGILL, SIGFPE, SIGTRAP, SIGBUS};
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) {
        sigaction(signals[i], &action, NULL);
    }
}

int main(void)
{
    prepare();
    check_cpuid();
    check_opcodes();
    check_flags();
    check_fpu();
    check_descriptor_tables();
    check_kernel();
    check_firmware();
    check_pci();
    check_ports();
    summary();
    fflush(stdout);
    return 0;
}
