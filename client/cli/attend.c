/* relayctl attend: opens requests on a prompt, gives them their own tokens, runs the recorded steps
 * layer by layer, compares, and measures relay against plain. */
#include "attend.h"

#include "commands.h"
#include "output.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Rounds of --measure that are run and not counted: caches and connections warm up. */
#define WARMUP_ROUNDS 2u

struct run {
    const struct relay_cli_args *args;
    const struct relay_cli_steps *steps;
    struct relay_cli_report *report;
    struct relay_session *session;
    uint32_t n; /* requests; the recorded ones over and over */
    struct relay_request *requests;
    struct relay_step_entry *entries;
    /* one layer of one step, for all requests */
    uint8_t *q, *k, *v;
    float *out, *lse, *want;
};

/* Bytes of one request's part of a layer's tensors. */
struct row_bytes {
    size_t q, k, v, out, lse;
};

static struct row_bytes row_bytes(const struct run *run, uint32_t layer)
{
    const struct relay_layer_kind *kind = relay_model_kind(run->steps->model, layer);
    const size_t io = relay_dtype_size(run->steps->io_dtype);
    const struct row_bytes bytes = {
        .q = io * kind->num_q_heads * kind->head_dim_qk,
        .k = io * kind->num_kv_heads * kind->head_dim_qk,
        .v = kind->v_from_k ? 0 : io * kind->num_kv_heads * kind->head_dim_v,
        .out = sizeof(float) * kind->num_q_heads * kind->head_dim_v,
        .lse = sizeof(float) * kind->num_q_heads,
    };
    return bytes;
}

/* The recorded [step,request,...] rows of a step -> [n,...], the requests over and over. */
static void gather(const struct run *run, const uint8_t *recorded, uint32_t step, size_t bytes,
                   void *out)
{
    const uint32_t recorded_n = run->steps->num_requests;
    for (uint32_t i = 0; recorded != NULL && i < run->n; i++) {
        const size_t row = (size_t)step * recorded_n + i % recorded_n;
        memcpy((uint8_t *)out + i * bytes, recorded + row * bytes, bytes);
    }
}

static enum relay_code allocate(struct run *run, struct relay_error *err)
{
    struct row_bytes most = {0, 0, 0, 0, 0};
    for (uint32_t l = 0; l < run->steps->model->num_layers; l++) {
        const struct row_bytes b = row_bytes(run, l);
        most.q = b.q > most.q ? b.q : most.q;
        most.k = b.k > most.k ? b.k : most.k;
        most.v = b.v > most.v ? b.v : most.v;
        most.out = b.out > most.out ? b.out : most.out;
        most.lse = b.lse > most.lse ? b.lse : most.lse;
    }
    run->requests = calloc(run->n, sizeof(run->requests[0]));
    run->entries = calloc(run->n, sizeof(run->entries[0]));
    run->q = calloc(run->n, most.q);
    run->k = calloc(run->n, most.k);
    run->v = calloc(run->n, most.v + 1);
    run->out = calloc(run->n, most.out);
    run->want = calloc(run->n, most.out);
    run->lse = calloc(run->n, most.lse);
    if (run->requests == NULL || run->entries == NULL || run->q == NULL || run->k == NULL ||
        run->v == NULL || run->out == NULL || run->want == NULL || run->lse == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "out of memory");
    }
    return RELAY_OK;
}

static void run_free(struct run *run)
{
    relay_session_close(run->session);
    free(run->requests);
    free(run->entries);
    free(run->q);
    free(run->k);
    free(run->v);
    free(run->out);
    free(run->want);
    free(run->lse);
}

static enum relay_code samples_add(struct relay_cli_samples *samples, const struct relay_timings *t,
                                   struct relay_error *err)
{
    if (samples->count == samples->max) {
        const uint32_t max = samples->max > 0 ? 2 * samples->max : 16;
        uint64_t *total = realloc(samples->total_us, max * sizeof(*total));
        samples->total_us = total != NULL ? total : samples->total_us;
        uint64_t *compute = realloc(samples->compute_us, max * sizeof(*compute));
        samples->compute_us = compute != NULL ? compute : samples->compute_us;
        if (total == NULL || compute == NULL) {
            return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "out of memory");
        }
        samples->max = max;
    }
    samples->total_us[samples->count] = t->total_us;
    samples->compute_us[samples->count++] = t->compute_us;
    samples->prompt_bytes = t->prompt_bytes;
    return RELAY_OK;
}

/* Largest |got - want| / max(1, |want|). Infinities must be equal; what is no number is an infinite
 * error. */
static double largest_error(const float *got, const float *want, size_t n)
{
    double largest = 0;
    for (size_t i = 0; i < n; i++) {
        if (got[i] == want[i]) {
            continue;
        }
        const double size = fabs((double)want[i]);
        const double error = fabs((double)got[i] - (double)want[i]) / (size > 1 ? size : 1);
        if (!isfinite(error)) {
            return INFINITY;
        }
        largest = error > largest ? error : largest;
    }
    return largest;
}

static void compare(struct run *run, uint32_t step, uint32_t layer)
{
    const struct relay_cli_layer_steps *recorded = &run->steps->layers[layer];
    struct relay_cli_errors *errors = &run->report->layers[layer].errors;
    const struct row_bytes bytes = row_bytes(run, layer);
    double error;
    if (recorded->out != NULL) {
        gather(run, recorded->out, step, bytes.out, run->want);
        error = largest_error(run->out, run->want, run->n * bytes.out / sizeof(float));
        errors->out = error > errors->out ? error : errors->out;
        errors->failed = errors->failed || !(error <= run->args->out_tolerance);
    }
    if (recorded->lse != NULL) {
        gather(run, recorded->lse, step, bytes.lse, run->want);
        error = largest_error(run->lse, run->want, run->n * bytes.lse / sizeof(float));
        errors->lse = error > errors->lse ? error : errors->lse;
        errors->failed = errors->failed || !(error <= run->args->lse_tolerance);
    }
    if (recorded->out != NULL || recorded->lse != NULL) {
        errors->rows += run->n;
    }
}

static enum relay_code open_requests(struct run *run, struct relay_client *client,
                                     struct relay_error *err)
{
    struct relay_session_options options = RELAY_SESSION_OPTIONS_INIT;
    options.io_dtype = run->steps->io_dtype;
    options.out_dtype = RELAY_DTYPE_F32;
    for (uint32_t l = 0; l < run->steps->model->num_layers; l++) {
        const struct row_bytes bytes = row_bytes(run, l);
        const size_t response = run->n * (bytes.out + bytes.lse) + 4096;
        if (response > ((size_t)4 << 20) && response > options.response_bytes_max) {
            options.response_bytes_max = response < UINT32_MAX ? (uint32_t)response : UINT32_MAX;
        }
    }
    enum relay_code code =
        relay_session_open(client, run->steps->model, &options, &run->session, err);
    if (code != RELAY_OK) {
        return code;
    }
    struct relay_request_options *opens = calloc(run->n, sizeof(*opens));
    if (opens == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "out of memory");
    }
    for (uint32_t i = 0; i < run->n; i++) {
        opens[i] = (struct relay_request_options)RELAY_REQUEST_OPTIONS_INIT;
        opens[i].prompt_id = run->args->prompt_id;
        opens[i].variant = run->args->variant;
    }
    code = relay_requests_open(run->session, opens, run->n, run->requests, err);
    free(opens);
    return code;
}

/* The recording must be of a prompt of this length: else every result would differ. */
static enum relay_code check_positions(const struct run *run, struct relay_error *err)
{
    const struct relay_cli_steps *s = run->steps;
    const uint32_t prompt_tokens = run->requests[0].prompt_tokens;
    for (uint32_t i = 0; s->q_positions != NULL && i < s->num_steps * s->num_requests; i++) {
        const uint64_t position =
            (uint64_t)prompt_tokens + s->user_lens[i % s->num_requests] + i / s->num_requests;
        if (s->q_positions[i] < 0 || (uint64_t)s->q_positions[i] != position) {
            return RELAY_FAIL(err, RELAY_FAILED_PRECONDITION,
                              "the steps were recorded on another prompt: a query at position %d, "
                              "here at %llu",
                              s->q_positions[i], (unsigned long long)position);
        }
    }
    return RELAY_OK;
}

static enum relay_code append_users(struct run *run, struct relay_error *err)
{
    const struct relay_cli_steps *s = run->steps;
    struct relay_kv *layers = calloc(s->model->num_layers, sizeof(*layers));
    enum relay_code code =
        layers != NULL ? RELAY_OK : RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "out of memory");
    for (uint32_t i = 0; code == RELAY_OK && i < run->n; i++) {
        size_t first = 0; /* token of this user in the concatenation */
        const uint32_t r = i % s->num_requests;
        for (uint32_t before = 0; before < r; before++) {
            first += s->user_lens[before];
        }
        for (uint32_t l = 0; l < s->model->num_layers; l++) {
            const struct relay_layer_kind *kind = relay_model_kind(s->model, l);
            const size_t row = relay_dtype_size(s->layers[l].user_dtype) * kind->num_kv_heads;
            layers[l].dtype = s->layers[l].user_dtype;
            layers[l].k = s->layers[l].user_k + first * row * kind->head_dim_qk;
            layers[l].v =
                kind->v_from_k ? NULL : s->layers[l].user_v + first * row * kind->head_dim_v;
        }
        if (s->user_lens[r] > 0) {
            code = relay_request_append(run->session, run->requests[i].handle, 0, s->user_lens[r],
                                        layers, err);
        }
    }
    free(layers);
    return code;
}

/* One layer of a recorded step; with write, its own K/V go along. */
static enum relay_code attend(struct run *run, struct relay_step *step, uint32_t s, uint32_t layer,
                              bool write, struct relay_cli_samples *samples,
                              struct relay_error *err)
{
    const struct relay_cli_layer_steps *recorded = &run->steps->layers[layer];
    const struct row_bytes bytes = row_bytes(run, layer);
    gather(run, recorded->q, s, bytes.q, run->q);
    gather(run, recorded->k_new, s, bytes.k, run->k);
    gather(run, recorded->v_new, s, bytes.v, run->v);
    enum relay_code code =
        relay_step_attend(step, layer, run->q, write ? run->k : NULL,
                          write && bytes.v > 0 ? run->v : NULL, run->out, run->lse, err);
    if (code != RELAY_OK) {
        return code;
    }
    compare(run, s, layer);
    return samples != NULL ? samples_add(samples, relay_step_timings(step), err) : RELAY_OK;
}

static enum relay_code begin(struct run *run, uint32_t s, enum relay_sharing sharing,
                             struct relay_step **out, struct relay_error *err)
{
    struct relay_step_options options = RELAY_STEP_OPTIONS_INIT;
    options.sharing = sharing;
    for (uint32_t i = 0; i < run->n; i++) {
        run->entries[i].request = run->requests[i].handle;
        run->entries[i].position = run->steps->user_lens[i % run->steps->num_requests] + s;
        run->entries[i].q_len = 1;
    }
    return relay_step_begin(run->session, run->entries, run->n, &options, out, err);
}

static enum relay_code run_steps(struct run *run, struct relay_error *err)
{
    for (uint32_t s = 0; s < run->steps->num_steps; s++) {
        struct relay_step *step = NULL;
        enum relay_code code = begin(run, s, run->args->sharing, &step, err);
        for (uint32_t l = 0; code == RELAY_OK && l < run->steps->model->num_layers; l++) {
            code = attend(run, step, s, l, true, &run->report->layers[l].steps, err);
        }
        relay_step_end(step);
        if (code != RELAY_OK) {
            return code;
        }
    }
    return RELAY_OK;
}

/* The last step again, read only, in both modes by turns, so that both see the same machine. */
static enum relay_code measure(struct run *run, struct relay_error *err)
{
    const uint32_t last = run->steps->num_steps - 1;
    for (uint32_t round = 0; round < 2 * (run->args->measure + WARMUP_ROUNDS); round++) {
        const bool plain = round % 2 == 1;
        const bool counts = round >= 2 * WARMUP_ROUNDS;
        struct relay_step *step = NULL;
        enum relay_code code =
            begin(run, last, plain ? RELAY_SHARING_NEVER : RELAY_SHARING_AUTO, &step, err);
        for (uint32_t l = 0; code == RELAY_OK && l < run->steps->model->num_layers; l++) {
            struct relay_cli_layer_report *layer = &run->report->layers[l];
            struct relay_cli_samples *samples = plain ? &layer->plain : &layer->relay;
            code = attend(run, step, last, l, false, counts ? samples : NULL, err);
        }
        relay_step_end(step);
        if (code != RELAY_OK) {
            return code;
        }
    }
    return RELAY_OK;
}

static void report_free(struct relay_cli_report *report, uint32_t num_layers)
{
    for (uint32_t l = 0; report->layers != NULL && l < num_layers; l++) {
        struct relay_cli_samples *all[] = {&report->layers[l].steps, &report->layers[l].relay,
                                           &report->layers[l].plain};
        for (size_t i = 0; i < 3; i++) {
            free(all[i]->total_us);
            free(all[i]->compute_us);
        }
    }
    free(report->layers);
}

int relay_cli_attend(struct relay_client *client, const struct relay_cli_args *args)
{
    struct relay_cli_steps steps = {.file = NULL};
    struct relay_cli_report report = {.num_requests = 0};
    struct run run = {.args = args, .steps = &steps, .report = &report};
    struct relay_error err;
    uint32_t num_layers = 0;
    enum relay_code code = relay_cli_steps_load(args->operand, args->model_key, &steps, &err);
    if (code == RELAY_OK) {
        num_layers = steps.model->num_layers;
        run.n = args->batch > 0 ? args->batch : steps.num_requests;
        report.num_requests = run.n;
        report.layers = calloc(num_layers, sizeof(report.layers[0]));
        code = report.layers != NULL ? allocate(&run, &err)
                                     : RELAY_FAIL(&err, RELAY_RESOURCE_EXHAUSTED, "out of memory");
    }
    if (code == RELAY_OK) {
        code = open_requests(&run, client, &err);
    }
    if (code == RELAY_OK) {
        report.prompt_tokens = run.requests[0].prompt_tokens;
        code = check_positions(&run, &err);
    }
    if (code == RELAY_OK) {
        code = append_users(&run, &err);
    }
    if (code == RELAY_OK) {
        code = run_steps(&run, &err);
    }
    if (code == RELAY_OK && args->measure > 0) {
        code = measure(&run, &err);
    }
    const int exit_code = code == RELAY_OK ? relay_cli_print_report(&report, &steps, args)
                                           : relay_cli_print_error(&err);
    run_free(&run);
    report_free(&report, num_layers);
    relay_cli_steps_free(&steps);
    return exit_code;
}
