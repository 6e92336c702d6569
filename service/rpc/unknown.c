/* The catch-all: without a pending grpc_server_request_call, a call to a method that does not exist
 * would hang to its deadline. Queue's thread. */
#include "service/rpc/server.h"

struct unknown_call {
    struct relayd_rpc_call base;
    struct relayd_rpc_tag answered;
};

static void answered(struct relayd_rpc_tag *tag, bool ok)
{
    (void)ok;
    relayd_rpc_call_drop(tag->call);
}

static void start(struct relayd_rpc_call *call)
{
    struct unknown_call *unknown = (struct unknown_call *)call;
    struct relay_error err = {0};
    size_t bytes = GRPC_SLICE_LENGTH(call->details.method);
    (void)RELAY_FAIL(&err, RELAY_UNIMPLEMENTED, "this server has no method %.*s",
                     bytes > 128 ? 128 : (int)bytes,
                     (const char *)GRPC_SLICE_START_PTR(call->details.method));
    relayd_rpc_tag_init(&unknown->answered, call, answered);
    relayd_rpc_call_answer(call, NULL, &err, NULL, &unknown->answered);
}

const struct relayd_rpc_method relayd_rpc_unknown_methods[] = {
    {
        .path = NULL,
        .posted = 2,
        .call_bytes = sizeof(struct unknown_call),
        .start = start,
    },
    {.start = NULL},
};
