/* What both builds need of a library: text, numbers, the command line, pages. */

#include "guest.h"

/* Lines go out whole: for a para-virtual guest a call of the console costs the same whatever its length. */
static char line[256];
static u64 line_length;

static void put(char c) {
    line[line_length++] = c;
    if (c == '\n' || line_length == sizeof line) {
        console_write(line, line_length);
        line_length = 0;
    }
}

void print(const char *text) {
    while (*text)
        put(*text++);
}

void print_number(u64 number) {
    char digits[20];
    u64 length = 0;
    do {
        digits[length++] = '0' + number % 10;
        number /= 10;
    } while (number);
    while (length)
        put(digits[--length]);
}

void print_signed(i64 number) {
    if (number < 0)
        put('-');
    print_number(number < 0 ? -(u64)number : (u64)number);
}

void print_hex(u64 number) {
    print("0x");
    bool begun = false;
    for (int shift = 60; shift >= 0; shift -= 4) {
        u64 digit = number >> shift & 15;
        begun = begun || digit || !shift;
        if (begun)
            put("0123456789abcdef"[digit]);
    }
}

/* Something happened that the guest has no answer to. */
void panic(const char *why, u64 where, u64 detail) {
    print("panic: ");
    print(why);
    print(" at ");
    print_hex(where);
    print(", ");
    print_hex(detail);
    print("\nresult: failure\n");
    machine_stop(false);
}

/* Where `word` stands in the command line as a word or the beginning of one; 0 if nowhere. */
static const char *find_word(const char *word) {
    const char *at = machine_command_line();
    while (*at) {
        const char *here = at;
        const char *wanted = word;
        while (*wanted && *here == *wanted)
            here++, wanted++;
        if (!*wanted)
            return here;
        while (*at && *at != ' ')
            at++;
        while (*at == ' ')
            at++;
    }
    return 0;
}

bool command_line_has(const char *word) {
    const char *behind = find_word(word);
    return behind && (!*behind || *behind == ' ');
}

u64 command_line_number(const char *name, u64 otherwise) {
    const char *at = find_word(name);
    if (!at || *at < '0' || *at > '9')
        return otherwise;
    u64 number = 0;
    while (*at >= '0' && *at <= '9')
        number = number * 10 + (u64)(*at++ - '0');
    return number;
}

/* Compilers call these for structures, library or not. */
void *memcpy(void *to, const void *from, u64 size) {
    void *at = to;
    asm volatile("rep movsb" : "+D"(at), "+S"(from), "+c"(size) : : "memory");
    return to;
}

void *memset(void *to, int value, u64 size) {
    void *at = to;
    asm volatile("rep stosb" : "+D"(at), "+c"(size) : "a"(value) : "memory");
    return to;
}

/* Pages to be had: a pool inside the image, which both builds find mapped at their start. */
#define POOL 128
static u8 pool[POOL][PAGE] __attribute__((aligned(4096)));
static void *given_back[POOL];
static u64 given_back_count, never_taken = POOL;

/* A page full of zeros. */
void *page_take(void) {
    void *page = 0;
    if (given_back_count)
        page = given_back[--given_back_count];
    else if (never_taken)
        page = pool[--never_taken];
    else
        panic("no page is left", 0, 0);
    void *to = page;
    u64 words = PAGE / 8;
    asm volatile("rep stosq" : "+D"(to), "+c"(words) : "a"(0) : "memory");
    return page;
}

void page_give(void *page) { given_back[given_back_count++] = page; }
