/* What this machine can do at best, measured: bytes read from memory, products and sums of each
 * instruction set, exponentials. For cpu_roofline. One thread, which starts others to measure. */
#ifndef BENCH_ROOFLINE_H
#define BENCH_ROOFLINE_H

#include <stdbool.h>
#include <stdint.h>

/* Does `rounds` times a fixed amount of work in registers; returns how many operations that was
 * (floating-point ones, or exponentials). */
typedef double (*roofline_work_fn)(uint64_t rounds);

/* An instruction set's own rates. In the .c file of that set, which has its flags. */
struct roofline_unit {
    const char *isa; /* the kernels' name for it */
    const char *peak_name;
    roofline_work_fn peak;
    roofline_work_fn exps; /* or NULL */
};
extern const struct roofline_unit roofline_avx2;
extern const struct roofline_unit roofline_avx512;
extern const struct roofline_unit roofline_avx512bf16;
extern const struct roofline_unit roofline_amx;

/* Operations per second on so many threads at once; the best of a few runs of some milliseconds. */
double roofline_rate(roofline_work_fn work, uint32_t threads);
/* Bytes per second read by so many threads from memory that no cache holds. */
double roofline_read(uint32_t threads);

#endif
