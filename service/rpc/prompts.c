/* GetPrompt, ListPrompts, UpdatePrompt, UnregisterPrompt. Quick ones on the queue's thread; those
 * that copy much or free pages on the worker. */
#include "service/rpc/messages.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* What one answer may hold: gRPC clients take 4 MiB. */
#define LIST_BYTES_MAX ((size_t)3 << 20)

static enum relay_code name_of(struct relayd_rpc_unary *unary, const char *model_key,
                               const char *prompt_id, struct relayd_prompt_name *out,
                               struct relay_error *err)
{
    enum relay_code code = relayd_rpc_check_model_key(&unary->detail, model_key, err);
    if (code == RELAY_OK) {
        code = relayd_rpc_check_prompt_id(&unary->detail, "prompt_id", prompt_id, err);
    }
    *out = (struct relayd_prompt_name){
        .tenant = relayd_rpc_tenant(&unary->base),
        .model_key = model_key,
        .prompt_id = prompt_id,
    };
    return code;
}

static enum relay_code check_generation(struct relayd_rpc_unary *unary, uint64_t wanted,
                                        const struct relayd_prompt_info *info,
                                        struct relay_error *err)
{
    if (wanted == 0 || wanted == info->generation) {
        return RELAY_OK;
    }
    unary->detail.field = "generation";
    snprintf(unary->detail.expected, sizeof(unary->detail.expected), "%" PRIx64, info->generation);
    snprintf(unary->detail.got, sizeof(unary->detail.got), "%" PRIx64, wanted);
    return RELAY_FAIL(err, RELAY_ABORTED,
                      "prompt %s: generation %" PRIx64 " is gone, %" PRIx64 " is live",
                      info->prompt_id, wanted, info->generation);
}

/* The answer's prompt and room for the store's copy. */
struct prompt_answer {
    Relay__V1__Prompt prompt;
    struct relayd_prompt_info info;
};

static struct prompt_answer *answer_alloc(struct relayd_rpc_unary *unary, struct relay_error *err)
{
    return relayd_rpc_alloc(unary, sizeof(struct prompt_answer), err);
}

static enum relay_code answer_prompt(struct relayd_rpc_unary *unary, struct prompt_answer *answer,
                                     Relay__V1__Prompt **out, struct relay_error *err)
{
    *out = &answer->prompt;
    return relayd_rpc_prompt(&unary->arena, &answer->info, &answer->prompt, err);
}

static enum relay_code get_prompt(struct relayd_rpc_unary *unary, const ProtobufCMessage *request,
                                  ProtobufCMessage *response, struct relay_error *err)
{
    const Relay__V1__GetPromptRequest *in = (const Relay__V1__GetPromptRequest *)request;
    struct relayd_prompt_name name;
    struct prompt_answer *answer = answer_alloc(unary, err);
    if (answer == NULL) {
        return RELAY_RESOURCE_EXHAUSTED;
    }
    enum relay_code code = name_of(unary, in->model_key, in->prompt_id, &name, err);
    if (code == RELAY_OK) {
        code = relayd_prompt_get(unary->base.rpc->opt.store, &name, &answer->info, err);
    }
    if (code == RELAY_OK) {
        code = check_generation(unary, in->generation, &answer->info, err);
    }
    if (code == RELAY_OK) {
        code =
            answer_prompt(unary, answer, &((Relay__V1__GetPromptResponse *)response)->prompt, err);
    }
    return code;
}

static enum relay_code update_prompt(struct relayd_rpc_unary *unary,
                                     const ProtobufCMessage *request, ProtobufCMessage *response,
                                     struct relay_error *err)
{
    const Relay__V1__UpdatePromptRequest *in = (const Relay__V1__UpdatePromptRequest *)request;
    struct relayd_store *store = unary->base.rpc->opt.store;
    struct relayd_prompt_name name;
    struct relayd_prompt_update update = {.generation = in->generation, .touch = in->touch};
    struct prompt_answer *answer = answer_alloc(unary, err);
    if (answer == NULL) {
        return RELAY_RESOURCE_EXHAUSTED;
    }
    if (in->_pinned_case == RELAY__V1__UPDATE_PROMPT_REQUEST___PINNED_PINNED) {
        update.set_pinned = true;
        update.pinned = in->pinned;
    }
    if (in->_idle_ttl_ms_case == RELAY__V1__UPDATE_PROMPT_REQUEST___IDLE_TTL_MS_IDLE_TTL_MS) {
        update.set_idle_ttl = true;
        update.idle_ttl_ms = in->idle_ttl_ms;
    }
    enum relay_code code = name_of(unary, in->model_key, in->prompt_id, &name, err);
    if (code == RELAY_OK) {
        code = relayd_prompt_update(store, &name, &update, &answer->info, err);
    }
    if (code == RELAY_OK) {
        code = answer_prompt(unary, answer, &((Relay__V1__UpdatePromptResponse *)response)->prompt,
                             err);
    }
    return code;
}

static enum relay_code unregister_prompt(struct relayd_rpc_unary *unary,
                                         const ProtobufCMessage *request,
                                         ProtobufCMessage *response, struct relay_error *err)
{
    const Relay__V1__UnregisterPromptRequest *in =
        (const Relay__V1__UnregisterPromptRequest *)request;
    struct relayd_prompt_name name;
    struct prompt_answer *answer = answer_alloc(unary, err);
    if (answer == NULL) {
        return RELAY_RESOURCE_EXHAUSTED;
    }
    enum relay_code code = name_of(unary, in->model_key, in->prompt_id, &name, err);
    if (code == RELAY_OK) {
        code = relayd_prompt_unregister(unary->base.rpc->opt.store, &name, in->generation,
                                        &answer->info, err);
    }
    if (code == RELAY_OK) {
        code = answer_prompt(unary, answer,
                             &((Relay__V1__UnregisterPromptResponse *)response)->prompt, err);
    }
    return code;
}

/* ---- ListPrompts ------------------------------------------------------------------------------
 */

/* A page token is "prompt_id|model_key" of the last prompt sent: '|' is in no prompt id. */
static enum relay_code read_token(struct relayd_rpc_unary *unary, const char *token,
                                  struct relayd_prompt_list *query, struct relay_error *err)
{
    query->after_model_key = "";
    query->after_prompt_id = "";
    if (token[0] == '\0') {
        return RELAY_OK;
    }
    const char *bar = strchr(token, '|');
    size_t id_bytes = bar == NULL ? 0 : (size_t)(bar - token);
    if (bar == NULL || relayd_prompt_id_check(token, id_bytes, NULL) != RELAY_OK ||
        bar[1] == '\0' || strlen(bar + 1) > RELAY_MODEL_KEY_BYTES_MAX) {
        return RELAYD_RPC_BLAME(&unary->detail, "page_token", err,
                                "page_token: not one that this server gave");
    }
    char *id = relayd_rpc_alloc(unary, id_bytes + 1, err);
    if (id == NULL) {
        return RELAY_RESOURCE_EXHAUSTED;
    }
    memcpy(id, token, id_bytes);
    query->after_prompt_id = id;
    query->after_model_key = bar + 1;
    return RELAY_OK;
}

static enum relay_code write_token(struct relayd_rpc_unary *unary,
                                   const struct relayd_prompt_info *last, char **out,
                                   struct relay_error *err)
{
    size_t bytes = strlen(last->prompt_id) + 1 + strlen(last->model_key) + 1;
    *out = relayd_rpc_alloc(unary, bytes, err);
    if (*out == NULL) {
        return RELAY_RESOURCE_EXHAUSTED;
    }
    snprintf(*out, bytes, "%s|%s", last->prompt_id, last->model_key);
    return RELAY_OK;
}

/* As many of the n infos as an answer may hold; at least one. */
static enum relay_code fill_list(struct relayd_rpc_unary *unary,
                                 const struct relayd_prompt_info *infos, uint32_t n,
                                 Relay__V1__ListPromptsResponse *out, struct relay_error *err)
{
    size_t bytes = 0;
    Relay__V1__Prompt *prompts = relayd_rpc_alloc(unary, n * sizeof(*prompts), err);
    out->prompts = relayd_rpc_alloc(unary, n * sizeof(*out->prompts), err);
    if (prompts == NULL || out->prompts == NULL) {
        return RELAY_RESOURCE_EXHAUSTED;
    }
    for (uint32_t i = 0; i < n; i++) {
        enum relay_code code = relayd_rpc_prompt(&unary->arena, &infos[i], &prompts[i], err);
        if (code != RELAY_OK) {
            return code;
        }
        bytes += relay__v1__prompt__get_packed_size(&prompts[i]) + 8;
        if (i > 0 && bytes > LIST_BYTES_MAX) {
            break;
        }
        out->prompts[i] = &prompts[i];
        out->n_prompts++;
    }
    return RELAY_OK;
}

static enum relay_code list_prompts(struct relayd_rpc_unary *unary, const ProtobufCMessage *request,
                                    ProtobufCMessage *response, struct relay_error *err)
{
    const Relay__V1__ListPromptsRequest *in = (const Relay__V1__ListPromptsRequest *)request;
    Relay__V1__ListPromptsResponse *out = (Relay__V1__ListPromptsResponse *)response;
    uint32_t max = unary->base.rpc->opt.list_page_max;
    bool more = false;
    struct relayd_prompt_list query = {
        .tenant = relayd_rpc_tenant(&unary->base),
        .model_key = in->model_key,
        .id_prefix = in->id_prefix,
    };
    enum relay_code code = relayd_rpc_check_max(unary, "page_size", in->page_size, max, err);
    if (code == RELAY_OK) {
        code = read_token(unary, in->page_token, &query, err);
    }
    if (code != RELAY_OK) {
        return code;
    }
    if (in->page_size != 0) {
        max = in->page_size;
    }
    struct relayd_prompt_info *infos = relayd_rpc_alloc(unary, max * sizeof(*infos), err);
    if (infos == NULL) {
        return RELAY_RESOURCE_EXHAUSTED;
    }
    uint32_t n = relayd_prompt_list(unary->base.rpc->opt.store, &query, infos, max, &more);
    if (n == 0) {
        return RELAY_OK;
    }
    code = fill_list(unary, infos, n, out, err);
    if (code == RELAY_OK && (more || out->n_prompts < n)) {
        code = write_token(unary, &infos[out->n_prompts - 1], &out->next_page_token, err);
    }
    return code;
}

/* ---- the table --------------------------------------------------------------------------------
 */

static const struct relayd_rpc_unary_spec get_spec = {
    .request = &relay__v1__get_prompt_request__descriptor,
    .response = &relay__v1__get_prompt_response__descriptor,
    .handle = get_prompt,
};
static const struct relayd_rpc_unary_spec list_spec = {
    .request = &relay__v1__list_prompts_request__descriptor,
    .response = &relay__v1__list_prompts_response__descriptor,
    .handle = list_prompts,
    .slow = true,
};
static const struct relayd_rpc_unary_spec update_spec = {
    .request = &relay__v1__update_prompt_request__descriptor,
    .response = &relay__v1__update_prompt_response__descriptor,
    .handle = update_prompt,
};
static const struct relayd_rpc_unary_spec unregister_spec = {
    .request = &relay__v1__unregister_prompt_request__descriptor,
    .response = &relay__v1__unregister_prompt_response__descriptor,
    .handle = unregister_prompt,
    .slow = true,
};

const struct relayd_rpc_method relayd_rpc_prompt_methods[] = {
    RELAYD_RPC_UNARY(RELAYD_RPC_SERVICE "GetPrompt", &get_spec),
    RELAYD_RPC_UNARY(RELAYD_RPC_SERVICE "ListPrompts", &list_spec),
    RELAYD_RPC_UNARY(RELAYD_RPC_SERVICE "UpdatePrompt", &update_spec),
    RELAYD_RPC_UNARY(RELAYD_RPC_SERVICE "UnregisterPrompt", &unregister_spec),
    {.start = NULL},
};
