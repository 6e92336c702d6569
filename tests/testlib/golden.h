/* The recorded tensors of tests/golden, or of RELAY_GOLDEN_DIR, by name. Aborts the test run with a
 * message when they are not as their README says: a test cannot go on without. One thread. */
#ifndef RELAY_TESTLIB_GOLDEN_H
#define RELAY_TESTLIB_GOLDEN_H

#include <relay/client.h>

#define GOLDEN_LAYERS   2u
#define GOLDEN_STEPS    4u
#define GOLDEN_REQUESTS 4u
#define GOLDEN_TOKENS   656u
#define GOLDEN_HQ       4u
#define GOLDEN_D        256u

struct golden {
    struct relay_safetensors *prompt_file, *steps_file;
    struct relay_model *model;             /* key "gemma3-270m@test" */
    struct relay_kv prompt[GOLDEN_LAYERS]; /* [656,1,256] bf16 */
    uint32_t user_lens[GOLDEN_REQUESTS];
    struct relay_kv user[GOLDEN_REQUESTS][GOLDEN_LAYERS]; /* [user_len,1,256] bf16 */
};

void golden_load(struct golden *golden);
void golden_free(struct golden *golden);
/* layers.<layer>.<what> of a step: float32 [request,...]; what is "q", "k_new", "out_prompt"... */
const float *golden_step(const struct golden *golden, uint32_t layer, const char *what,
                         uint32_t step);

#endif
