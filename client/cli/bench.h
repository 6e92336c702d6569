/* What `relayctl bench` measured, between the run and its printing. */
#ifndef RELAY_CLI_BENCH_H
#define RELAY_CLI_BENCH_H

#include "args.h"

/* Calls and steps of one kind of sharing, of one session or, added up, of all. Times in us. */
struct relay_cli_bench_samples {
    uint64_t *layer_us, *compute_us; /* [calls] */
    uint64_t *step_us;               /* [steps] from begin to the last layer */
    uint32_t calls, steps;
    uint64_t wall_us; /* all steps, one after the other */
    /* K/V bytes of launches, each session's share of those it had company in. */
    double prompt_bytes, kv_bytes;
    /* K/V bytes and time of the launches, each counted once a call. */
    double launch_bytes, launch_us;
    uint64_t batch_sessions, batch_rows; /* sums over the calls */
    uint32_t batch_sessions_max;
};

struct relay_cli_bench_report {
    const struct relay_cli_args *args;
    const char *backend, *isa;
    uint32_t threads, batch;
    uint64_t prompt_layer_bytes; /* K and V of the prompt in one layer */
    bool has_relay, has_plain;
    struct relay_cli_bench_samples relay, plain;
};

/* A table, or JSON. Sorts the samples. */
void relay_cli_bench_print(struct relay_cli_bench_report *report);

#endif
