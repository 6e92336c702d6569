/* A session's handles: open, look at, append to, cut, close. Any thread, under the session's mutex,
 * except for bytes that are stored while the request is kept alive by a reference. */
#include "service/session/internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void relayd_entry_errors_add(struct relayd_entry_errors *errors, uint32_t index,
                             enum relay_code code, const char *msg)
{
    if (errors == NULL) {
        return;
    }
    if (errors->n < RELAYD_ENTRY_ERRORS_MAX) {
        struct relayd_entry_error *e = &errors->e[errors->n++];
        e->index = index;
        e->code = code;
        (void)snprintf(e->msg, sizeof(e->msg), "%.*s", (int)sizeof(e->msg) - 1, msg);
    }
    errors->total++;
}

struct session_request *relayd_session_find(const struct relayd_session *session, uint64_t handle)
{
    struct session_request *entry = NULL;
    HASH_FIND(by_handle, session->requests, &handle, sizeof(handle), entry);
    return entry;
}

void relayd_session_drop(struct relayd_session *session, struct session_request *entry)
{
    HASH_DELETE(by_handle, session->requests, entry);
    if (entry->tag != 0) {
        HASH_DELETE(by_tag, session->tags, entry);
    }
    relayd_request_close(entry->request);
    free(entry->prompt_name);
    free(entry);
}

static enum relay_code check_open(const struct relayd_session *session, struct relay_error *err)
{
    return session->closed ? RELAY_FAIL(err, RELAY_NOT_FOUND, "the session has ended") : RELAY_OK;
}

static enum relay_code not_found(struct relayd_entry_errors *errors, uint32_t index,
                                 struct relay_error *err)
{
    relayd_entry_errors_add(errors, index, RELAY_NOT_FOUND, "no such handle in this session");
    return RELAY_FAIL(err, RELAY_NOT_FOUND, "entry %u: no such handle in this session", index);
}

/* Long batches let others in between, the executor above all: it takes the mutex to give a call's
 * requests back. */
#define ENTRIES_AT_ONCE 32u

static void let_others_in(struct relayd_session *session, uint32_t done)
{
    if (done % ENTRIES_AT_ONCE == 0) {
        pthread_mutex_unlock(&session->mutex);
        pthread_mutex_lock(&session->mutex);
    }
}

/* ---- opening ---- */

/* What a request was opened with, so that a repeated tag is told from a reused one. */
static char *prompt_name_of(const struct relayd_prompt_query *query)
{
    size_t id = strlen(query->prompt_id);
    size_t variant = strlen(query->variant);
    char *name = malloc(id + variant + 2);
    if (name != NULL) {
        memcpy(name, query->prompt_id, id);
        name[id] = '\n';
        memcpy(name + id + 1, query->variant, variant + 1);
    }
    return name;
}

static enum relay_code open_new(struct relayd_session *session,
                                const struct relayd_open_request *in, char *name,
                                struct session_request **out, struct relay_error *err)
{
    if (HASH_CNT(by_handle, session->requests) >= session->sessions->opt.requests_per_session_max) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "the session has %u requests already",
                          session->sessions->opt.requests_per_session_max);
    }
    struct session_request *entry = calloc(1, sizeof(*entry));
    if (entry == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for a request");
    }
    struct relayd_prompt *prompt = NULL;
    enum relay_code code = RELAY_OK;
    if (in->prompt.prompt_id[0] != '\0') {
        code = relayd_prompt_acquire(session->model, &in->prompt, &prompt, err);
    }
    if (code == RELAY_OK) {
        code = relayd_request_create(session->model, prompt, in->tag, in->tokens_reserved,
                                     &entry->request, err);
    }
    if (code != RELAY_OK) {
        free(entry);
        return code;
    }
    entry->handle =
        atomic_fetch_add_explicit(&session->sessions->next_handle, 1, memory_order_relaxed);
    entry->tag = in->tag;
    entry->prompt_name = name;
    HASH_ADD(by_handle, session->requests, handle, sizeof(entry->handle), entry);
    bool added = entry->by_handle.tbl != NULL;
    if (added && entry->tag != 0) {
        HASH_ADD(by_tag, session->tags, tag, sizeof(entry->tag), entry);
        added = entry->by_tag.tbl != NULL;
        if (!added) {
            HASH_DELETE(by_handle, session->requests, entry);
        }
    }
    if (!added) {
        relayd_request_close(entry->request);
        free(entry);
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for a request");
    }
    *out = entry;
    return RELAY_OK;
}

/* The request of a tag that is open already, or a new one; *is_new says which. */
static enum relay_code open_one(struct relayd_session *session,
                                const struct relayd_open_request *in, struct session_request **out,
                                bool *is_new, struct relay_error *err)
{
    struct session_request *entry = NULL;
    char *name = prompt_name_of(&in->prompt);
    if (name == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for a request");
    }
    if (in->tag != 0) {
        HASH_FIND(by_tag, session->tags, &in->tag, sizeof(in->tag), entry);
    }
    *is_new = entry == NULL;
    if (entry == NULL) {
        enum relay_code code = open_new(session, in, name, out, err);
        if (code != RELAY_OK) {
            free(name);
        }
        return code;
    }
    bool same = strcmp(entry->prompt_name, name) == 0;
    free(name);
    if (!same) {
        return RELAY_FAIL(err, RELAY_ALREADY_EXISTS,
                          "the tag is open on another prompt; close that request first");
    }
    *out = entry;
    return RELAY_OK;
}

static void describe_opened(const struct session_request *entry, struct relayd_opened_request *out)
{
    const struct relayd_prompt *prompt = relayd_request_prompt(entry->request);
    *out = (struct relayd_opened_request){
        .handle = entry->handle,
        .generation = prompt == NULL ? 0 : relayd_prompt_generation(prompt),
        .prompt_tokens = relayd_request_prompt_tokens(entry->request),
    };
}

enum relay_code relayd_session_open_requests(struct relayd_session *session,
                                             const struct relayd_open_request *in, uint32_t n,
                                             struct relayd_opened_request *out,
                                             struct relayd_entry_errors *errors,
                                             struct relay_error *err)
{
    bool *is_new = calloc(n == 0 ? 1 : n, sizeof(*is_new));
    if (is_new == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for %u requests", n);
    }
    pthread_mutex_lock(&session->mutex);
    enum relay_code code = check_open(session, err);
    uint32_t done = 0;
    while (code == RELAY_OK && done < n) {
        struct session_request *entry = NULL;
        struct relay_error why = {0};
        code = open_one(session, &in[done], &entry, &is_new[done], &why);
        if (code == RELAY_OK) {
            describe_opened(entry, &out[done++]);
            let_others_in(session, done);
            code = check_open(session, err);
        } else {
            relayd_entry_errors_add(errors, done, code, why.msg);
            (void)RELAY_FAIL(err, code, "entry %u: %.200s", done, why.msg);
        }
    }
    while (code != RELAY_OK && done > 0) {
        done--;
        struct session_request *entry = relayd_session_find(session, out[done].handle);
        if (is_new[done] && entry != NULL) { /* the session may have ended in between */
            relayd_session_drop(session, entry);
        }
    }
    pthread_mutex_unlock(&session->mutex);
    free(is_new);
    return code;
}

/* ---- looking and closing ---- */

static void describe(const struct session_request *entry, struct relayd_request_info *out)
{
    struct relayd_opened_request opened;
    describe_opened(entry, &opened);
    *out = (struct relayd_request_info){
        .handle = entry->handle,
        .tag = entry->tag,
        .generation = opened.generation,
        .prompt_tokens = opened.prompt_tokens,
        .length = relayd_request_length(entry->request),
        .held_max = relayd_request_held_max(entry->request),
        .last_step_id = relayd_request_last_step(entry->request),
    };
    (void)snprintf(out->prompt_id, sizeof(out->prompt_id), "%.*s",
                   (int)strcspn(entry->prompt_name, "\n"), entry->prompt_name);
}

enum relay_code relayd_session_get_requests(struct relayd_session *session, const uint64_t *handles,
                                            uint32_t n, struct relayd_request_info *out,
                                            uint32_t max, uint32_t *count, struct relay_error *err)
{
    uint32_t done = 0;
    pthread_mutex_lock(&session->mutex);
    enum relay_code code = check_open(session, err);
    for (uint32_t i = 0; code == RELAY_OK && i < n && done < max; i++) {
        const struct session_request *entry = relayd_session_find(session, handles[i]);
        if (entry == NULL) {
            code = not_found(NULL, i, err);
        } else {
            describe(entry, &out[done++]);
        }
    }
    if (code == RELAY_OK && n == 0) {
        struct session_request *entry, *next;
        HASH_ITER(by_handle, session->requests, entry, next)
        {
            if (done < max) {
                describe(entry, &out[done++]);
            }
        }
    }
    pthread_mutex_unlock(&session->mutex);
    if (code == RELAY_OK) {
        *count = done;
    }
    return code;
}

enum relay_code relayd_session_request_held(struct relayd_session *session, uint64_t handle,
                                            uint32_t *held, struct relay_error *err)
{
    uint32_t layers = relayd_session_model(session)->num_layers;
    pthread_mutex_lock(&session->mutex);
    enum relay_code code = check_open(session, err);
    const struct session_request *entry = relayd_session_find(session, handle);
    if (code == RELAY_OK && entry == NULL) {
        code = RELAY_FAIL(err, RELAY_NOT_FOUND, "no such handle in this session");
    }
    for (uint32_t layer = 0; code == RELAY_OK && layer < layers; layer++) {
        held[layer] = relayd_request_held(entry->request, layer);
    }
    pthread_mutex_unlock(&session->mutex);
    return code;
}

uint32_t relayd_session_close_requests(struct relayd_session *session, const uint64_t *handles,
                                       uint32_t n)
{
    uint32_t closed = 0;
    pthread_mutex_lock(&session->mutex);
    for (uint32_t i = 0; i < n; i++) {
        struct session_request *entry = relayd_session_find(session, handles[i]);
        if (entry != NULL) {
            relayd_session_drop(session, entry);
            closed++;
        }
        let_others_in(session, i + 1);
    }
    pthread_mutex_unlock(&session->mutex);
    return closed;
}

/* ---- changing ---- */

enum relay_code relayd_session_truncate_requests(struct relayd_session *session,
                                                 const uint64_t *handles,
                                                 const uint32_t *tokens_keep, uint32_t n,
                                                 struct relayd_entry_errors *errors,
                                                 struct relay_error *err)
{
    pthread_mutex_lock(&session->mutex);
    enum relay_code code = check_open(session, err);
    for (uint32_t i = 0; code == RELAY_OK && i < n; i++) {
        if (relayd_session_find(session, handles[i]) == NULL) {
            code = not_found(errors, i, err);
        }
    }
    for (uint32_t i = 0; code == RELAY_OK && i < n; i++) {
        struct relay_error why = {0};
        code = relayd_request_truncate(relayd_session_find(session, handles[i])->request,
                                       tokens_keep[i], &why);
        if (code != RELAY_OK) {
            relayd_entry_errors_add(errors, i, code, why.msg);
            (void)RELAY_FAIL(err, code, "entry %u: %.200s", i, why.msg);
        }
    }
    pthread_mutex_unlock(&session->mutex);
    return code;
}

enum relay_code relayd_session_append(struct relayd_session *session, uint64_t handle,
                                      const struct relayd_kv_chunk *chunk, struct relay_error *err)
{
    struct relayd_request *request = NULL;
    pthread_mutex_lock(&session->mutex);
    enum relay_code code = check_open(session, err);
    if (code == RELAY_OK) {
        struct session_request *entry = relayd_session_find(session, handle);
        if (entry == NULL) {
            code = RELAY_FAIL(err, RELAY_NOT_FOUND, "no such handle in this session");
        } else {
            request = entry->request;
            relayd_request_ref(request);
        }
    }
    pthread_mutex_unlock(&session->mutex);
    if (code == RELAY_OK) {
        code = relayd_request_append(request, chunk, err);
        relayd_request_unref(request);
    }
    return code;
}
