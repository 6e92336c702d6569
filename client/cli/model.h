/* The model that a file's metadata describes, as JSON under "model":
 *   {"num_layers", "num_q_heads", "num_kv_heads", "head_dim_qk", "head_dim_v", "kv_dtype",
 *    "dtype" (of q, optional), "scale", "softcap", "window", "chunk", "v_from_k" (optional),
 *    "layers": [L of {any of the numbers above, for this layer only}] (optional)}
 * An unknown key is refused: numbers computed without it would be wrong. Pure. */
#ifndef RELAY_CLI_MODEL_H
#define RELAY_CLI_MODEL_H

#include <relay/types.h>

/* *model is a copy with this key, freed with relay_model_destroy; *io_dtype is "dtype", F32 when
 * absent. INVALID_ARGUMENT, RESOURCE_EXHAUSTED. */
RELAY_MUST_CHECK enum relay_code relay_cli_model_parse(const char *json, const char *model_key,
                                                       struct relay_model **model,
                                                       enum relay_dtype *io_dtype,
                                                       struct relay_error *err);

#endif
