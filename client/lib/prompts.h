/* A Prompt message as the public struct. Pure but for memory; any thread. */
#ifndef RELAY_CLIENT_LIB_PROMPTS_H
#define RELAY_CLIENT_LIB_PROMPTS_H

#include "client_internal.h"

#include <relay/v1/relay.pb-c.h>

/* INTERNAL when m is NULL. The caller frees *out with relay_prompt_free. */
RELAY_MUST_CHECK enum relay_code relay_prompt_from_message(const Relay__V1__Prompt *m,
                                                           struct relay_prompt **out,
                                                           struct relay_error *err);

#endif
