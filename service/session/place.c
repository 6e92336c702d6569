/* What every call goes through, unary or of a stream: checks against the session's model, a slot,
 * and the lending of its requests. Nothing here allocates once a slot has been used before. */
#include "service/base/room.h"
#include "service/session/internal.h"

#define RESPONSE_HEAD_BYTES 256u /* scalars, timings and field headers around the tensors */

/* ---- shapes and sizes ---- */

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

enum relay_code relayd_session_check_entries(const struct relayd_session *session,
                                             const uint32_t *q_lens, const uint32_t *positions,
                                             uint32_t num_entries, uint32_t *rows,
                                             struct relay_error *err)
{
    uint32_t tokens_max = relayd_store_limits(session->sessions->opt.store)->context_tokens_max;
    uint64_t sum = 0;
    for (uint32_t i = 0; i < num_entries; i++) {
        uint32_t q_len = q_lens == NULL ? 1 : q_lens[i];
        if (q_len == 0) {
            return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "q_lens[%u] is 0", i);
        }
        if ((uint64_t)positions[i] + q_len > tokens_max) {
            return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                              "positions[%u] %u + %u rows exceeds the limit of %u context tokens",
                              i, positions[i], q_len, tokens_max);
        }
        sum += q_len;
    }
    if (sum == 0 || sum > session->rows_max) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                          "the call has %llu rows; this session allows 1 to %u",
                          (unsigned long long)sum, session->rows_max);
    }
    *rows = (uint32_t)sum;
    return RELAY_OK;
}

static enum relay_code check_tensors(const struct relayd_session *session,
                                     const struct relayd_placement *p, const struct row_bytes *row,
                                     struct relay_error *err)
{
    const struct relay_model *spec = relayd_session_model(session);
    enum relay_code code = check_bytes("q", row->q * p->rows, p->q_bytes, err);
    if (code != RELAY_OK || (p->k_bytes == 0 && p->v_bytes == 0)) {
        return code;
    }
    if (p->part == RELAY_PART_PROMPT_ONLY) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "k and v: PROMPT_ONLY stores nothing");
    }
    if (relay_model_kv_layer(spec, p->layer) != p->layer) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                          "k and v: layer %u uses the K/V of layer %u and stores none", p->layer,
                          relay_model_kv_layer(spec, p->layer));
    }
    code = check_bytes("k", row->k * p->rows, p->k_bytes, err);
    return code == RELAY_OK ? check_bytes("v", row->v * p->rows, p->v_bytes, err) : code;
}

enum relay_code relayd_session_place(struct relayd_session *session,
                                     const struct relayd_placement *p, struct relayd_call **out,
                                     struct relay_error *err)
{
    const struct relay_model *spec = relayd_session_model(session);
    if (p->layer >= spec->num_layers) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "layer %u: the model has %u", p->layer,
                          spec->num_layers);
    }
    struct row_bytes row = row_bytes_of(session, relay_model_kind(spec, p->layer));
    enum relay_code code = check_tensors(session, p, &row, err);
    if (code != RELAY_OK) {
        return code;
    }
    struct relayd_slot_bytes bytes = {
        .q = p->q_bytes,
        .k = p->k_bytes,
        .v = p->v_bytes,
        .out = row.out * p->rows,
        .lse = p->want_lse ? row.lse * p->rows : 0,
    };
    if (bytes.out + bytes.lse + RESPONSE_HEAD_BYTES > session->response_bytes_max) {
        return RELAY_FAIL(
            err, RELAY_INVALID_ARGUMENT,
            "the answer would have %zu bytes; this session's response_bytes_max is %u",
            bytes.out + bytes.lse + RESPONSE_HEAD_BYTES, session->response_bytes_max);
    }
    struct relayd_call *call = NULL;
    code = relayd_slots_take(session->slots, p->rows, &call, err);
    if (code != RELAY_OK) {
        return code;
    }
    code = relayd_slots_place(call, &bytes, err);
    if (code != RELAY_OK) {
        relayd_slots_give(call);
        return code;
    }
    call->session = session;
    call->tenant = session->tenant;
    call->model = session->model;
    call->layer = p->layer;
    call->part = p->part;
    call->io_dtype = session->io_dtype;
    call->out_dtype = session->out_dtype;
    call->want_lse = p->want_lse;
    call->has_kv = p->k_bytes != 0;
    call->rows = p->rows;
    *out = call;
    return RELAY_OK;
}

/* ---- admission ---- */

/* Handles to requests, into the entries and the session's scratch lends. */
static enum relay_code resolve(struct relayd_session *session, const struct relayd_admission *a,
                               struct relayd_entry_errors *errors, struct relay_error *err)
{
    enum relay_code first = RELAY_OK;
    uint64_t mark = ++session->mark;
    for (uint32_t i = 0; i < a->num_entries; i++) {
        struct session_request *entry = relayd_session_find(session, a->handles[i]);
        enum relay_code code = RELAY_OK;
        const char *msg = NULL;
        if (entry == NULL) {
            code = RELAY_NOT_FOUND;
            msg = "no such handle in this session";
        } else if (entry->mark == mark && !a->repeats) {
            code = RELAY_INVALID_ARGUMENT;
            msg = "the handle is in this call twice";
        } else if (entry->step != NULL && a->step == NULL) {
            code = RELAY_FAILED_PRECONDITION;
            msg = "a stream has a step open on the request";
        }
        if (code != RELAY_OK) {
            relayd_entry_errors_add(errors, i, code, msg);
            if (first == RELAY_OK) {
                first = RELAY_FAIL(err, code, "entry %u: %s", i, msg);
            }
            continue;
        }
        entry->mark = mark;
        a->entries[i].request = entry->request;
        session->lends[i] = (struct relayd_lend){
            .request = entry->request,
            .tokens_needed = a->reserve ? a->entries[i].position + a->entries[i].q_len : 0,
        };
    }
    return first;
}

enum relay_code relayd_session_admit(struct relayd_session *session,
                                     const struct relayd_admission *a, uint64_t *kv_tokens_free,
                                     struct relayd_entry_errors *errors, struct relay_error *err)
{
    if (session->closed) {
        return RELAY_FAIL(err, RELAY_NOT_FOUND, "the session has ended");
    }
    struct relayd_lend *lends =
        relayd_room(session->lends, &session->lends_room, a->num_entries, sizeof(*lends));
    if (lends == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for %u entries",
                          a->num_entries);
    }
    session->lends = lends;
    enum relay_code code = resolve(session, a, errors, err);
    if (code != RELAY_OK) {
        return code;
    }
    struct relay_error why = {0};
    code =
        relayd_request_lend_all(session->lends, a->num_entries, a->step_id, kv_tokens_free, &why);
    if (code == RELAY_OK) {
        return code;
    }
    bool named = false;
    for (uint32_t i = 0; i < a->num_entries; i++) {
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
