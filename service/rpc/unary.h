/* Unary RPCs that are not hot: a table row and a handler of a few lines each.
 *
 * The message is unpacked under guards, the handler fills a response or an error, and the answer
 * goes out with its status. Quick handlers run on the queue's thread, slow ones on the worker. */
#ifndef RELAYD_RPC_UNARY_H
#define RELAYD_RPC_UNARY_H

#include "service/base/work.h"
#include "service/rpc/server.h"

#include <proto/wire/unpack.h>

struct relayd_rpc_unary {
    struct relayd_rpc_call base;
    struct relayd_rpc_tag answered;
    struct relayd_work work;
    struct relay_wire_arena arena; /* request, response and what the handler allocates */
    struct relayd_rpc_detail detail;
};

/* Fills the response, whose memory may come from relayd_rpc_alloc. */
typedef enum relay_code (*relayd_rpc_handler_fn)(struct relayd_rpc_unary *unary,
                                                 const ProtobufCMessage *request,
                                                 ProtobufCMessage *response,
                                                 struct relay_error *err);

struct relayd_rpc_unary_spec {
    const ProtobufCMessageDescriptor *request;
    const ProtobufCMessageDescriptor *response;
    relayd_rpc_handler_fn handle;
    /* Submessages of which a request may bring as many as a session may have requests; NULL = none.
     */
    const ProtobufCMessageDescriptor *entries;
    bool slow;    /* may take long or wait: not on the queue's thread */
    bool lenient; /* unknown fields pass: services that are not ours */
};

void relayd_rpc_unary_start(struct relayd_rpc_call *call);
void relayd_rpc_unary_fini(struct relayd_rpc_call *call);

/* A row of a method table. */
#define RELAYD_RPC_UNARY(method_path, method_spec)                                                 \
    {                                                                                              \
        .path = (method_path), .reads_first = true, .posted = 2,                                   \
        .call_bytes = sizeof(struct relayd_rpc_unary), .start = relayd_rpc_unary_start,            \
        .fini = relayd_rpc_unary_fini, .spec = (method_spec),                                      \
    }
#define RELAYD_RPC_SERVICE "/relay.v1.RelayAttention/"

/* Memory that lives until the answer is sent. RESOURCE_EXHAUSTED. Zeroed. */
void *relayd_rpc_alloc(struct relayd_rpc_unary *unary, size_t bytes, struct relay_error *err);

/* Finds the session of a request's field 1; blames the field. */
RELAY_MUST_CHECK enum relay_code relayd_rpc_session(struct relayd_rpc_unary *unary,
                                                    const ProtobufCBinaryData *token,
                                                    struct relayd_session **out,
                                                    struct relay_error *err);
/* INVALID_ARGUMENT naming the field when got is over max; max 0 = no limit. */
RELAY_MUST_CHECK enum relay_code relayd_rpc_check_max(struct relayd_rpc_unary *unary,
                                                      const char *field, uint64_t got, uint64_t max,
                                                      struct relay_error *err);

#endif
