/* Steps: what the caller sees. Checks arguments, keeps tickets, and hands calls to the session's
 * link, or makes unary calls where the session has none. A step belongs to one thread at a time. */
#include "steps_internal.h"

#include <stdlib.h>
#include <string.h>

/* ---- beginning ---- */

static enum relay_code check(const struct relay_step_entry *entries, uint32_t n,
                             const struct relay_step_options *o, uint32_t *rows,
                             struct relay_error *err)
{
    if (o->size != sizeof(*o)) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "step options: size %zu is not %zu", o->size,
                          sizeof(*o));
    }
    if (n == 0 || entries == NULL) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "a step has at least one entry");
    }
    uint64_t sum = 0;
    for (uint32_t i = 0; i < n; i++) {
        sum += entries[i].q_len > 0 ? entries[i].q_len : 1;
    }
    if (sum > UINT32_MAX) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "%llu rows", (unsigned long long)sum);
    }
    *rows = (uint32_t)sum;
    return RELAY_OK;
}

/* The session's next id, or the caller's, and then the next ones go on from there. */
static uint64_t next_step_id(struct relay_session *session, uint64_t wanted)
{
    uint64_t last = atomic_load(&session->step_id);
    for (;;) {
        const uint64_t id = wanted != 0 ? wanted : last + 1;
        if (atomic_compare_exchange_weak(&session->step_id, &last, id > last ? id : last)) {
            return id;
        }
    }
}

static void step_free(struct relay_link_step *step)
{
    free(step); /* the first member of struct relay_step */
}

static struct relay_step *step_create(struct relay_session *session,
                                      const struct relay_step_entry *entries, uint32_t n,
                                      uint32_t rows, const struct relay_step_options *o)
{
    struct relay_step *step = calloc(1, sizeof(*step) + 2 * (size_t)n * sizeof(step->arrays[0]));
    if (step == NULL) {
        return NULL;
    }
    uint64_t *handles = step->arrays;
    uint32_t *positions = (uint32_t *)(handles + n);
    uint32_t *q_lens = positions + n;
    for (uint32_t i = 0; i < n; i++) {
        handles[i] = entries[i].request;
        positions[i] = entries[i].position;
        q_lens[i] = entries[i].q_len > 0 ? entries[i].q_len : 1;
    }
    step->session = session;
    step->rows = rows;
    step->timeout_ms = o->timeout_ms;
    step->link_step.free = step_free;
    step->link_step.begin = (struct relay_wire_begin){
        .step_id = next_step_id(session, o->step_id),
        .part = o->part,
        .sharing = o->sharing,
        .want_lse = o->want_lse,
        .want_timings = o->want_timings,
        .timeout_us = o->timeout_us,
        .align_us = o->align_us,
        /* One row each is what the server takes no lengths for. */
        .entries = {handles, q_lens, positions, n, rows > n ? n : 0, n},
    };
    return step;
}

static uint64_t deadline_us(const struct relay_step *step)
{
    const uint32_t timeout_ms =
        step->timeout_ms > 0 ? step->timeout_ms : step->session->client->options.timeout_ms;
    return relay_now_us() + (uint64_t)timeout_ms * 1000u;
}

enum relay_code relay_step_begin(struct relay_session *session,
                                 const struct relay_step_entry *entries, uint32_t n,
                                 const struct relay_step_options *options, struct relay_step **out,
                                 struct relay_error *err)
{
    const struct relay_step_options defaults = RELAY_STEP_OPTIONS_INIT;
    const struct relay_step_options *o = options != NULL ? options : &defaults;
    struct relay_link *link = session->link;
    uint32_t rows = 0;
    enum relay_code code = check(entries, n, o, &rows, err);
    if (code != RELAY_OK) {
        return code;
    }
    struct relay_step *step = step_create(session, entries, n, rows, o);
    if (step == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "out of memory");
    }
    if (link != NULL) {
        code = relay_link_begin(link, &step->link_step, err);
        if (code != RELAY_OK) {
            free(step);
            return code;
        }
        if (o->wait_admitted) {
            code = relay_link_wait_begun(link, &step->link_step, deadline_us(step), err);
        }
    }
    if (code != RELAY_OK) {
        relay_step_end(step);
        return code;
    }
    *out = step;
    return RELAY_OK;
}

/* ---- calls ---- */

static enum relay_code check_call(const struct relay_step *step, const struct relay_step_call *call,
                                  struct relay_error *err)
{
    const struct relay_model *model = step->session->model;
    if (call->layer >= model->num_layers) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "layer %u of %u", call->layer,
                          model->num_layers);
    }
    const bool v_from_k = relay_model_kind(model, call->layer)->v_from_k;
    if (call->q == NULL || call->out == NULL ||
        (call->v != NULL && (call->k == NULL || v_from_k)) ||
        (call->k != NULL && call->v == NULL && !v_from_k)) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                          "q and out are needed; k and v come together (v never with v_from_k)");
    }
    if (call->lse != NULL && !step->link_step.begin.want_lse) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "the step was begun without want_lse");
    }
    if (call->row_count > step->rows || call->row_begin > step->rows - call->row_count) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "rows [%u, +%u) of %u", call->row_begin,
                          call->row_count, step->rows);
    }
    return RELAY_OK;
}

static void fill_sizes(const struct relay_step *step, struct relay_step_call *call)
{
    const struct relay_session *s = step->session;
    const struct relay_layer_kind *kind = relay_model_kind(s->model, call->layer);
    const uint32_t rows = call->row_count > 0 ? call->row_count : step->rows;
    const size_t io = relay_dtype_size(s->io_dtype) * rows;
    call->q_bytes = io * kind->num_q_heads * kind->head_dim_qk;
    call->k_bytes = call->k != NULL ? io * kind->num_kv_heads * kind->head_dim_qk : 0;
    call->v_bytes = call->v != NULL ? io * kind->num_kv_heads * kind->head_dim_v : 0;
    call->out_bytes = relay_dtype_size(s->out_dtype) * rows * kind->num_q_heads * kind->head_dim_v;
    call->lse_bytes = sizeof(float) * rows * kind->num_q_heads;
}

static enum relay_code submit(struct relay_step *step, const struct relay_step_call *desc,
                              uint64_t *ticket, struct relay_error *err)
{
    enum relay_code code = check_call(step, desc, err);
    if (code != RELAY_OK) {
        return code;
    }
    struct relay_step_call *call = malloc(sizeof(*call));
    if (call == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "out of memory");
    }
    *call = *desc;
    fill_sizes(step, call);
    call->step = &step->link_step;
    call->submitted_us = relay_now_us();
    if (step->session->link == NULL) {
        relay_step_call_unary(step, call);
    } else {
        code = relay_link_submit(step->session->link, call, err);
        if (code != RELAY_OK) {
            free(call);
            return code;
        }
    }
    call->ticket = ++step->last_ticket;
    call->next_of_step = step->calls;
    step->calls = call;
    *ticket = call->ticket;
    return RELAY_OK;
}

enum relay_code relay_step_submit(struct relay_step *step, uint32_t layer, const void *q,
                                  const void *k, const void *v, void *out, float *lse,
                                  uint64_t *ticket, struct relay_error *err)
{
    const struct relay_step_call desc = {
        .layer = layer, .q = q, .k = k, .v = v, .out = out, .lse = lse};
    return submit(step, &desc, ticket, err);
}

enum relay_code relay_step_submit_rows(struct relay_step *step, uint32_t layer, uint32_t row_begin,
                                       uint32_t row_count, const void *q, const void *k,
                                       const void *v, void *out, float *lse, uint64_t *ticket,
                                       struct relay_error *err)
{
    const struct relay_step_call desc = {.layer = layer,
                                         .row_begin = row_begin,
                                         .row_count = row_count,
                                         .q = q,
                                         .k = k,
                                         .v = v,
                                         .out = out,
                                         .lse = lse};
    if (row_count == 0) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "a piece of 0 rows");
    }
    return submit(step, &desc, ticket, err);
}

enum relay_code relay_step_wait(struct relay_step *step, uint64_t ticket, struct relay_error *err)
{
    struct relay_link *link = step->session->link;
    struct relay_step_call **at = &step->calls;
    while (*at != NULL && (*at)->ticket != ticket) {
        at = &(*at)->next_of_step;
    }
    struct relay_step_call *call = *at;
    if (call == NULL) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "ticket %llu is not to be waited for",
                          (unsigned long long)ticket);
    }
    *at = call->next_of_step;
    enum relay_code code;
    bool given_up = false;
    if (link != NULL) {
        code = relay_link_wait_call(link, call, deadline_us(step), &given_up, err);
    } else {
        code = call->error.code;
        if (code != RELAY_OK && err != NULL) {
            *err = call->error;
        }
    }
    if (code == RELAY_OK) {
        step->timings = call->timings;
    }
    if (!given_up) {
        free(call);
    }
    return code;
}

enum relay_code relay_step_attend(struct relay_step *step, uint32_t layer, const void *q,
                                  const void *k, const void *v, void *out, float *lse,
                                  struct relay_error *err)
{
    uint64_t ticket = 0;
    const enum relay_code code = relay_step_submit(step, layer, q, k, v, out, lse, &ticket, err);
    return code == RELAY_OK ? relay_step_wait(step, ticket, err) : code;
}

void relay_step_end(struct relay_step *step)
{
    if (step == NULL) {
        return;
    }
    struct relay_link *link = step->session->link;
    while (step->calls != NULL) {
        struct relay_step_call *call = step->calls;
        step->calls = call->next_of_step;
        if (link != NULL) {
            relay_link_give_up(link, call);
        } else {
            free(call);
        }
    }
    if (link != NULL) {
        relay_link_end(link, &step->link_step);
    } else {
        free(step);
    }
}

/* ---- observers ---- */

const struct relay_timings *relay_step_timings(const struct relay_step *step)
{
    return &step->timings;
}

uint64_t relay_step_id(const struct relay_step *step)
{
    return step->link_step.begin.step_id;
}

uint32_t relay_step_rows(const struct relay_step *step)
{
    return step->rows;
}

uint64_t relay_step_kv_tokens_free(struct relay_step *step)
{
    return step->session->link != NULL
               ? relay_link_kv_tokens_free(step->session->link, &step->link_step)
               : 0;
}
