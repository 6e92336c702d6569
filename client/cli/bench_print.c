/* What `relayctl bench` prints: a table on a terminal, JSON otherwise. */
#include "bench.h"

#include "output.h"

#include <stdlib.h>

static int compare_u64(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Of sorted values; 0 of none. */
static double quantile(const uint64_t *sorted, uint32_t count, double q)
{
    if (count == 0) {
        return 0;
    }
    const uint32_t i = (uint32_t)(q * (double)count);
    return (double)sorted[i < count ? i : count - 1];
}

/* What is derived from samples. */
struct figures {
    double layer_p50_us, layer_p99_us, compute_p50_us;
    double step_p50_us, step_p99_us;
    double tokens_per_s;                     /* all sessions together */
    double gb_per_s;                         /* K/V read while computing */
    double prompt_bytes_step, kv_bytes_step; /* read, a round of one step by all sessions */
    double batch_sessions, batch_rows;       /* mean over the calls */
};

static double ratio(double a, double b)
{
    return b > 0 ? a / b : 0;
}

static struct figures figures_of(struct relay_cli_bench_samples *s,
                                 const struct relay_cli_bench_report *report)
{
    const double sessions = report->args->sessions;
    const double steps = s->steps / sessions; /* rounds */
    qsort(s->layer_us, s->calls, sizeof(s->layer_us[0]), compare_u64);
    qsort(s->compute_us, s->calls, sizeof(s->compute_us[0]), compare_u64);
    qsort(s->step_us, s->steps, sizeof(s->step_us[0]), compare_u64);
    return (struct figures){
        .layer_p50_us = quantile(s->layer_us, s->calls, 0.5),
        .layer_p99_us = quantile(s->layer_us, s->calls, 0.99),
        .compute_p50_us = quantile(s->compute_us, s->calls, 0.5),
        .step_p50_us = quantile(s->step_us, s->steps, 0.5),
        .step_p99_us = quantile(s->step_us, s->steps, 0.99),
        .tokens_per_s =
            ratio((double)s->steps * report->batch * sessions * 1e6, (double)s->wall_us),
        .gb_per_s = ratio(s->launch_bytes, s->launch_us * 1e3),
        .prompt_bytes_step = ratio(s->prompt_bytes, steps),
        .kv_bytes_step = ratio(s->kv_bytes, steps),
        .batch_sessions = ratio((double)s->batch_sessions, s->calls),
        .batch_rows = ratio((double)s->batch_rows, s->calls),
    };
}

static void add_figures(cJSON *o, const char *name, const struct figures *f,
                        const struct relay_cli_bench_samples *s)
{
    cJSON *j = cJSON_AddObjectToObject(o, name);
    cJSON_AddNumberToObject(j, "calls", s->calls);
    cJSON_AddNumberToObject(j, "layer_p50_us", f->layer_p50_us);
    cJSON_AddNumberToObject(j, "layer_p99_us", f->layer_p99_us);
    cJSON_AddNumberToObject(j, "compute_p50_us", f->compute_p50_us);
    cJSON_AddNumberToObject(j, "step_p50_us", f->step_p50_us);
    cJSON_AddNumberToObject(j, "step_p99_us", f->step_p99_us);
    cJSON_AddNumberToObject(j, "tokens_per_s", f->tokens_per_s);
    cJSON_AddNumberToObject(j, "gb_per_s", f->gb_per_s);
    cJSON_AddNumberToObject(j, "prompt_bytes_step", f->prompt_bytes_step);
    cJSON_AddNumberToObject(j, "kv_bytes_step", f->kv_bytes_step);
    cJSON_AddNumberToObject(j, "batch_sessions_mean", f->batch_sessions);
    cJSON_AddNumberToObject(j, "batch_sessions_max", s->batch_sessions_max);
    cJSON_AddNumberToObject(j, "batch_rows_mean", f->batch_rows);
}

static void print_json(const struct relay_cli_bench_report *r, const struct figures *relay,
                       const struct figures *plain)
{
    const struct relay_cli_args *args = r->args;
    cJSON *o = cJSON_CreateObject();
    cJSON_AddStringToObject(o, "bench", "relayctl");
    cJSON_AddStringToObject(o, "backend", r->backend);
    cJSON_AddStringToObject(o, "isa", r->isa);
    cJSON_AddNumberToObject(o, "threads", r->threads);
    cJSON_AddNumberToObject(o, "q_heads", args->q_heads);
    cJSON_AddNumberToObject(o, "kv_heads", args->kv_heads);
    cJSON_AddNumberToObject(o, "head_dim", args->head_dim);
    cJSON_AddStringToObject(o, "dtype", relay_dtype_name(args->dtype));
    cJSON_AddNumberToObject(o, "sessions", args->sessions);
    cJSON_AddNumberToObject(o, "batch", r->batch);
    cJSON_AddNumberToObject(o, "prompt", args->prompt_tokens);
    cJSON_AddNumberToObject(o, "context", args->context_tokens);
    cJSON_AddNumberToObject(o, "layers", args->layers);
    cJSON_AddNumberToObject(o, "steps", args->steps);
    cJSON_AddNumberToObject(o, "align_us", args->align_us);
    cJSON_AddNumberToObject(o, "prompt_layer_bytes", (double)r->prompt_layer_bytes);
    if (r->has_relay) {
        add_figures(o, "relay", relay, &r->relay);
    }
    if (r->has_plain) {
        add_figures(o, "plain", plain, &r->plain);
    }
    if (r->has_relay && r->has_plain) {
        cJSON_AddNumberToObject(o, "layer_speedup",
                                ratio(plain->layer_p50_us, relay->layer_p50_us));
        cJSON_AddNumberToObject(o, "compute_speedup",
                                ratio(plain->compute_p50_us, relay->compute_p50_us));
        cJSON_AddNumberToObject(o, "tokens_speedup",
                                ratio(relay->tokens_per_s, plain->tokens_per_s));
    }
    relay_cli_print_object(o, true);
}

static void print_row(const char *what, const struct figures *f,
                      const struct relay_cli_bench_samples *s)
{
    char prompt[32], kv[32];
    printf("%-6s %9.0f %9.0f %9.0f %10.2f %10.2f %10.0f %7.1f %11s %11s  %.2f/%u\n", what,
           f->layer_p50_us, f->layer_p99_us, f->compute_p50_us, f->step_p50_us / 1e3,
           f->step_p99_us / 1e3, f->tokens_per_s, f->gb_per_s,
           relay_cli_bytes_text((uint64_t)f->prompt_bytes_step, prompt, sizeof(prompt)),
           relay_cli_bytes_text((uint64_t)f->kv_bytes_step, kv, sizeof(kv)), f->batch_sessions,
           s->batch_sessions_max);
}

static void print_text(const struct relay_cli_bench_report *r, const struct figures *relay,
                       const struct figures *plain)
{
    const struct relay_cli_args *args = r->args;
    char bytes[32];
    printf("%u sessions of %u requests, %u/%u heads of %u, %s, prompt %u (%s a layer), context %u, "
           "%u layers, %u steps; %s %s, %u threads\n\n",
           args->sessions, r->batch, args->q_heads, args->kv_heads, args->head_dim,
           relay_dtype_name(args->dtype), args->prompt_tokens,
           relay_cli_bytes_text(r->prompt_layer_bytes, bytes, sizeof(bytes)), args->context_tokens,
           args->layers, args->steps, r->backend, r->isa, r->threads);
    printf("%-6s %9s %9s %9s %10s %10s %10s %7s %11s %11s  %s\n", "", "layer p50", "p99", "compute",
           "step p50", "p99", "tokens/s", "GB/s", "prompt", "context", "sessions a");
    printf("%-6s %9s %9s %9s %10s %10s %10s %7s %11s %11s  %s\n", "", "us", "us", "p50 us", "ms",
           "ms", "", "K/V", "read/step", "read/step", "launch/max");
    if (r->has_relay) {
        print_row("relay", relay, &r->relay);
    }
    if (r->has_plain) {
        print_row("plain", plain, &r->plain);
    }
    if (r->has_relay && r->has_plain) {
        printf("\nrelay against plain: a layer %.2fx, its compute %.2fx, tokens/s %.2fx, "
               "prompt bytes 1/%.1f\n",
               ratio(plain->layer_p50_us, relay->layer_p50_us),
               ratio(plain->compute_p50_us, relay->compute_p50_us),
               ratio(relay->tokens_per_s, plain->tokens_per_s),
               ratio(plain->prompt_bytes_step, relay->prompt_bytes_step));
    }
}

void relay_cli_bench_print(struct relay_cli_bench_report *report)
{
    const struct figures relay = figures_of(&report->relay, report);
    const struct figures plain = figures_of(&report->plain, report);
    if (report->args->json) {
        print_json(report, &relay, &plain);
    } else {
        print_text(report, &relay, &plain);
    }
}
