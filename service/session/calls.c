/* Unary calls: checked against the session's model, placed in a slot, admitted, handed over.
 * Nothing here allocates once a slot has been used before. */
#include "service/session/internal.h"

#include <string.h>

#define RESPONSE_HEAD_BYTES 256u /* scalars, timings and field headers around the tensors */

struct row_bytes {
    size_t q, k, v, out, lse;
};

static struct row_bytes row_bytes_of(const struct relayd_session *session,
                                     const struct relay_layer_kind *kind)
{
    size_t io = relay_dtype_size(session->io_dtype);
    return (struct row_bytes){
        .q = (size_t)kind->num_q_heads * kind->head_dim_qk * io,
        .k = (size_t)kind->num_kv_heads * kind->head_dim_qk * io,
        .v = kind->v_from_k ? 0 : (size_t)kind->num_kv_heads * kind->head_dim_v * io,
        .out = (size_t)kind->num_q_heads * kind->head_dim_v * relay_dtype_size(session->out_dtype),
        .lse = (size_t)kind->num_q_heads * sizeof(float),
    };
}

static enum relay_code check_bytes(const char *field, size_t expected, size_t got,
                                   struct relay_error *err)
{
    if (expected != got) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "%s: expected %zu bytes, got %zu", field,
                          expected, got);
    }
    return RELAY_OK;
}

/* Rows of all entries; checks lengths and positions. */
static enum relay_code check_entries(const struct relayd_session *session,
                                     const struct relayd_call_desc *desc, uint32_t *rows,
                                     struct relay_error *err)
{
    uint32_t tokens_max = relayd_store_limits(session->sessions->opt.store)->context_tokens_max;
    uint64_t sum = 0;
    for (uint32_t i = 0; i < desc->num_entries; i++) {
        uint32_t q_len = desc->q_lens == NULL ? 1 : desc->q_lens[i];
        if (q_len == 0) {
            return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "q_lens[%u] is 0", i);
        }
        if ((uint64_t)desc->positions[i] + q_len > tokens_max) {
            return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                              "positions[%u] %u + %u rows exceeds the limit of %u context tokens",
                              i, desc->positions[i], q_len, tokens_max);
        }
        sum += q_len;
    }
    if (sum == 0 || sum > session->rows_max) {
        return RELAY_FAIL(err, sum == 0 ? RELAY_INVALID_ARGUMENT : RELAY_RESOURCE_EXHAUSTED,
                          "the call has %llu rows; this session allows 1 to %u",
                          (unsigned long long)sum, session->rows_max);
    }
    *rows = (uint32_t)sum;
    return RELAY_OK;
}

static enum relay_code check_tensors(const struct relayd_session *session,
                                     const struct relayd_call_desc *desc,
                                     const struct row_bytes *row, uint32_t rows,
                                     struct relay_error *err)
{
    const struct relay_model *spec = relayd_session_model(session);
    enum relay_code code = check_bytes("q", row->q * rows, desc->q_bytes, err);
    if (code != RELAY_OK || (desc->k_bytes == 0 && desc->v_bytes == 0)) {
        return code;
    }
    if (desc->part == RELAY_PART_PROMPT_ONLY) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "k and v: PROMPT_ONLY stores nothing");
    }
    if (relay_model_kv_layer(spec, desc->layer) != desc->layer) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                          "k and v: layer %u uses the K/V of layer %u and stores none", desc->layer,
                          relay_model_kv_layer(spec, desc->layer));
    }
    code = check_bytes("k", row->k * rows, desc->k_bytes, err);
    return code == RELAY_OK ? check_bytes("v", row->v * rows, desc->v_bytes, err) : code;
}

static enum relay_code check_response(const struct relayd_session *session,
                                      const struct relayd_call_desc *desc,
                                      const struct row_bytes *row, uint32_t rows,
                                      struct relay_error *err)
{
    size_t bytes = rows * (row->out + (desc->want_lse ? row->lse : 0)) + RESPONSE_HEAD_BYTES;
    if (bytes > session->response_bytes_max) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED,
                          "the answer would have %zu bytes; this session's response_bytes_max "
                          "is %u",
                          bytes, session->response_bytes_max);
    }
    return RELAY_OK;
}

static void fill_call(const struct relayd_session *session, const struct relayd_call_desc *desc,
                      uint32_t rows, struct relayd_call *call)
{
    call->session = session;
    call->tenant = session->tenant;
    call->model = session->model;
    call->step_id = desc->step_id;
    call->layer = desc->layer;
    call->part = desc->part;
    call->sharing = desc->sharing;
    call->io_dtype = session->io_dtype;
    call->out_dtype = session->out_dtype;
    call->want_lse = desc->want_lse;
    call->want_timings = desc->want_timings;
    call->has_kv = desc->k_bytes != 0;
    call->num_entries = desc->num_entries;
    call->rows = rows;
    call->received_ns = desc->received_ns;
    call->deadline_ns = desc->deadline_ns;
    uint32_t row = 0;
    for (uint32_t i = 0; i < desc->num_entries; i++) {
        uint32_t q_len = desc->q_lens == NULL ? 1 : desc->q_lens[i];
        call->entries[i] = (struct relayd_call_entry){
            .row_begin = row,
            .q_len = q_len,
            .position = desc->positions[i],
        };
        row += q_len;
    }
}

enum relay_code relayd_session_call_begin(struct relayd_session *session,
                                          const struct relayd_call_desc *desc,
                                          struct relayd_call **out, struct relay_error *err)
{
    const struct relay_model *spec = relayd_session_model(session);
    if (desc->layer >= spec->num_layers) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "layer %u: the model has %u", desc->layer,
                          spec->num_layers);
    }
    uint32_t rows = 0;
    struct row_bytes row = row_bytes_of(session, relay_model_kind(spec, desc->layer));
    enum relay_code code = check_entries(session, desc, &rows, err);
    if (code == RELAY_OK) {
        code = check_tensors(session, desc, &row, rows, err);
    }
    if (code == RELAY_OK) {
        code = check_response(session, desc, &row, rows, err);
    }
    struct relayd_call *call = NULL;
    if (code == RELAY_OK) {
        code = relayd_slots_take(session->slots, &call, err);
    }
    if (code != RELAY_OK) {
        return code;
    }
    struct relayd_slot_bytes bytes = {
        .q = desc->q_bytes,
        .k = desc->k_bytes,
        .v = desc->v_bytes,
        .out = row.out * rows,
        .lse = desc->want_lse ? row.lse * rows : 0,
    };
    code = relayd_slots_place(call, &bytes, err);
    if (code != RELAY_OK) {
        relayd_slots_give(call);
        return code;
    }
    fill_call(session, desc, rows, call);
    *out = call;
    return RELAY_OK;
}

/* Handles to requests, into the call and the session's scratch lends. Under the session's mutex. */
static enum relay_code resolve(struct relayd_session *session, struct relayd_call *call,
                               const uint64_t *handles, struct relayd_entry_errors *errors,
                               struct relay_error *err)
{
    enum relay_code first = RELAY_OK;
    uint64_t mark = ++session->mark;
    for (uint32_t i = 0; i < call->num_entries; i++) {
        struct session_request *entry = relayd_session_find(session, handles[i]);
        enum relay_code code = RELAY_OK;
        const char *msg = NULL;
        if (entry == NULL) {
            code = RELAY_NOT_FOUND;
            msg = "no such handle in this session";
        } else if (entry->mark == mark && call->part != RELAY_PART_PROMPT_ONLY) {
            code = RELAY_INVALID_ARGUMENT;
            msg = "the handle is in this call twice";
        }
        if (code != RELAY_OK) {
            relayd_entry_errors_add(errors, i, code, msg);
            if (first == RELAY_OK) {
                first = RELAY_FAIL(err, code, "entry %u: %s", i, msg);
            }
            continue;
        }
        entry->mark = mark;
        struct relayd_call_entry *e = &call->entries[i];
        e->request = entry->request;
        session->lends[i] = (struct relayd_lend){
            .request = entry->request,
            .tokens_needed = call->has_kv ? e->position + e->q_len : 0,
        };
    }
    return first;
}

static void unlend_all(struct relayd_call *call)
{
    for (uint32_t i = 0; i < call->num_entries; i++) {
        relayd_request_unlend(call->entries[i].request);
    }
}

static enum relay_code lend(struct relayd_session *session, struct relayd_call *call,
                            struct relayd_entry_errors *errors, struct relay_error *err)
{
    struct relay_error why = {0};
    enum relay_code code =
        relayd_request_lend_all(session->lends, call->num_entries, call->step_id, NULL, &why);
    if (code == RELAY_OK) {
        return code;
    }
    bool named = false;
    for (uint32_t i = 0; i < call->num_entries; i++) {
        const struct relayd_lend *l = &session->lends[i];
        if (l->code != RELAY_OK) {
            relayd_entry_errors_add(errors, i, l->code, l->msg);
            if (!named) {
                (void)RELAY_FAIL(err, code, "entry %u: %s", i, l->msg);
                named = true;
            }
        }
    }
    return named ? code : RELAY_FAIL(err, code, "%.200s", why.msg);
}

enum relay_code relayd_session_call_submit(struct relayd_session *session, struct relayd_call *call,
                                           const uint64_t *handles, relayd_call_done_fn on_done,
                                           void *user, struct relayd_entry_errors *errors,
                                           struct relay_error *err)
{
    call->give_back = unlend_all;
    call->on_done = on_done;
    call->user = user;
    pthread_mutex_lock(&session->mutex);
    enum relay_code code = session->closed
                               ? RELAY_FAIL(err, RELAY_NOT_FOUND, "the session has ended")
                               : resolve(session, call, handles, errors, err);
    if (code == RELAY_OK) {
        code = lend(session, call, errors, err);
    }
    if (code == RELAY_OK) {
        /* Handed over under the mutex, so that a session's calls reach the executor in the order in
         * which their requests were lent. */
        code = relayd_executor_submit(session->sessions->opt.executor, call, err);
        if (code != RELAY_OK) {
            unlend_all(call);
        }
    }
    pthread_mutex_unlock(&session->mutex);
    return code;
}
