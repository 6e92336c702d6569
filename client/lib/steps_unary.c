/* A layer over the unary call: one message, self-contained. On the caller's thread. */
#include "steps_internal.h"

#include <stdlib.h>
#include <string.h>

/* The step's entries that have rows in [begin, +count), cut to them; arrays are the caller's. */
static void cut_entries(const struct relay_wire_entries *from, uint32_t begin, uint32_t count,
                        uint64_t *handles, uint32_t *q_lens, uint32_t *positions,
                        struct relay_wire_entries *out)
{
    uint32_t n = 0, row = 0;
    for (uint32_t i = 0; i < from->num_handles; i++) {
        const uint32_t q_len = from->num_q_lens > 0 ? from->q_lens[i] : 1;
        const uint32_t first = row > begin ? row : begin;
        const uint32_t end = row + q_len < begin + count ? row + q_len : begin + count;
        if (first < end) {
            handles[n] = from->handles[i];
            q_lens[n] = end - first;
            positions[n++] = from->positions[i] + (first - row);
        }
        row += q_len;
    }
    *out = (struct relay_wire_entries){handles, q_lens, positions, n, n, n};
}

/* Copies the tensors, since gRPC may read them after the deadline; NULL when memory is out. */
static grpc_byte_buffer *encode(struct relay_step *step, const struct relay_step_call *call,
                                const struct relay_wire_attend_request *request)
{
    const size_t k_bytes = call->k_bytes, v_bytes = call->v_bytes;
    struct relay_buffer *buffer =
        relay_buffer_take(step->session->client->buffers, k_bytes + v_bytes + call->q_bytes);
    if (buffer == NULL) {
        return NULL;
    }
    uint8_t *data = relay_buffer_data(buffer);
    if (k_bytes > 0) {
        memcpy(data, call->k, k_bytes);
    }
    if (v_bytes > 0) {
        memcpy(data + k_bytes, call->v, v_bytes);
    }
    memcpy(data + k_bytes + v_bytes, call->q, call->q_bytes);
    grpc_byte_buffer *encoded = relay_wire_attend_request_encode(
        request, relay_buffer_slice(buffer, 0, k_bytes),
        relay_buffer_slice(buffer, k_bytes, v_bytes),
        relay_buffer_slice(buffer, k_bytes + v_bytes, call->q_bytes));
    relay_buffer_release(buffer);
    return encoded;
}

static enum relay_code decode(const struct relay_step *step, struct relay_step_call *call,
                              const grpc_byte_buffer *received)
{
    struct relay_error *err = &call->error;
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
    if (m.step_id != step->link_step.begin.step_id || m.layer != call->layer) {
        return RELAY_FAIL(err, RELAY_INTERNAL, "the server answered another step or layer");
    }
    return relay_step_call_take(call, &view, m.out, m.lse, &m.timings, err);
}

void relay_step_call_unary(struct relay_step *step, struct relay_step_call *call)
{
    struct relay_session *session = step->session;
    const struct relay_wire_begin *begin = &step->link_step.begin;
    const uint32_t n = begin->entries.num_handles;
    uint64_t *arrays = NULL;
    struct relay_wire_attend_request request = {
        .session_bytes = sizeof(session->token),
        .layer = call->layer,
        .step_id = begin->step_id,
        .part = begin->part,
        .sharing = begin->sharing,
        .want_lse = call->lse != NULL,
        .want_timings = begin->want_timings,
        .entries = begin->entries,
    };
    memcpy(request.session, session->token, sizeof(session->token));
    if (call->row_count > 0) {
        arrays = calloc(n, sizeof(uint64_t) + 2 * sizeof(uint32_t));
        if (arrays == NULL) {
            (void)RELAY_FAIL(&call->error, RELAY_RESOURCE_EXHAUSTED, "out of memory");
            return;
        }
        uint32_t *q_lens = (uint32_t *)(arrays + n);
        cut_entries(&begin->entries, call->row_begin, call->row_count, arrays, q_lens, q_lens + n,
                    &request.entries);
    }
    grpc_byte_buffer *received = NULL;
    grpc_byte_buffer *sending = encode(step, call, &request);
    free(arrays);
    if (sending == NULL) {
        (void)RELAY_FAIL(&call->error, RELAY_RESOURCE_EXHAUSTED, "out of memory");
        return;
    }
    /* Step ids are never 0 here, and the same step never shortens: safe to repeat. */
    const enum relay_code code =
        relay_call(session->client, RELAY_METHOD_ATTEND, sending, step->timeout_ms,
                   RELAY_REPEAT_SAFE, &received, &call->error);
    grpc_byte_buffer_destroy(sending);
    if (code != RELAY_OK) {
        return;
    }
    if (decode(step, call, received) == RELAY_OK) {
        relay_session_used(session);
    }
    grpc_byte_buffer_destroy(received);
}
