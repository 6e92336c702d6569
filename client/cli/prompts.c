/* relayctl register, list, get, update, unregister. */
#include "commands.h"
#include "model.h"
#include "output.h"
#include "safetensors.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* One of layers.N.k and layers.N.v: [tokens, Hkv, D], the dtype of the layer's other one. */
static enum relay_code find_layer(const struct relay_safetensors *file, uint32_t layer, char which,
                                  uint32_t heads, uint32_t dim, uint64_t *tokens,
                                  struct relay_kv *kv, struct relay_error *err)
{
    char name[64];
    snprintf(name, sizeof(name), "layers.%u.%c", layer, which);
    const struct relay_safetensors_tensor *t = relay_safetensors_find(file, name);
    if (t == NULL) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "the file has no tensor %s", name);
    }
    if (*tokens == 0 && t->num_dims > 0) {
        *tokens = t->shape[0];
    }
    if (t->num_dims != 3 || t->shape[0] != *tokens || t->shape[1] != heads || t->shape[2] != dim ||
        *tokens == 0 || *tokens > UINT32_MAX) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "%s: shape [%" PRIu64 ", %u, %u] expected",
                          name, *tokens, heads, dim);
    }
    const enum relay_dtype dtype = relay_safetensors_relay_dtype(t->dtype);
    if (dtype == RELAY_DTYPE_UNSPECIFIED ||
        (kv->dtype != RELAY_DTYPE_UNSPECIFIED && kv->dtype != dtype)) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                          "%s: K/V cannot have this dtype, or k and v differ in it", name);
    }
    kv->dtype = dtype;
    *(which == 'k' ? &kv->k : &kv->v) = t->data;
    return RELAY_OK;
}

static enum relay_code find_layers(const struct relay_safetensors *file,
                                   const struct relay_model *model, struct relay_kv *layers,
                                   uint32_t *num_tokens, struct relay_error *err)
{
    uint64_t tokens = 0;
    for (uint32_t l = 0; l < model->num_layers; l++) {
        const struct relay_layer_kind *kind = relay_model_kind(model, l);
        enum relay_code code = find_layer(file, l, 'k', kind->num_kv_heads, kind->head_dim_qk,
                                          &tokens, &layers[l], err);
        if (code == RELAY_OK && !kind->v_from_k) {
            code = find_layer(file, l, 'v', kind->num_kv_heads, kind->head_dim_v, &tokens,
                              &layers[l], err);
        }
        if (code != RELAY_OK) {
            return code;
        }
    }
    *num_tokens = (uint32_t)tokens;
    return RELAY_OK;
}

static bool show_progress(void *user, uint64_t done, uint64_t total)
{
    char bar[41], text[32];
    const size_t filled = total > 0 ? (size_t)(40 * done / total) : 40;
    (void)user;
    memset(bar, '.', 40);
    memset(bar, '#', filled);
    bar[40] = '\0';
    fprintf(stderr, "\r[%s] %3.0f %% of %s ", bar,
            total > 0 ? 100.0 * (double)done / (double)total : 100.0,
            relay_cli_bytes_text(total, text, sizeof(text)));
    if (done == total) {
        fputc('\n', stderr);
    }
    return true;
}

/* Registering takes about one line of text, the other commands show the whole prompt. */
static int print_registered(const struct relay_prompt *prompt, const struct relay_cli_args *args)
{
    if (args->json) {
        return relay_cli_print_object(relay_cli_prompt_json(prompt), true);
    }
    char text[32];
    printf("registered %s: %u tokens, %s, model %s, generation 0x%" PRIx64 "\n", prompt->prompt_id,
           prompt->num_tokens, relay_cli_bytes_text(prompt->bytes, text, sizeof(text)),
           prompt->model_key, prompt->generation);
    return RELAY_CLI_EXIT_OK;
}

int relay_cli_register(struct relay_client *client, const struct relay_cli_args *args)
{
    struct relay_safetensors *file = NULL;
    struct relay_model *model = NULL;
    struct relay_kv *layers = NULL;
    struct relay_prompt *prompt = NULL;
    enum relay_dtype io_dtype;
    struct relay_prompt_desc desc = RELAY_PROMPT_DESC_INIT;
    struct relay_error err;
    int exit_code = RELAY_CLI_EXIT_ERROR;
    enum relay_code code = relay_safetensors_open(args->operand, &file, &err);
    if (code == RELAY_OK) {
        code = relay_cli_model_parse(relay_safetensors_metadata(file, "model"), args->model_key,
                                     &model, &io_dtype, &err);
    }
    if (code == RELAY_OK) {
        layers = calloc(model->num_layers, sizeof(*layers));
        code = layers == NULL ? RELAY_FAIL(&err, RELAY_RESOURCE_EXHAUSTED, "out of memory")
                              : find_layers(file, model, layers, &desc.num_tokens, &err);
    }
    if (code == RELAY_OK) {
        desc.prompt_id = args->prompt_id;
        desc.model = model;
        desc.layers = layers;
        desc.variant = args->variant;
        desc.content_key = args->content_key_bytes > 0 ? args->content_key : NULL;
        desc.content_key_bytes = args->content_key_bytes;
        desc.on_exists = args->on_exists;
        desc.idle_ttl_ms = args->idle_ttl_ms;
        desc.pinned = args->pin;
        desc.labels = args->labels;
        desc.num_labels = args->num_labels;
        desc.progress = isatty(STDERR_FILENO) ? show_progress : NULL;
        code = relay_prompt_register(client, &desc, &prompt, &err);
    }
    exit_code = code == RELAY_OK ? print_registered(prompt, args) : relay_cli_print_error(&err);
    relay_prompt_free(prompt);
    free(layers);
    relay_model_destroy(model);
    relay_safetensors_close(file);
    return exit_code;
}

static bool list_one(void *user, const struct relay_prompt *prompt)
{
    cJSON_AddItemToArray(user, relay_cli_prompt_json(prompt));
    return true;
}

static void print_row(const cJSON *o)
{
    char bytes[32], used[32];
    printf("%-28s %-24s %8.0f %10s %5.0f %6.0f  %s%s%s\n",
           cJSON_GetStringValue(cJSON_GetObjectItem(o, "prompt_id")),
           relay_cli_safe(cJSON_GetStringValue(cJSON_GetObjectItem(o, "model_key"))),
           cJSON_GetNumberValue(cJSON_GetObjectItem(o, "num_tokens")),
           relay_cli_bytes_text((uint64_t)cJSON_GetNumberValue(cJSON_GetObjectItem(o, "bytes")),
                                bytes, sizeof(bytes)),
           cJSON_GetNumberValue(cJSON_GetObjectItem(o, "references")),
           cJSON_GetNumberValue(cJSON_GetObjectItem(o, "hits")),
           relay_cli_time_text(
               (uint64_t)cJSON_GetNumberValue(cJSON_GetObjectItem(o, "last_used_unix_ms")), used,
               sizeof(used)),
           cJSON_IsTrue(cJSON_GetObjectItem(o, "pinned")) ? " pinned" : "",
           cJSON_IsTrue(cJSON_GetObjectItem(o, "doomed")) ? " doomed" : "");
}

int relay_cli_list(struct relay_client *client, const struct relay_cli_args *args)
{
    struct relay_error err;
    cJSON *root = cJSON_CreateObject();
    cJSON *prompts = cJSON_AddArrayToObject(root, "prompts");
    if (relay_prompts_list(client, args->model_key, args->prefix, list_one, prompts, &err) !=
        RELAY_OK) {
        cJSON_Delete(root);
        return relay_cli_print_error(&err);
    }
    if (args->json) {
        return relay_cli_print_object(root, true);
    }
    printf("%-28s %-24s %8s %10s %5s %6s  %s\n", "ID", "MODEL", "TOKENS", "SIZE", "OPEN", "HITS",
           "LAST USED (UTC)");
    const cJSON *item;
    cJSON_ArrayForEach(item, prompts)
    {
        print_row(item);
    }
    cJSON_Delete(root);
    return RELAY_CLI_EXIT_OK;
}

static int print_prompt(enum relay_code code, struct relay_prompt *prompt,
                        const struct relay_cli_args *args, const struct relay_error *err)
{
    if (code != RELAY_OK) {
        return relay_cli_print_error(err);
    }
    const int exit_code = relay_cli_print_object(relay_cli_prompt_json(prompt), args->json);
    relay_prompt_free(prompt);
    return exit_code;
}

int relay_cli_get(struct relay_client *client, const struct relay_cli_args *args)
{
    struct relay_prompt *prompt = NULL;
    struct relay_error err;
    const enum relay_code code =
        relay_prompt_get(client, args->model_key, args->operand, args->generation, &prompt, &err);
    return print_prompt(code, prompt, args, &err);
}

int relay_cli_update(struct relay_client *client, const struct relay_cli_args *args)
{
    struct relay_prompt_update update = RELAY_PROMPT_UPDATE_INIT;
    struct relay_prompt *prompt = NULL;
    struct relay_error err;
    update.generation = args->generation;
    update.set_pinned = args->pin || args->unpin;
    update.pinned = args->pin;
    update.set_idle_ttl = args->has_idle_ttl;
    update.idle_ttl_ms = args->idle_ttl_ms;
    update.touch = args->touch;
    const enum relay_code code =
        relay_prompt_update(client, args->model_key, args->operand, &update, &prompt, &err);
    return print_prompt(code, prompt, args, &err);
}

int relay_cli_unregister(struct relay_client *client, const struct relay_cli_args *args)
{
    struct relay_prompt *prompt = NULL;
    struct relay_error err;
    const enum relay_code code = relay_prompt_unregister(client, args->model_key, args->operand,
                                                         args->generation, &prompt, &err);
    return print_prompt(code, prompt, args, &err);
}
