/* Recorded decode steps, from a safetensors file:
 *   layers.N.user_k, user_v  [sum(user_lens),Hkv,D]         tokens each request has before step 0
 *   layers.N.k_new, v_new    [step,request,Hkv,D]           the step's own token
 *   layers.N.q               [step,request,Hq,dqk]
 *   layers.N.out, lse        [step,request,Hq,dv], [..,Hq]  float32, what to expect; optional
 *   user_lens                [request] int32
 *   q_positions              [step,request] int32           absolute; optional, checked when there
 * and the model in the metadata (model.h). Read only after loading. */
#ifndef RELAY_CLI_STEPS_FILE_H
#define RELAY_CLI_STEPS_FILE_H

#include <relay/client.h>

/* Not aligned: copy before use. NULL where optional and absent. */
struct relay_cli_layer_steps {
    const uint8_t *user_k, *user_v;
    enum relay_dtype user_dtype;
    const uint8_t *q, *k_new, *v_new;
    const uint8_t *out, *lse;
};

struct relay_cli_steps {
    struct relay_safetensors *file;
    struct relay_model *model;
    enum relay_dtype io_dtype; /* of q, k_new, v_new */
    uint32_t num_steps, num_requests;
    uint32_t *user_lens;                  /* [request] */
    int32_t *q_positions;                 /* [step,request] or NULL */
    struct relay_cli_layer_steps *layers; /* [L] */
};

/* INVALID_ARGUMENT naming the tensor that is missing or has another shape, NOT_FOUND (file). */
RELAY_MUST_CHECK enum relay_code relay_cli_steps_load(const char *path, const char *model_key,
                                                      struct relay_cli_steps *out,
                                                      struct relay_error *err);
/* Fine on a zeroed one. */
void relay_cli_steps_free(struct relay_cli_steps *steps);

#endif
