/* Processes that hold something in all of every YMM register, while others run in between and signals come: whoever saves
 * their registers must save the upper halves as well. Prints "kept" and what it took, or what was lost. */

#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#define PROCESSES 4
#define REGISTERS 16
#define BYTES 32

/* What each process goes on until, and what it gives up at. */
#define ENOUGH_SIGNALS 4
#define ENOUGH_SWITCHES 100
#define MOST_ROUNDS 100000

typedef uint8_t registers[REGISTERS][BYTES];

static volatile sig_atomic_t signals;
/* How many processes have had enough: nobody ends before, or the last would run alone. */
static volatile int *satisfied;

/* A handler has registers of its own: these are not the ones that come back. */
static void on_alarm(int number) {
    (void)number;
    signals++;
    __asm__ volatile("vpcmpeqd %%ymm0, %%ymm0, %%ymm0\n\tvmovdqa %%ymm0, %%ymm9\n\tvzeroall" : : : "memory");
}

#define EACH(do)                                                                                                     \
    do(0) do(1) do(2) do(3) do(4) do(5) do(6) do(7) do(8) do(9) do(10) do(11) do(12) do(13) do(14) do(15)
#define LOAD(n) "vmovdqu 32*" #n "(%[in]), %%ymm" #n "\n\t"
#define STORE(n) "vmovdqu %%ymm" #n ", 32*" #n "(%[out])\n\t"

/* Gives the processor away a few times, with all registers full. */
static void hold(const registers *in, registers *out) {
    uint64_t rounds = 20;
    __asm__ volatile(EACH(LOAD) "1:\n\t"
                     "mov $24, %%eax\n\t" /* sched_yield */
                     "syscall\n\t"
                     "vpermq $0x4e, %%ymm3, %%ymm3\n\t"
                     "vpaddq %%ymm4, %%ymm5, %%ymm5\n\t"
                     "vpermq $0x4e, %%ymm3, %%ymm3\n\t"
                     "vpsubq %%ymm4, %%ymm5, %%ymm5\n\t"
                     "dec %[rounds]\n\t"
                     "jnz 1b\n\t" EACH(STORE) "vzeroupper"
                     : [rounds] "+r"(rounds)
                     : [in] "r"(in), [out] "r"(out)
                     : "rax", "rcx", "r11", "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7",
                       "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
}

static long switches(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_nvcsw + usage.ru_nivcsw;
}

static int child(int number) {
    struct itimerval timer = {{0, 1000}, {0, 1000}};
    static registers in, out;
    int enough = 0;
    signal(SIGALRM, on_alarm);
    setitimer(ITIMER_REAL, &timer, 0);
    for (long round = 0; *satisfied < PROCESSES; round++) {
        if (!enough && signals >= ENOUGH_SIGNALS && switches() >= ENOUGH_SWITCHES) {
            enough = 1;
            __atomic_fetch_add(satisfied, 1, __ATOMIC_SEQ_CST);
        }
        for (int n = 0; n < REGISTERS * BYTES; n++)
            in[n / BYTES][n % BYTES] = (uint8_t)(n * 7 + number * 31 + round);
        memset(out, 0, sizeof out);
        hold(&in, &out);
        if (memcmp(in, out, sizeof in)) {
            printf("process %d: lost in round %ld\n", number, round);
            return 1;
        }
        if (round == MOST_ROUNDS) {
            printf("process %d: %d signals and %ld switches only\n", number, (int)signals, switches());
            return 1;
        }
    }
    return 0;
}

static sigjmp_buf back;

static void on_fault(int number) { siglongjmp(back, number); }

/* Programs read XCR0 and may not write it. */
static uint32_t xcr0(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    signal(SIGSEGV, on_fault);
    signal(SIGILL, on_fault);
    int number = sigsetjmp(back, 1);
    if (!number)
        __asm__ volatile("xsetbv" : : "a"(low), "d"(high), "c"(0));
    signal(SIGSEGV, SIG_DFL);
    signal(SIGILL, SIG_DFL);
    const char *ends = number == SIGSEGV ? "SIGSEGV" : number == SIGILL ? "SIGILL" : "nothing";
    printf("XCR0 %#x, XSETBV %s\n", low, ends);
    return low;
}

int main(void) {
    int bad = 0;
    if (!(xcr0() & 4)) {
        printf("no AVX\n");
        return 0;
    }
    fflush(stdout);
    satisfied = mmap(0, sizeof *satisfied, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    for (int n = 0; n < PROCESSES; n++) {
        if (!fork()) {
            bad = child(n);
            fflush(stdout);
            _exit(bad);
        }
    }
    for (int status; wait(&status) > 0;)
        bad |= status;
    printf(bad ? "not kept\n" : "kept\n");
    return bad != 0;
}
