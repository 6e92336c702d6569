#include "attend.h"

#include "output.h"

#include <stdlib.h>

static int compare_u64(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

uint64_t relay_cli_p50(uint64_t *values, uint32_t count)
{
    if (count == 0) {
        return 0;
    }
    qsort(values, count, sizeof(values[0]), compare_u64);
    return values[count / 2];
}

static struct relay_cli_errors all_errors(const struct relay_cli_report *report,
                                          uint32_t num_layers)
{
    struct relay_cli_errors all = {0, 0, 0, false};
    for (uint32_t l = 0; l < num_layers; l++) {
        const struct relay_cli_errors *e = &report->layers[l].errors;
        all.out = e->out > all.out ? e->out : all.out;
        all.lse = e->lse > all.lse ? e->lse : all.lse;
        all.rows += e->rows;
        all.failed = all.failed || e->failed;
    }
    return all;
}

/* JSON knows no infinity; an error that large is told as a string. */
static void add_error(cJSON *o, const char *name, double error)
{
    if (error < 1e300) {
        cJSON_AddNumberToObject(o, name, error);
    } else {
        cJSON_AddStringToObject(o, name, "inf");
    }
}

static void add_samples(cJSON *o, const char *name, struct relay_cli_samples *s)
{
    cJSON *samples = cJSON_AddObjectToObject(o, name);
    cJSON_AddNumberToObject(samples, "calls", s->count);
    cJSON_AddNumberToObject(samples, "p50_us", (double)relay_cli_p50(s->total_us, s->count));
    cJSON_AddNumberToObject(samples, "p50_compute_us",
                            (double)relay_cli_p50(s->compute_us, s->count));
    cJSON_AddNumberToObject(samples, "prompt_bytes", (double)s->prompt_bytes);
}

static void print_json(const struct relay_cli_report *report, const struct relay_cli_steps *steps,
                       const struct relay_cli_args *args, const struct relay_cli_errors *all)
{
    cJSON *o = cJSON_CreateObject();
    cJSON_AddStringToObject(o, "prompt_id", args->prompt_id);
    cJSON_AddNumberToObject(o, "prompt_tokens", report->prompt_tokens);
    cJSON_AddNumberToObject(o, "layers", steps->model->num_layers);
    cJSON_AddNumberToObject(o, "steps", steps->num_steps);
    cJSON_AddNumberToObject(o, "requests", report->num_requests);
    cJSON_AddNumberToObject(o, "rows_compared", (double)all->rows);
    add_error(o, "max_error_out", all->out);
    add_error(o, "max_error_lse", all->lse);
    cJSON_AddBoolToObject(o, "match", !all->failed);
    cJSON *layers = cJSON_AddArrayToObject(o, "per_layer");
    for (uint32_t l = 0; l < steps->model->num_layers; l++) {
        struct relay_cli_layer_report *r = &report->layers[l];
        cJSON *layer = cJSON_CreateObject();
        cJSON_AddItemToArray(layers, layer);
        cJSON_AddNumberToObject(layer, "window", relay_model_kind(steps->model, l)->window);
        add_error(layer, "max_error_out", r->errors.out);
        add_error(layer, "max_error_lse", r->errors.lse);
        add_samples(layer, "recorded", &r->steps);
        if (args->measure > 0) {
            add_samples(layer, "relay", &r->relay);
            add_samples(layer, "plain", &r->plain);
        }
    }
    relay_cli_print_object(o, true);
}

static void print_measured(const struct relay_cli_report *report, uint32_t num_layers,
                           uint32_t rounds)
{
    printf("\nrelay (the prompt read once) against plain (once per request): %u requests, p50 of "
           "%u calls each, by turns\n",
           report->num_requests, rounds);
    printf("%5s  %9s %9s %10s  %9s %9s %10s  %7s %8s\n", "layer", "relay us", "compute", "prompt",
           "plain us", "compute", "prompt", "faster", "compute");
    for (uint32_t l = 0; l < num_layers; l++) {
        struct relay_cli_samples *a = &report->layers[l].relay, *b = &report->layers[l].plain;
        char a_bytes[32], b_bytes[32];
        const double relay = (double)relay_cli_p50(a->total_us, a->count);
        const double plain = (double)relay_cli_p50(b->total_us, b->count);
        const double relay_compute = (double)relay_cli_p50(a->compute_us, a->count);
        const double plain_compute = (double)relay_cli_p50(b->compute_us, b->count);
        printf("%5u  %9.0f %9.0f %10s  %9.0f %9.0f %10s  %6.2fx %7.2fx\n", l, relay, relay_compute,
               relay_cli_bytes_text(a->prompt_bytes, a_bytes, sizeof(a_bytes)), plain,
               plain_compute, relay_cli_bytes_text(b->prompt_bytes, b_bytes, sizeof(b_bytes)),
               relay > 0 ? plain / relay : 0,
               relay_compute > 0 ? plain_compute / relay_compute : 0);
    }
}

static void print_text(const struct relay_cli_report *report, const struct relay_cli_steps *steps,
                       const struct relay_cli_args *args, const struct relay_cli_errors *all)
{
    printf("%u requests on prompt %s (%u tokens), %u steps, %u layers: %llu rows compared\n",
           report->num_requests, args->prompt_id, report->prompt_tokens, steps->num_steps,
           steps->model->num_layers, (unsigned long long)all->rows);
    printf("%5s %7s  %14s %14s  %8s %10s  %s\n", "layer", "window", "error of out", "error of LSE",
           "p50 us", "compute us", "prompt bytes read");
    for (uint32_t l = 0; l < steps->model->num_layers; l++) {
        struct relay_cli_layer_report *r = &report->layers[l];
        char window[16], bytes[32];
        snprintf(window, sizeof(window), "%u", relay_model_kind(steps->model, l)->window);
        printf("%5u %7s  %14.1e %14.1e  %8llu %10llu  %s\n", l, window[0] == '0' ? "full" : window,
               r->errors.out, r->errors.lse,
               (unsigned long long)relay_cli_p50(r->steps.total_us, r->steps.count),
               (unsigned long long)relay_cli_p50(r->steps.compute_us, r->steps.count),
               relay_cli_bytes_text(r->steps.prompt_bytes, bytes, sizeof(bytes)));
    }
    if (args->measure > 0) {
        print_measured(report, steps->model->num_layers, args->measure);
    }
    if (all->rows == 0) {
        printf("the file has nothing to compare with\n");
    } else {
        printf("%s: largest error of out %.1e (%.0e allowed), of LSE %.1e (%.0e allowed)\n",
               all->failed ? "MISMATCH" : "match", all->out, args->out_tolerance, all->lse,
               args->lse_tolerance);
    }
}

int relay_cli_print_report(const struct relay_cli_report *report,
                           const struct relay_cli_steps *steps, const struct relay_cli_args *args)
{
    const struct relay_cli_errors all = all_errors(report, steps->model->num_layers);
    if (args->json) {
        print_json(report, steps, args, &all);
    } else {
        print_text(report, steps, args, &all);
    }
    return all.failed ? RELAY_CLI_EXIT_MISMATCH : RELAY_CLI_EXIT_OK;
}
