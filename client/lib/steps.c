/* Steps over the unary call: one message a layer. A step belongs to one thread at a time. */
#include "client_internal.h"

#include <proto/wire/attend.h>
#include <stdlib.h>
#include <string.h>

struct relay_step {
    struct relay_session *session;
    struct relay_wire_attend_request request; /* all but layer and want_lse stays for the step */
    uint32_t rows;
    uint32_t timeout_ms;
    struct relay_timings timings;
    /* handles [n], then positions [n] and q_lens [n] */
    uint64_t arrays[];
};

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

enum relay_code relay_step_begin(struct relay_session *session,
                                 const struct relay_step_entry *entries, uint32_t n,
                                 const struct relay_step_options *options, struct relay_step **out,
                                 struct relay_error *err)
{
    const struct relay_step_options defaults = RELAY_STEP_OPTIONS_INIT;
    const struct relay_step_options *o = options != NULL ? options : &defaults;
    uint32_t rows = 0;
    const enum relay_code code = check(entries, n, o, &rows, err);
    if (code != RELAY_OK) {
        return code;
    }
    struct relay_step *step = calloc(1, sizeof(*step) + 2 * (size_t)n * sizeof(step->arrays[0]));
    if (step == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "out of memory");
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
    step->request = (struct relay_wire_attend_request){
        .session_bytes = sizeof(session->token),
        .step_id = next_step_id(session, o->step_id),
        .part = o->part,
        .sharing = o->sharing,
        .want_timings = true,
        .entries = {handles, q_lens, positions, n, n, n},
    };
    memcpy(step->request.session, session->token, sizeof(session->token));
    *out = step;
    return RELAY_OK;
}

struct sizes {
    size_t q, k, v, out, lse; /* bytes */
};

static struct sizes layer_sizes(const struct relay_step *step, uint32_t layer)
{
    const struct relay_session *s = step->session;
    const struct relay_layer_kind *kind = relay_model_kind(s->model, layer);
    const size_t io = relay_dtype_size(s->io_dtype) * step->rows;
    struct sizes sizes = {
        .q = io * kind->num_q_heads * kind->head_dim_qk,
        .k = io * kind->num_kv_heads * kind->head_dim_qk,
        .v = kind->v_from_k ? 0 : io * kind->num_kv_heads * kind->head_dim_v,
        .out = relay_dtype_size(s->out_dtype) * step->rows * kind->num_q_heads * kind->head_dim_v,
        .lse = sizeof(float) * step->rows * kind->num_q_heads,
    };
    return sizes;
}

/* Copies the tensors and encodes; NULL when memory is out. */
static grpc_byte_buffer *encode(struct relay_step *step, const struct sizes *sizes, const void *q,
                                const void *k, const void *v)
{
    const size_t k_bytes = k != NULL ? sizes->k : 0;
    const size_t v_bytes = v != NULL ? sizes->v : 0;
    struct relay_buffer *buffer =
        relay_buffer_take(step->session->client->buffers, k_bytes + v_bytes + sizes->q);
    if (buffer == NULL) {
        return NULL;
    }
    uint8_t *data = relay_buffer_data(buffer);
    if (k_bytes > 0) {
        memcpy(data, k, k_bytes);
    }
    if (v_bytes > 0) {
        memcpy(data + k_bytes, v, v_bytes);
    }
    memcpy(data + k_bytes + v_bytes, q, sizes->q);
    grpc_byte_buffer *encoded =
        relay_wire_attend_request_encode(&step->request, relay_buffer_slice(buffer, 0, k_bytes),
                                         relay_buffer_slice(buffer, k_bytes, v_bytes),
                                         relay_buffer_slice(buffer, k_bytes + v_bytes, sizes->q));
    relay_buffer_release(buffer);
    return encoded;
}

static enum relay_code decode(struct relay_step *step, const struct sizes *sizes,
                              const grpc_byte_buffer *received, void *out, float *lse,
                              struct relay_error *err)
{
    struct relay_wire_view view;
    struct relay_wire_attend_response m;
    struct relay_error why;
    enum relay_code code = relay_wire_view_init(&view, received, &why);
    if (code == RELAY_OK) {
        code = relay_wire_attend_response_decode(&view, &m, &why);
    }
    if (code != RELAY_OK) {
        return RELAY_FAIL(err, RELAY_INTERNAL, "the server's answer is not readable: %.180s",
                          why.msg);
    }
    if (m.out.length != sizes->out || (lse != NULL && m.lse.length != sizes->lse)) {
        return RELAY_FAIL(err, RELAY_INTERNAL,
                          "the server's answer has %zu bytes of out and %zu of lse, expected %zu "
                          "and %zu",
                          m.out.length, m.lse.length, sizes->out, lse != NULL ? sizes->lse : 0);
    }
    if (m.step_id != step->request.step_id || m.layer != step->request.layer) {
        return RELAY_FAIL(err, RELAY_INTERNAL, "the server answered another step or layer");
    }
    relay_wire_gather(&view, m.out, out);
    if (lse != NULL) {
        relay_wire_gather(&view, m.lse, lse);
    }
    step->timings = (struct relay_timings){
        .queue_us = m.timings.queue_us,
        .plan_us = m.timings.plan_us,
        .compute_us = m.timings.compute_us,
        .batch_rows = m.timings.batch_rows,
        .batch_sessions = m.timings.batch_sessions,
        .prompt_bytes = m.timings.prompt_bytes,
        .kv_bytes = m.timings.kv_bytes,
    };
    return RELAY_OK;
}

enum relay_code relay_step_attend(struct relay_step *step, uint32_t layer, const void *q,
                                  const void *k, const void *v, void *out, float *lse,
                                  struct relay_error *err)
{
    struct relay_session *session = step->session;
    const uint64_t start_us = relay_now_us();
    if (layer >= session->model->num_layers) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "layer %u of %u", layer,
                          session->model->num_layers);
    }
    const bool v_from_k = relay_model_kind(session->model, layer)->v_from_k;
    if (q == NULL || out == NULL || (v != NULL && (k == NULL || v_from_k)) ||
        (k != NULL && v == NULL && !v_from_k)) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                          "q and out are needed; k and v come together (v never with v_from_k)");
    }
    const struct sizes sizes = layer_sizes(step, layer);
    step->request.layer = layer;
    step->request.want_lse = lse != NULL;
    grpc_byte_buffer *sending = encode(step, &sizes, q, k, v);
    if (sending == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "out of memory");
    }
    grpc_byte_buffer *received = NULL;
    /* Step ids are never 0 here, and the same step never shortens: safe to repeat. */
    enum relay_code code = relay_call(session->client, RELAY_METHOD_ATTEND, sending,
                                      step->timeout_ms, RELAY_REPEAT_SAFE, &received, err);
    grpc_byte_buffer_destroy(sending);
    if (code != RELAY_OK) {
        return code;
    }
    code = decode(step, &sizes, received, out, lse, err);
    grpc_byte_buffer_destroy(received);
    if (code == RELAY_OK) {
        step->timings.total_us = relay_now_us() - start_us;
        relay_session_used(session);
    }
    return code;
}

void relay_step_end(struct relay_step *step)
{
    free(step);
}

const struct relay_timings *relay_step_timings(const struct relay_step *step)
{
    return &step->timings;
}

uint64_t relay_step_id(const struct relay_step *step)
{
    return step->request.step_id;
}

uint32_t relay_step_rows(const struct relay_step *step)
{
    return step->rows;
}
