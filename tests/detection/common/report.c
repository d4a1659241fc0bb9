/* Printing, counting, and the small library. */

#include "detect.h"

static unsigned checks, found;

static void put_number(unsigned long long value, unsigned base)
{
    char digits[24];
    size_t at = sizeof digits;
    do {
        digits[--at] = "0123456789abcdef"[value % base];
        value /= base;
    } while (value != 0);
    put_text(digits + at, sizeof digits - at);
}

static void put_argument(const char **format, va_list *arguments)
{
    int wide = 0;
    while (**format == 'l') {
        wide++;
        (*format)++;
    }
    char kind = *(*format)++;
    switch (kind) {
    case 's': {
        const char *text = va_arg(*arguments, const char *);
        put_text(text, length_of(text));
        return;
    }
    case 'c': {
        char c = (char)va_arg(*arguments, int);
        put_text(&c, 1);
        return;
    }
    case 'd': {
        long long value = wide ? va_arg(*arguments, long long) : va_arg(*arguments, int);
        if (value < 0) {
            put_text("-", 1);
        }
        put_number(value < 0 ? 0 - (unsigned long long)value : (unsigned long long)value, 10);
        return;
    }
    default: {
        unsigned long long value = wide ? va_arg(*arguments, unsigned long long) : va_arg(*arguments, unsigned);
        put_number(value, kind == 'x' ? 16 : 10);
    }
    }
}

static void print_list(const char *format, va_list *arguments)
{
    while (*format != 0) {
        const char *start = format;
        while (*format != 0 && *format != '%') {
            format++;
        }
        put_text(start, (size_t)(format - start));
        if (*format == '%') {
            format++;
            put_argument(&format, arguments);
        }
    }
}

void print(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    print_list(format, &arguments);
    va_end(arguments);
}

/* Details of a check that failed stand on its line, which ends when the next line begins. */
static bool line_open;

static void end_line(void)
{
    if (line_open) {
        put_text("\n", 1);
    }
    line_open = false;
}

static bool last_failed;

void check(bool good, const char *format, ...)
{
    va_list arguments;
    end_line();
    va_start(arguments, format);
    print_list(format, &arguments);
    va_end(arguments);
    print(good ? ": ok" : ": FOUND");
    checks++;
    found += !good;
    last_failed = !good;
    line_open = true;
}

void detail(const char *format, ...)
{
    if (!last_failed) {
        return;
    }
    va_list arguments;
    va_start(arguments, format);
    put_text(" ", 1);
    print_list(format, &arguments);
    va_end(arguments);
}

void note(const char *format, ...)
{
    va_list arguments;
    end_line();
    put_text("# ", 2);
    va_start(arguments, format);
    print_list(format, &arguments);
    va_end(arguments);
    line_open = true;
}

void summary(void)
{
    end_line();
    print("detection: %u checks, %u found\n", checks, found);
}

size_t length_of(const char *text)
{
    size_t length = 0;
    while (text[length] != 0) {
        length++;
    }
    return length;
}

bool equal(const void *a, const void *b, size_t length)
{
    const uint8_t *one = a, *two = b;
    for (size_t i = 0; i < length; i++) {
        if (one[i] != two[i]) {
            return false;
        }
    }
    return true;
}

void fill(void *to, uint8_t value, size_t length)
{
    volatile uint8_t *bytes = to;
    for (size_t i = 0; i < length; i++) {
        bytes[i] = value;
    }
}

void copy(void *to, const void *from, size_t length)
{
    volatile uint8_t *out = to;
    const uint8_t *in = from;
    for (size_t i = 0; i < length; i++) {
        out[i] = in[i];
    }
}
