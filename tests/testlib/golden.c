#include "testlib/golden.h"

#include "client/cli/model.h"
#include "client/cli/safetensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void die(const char *what, const char *why)
{
    fprintf(stderr, "golden data: %s: %s\n", what, why);
    exit(1);
}

static struct relay_safetensors *open_file(const char *name)
{
    char path[512];
    const char *dir = getenv("RELAY_GOLDEN_DIR");
    struct relay_safetensors *file = NULL;
    struct relay_error err;
    snprintf(path, sizeof(path), "%s/%s", dir != NULL ? dir : GOLDEN_DIR, name);
    if (relay_safetensors_open(path, &file, &err) != RELAY_OK) {
        die(path, err.msg);
    }
    return file;
}

static const uint8_t *find(const struct relay_safetensors *file, const char *name, size_t bytes)
{
    const struct relay_safetensors_tensor *t = relay_safetensors_find(file, name);
    if (t == NULL || t->bytes != bytes) {
        die(name, "missing, or of another size");
    }
    return t->data;
}

static const uint8_t *find_layer(const struct relay_safetensors *file, uint32_t layer,
                                 const char *what, size_t bytes)
{
    char name[64];
    snprintf(name, sizeof(name), "layers.%u.%s", layer, what);
    return find(file, name, bytes);
}

void golden_load(struct golden *golden)
{
    const size_t token = GOLDEN_D * 2;
    enum relay_dtype io_dtype;
    struct relay_error err;
    memset(golden, 0, sizeof(*golden));
    golden->prompt_file = open_file("gemma3-270m-prompt.safetensors");
    golden->steps_file = open_file("gemma3-270m-steps.safetensors");
    if (relay_cli_model_parse(relay_safetensors_metadata(golden->prompt_file, "model"),
                              "gemma3-270m@test", &golden->model, &io_dtype, &err) != RELAY_OK) {
        die("model", err.msg);
    }
    memcpy(golden->user_lens, find(golden->steps_file, "user_lens", sizeof(golden->user_lens)),
           sizeof(golden->user_lens));
    size_t sum = 0;
    for (uint32_t r = 0; r < GOLDEN_REQUESTS; r++) {
        sum += golden->user_lens[r];
    }
    for (uint32_t l = 0; l < GOLDEN_LAYERS; l++) {
        golden->prompt[l].k = find_layer(golden->prompt_file, l, "k", GOLDEN_TOKENS * token);
        golden->prompt[l].v = find_layer(golden->prompt_file, l, "v", GOLDEN_TOKENS * token);
        golden->prompt[l].dtype = RELAY_DTYPE_BF16;
        const uint8_t *k = find_layer(golden->steps_file, l, "user_k", sum * token);
        const uint8_t *v = find_layer(golden->steps_file, l, "user_v", sum * token);
        for (uint32_t r = 0; r < GOLDEN_REQUESTS; r++) {
            golden->user[r][l] = (struct relay_kv){k, v, RELAY_DTYPE_BF16};
            k += golden->user_lens[r] * token;
            v += golden->user_lens[r] * token;
        }
    }
}

void golden_free(struct golden *golden)
{
    relay_safetensors_close(golden->prompt_file);
    relay_safetensors_close(golden->steps_file);
    relay_model_destroy(golden->model);
    memset(golden, 0, sizeof(*golden));
}

const float *golden_step(const struct golden *golden, uint32_t layer, const char *what,
                         uint32_t step)
{
    const bool lse = strncmp(what, "lse", 3) == 0;
    const bool kv = strcmp(what, "k_new") == 0 || strcmp(what, "v_new") == 0;
    const size_t row = (lse ? 1 : GOLDEN_D) * (kv ? 1 : GOLDEN_HQ) * GOLDEN_REQUESTS;
    const uint8_t *all =
        find_layer(golden->steps_file, layer, what, row * GOLDEN_STEPS * sizeof(float));
    /* The file's tensors happen to be aligned: its header is a multiple of 4 bytes. */
    if ((uintptr_t)all % sizeof(float) != 0) {
        die(what, "not aligned");
    }
    return (const float *)(const void *)all + row * step;
}
