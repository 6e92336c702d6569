/* Runs unary calls: queue thread -> (worker) -> answer. One thread at a time has the call. */
#include "service/rpc/unary.h"

#include <proto/wire/wire.h>
#include <stdio.h>
#include <string.h>

static void answered(struct relayd_rpc_tag *tag, bool ok)
{
    (void)ok; /* a client that is gone */
    relayd_rpc_call_drop(tag->call);
}

static enum relay_code handle(struct relayd_rpc_unary *unary, grpc_byte_buffer **message,
                              struct relay_error *err)
{
    const struct relayd_rpc_unary_spec *spec = unary->base.method->spec;
    struct relay_wire_view view;
    ProtobufCMessage *request = NULL;
    enum relay_code code = relay_wire_view_init(&view, unary->base.message, err);
    if (code != RELAY_OK) {
        return code;
    }
    if (spec->entries != NULL) {
        relay_wire_arena_grant_messages(
            &unary->arena,
            relayd_sessions_limits(unary->base.rpc->opt.sessions)->requests_per_session_max,
            spec->entries);
    }
    if (spec->lenient) {
        code = relay_wire_unpack_response(&view, relay_wire_whole(&view), spec->request,
                                          &unary->arena, &request, err);
    } else {
        code = relay_wire_unpack_request(&view, spec->request, &unary->arena, &request, err);
    }
    if (code != RELAY_OK) {
        return code;
    }
    ProtobufCMessage *response = relayd_rpc_alloc(unary, spec->response->sizeof_message, err);
    if (response == NULL) {
        return RELAY_RESOURCE_EXHAUSTED;
    }
    spec->response->message_init(response);
    code = spec->handle(unary, request, response, err);
    if (code != RELAY_OK) {
        return code;
    }
    *message = relay_wire_pack(response);
    return RELAY_OK;
}

static void run(struct relayd_rpc_unary *unary)
{
    struct relay_error err = {0};
    grpc_byte_buffer *message = NULL;
    if (relayd_rpc_call_cancelled(&unary->base)) { /* nobody waits for it */
        relayd_rpc_call_drop(&unary->base);
        return;
    }
    enum relay_code code = handle(unary, &message, &err);
    err.code = code;
    relayd_rpc_call_answer(&unary->base, message, &err, &unary->detail, &unary->answered);
    relayd_rpc_call_drop(&unary->base);
}

static void run_work(struct relayd_work *work)
{
    run((struct relayd_rpc_unary *)((char *)work - offsetof(struct relayd_rpc_unary, work)));
}

void relayd_rpc_unary_start(struct relayd_rpc_call *call)
{
    struct relayd_rpc_unary *unary = (struct relayd_rpc_unary *)call;
    const struct relayd_rpc_unary_spec *spec = call->method->spec;
    relayd_rpc_tag_init(&unary->answered, call, answered);
    relay_wire_arena_init(&unary->arena);
    relayd_rpc_detail_clear(&unary->detail);
    relayd_rpc_call_hold(call);
    if (spec->slow) {
        unary->work.run = run_work;
        relayd_worker_submit(call->rpc->opt.worker, &unary->work);
    } else {
        run(unary);
    }
}

void relayd_rpc_unary_fini(struct relayd_rpc_call *call)
{
    relay_wire_arena_fini(&((struct relayd_rpc_unary *)call)->arena);
}

/* ---- for handlers -----------------------------------------------------------------------------
 */

void *relayd_rpc_alloc(struct relayd_rpc_unary *unary, size_t bytes, struct relay_error *err)
{
    /* Granted with room for the alignment. */
    relay_wire_arena_grant(&unary->arena, bytes + 2 * _Alignof(max_align_t));
    void *memory = relay_wire_arena_alloc(&unary->arena, bytes);
    if (memory == NULL) {
        (void)RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for the answer");
        return NULL;
    }
    return memset(memory, 0, bytes);
}

enum relay_code relayd_rpc_session(struct relayd_rpc_unary *unary, const ProtobufCBinaryData *token,
                                   struct relayd_session **out, struct relay_error *err)
{
    struct relayd_rpc *rpc = unary->base.rpc;
    enum relay_code code = relayd_session_acquire(
        rpc->opt.sessions, relayd_rpc_tenant(&unary->base), token->data, token->len, out, err);
    if (code != RELAY_OK) {
        unary->detail.field = "session";
    }
    return code;
}

enum relay_code relayd_rpc_check_max(struct relayd_rpc_unary *unary, const char *field,
                                     uint64_t got, uint64_t max, struct relay_error *err)
{
    if (max == 0 || got <= max) {
        return RELAY_OK;
    }
    unary->detail.field = field;
    snprintf(unary->detail.expected, sizeof(unary->detail.expected), "at most %llu",
             (unsigned long long)max);
    snprintf(unary->detail.got, sizeof(unary->detail.got), "%llu", (unsigned long long)got);
    return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "%s: %llu is more than the limit of %llu", field,
                      (unsigned long long)got, (unsigned long long)max);
}
