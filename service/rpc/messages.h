/* Objects of the service as protobuf messages, and checks that several messages share.
 *
 * Any thread. What is returned borrows from its inputs and from the arena of the call. */
#ifndef RELAYD_RPC_MESSAGES_H
#define RELAYD_RPC_MESSAGES_H

#include "service/rpc/unary.h"

#include <relay/v1/relay.pb-c.h>

/* Most names in OpenSession's features. */
#define RELAYD_RPC_FEATURES_MAX 64u

/* Every limit; session NULL: the server's. */
void relayd_rpc_limits(const struct relayd_rpc *rpc, const struct relayd_session_info *session,
                       Relay__V1__Limits *out);

/* Fills a Prompt; labels come from the arena. RESOURCE_EXHAUSTED. */
RELAY_MUST_CHECK enum relay_code relayd_rpc_prompt(struct relay_wire_arena *arena,
                                                   const struct relayd_prompt_info *info,
                                                   Relay__V1__Prompt *out, struct relay_error *err);

/* A field that is wrong: INVALID_ARGUMENT with the text, the field in the detail. */
#define RELAYD_RPC_BLAME(detail, name, err, ...)                                                   \
    ((detail)->field = (name), RELAY_FAIL((err), RELAY_INVALID_ARGUMENT, __VA_ARGS__))

/* INVALID_ARGUMENT unless 1..256 bytes. */
RELAY_MUST_CHECK enum relay_code relayd_rpc_check_model_key(struct relayd_rpc_detail *detail,
                                                            const char *key,
                                                            struct relay_error *err);
RELAY_MUST_CHECK enum relay_code relayd_rpc_check_prompt_id(struct relayd_rpc_detail *detail,
                                                            const char *field, const char *id,
                                                            struct relay_error *err);

#endif
