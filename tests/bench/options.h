/* Numbers and lists of them on the benches' command lines. What is none ends the program with exit
 * code 2 and a message. Knows no bench. */
#ifndef BENCH_OPTIONS_H
#define BENCH_OPTIONS_H

#include <stdint.h>

#define BENCH_LIST_MAX 16u

struct bench_list {
    uint32_t values[BENCH_LIST_MAX];
    uint32_t count;
};

/* A number at the start of the text, at most 2^24; *end is what follows it. */
uint32_t bench_number(const char *text, char **end);
/* A number and nothing else. */
uint32_t bench_one(const char *text);
/* Numbers with commas between them. */
struct bench_list bench_many(const char *text);

#endif
