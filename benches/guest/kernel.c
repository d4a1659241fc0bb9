/* Programs that the kernel does most of the work of. */
#define _GNU_SOURCE
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench.h"

/* A system call that does nothing; an operation is one call. */
static uint64_t syscall_null(uint64_t n)
{
    uint64_t sum = 0;
    for (uint64_t i = 0; i < n; i++)
        sum += (uint64_t)syscall(SYS_getppid);
    return sum;
}

static void wait_for(pid_t child)
{
    int status;
    if (waitpid(child, &status, 0) != child)
        fail("waitpid");
    require(WIFEXITED(status) && WEXITSTATUS(status) == 0, "a child process");
}

/* A process that ends at once; an operation is its life. */
static uint64_t fork_wait(uint64_t n)
{
    for (uint64_t i = 0; i < n; i++) {
        pid_t child = fork();
        if (child < 0)
            fail("fork");
        if (child == 0)
            _exit(0);
        wait_for(child);
    }
    return n;
}

static pid_t execute_nothing(void)
{
    pid_t child = vfork();
    if (child == 0) {
        execl(own_path, own_path, "nothing", (char *)NULL);
        _exit(1);
    }
    return child;
}

/* A process that executes this program, which ends at once; an operation is its life. */
static uint64_t exec_wait(uint64_t n)
{
    for (uint64_t i = 0; i < n; i++) {
        pid_t child = execute_nothing();
        if (child < 0)
            fail("vfork");
        wait_for(child);
    }
    return n;
}

/* A byte to another process and back; an operation is the round trip, with its two switches of process. */
static int there[2], back[2];

static void pipe_prepare(void)
{
    char byte;
    if (pipe(there) != 0 || pipe(back) != 0)
        fail("pipe");
    pid_t child = fork();
    if (child < 0)
        fail("fork");
    if (child == 0) {
        /* Ends when the parent does: the other end of its input is then closed. */
        close(there[1]);
        while (read(there[0], &byte, 1) == 1 && write(back[1], &byte, 1) == 1)
            ;
        _exit(0);
    }
    close(there[0]);
    close(back[1]);
}

static uint64_t pipe_round(uint64_t n)
{
    char byte = 1;
    for (uint64_t i = 0; i < n; i++)
        if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1)
            fail("pipe");
    return n;
}

/* The first write to a page of new memory, in small pages; an operation is one page, mapped and given back. */
enum { FRESH = 1024, PAGE = 4096 };

static uint64_t fault(uint64_t n)
{
    for (uint64_t done = 0; done < n; done += FRESH) {
        uint64_t count = n - done < FRESH ? n - done : FRESH;
        char *start = mmap(NULL, count * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (start == MAP_FAILED)
            fail("mmap");
        /* A kernel without huge pages refuses the advice, and needs none. */
        (void)madvise(start, count * PAGE, MADV_NOHUGEPAGE);
        for (uint64_t i = 0; i < count; i++)
            ((volatile char *)start)[i * PAGE] = 1;
        if (munmap(start, count * PAGE) != 0)
            fail("munmap");
    }
    return n;
}

/* A signal to itself; an operation is sending, handling and returning. */
static volatile sig_atomic_t handled;

static void handle(int number)
{
    (void)number;
    handled++;
}

static void signal_prepare(void)
{
    struct sigaction action = {.sa_handler = handle};
    if (sigaction(SIGUSR1, &action, NULL) != 0)
        fail("sigaction");
}

static uint64_t signal_self(uint64_t n)
{
    pid_t self = getpid();
    for (uint64_t i = 0; i < n; i++)
        if (kill(self, SIGUSR1) != 0)
            fail("kill");
    return (uint64_t)handled;
}

const struct program kernel_programs[] = {
    {"syscall", NULL, syscall_null, 1},
    {"fork", NULL, fork_wait, 1},
    {"exec", NULL, exec_wait, 1},
    {"pipe", pipe_prepare, pipe_round, 1},
    {"fault", NULL, fault, 1},
    {"signal", signal_prepare, signal_self, 1},
    {0},
};
