/* What `relayctl attend` found, between the run and its printing. */
#ifndef RELAY_CLI_ATTEND_H
#define RELAY_CLI_ATTEND_H

#include "args.h"
#include "steps_file.h"

/* Calls of one layer in one mode; times in us, in the order of the calls. */
struct relay_cli_samples {
    uint64_t *total_us, *compute_us;
    uint32_t count, max;
    uint64_t prompt_bytes; /* read by the last call */
};

/* Largest errors; in units of max(1, |expected|). */
struct relay_cli_errors {
    double out, lse;
    uint64_t rows; /* compared */
    bool failed;   /* some value is outside its tolerance, or is not a number */
};

struct relay_cli_layer_report {
    struct relay_cli_errors errors;
    struct relay_cli_samples steps;        /* the recorded steps */
    struct relay_cli_samples relay, plain; /* --measure */
};

struct relay_cli_report {
    uint32_t num_requests; /* at once */
    uint32_t prompt_tokens;
    struct relay_cli_layer_report *layers; /* [L] */
};

/* Median; 0 of none. Sorts. */
uint64_t relay_cli_p50(uint64_t *values, uint32_t count);
/* Exit code: 0, or 3 when something does not match. */
int relay_cli_print_report(const struct relay_cli_report *report,
                           const struct relay_cli_steps *steps, const struct relay_cli_args *args);

#endif
