/* Prompts: get, list, update, unregister, and a Prompt message as a struct of ours. Any thread. */
#include "prompts.h"

#include <stdlib.h>
#include <string.h>

/* Prompts asked for at a time. */
#define LIST_PAGE_SIZE 100u

static char *text(const char *s)
{
    return (char *)(uintptr_t)(s != NULL ? s : "");
}

static void *put(char **at, const void *data, size_t bytes)
{
    char *copy = *at;
    if (bytes > 0) {
        memcpy(copy, data, bytes);
    }
    *at += bytes;
    return copy;
}

static const char *put_text(char **at, const char *s)
{
    return put(at, s, strlen(s) + 1);
}

enum relay_code relay_prompt_from_message(const Relay__V1__Prompt *m, struct relay_prompt **out,
                                          struct relay_error *err)
{
    if (m == NULL) {
        return RELAY_FAIL(err, RELAY_INTERNAL, "the server's answer has no prompt");
    }
    size_t bytes = sizeof(struct relay_prompt) + m->n_labels * sizeof(struct relay_label) +
                   strlen(m->prompt_id) + strlen(m->model_key) + strlen(m->variant) + 3 +
                   m->content_key.len + m->digest.len;
    for (size_t i = 0; i < m->n_labels; i++) {
        bytes += strlen(m->labels[i]->key) + strlen(m->labels[i]->value) + 2;
    }
    struct relay_prompt *prompt = calloc(1, bytes);
    if (prompt == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "out of memory");
    }
    struct relay_label *labels = (struct relay_label *)(prompt + 1);
    char *at = (char *)(labels + m->n_labels);
    for (size_t i = 0; i < m->n_labels; i++) {
        labels[i].key = put_text(&at, m->labels[i]->key);
        labels[i].value = put_text(&at, m->labels[i]->value);
    }
    prompt->labels = labels;
    prompt->num_labels = (uint32_t)m->n_labels;
    prompt->prompt_id = put_text(&at, m->prompt_id);
    prompt->model_key = put_text(&at, m->model_key);
    prompt->variant = put_text(&at, m->variant);
    prompt->content_key_bytes = (uint32_t)m->content_key.len;
    prompt->content_key = put(&at, m->content_key.data, m->content_key.len);
    prompt->digest_bytes = (uint32_t)m->digest.len;
    prompt->digest = put(&at, m->digest.data, m->digest.len);
    prompt->generation = m->generation;
    prompt->num_tokens = m->num_tokens;
    prompt->bytes = m->bytes;
    prompt->references = m->references;
    prompt->hits = m->hits;
    prompt->idle_ttl_ms = m->idle_ttl_ms;
    prompt->created_unix_ms = m->created_unix_ms;
    prompt->last_used_unix_ms = m->last_used_unix_ms;
    prompt->tier = (enum relay_tier)m->tier;
    prompt->pinned = m->pinned;
    prompt->doomed = m->doomed;
    *out = prompt;
    return RELAY_OK;
}

void relay_prompt_free(struct relay_prompt *prompt)
{
    free(prompt);
}

enum relay_code relay_prompt_get(struct relay_client *client, const char *model_key,
                                 const char *prompt_id, uint64_t generation,
                                 struct relay_prompt **out, struct relay_error *err)
{
    Relay__V1__GetPromptRequest request = RELAY__V1__GET_PROMPT_REQUEST__INIT;
    struct relay_wire_arena arena;
    ProtobufCMessage *response = NULL;
    request.model_key = text(model_key);
    request.prompt_id = text(prompt_id);
    request.generation = generation;
    relay_wire_arena_init(&arena);
    enum relay_code code =
        relay_call_message(client, RELAY_METHOD_PROMPT_GET, &request.base, RELAY_REPEAT_SAFE,
                           &relay__v1__get_prompt_response__descriptor, &arena, &response, err);
    if (code == RELAY_OK) {
        code = relay_prompt_from_message(((const Relay__V1__GetPromptResponse *)response)->prompt,
                                         out, err);
    }
    relay_wire_arena_fini(&arena);
    return code;
}

/* One page; *token is replaced (malloc'd), "" after the last one. *more is false after a stop. */
static enum relay_code list_page(struct relay_client *client,
                                 Relay__V1__ListPromptsRequest *request, char **token, bool *more,
                                 relay_prompt_fn fn, void *user, struct relay_error *err)
{
    struct relay_wire_arena arena;
    ProtobufCMessage *response = NULL;
    relay_wire_arena_init(&arena);
    enum relay_code code =
        relay_call_message(client, RELAY_METHOD_PROMPT_LIST, &request->base, RELAY_REPEAT_SAFE,
                           &relay__v1__list_prompts_response__descriptor, &arena, &response, err);
    if (code != RELAY_OK) {
        goto out;
    }
    const Relay__V1__ListPromptsResponse *m = (const Relay__V1__ListPromptsResponse *)response;
    *more = m->next_page_token[0] != '\0';
    for (size_t i = 0; i < m->n_prompts; i++) {
        struct relay_prompt *prompt = NULL;
        code = relay_prompt_from_message(m->prompts[i], &prompt, err);
        if (code != RELAY_OK) {
            goto out;
        }
        const bool go_on = fn(user, prompt);
        relay_prompt_free(prompt);
        if (!go_on) {
            *more = false;
            break;
        }
    }
    free(*token);
    *token = strdup(m->next_page_token);
    if (*token == NULL) {
        code = RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "out of memory");
    }
out:
    relay_wire_arena_fini(&arena);
    return code;
}

enum relay_code relay_prompts_list(struct relay_client *client, const char *model_key,
                                   const char *id_prefix, relay_prompt_fn fn, void *user,
                                   struct relay_error *err)
{
    Relay__V1__ListPromptsRequest request = RELAY__V1__LIST_PROMPTS_REQUEST__INIT;
    char *token = NULL;
    bool more = true;
    enum relay_code code = RELAY_OK;
    request.model_key = text(model_key);
    request.id_prefix = text(id_prefix);
    request.page_size = LIST_PAGE_SIZE;
    while (more && code == RELAY_OK) {
        request.page_token = text(token);
        code = list_page(client, &request, &token, &more, fn, user, err);
    }
    free(token);
    return code;
}

enum relay_code relay_prompt_update(struct relay_client *client, const char *model_key,
                                    const char *prompt_id, const struct relay_prompt_update *update,
                                    struct relay_prompt **out, struct relay_error *err)
{
    if (update == NULL || update->size != sizeof(*update)) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "prompt update: NULL, or size is not %zu",
                          sizeof(*update));
    }
    Relay__V1__UpdatePromptRequest request = RELAY__V1__UPDATE_PROMPT_REQUEST__INIT;
    struct relay_wire_arena arena;
    ProtobufCMessage *response = NULL;
    request.model_key = text(model_key);
    request.prompt_id = text(prompt_id);
    request.generation = update->generation;
    request.touch = update->touch;
    if (update->set_pinned) {
        request._pinned_case = RELAY__V1__UPDATE_PROMPT_REQUEST___PINNED_PINNED;
        request.pinned = update->pinned;
    }
    if (update->set_idle_ttl) {
        request._idle_ttl_ms_case = RELAY__V1__UPDATE_PROMPT_REQUEST___IDLE_TTL_MS_IDLE_TTL_MS;
        request.idle_ttl_ms = update->idle_ttl_ms;
    }
    relay_wire_arena_init(&arena);
    enum relay_code code =
        relay_call_message(client, RELAY_METHOD_PROMPT_UPDATE, &request.base, RELAY_REPEAT_SAFE,
                           &relay__v1__update_prompt_response__descriptor, &arena, &response, err);
    if (code == RELAY_OK && out != NULL) {
        code = relay_prompt_from_message(
            ((const Relay__V1__UpdatePromptResponse *)response)->prompt, out, err);
    }
    relay_wire_arena_fini(&arena);
    return code;
}

enum relay_code relay_prompt_unregister(struct relay_client *client, const char *model_key,
                                        const char *prompt_id, uint64_t generation,
                                        struct relay_prompt **out, struct relay_error *err)
{
    Relay__V1__UnregisterPromptRequest request = RELAY__V1__UNREGISTER_PROMPT_REQUEST__INIT;
    struct relay_wire_arena arena;
    ProtobufCMessage *response = NULL;
    request.model_key = text(model_key);
    request.prompt_id = text(prompt_id);
    request.generation = generation;
    relay_wire_arena_init(&arena);
    /* Repeated, it could meet a prompt that somebody registered meanwhile. */
    enum relay_code code = relay_call_message(
        client, RELAY_METHOD_PROMPT_UNREGISTER, &request.base, RELAY_REPEAT_NEVER,
        &relay__v1__unregister_prompt_response__descriptor, &arena, &response, err);
    if (code == RELAY_OK && out != NULL) {
        code = relay_prompt_from_message(
            ((const Relay__V1__UnregisterPromptResponse *)response)->prompt, out, err);
    }
    relay_wire_arena_fini(&arena);
    return code;
}
