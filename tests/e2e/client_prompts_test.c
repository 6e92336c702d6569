/* librelay against a real relayd: registering and managing prompts. */
#include "testlib/check.h"
#include "testlib/golden.h"
#include "testlib/server.h"

static struct test_server server;
static struct golden golden;
static struct relay_client *client;
static struct relay_error err;

static struct relay_prompt_desc golden_desc(const char *id)
{
    struct relay_prompt_desc desc = RELAY_PROMPT_DESC_INIT;
    desc.prompt_id = id;
    desc.model = golden.model;
    desc.num_tokens = GOLDEN_TOKENS;
    desc.layers = golden.prompt;
    return desc;
}

static void unregister(const char *id)
{
    CHECK_OK(relay_prompt_unregister(client, golden.model->key, id, 0, NULL, &err), err);
}

static void test_a_prompt_has_what_was_asked_for(void)
{
    static const uint8_t key[3] = {1, 0, 255};
    static const struct relay_label labels[2] = {{"team", "search"}, {"note", ""}};
    static uint32_t token_ids[GOLDEN_TOKENS];
    struct relay_prompt_desc desc = golden_desc("a/b:c@1.2+x-y_z#");
    struct relay_prompt *made = NULL, *got = NULL;
    desc.variant = "lora-7";
    desc.content_key = key;
    desc.content_key_bytes = sizeof(key);
    desc.idle_ttl_ms = 3600000;
    desc.pinned = true;
    desc.labels = labels;
    desc.num_labels = 2;
    desc.token_ids = token_ids;
    CHECK_OK(relay_prompt_register(client, &desc, &made, &err), err);
    CHECK_OK(
        relay_prompt_get(client, golden.model->key, desc.prompt_id, made->generation, &got, &err),
        err);
    CHECK_STR(got->prompt_id, desc.prompt_id);
    CHECK_STR(got->model_key, golden.model->key);
    CHECK_STR(got->variant, "lora-7");
    CHECK_EQ(got->num_tokens, GOLDEN_TOKENS);
    CHECK(got->generation == made->generation && got->generation != 0);
    CHECK_EQ(got->content_key_bytes, 3);
    CHECK(memcmp(got->content_key, key, 3) == 0);
    CHECK_EQ(got->digest_bytes, 32);
    CHECK_EQ(got->idle_ttl_ms, 3600000);
    CHECK(got->pinned && !got->doomed);
    CHECK_EQ(got->tier, RELAY_TIER_HOST);
    CHECK(got->bytes > 0 && got->created_unix_ms > 0);
    CHECK_EQ(got->num_labels, 2);
    CHECK_STR(got->labels[0].key, "team");
    CHECK_STR(got->labels[0].value, "search");
    CHECK_STR(got->labels[1].value, "");
    relay_prompt_free(made);
    relay_prompt_free(got);
    CHECK_CODE(relay_prompt_get(client, golden.model->key, desc.prompt_id, 1, &got, &err),
               RELAY_ABORTED);
    unregister(desc.prompt_id);
    CHECK_CODE(relay_prompt_get(client, golden.model->key, desc.prompt_id, 0, &got, &err),
               RELAY_NOT_FOUND);
    CHECK_CODE(relay_prompt_unregister(client, golden.model->key, desc.prompt_id, 0, NULL, &err),
               RELAY_NOT_FOUND);
}

static void test_registering_again(void)
{
    struct relay_prompt_desc desc = golden_desc("again");
    struct relay_kv swapped[GOLDEN_LAYERS] = {golden.prompt[1], golden.prompt[0]};
    struct relay_prompt *first = NULL, *next = NULL;
    CHECK_OK(relay_prompt_register(client, &desc, &first, &err), err);
    CHECK_OK(relay_prompt_register(client, &desc, &next, &err), err);
    CHECK_EQ(next->generation, first->generation);
    relay_prompt_free(next);
    desc.layers = swapped;
    CHECK_CODE(relay_prompt_register(client, &desc, &next, &err), RELAY_ALREADY_EXISTS);
    desc.on_exists = RELAY_ON_EXISTS_KEEP;
    CHECK_OK(relay_prompt_register(client, &desc, &next, &err), err);
    CHECK_EQ(next->generation, first->generation);
    relay_prompt_free(next);
    desc.on_exists = RELAY_ON_EXISTS_REPLACE;
    CHECK_OK(relay_prompt_register(client, &desc, &next, &err), err);
    CHECK(next->generation != first->generation);
    CHECK(memcmp(next->digest, first->digest, 32) != 0);
    relay_prompt_free(next);
    relay_prompt_free(first);
    unregister("again");
}

/* Copies into a buffer that every call overwrites: the library must be done with it by then. */
struct source {
    uint8_t *k, *v;
    uint32_t calls, fail_at;
    uint32_t begin[GOLDEN_LAYERS], end[GOLDEN_LAYERS];
    bool ascending;
};

static enum relay_code give(void *user, uint32_t layer, uint32_t token_begin, uint32_t token_count,
                            struct relay_kv *out, struct relay_error *error)
{
    struct source *s = user;
    const size_t token = GOLDEN_D * 2;
    if (++s->calls == s->fail_at) {
        return RELAY_FAIL(error, RELAY_DATA_LOSS, "the disk says no");
    }
    if (s->end[layer] == 0) {
        s->begin[layer] = token_begin;
    } else {
        s->ascending = s->ascending && token_begin == s->end[layer];
    }
    s->end[layer] = token_begin + token_count;
    memcpy(s->k, (const uint8_t *)golden.prompt[layer].k + token_begin * token,
           token_count * token);
    memcpy(s->v, (const uint8_t *)golden.prompt[layer].v + token_begin * token,
           token_count * token);
    out->k = s->k;
    out->v = s->v;
    return RELAY_OK;
}

static void test_a_source_gives_only_what_is_seen(void)
{
    struct relay_prompt_desc desc = golden_desc("from-pointers");
    struct relay_prompt *pointers = NULL, *sourced = NULL;
    struct source s = {.ascending = true};
    s.k = malloc(GOLDEN_TOKENS * GOLDEN_D * 2);
    s.v = malloc(GOLDEN_TOKENS * GOLDEN_D * 2);
    CHECK(s.k != NULL && s.v != NULL);
    CHECK_OK(relay_prompt_register(client, &desc, &pointers, &err), err);
    desc.prompt_id = "from-source";
    desc.layers = NULL;
    desc.source = give;
    desc.source_user = &s;
    CHECK_OK(relay_prompt_register(client, &desc, &sourced, &err), err);
    CHECK(memcmp(pointers->digest, sourced->digest, 32) == 0);
    CHECK(s.ascending);
    /* The window of 512 hides tokens 0..144 from every row to come. */
    CHECK_EQ(s.begin[0], GOLDEN_TOKENS - 511);
    CHECK_EQ(s.end[0], GOLDEN_TOKENS);
    CHECK_EQ(s.begin[1], 0);
    CHECK_EQ(s.end[1], GOLDEN_TOKENS);
    relay_prompt_free(pointers);
    relay_prompt_free(sourced);
    unregister("from-pointers");
    unregister("from-source");
    free(s.k);
    free(s.v);
}

static void test_a_failing_source_leaves_nothing(void)
{
    struct relay_prompt_desc desc = golden_desc("failing");
    struct relay_prompt *prompt = NULL;
    struct source s = {.fail_at = 2, .ascending = true};
    s.k = malloc(GOLDEN_TOKENS * GOLDEN_D * 2);
    s.v = malloc(GOLDEN_TOKENS * GOLDEN_D * 2);
    CHECK(s.k != NULL && s.v != NULL);
    desc.layers = NULL;
    desc.source = give;
    desc.source_user = &s;
    CHECK_CODE(relay_prompt_register(client, &desc, &prompt, &err), RELAY_DATA_LOSS);
    CHECK_STR(err.msg, "the disk says no");
    CHECK(prompt == NULL);
    CHECK_CODE(relay_prompt_get(client, golden.model->key, "failing", 0, &prompt, &err),
               RELAY_NOT_FOUND);
    free(s.k);
    free(s.v);
}

struct progress {
    uint64_t last, total;
    uint32_t calls, stop_at;
};

static bool watch(void *user, uint64_t done, uint64_t total)
{
    struct progress *p = user;
    p->last = done >= p->last ? done : UINT64_MAX;
    p->total = total;
    return ++p->calls != p->stop_at;
}

static void test_progress_is_told_and_may_stop(void)
{
    struct relay_prompt_desc desc = golden_desc("progress");
    struct progress p = {.stop_at = 0};
    desc.progress = watch;
    desc.progress_user = &p;
    CHECK_OK(relay_prompt_register(client, &desc, NULL, &err), err);
    CHECK(p.calls >= 2);
    CHECK_EQ(p.total, (uint64_t)(511 + GOLDEN_TOKENS) * GOLDEN_D * 2 * 2);
    unregister("progress");
    p = (struct progress){.stop_at = 1};
    CHECK_CODE(relay_prompt_register(client, &desc, NULL, &err), RELAY_CANCELLED);
    struct relay_prompt *prompt = NULL;
    CHECK_CODE(relay_prompt_get(client, golden.model->key, "progress", 0, &prompt, &err),
               RELAY_NOT_FOUND);
}

static void test_bad_prompts_are_refused_by_the_server(void)
{
    struct relay_prompt_desc desc = golden_desc("bad id");
    CHECK_CODE(relay_prompt_register(client, &desc, NULL, &err), RELAY_INVALID_ARGUMENT);
    CHECK(strstr(err.msg, "prompt_id") != NULL);
    desc = golden_desc("ok");
    desc.content_key = "x";
    desc.content_key_bytes = 65;
    static const char long_key[65] = "";
    desc.content_key = long_key;
    CHECK_CODE(relay_prompt_register(client, &desc, NULL, &err), RELAY_INVALID_ARGUMENT);
}

static void test_update(void)
{
    struct relay_prompt_desc desc = golden_desc("update");
    struct relay_prompt_update update = RELAY_PROMPT_UPDATE_INIT;
    struct relay_prompt *prompt = NULL;
    CHECK_OK(relay_prompt_register(client, &desc, NULL, &err), err);
    update.set_pinned = true;
    update.pinned = true;
    CHECK_OK(relay_prompt_update(client, golden.model->key, "update", &update, &prompt, &err), err);
    CHECK(prompt->pinned);
    relay_prompt_free(prompt);
    update = (struct relay_prompt_update)RELAY_PROMPT_UPDATE_INIT;
    update.set_idle_ttl = true;
    update.idle_ttl_ms = 7200000;
    update.touch = true;
    CHECK_OK(relay_prompt_update(client, golden.model->key, "update", &update, &prompt, &err), err);
    CHECK(prompt->pinned);
    CHECK_EQ(prompt->idle_ttl_ms, 7200000);
    relay_prompt_free(prompt);
    update.generation = 1;
    CHECK_CODE(relay_prompt_update(client, golden.model->key, "update", &update, &prompt, &err),
               RELAY_ABORTED);
    unregister("update");
}

struct listed {
    uint32_t count, stop_at;
    char last[64];
    bool ascending;
};

static bool note(void *user, const struct relay_prompt *prompt)
{
    struct listed *l = user;
    l->ascending = l->ascending && strcmp(l->last, prompt->prompt_id) < 0;
    snprintf(l->last, sizeof(l->last), "%s", prompt->prompt_id);
    return ++l->count != l->stop_at;
}

/* More than one page of a small model's prompts. */
static void test_list_is_paged_and_by_prefix(void)
{
    static const struct relay_layer_kind kind = {
        .num_q_heads = 1, .num_kv_heads = 1, .head_dim_qk = 8, .head_dim_v = 8};
    static const uint32_t layer_kind[1] = {0};
    static const uint16_t kv[8] = {0};
    static const struct relay_kv layers[1] = {{kv, kv, RELAY_DTYPE_BF16}};
    const struct relay_model model = {.key = "small",
                                      .num_layers = 1,
                                      .num_kinds = 1,
                                      .kinds = &kind,
                                      .layer_kind = layer_kind,
                                      .kv_dtype = RELAY_DTYPE_BF16};
    struct relay_prompt_desc desc = RELAY_PROMPT_DESC_INIT;
    char id[32];
    desc.prompt_id = id;
    desc.model = &model;
    desc.num_tokens = 1;
    desc.layers = layers;
    for (int i = 0; i < 130; i++) {
        snprintf(id, sizeof(id), "p%03d", i);
        CHECK_OK(relay_prompt_register(client, &desc, NULL, &err), err);
    }
    struct listed l = {.ascending = true};
    CHECK_OK(relay_prompts_list(client, "small", NULL, note, &l, &err), err);
    CHECK_EQ(l.count, 130);
    CHECK(l.ascending);
    l = (struct listed){.ascending = true};
    CHECK_OK(relay_prompts_list(client, NULL, "p01", note, &l, &err), err);
    CHECK_EQ(l.count, 10);
    l = (struct listed){.ascending = true, .stop_at = 3};
    CHECK_OK(relay_prompts_list(client, "small", NULL, note, &l, &err), err);
    CHECK_EQ(l.count, 3);
    l = (struct listed){.ascending = true};
    CHECK_OK(relay_prompts_list(client, "no-such-model", NULL, note, &l, &err), err);
    CHECK_EQ(l.count, 0);
    for (int i = 0; i < 130; i++) {
        snprintf(id, sizeof(id), "p%03d", i);
        CHECK_OK(relay_prompt_unregister(client, "small", id, 0, NULL, &err), err);
    }
}

static void test_a_prompt_in_use_is_doomed(void)
{
    struct relay_prompt_desc desc = golden_desc("doomed");
    struct relay_session *session = NULL;
    struct relay_prompt *prompt = NULL;
    uint64_t request;
    CHECK_OK(relay_prompt_register(client, &desc, NULL, &err), err);
    CHECK_OK(relay_session_open(client, golden.model, NULL, &session, &err), err);
    CHECK_OK(relay_request_open(session, "doomed", &request, &err), err);
    CHECK_OK(relay_prompt_get(client, golden.model->key, "doomed", 0, &prompt, &err), err);
    CHECK_EQ(prompt->references, 1);
    CHECK_EQ(prompt->hits, 1);
    relay_prompt_free(prompt);
    CHECK_OK(relay_prompt_unregister(client, golden.model->key, "doomed", 0, &prompt, &err), err);
    CHECK(prompt->doomed);
    relay_prompt_free(prompt);
    CHECK_CODE(relay_request_open(session, "doomed", &request, &err), RELAY_NOT_FOUND);
    relay_session_close(session);
}

static void test_nothing_is_left(void)
{
    CHECK(test_server_wait_idle(&server));
    struct relay_server_info *info = test_server_info(&server);
    CHECK(info != NULL);
    CHECK_EQ(info->prompts, 0);
    CHECK_EQ(info->prompt_bytes_used, 0);
    relay_server_info_free(info);
    relay_client_close(client);
    CHECK_EQ(test_server_stop(&server), 0);
}

int main(void)
{
    /* A broken upload is held for a second, and then must be gone. */
    static const char *const args[] = {"--upload-expiry-ms", "1s", NULL};
    golden_load(&golden);
    if (!test_server_start(&server, args) ||
        relay_client_open(server.unix_target, NULL, &client, &err) != RELAY_OK) {
        test_server_fini(&server);
        return 1;
    }
    CHECK_RUN(test_a_prompt_has_what_was_asked_for);
    CHECK_RUN(test_registering_again);
    CHECK_RUN(test_a_source_gives_only_what_is_seen);
    CHECK_RUN(test_a_failing_source_leaves_nothing);
    CHECK_RUN(test_progress_is_told_and_may_stop);
    CHECK_RUN(test_bad_prompts_are_refused_by_the_server);
    CHECK_RUN(test_update);
    CHECK_RUN(test_list_is_paged_and_by_prefix);
    CHECK_RUN(test_a_prompt_in_use_is_doomed);
    CHECK_RUN(test_nothing_is_left);
    test_server_fini(&server);
    golden_free(&golden);
    return check_done();
}
