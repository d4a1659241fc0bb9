/* Programs that move data or wait for it. */
#include <emmintrin.h>
#include <stdlib.h>

#include "bench.h"

/* Copies 16 bytes at a time between two buffers that fit into L2 together; an operation is 64 bytes. */
enum { COPIED = 64 << 10 };
static char *from, *to;

static void copy_prepare(void)
{
    from = pages(COPIED);
    /* Not at the same place in a page as the source, which would make loads wait for stores on some processors. */
    to = (char *)pages(2 * COPIED) + 2112;
    from[COPIED - 1] = 1;
}

static uint64_t copy(uint64_t n)
{
    for (uint64_t done = 0; done < n; done += COPIED / 64)
        for (size_t i = 0; i < COPIED; i += 64) {
            const __m128i *source = (const __m128i *)(from + i);
            __m128i *target = (__m128i *)(to + i);
            __m128i a = _mm_load_si128(source), b = _mm_load_si128(source + 1);
            __m128i c = _mm_load_si128(source + 2), d = _mm_load_si128(source + 3);
            _mm_store_si128(target, a);
            _mm_store_si128(target + 1, b);
            _mm_store_si128(target + 2, c);
            _mm_store_si128(target + 3, d);
        }
    return (uint64_t)to[COPIED - 1];
}

/*
 * The triad of J. McCalpin's STREAM on arrays of a megabyte, each at a multiple of its size, so that their addresses
 * collide in whatever is looked up by low bits. An operation is one element.
 */
enum { ELEMENTS = (1 << 20) / sizeof(double) };
static double *a, *b, *c;

static void triad_prepare(void)
{
    a = pages(1 << 20);
    b = pages(1 << 20);
    c = pages(1 << 20);
    for (size_t i = 0; i < ELEMENTS; i++)
        b[i] = c[i] = (double)i;
}

static uint64_t triad(uint64_t n)
{
    for (uint64_t done = 0; done < n; done += ELEMENTS) {
        double scale = (double)(done & 7) + 1;
        for (size_t i = 0; i < ELEMENTS; i++)
            a[i] = b[i] + scale * c[i];
    }
    return (uint64_t)a[ELEMENTS - 1];
}

/*
 * Pointers that lead once through all of a buffer's lines in an order that cannot be guessed, so that each load waits
 * for the one before; an operation is one load.
 */
struct line {
    struct line *next;
    char rest[56];
};
static struct line *position;

static void chase_prepare(size_t size)
{
    size_t count = size / sizeof(struct line);
    struct line *lines = pages(size);
    uint32_t *order = malloc(count * sizeof *order);
    uint64_t state = 88172645463325252;
    if (order == NULL)
        fail("malloc");
    for (size_t i = 0; i < count; i++)
        order[i] = (uint32_t)i;
    for (size_t i = count - 1; i > 0; i--) {
        size_t other = next(&state) % i;
        uint32_t moved = order[i];
        order[i] = order[other];
        order[other] = moved;
    }
    for (size_t i = 0; i < count; i++)
        lines[order[i]].next = &lines[order[(i + 1) % count]];
    free(order);
    position = lines;
}

static void chase_l1(void)
{
    chase_prepare(16 << 10);
}

static void chase_l2(void)
{
    chase_prepare(256 << 10);
}

static void chase_dram(void)
{
    chase_prepare(64 << 20);
}

static uint64_t chase(uint64_t n)
{
    struct line *line = position;
    for (uint64_t i = 0; i < n; i++)
        line = line->next;
    position = line;
    return (uint64_t)(uintptr_t)line;
}

const struct program memory_programs[] = {
    {"copy", copy_prepare, copy, COPIED / 64},
    {"triad", triad_prepare, triad, ELEMENTS},
    {"chase-l1", chase_l1, chase, 1},
    {"chase-l2", chase_l2, chase, 1},
    {"chase-dram", chase_dram, chase, 1},
    {0},
};
