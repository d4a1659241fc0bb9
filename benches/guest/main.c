/*
 * Runs programs by name and prints for each "name nanoseconds": what one operation takes by CLOCK_MONOTONIC.
 *
 *     guest-bench [-n COUNT | -t MILLISECONDS] NAME...
 *
 * -n says how many operations to measure; otherwise as many are as take about the time of -t, 200 by default.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "bench.h"

const char *own_path;

void fail(const char *what)
{
    fprintf(stderr, "guest-bench: %s: %s\n", what, strerror(errno));
    exit(1);
}

void require(int right, const char *what)
{
    if (!right) {
        fprintf(stderr, "guest-bench: %s came out wrong\n", what);
        exit(1);
    }
}

void *pages(size_t size)
{
    /* Twice the size holds an aligned part; what is around it is never touched. */
    void *start = mmap(NULL, 2 * size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED)
        fail("mmap");
    uintptr_t address = (uintptr_t)start;
    if ((size & (size - 1)) == 0)
        address = (address + size - 1) & ~(uintptr_t)(size - 1);
    memset((void *)address, 0, size);
    return (void *)address;
}

static double now(void)
{
    struct timespec time;
    if (clock_gettime(CLOCK_MONOTONIC, &time) != 0)
        fail("clock_gettime");
    return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

/* Where results go, so that nothing of what they come from can be left out. */
volatile uint64_t sink;

/* What n operations take, in nanoseconds. */
static double measure(const struct program *program, uint64_t n)
{
    double start = now();
    sink = program->run(n);
    return now() - start;
}

/* The next multiple of the program's batch. */
static uint64_t whole(const struct program *program, double n)
{
    uint64_t count = ((uint64_t)n + program->batch - 1) / program->batch;
    return (count != 0 ? count : 1) * program->batch;
}

/*
 * What one operation takes: the faster of two measurements of the same number, each of which takes at least half of
 * `target` nanoseconds. A processor that was busy with something else for a moment makes one of them long, and is
 * neither taken for the program's speed nor for enough operations.
 */
static double calibrated(const struct program *program, double target)
{
    uint64_t n = whole(program, 1);
    for (;;) {
        double time = measure(program, n);
        if (time >= target / 2) {
            double again = measure(program, n);
            time = again < time ? again : time;
        }
        if (time >= target / 2)
            return time / (double)n;
        /* Never much more at once: what was measured was short, and perhaps cold. */
        double factor = target * 0.75 / (time + 1);
        n = whole(program, (double)n * (factor > 8 ? 8 : factor < 1.5 ? 1.5 : factor));
    }
}

static const struct program *find(const char *name)
{
    const struct program *groups[] = {compute_programs, memory_programs, kernel_programs};
    for (size_t i = 0; i < sizeof groups / sizeof *groups; i++)
        for (const struct program *program = groups[i]; program->name != NULL; program++)
            if (strcmp(program->name, name) == 0)
                return program;
    fprintf(stderr, "guest-bench: there is no program %s\n", name);
    exit(2);
}

static double number(const char *text)
{
    char *end;
    double value = text == NULL ? 0 : strtod(text, &end);
    if (text == NULL || *end != 0 || !(value >= 1 && value <= 1e15)) {
        fprintf(stderr, "guest-bench: %s is no number from 1 on\n", text == NULL ? "nothing" : text);
        exit(2);
    }
    return value;
}

/* One processor for everything, so that a host with many is compared with a guest of one. */
static void stay_here(void)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(sched_getcpu(), &set);
    if (sched_setaffinity(0, sizeof set, &set) != 0)
        fail("sched_setaffinity");
}

int main(int count, char **arguments)
{
    uint64_t n = 0;
    double target = 200e6;
    own_path = arguments[0];
    /* What the program "exec" executes. */
    if (count == 2 && strcmp(arguments[1], "nothing") == 0)
        return 0;
    stay_here();
    for (int i = 1; i < count; i++) {
        if (strcmp(arguments[i], "-n") == 0) {
            n = (uint64_t)number(arguments[++i]);
        } else if (strcmp(arguments[i], "-t") == 0) {
            target = number(arguments[++i]) * 1e6;
        } else {
            const struct program *program = find(arguments[i]);
            if (program->prepare != NULL)
                program->prepare();
            uint64_t some = whole(program, (double)n);
            double time = n != 0 ? measure(program, some) / (double)some : calibrated(program, target);
            printf("%s %.3f\n", program->name, time);
            fflush(stdout);
        }
    }
    return 0;
}
