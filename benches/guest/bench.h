/* What the guest programs share: a program is a name, what it prepares, and a function that does n operations. */
#ifndef BENCH_H
#define BENCH_H

#include <stddef.h>
#include <stdint.h>

struct program {
    const char *name;
    /* Prepares data before the clock starts; may be null. */
    void (*prepare)(void);
    /* Does n operations, a multiple of `batch`, and gives something that depends on all of them. */
    uint64_t (*run)(uint64_t n);
    /* Operations that can only be done together. */
    uint64_t batch;
};

/* The programs of each file, ended by one without a name. */
extern const struct program compute_programs[], memory_programs[], kernel_programs[];

/* Whole pages that are zero, aligned to their own size if that is a power of two; ends the program if there are none. */
void *pages(size_t size);

/* Ends the program with what was tried and the reason. */
void fail(const char *what) __attribute__((noreturn));

/* Ends the program unless what was computed is right. */
void require(int right, const char *what);

/* The next number of a sequence that is the same everywhere (xorshift, G. Marsaglia 2003, triple 13, 7, 17). */
static inline uint64_t next(uint64_t *state)
{
    uint64_t x = *state;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return *state = x;
}

/* The program's own file, to be executed again. */
extern const char *own_path;

#endif
