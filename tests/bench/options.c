#include "options.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

static void refuse(const char *text)
{
    fprintf(stderr, "bench: \"%s\" is no number\n", text);
    exit(2);
}

uint32_t bench_number(const char *text, char **end)
{
    errno = 0;
    unsigned long value = strtoul(text, end, 10);
    if (errno != 0 || *end == text || value > 1u << 24) {
        refuse(text);
    }
    return (uint32_t)value;
}

uint32_t bench_one(const char *text)
{
    char *end;
    uint32_t value = bench_number(text, &end);
    if (*end != '\0') {
        refuse(text);
    }
    return value;
}

struct bench_list bench_many(const char *text)
{
    struct bench_list list = {.count = 0};
    char *end;
    do {
        list.values[list.count++] = bench_number(text, &end);
        text = end + 1;
    } while (*end == ',' && list.count < BENCH_LIST_MAX);
    return list;
}
