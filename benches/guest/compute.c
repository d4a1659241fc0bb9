/* Programs that compute: no system call, and data that fits into the caches. */
#include <emmintrin.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"

/* Multiplications, shifts, rotates, additions, and a branch that depends on the data; an operation is one round. */
static uint64_t integer(uint64_t n)
{
    uint64_t a = 0x9e3779b97f4a7c15, b = n, c = 0;
    for (uint64_t i = 0; i < n; i++) {
        a = a * 0x5851f42d4c957f2d + i;
        b ^= a >> 29;
        b = b << 13 | b >> 51;
        if (a & 0x8000)
            c += b;
        else
            c ^= a;
    }
    return a ^ b ^ c;
}

/* SHA-256 (FIPS 180-4); an operation is one block of 64 bytes. */
static const uint32_t sha_constants[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};
static const uint32_t sha_start[8] = {
    0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
};

static uint32_t rotated(uint32_t x, int by)
{
    return x >> by | x << (32 - by);
}

static void sha_block(uint32_t state[8], const uint32_t words[16])
{
    uint32_t w[64], s[8];
    memcpy(w, words, 64);
    for (int i = 16; i < 64; i++) {
        uint32_t s0 = rotated(w[i - 15], 7) ^ rotated(w[i - 15], 18) ^ w[i - 15] >> 3;
        uint32_t s1 = rotated(w[i - 2], 17) ^ rotated(w[i - 2], 19) ^ w[i - 2] >> 10;
        w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    memcpy(s, state, sizeof s);
    for (int i = 0; i < 64; i++) {
        uint32_t s1 = rotated(s[4], 6) ^ rotated(s[4], 11) ^ rotated(s[4], 25);
        uint32_t t1 = s[7] + s1 + ((s[4] & s[5]) ^ (~s[4] & s[6])) + sha_constants[i] + w[i];
        uint32_t s0 = rotated(s[0], 2) ^ rotated(s[0], 13) ^ rotated(s[0], 22);
        uint32_t t2 = s0 + ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
        memmove(s + 1, s, 7 * sizeof *s);
        s[4] += t1;
        s[0] = t1 + t2;
    }
    for (int i = 0; i < 8; i++)
        state[i] += s[i];
}

static void sha_prepare(void)
{
    /* The message "abc" of the standard's example. */
    uint32_t state[8], block[16] = {0x61626380, [15] = 24};
    memcpy(state, sha_start, sizeof state);
    sha_block(state, block);
    require(state[0] == 0xba7816bf && state[7] == 0xf20015ad, "sha256");
}

static uint64_t sha256(uint64_t n)
{
    uint32_t state[8], block[16] = {0};
    memcpy(state, sha_start, sizeof state);
    for (uint64_t i = 0; i < n; i++) {
        block[0] = (uint32_t)i;
        sha_block(state, block);
    }
    return (uint64_t)state[0] << 32 | state[7];
}

/* A product of matrices of doubles with SSE2; an operation is one multiplication with its addition. */
enum { SIDE = 64 };
static double left[SIDE][SIDE] __attribute__((aligned(16)));
static double right[SIDE][SIDE] __attribute__((aligned(16)));
static double product[SIDE][SIDE] __attribute__((aligned(16)));

static void matrix_row(int i)
{
    for (int j = 0; j < SIDE; j += 4) {
        __m128d low = _mm_setzero_pd(), high = low;
        for (int k = 0; k < SIDE; k++) {
            __m128d factor = _mm_set1_pd(left[i][k]);
            low = _mm_add_pd(low, _mm_mul_pd(factor, _mm_load_pd(&right[k][j])));
            high = _mm_add_pd(high, _mm_mul_pd(factor, _mm_load_pd(&right[k][j + 2])));
        }
        _mm_store_pd(&product[i][j], low);
        _mm_store_pd(&product[i][j + 2], high);
    }
}

static void matrix_prepare(void)
{
    for (int i = 0; i < SIDE; i++)
        for (int j = 0; j < SIDE; j++) {
            left[i][j] = i + 1;
            right[i][j] = j + 1;
        }
    matrix_row(1);
    require(product[1][2] == 2 * 3 * SIDE, "matrix");
}

static uint64_t matrix(uint64_t n)
{
    for (uint64_t row = 0; row < n / (SIDE * SIDE); row++)
        matrix_row((int)(row % SIDE));
    return (uint64_t)product[0][0];
}

/* Calls and returns: Fibonacci numbers without memory; an operation is one call. */
__attribute__((noinline, noclone, optimize("no-optimize-sibling-calls", "no-inline")))
static uint64_t fibonacci(unsigned n, uint64_t *calls)
{
    ++*calls;
    return n < 2 ? n : fibonacci(n - 1, calls) + fibonacci(n - 2, calls);
}

enum { CALLS = 177 }; /* of fibonacci(10) */

static uint64_t recursion(uint64_t n)
{
    uint64_t calls = 0, sum = 0;
    while (calls < n)
        sum += fibonacci(10, &calls);
    return sum;
}

/* Quicksort of 4096 numbers that are in another order each time; an operation is one number sorted. */
enum { SORTED = 4096 };
static uint32_t numbers[SORTED];

static void sort(uint32_t *a, int count)
{
    while (count > 1) {
        uint32_t pivot = a[count / 2];
        int i = 0, j = count - 1;
        for (;;) {
            while (a[i] < pivot)
                i++;
            while (a[j] > pivot)
                j--;
            if (i >= j)
                break;
            uint32_t other = a[i];
            a[i++] = a[j];
            a[j--] = other;
        }
        sort(a, i);
        a += i;
        count -= i;
    }
}

static uint64_t sorting(uint64_t n)
{
    uint64_t state = 88172645463325252, sum = 0;
    for (uint64_t done = 0; done < n; done += SORTED) {
        for (int i = 0; i < SORTED; i++)
            numbers[i] = (uint32_t)next(&state);
        sort(numbers, SORTED);
        sum += numbers[SORTED / 2];
    }
    return sum;
}

static void sorting_prepare(void)
{
    sorting(SORTED);
    for (int i = 1; i < SORTED; i++)
        require(numbers[i - 1] <= numbers[i], "sort");
}

/* A table with open addressing, half full: an operation is one look-up, or an insertion where nothing is found. */
enum { SLOTS = 1 << 14 };
static uint64_t slots[SLOTS];

static uint64_t hashing(uint64_t n)
{
    uint64_t state = 88172645463325252, found = 0;
    memset(slots, 0, sizeof slots);
    for (uint64_t i = 0; i < n; i++) {
        uint64_t key = next(&state) % (SLOTS / 2) + 1;
        uint64_t slot = key * 0x9e3779b97f4a7c15 >> 50;
        while (slots[slot] != 0 && slots[slot] != key)
            slot = (slot + 1) % SLOTS;
        found += slots[slot] == key;
        slots[slot] = key;
    }
    return found;
}

const struct program compute_programs[] = {
    {"integer", NULL, integer, 1},
    {"sha256", sha_prepare, sha256, 1},
    {"matrix", matrix_prepare, matrix, SIDE * SIDE},
    {"recursion", NULL, recursion, CALLS},
    {"sort", sorting_prepare, sorting, SORTED},
    {"hash", NULL, hashing, 1},
    {0},
};
