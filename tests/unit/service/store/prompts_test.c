/* service/store/prompts: found, used, doomed, expired, replaced, listed. */
#include "fixture.h"

static struct fixture f;
static struct fixture_model spec;
static struct relayd_model *model;
static struct relayd_store_stats before;

static void setup(void)
{
    struct relay_error err;
    fixture_init(&f);
    fixture_open(&f);
    fixture_model_init(&spec, "m@1", 2);
    CHECK_OK(relayd_model_acquire(f.store, "t", &spec.model, &model, &err), err);
    before = fixture_stats(&f);
}

static void teardown(void)
{
    struct relayd_store_stats after = fixture_stats(&f);
    relayd_model_release(model);
    model = NULL;
    CHECK_EQ(after.requests, 0);
    CHECK_EQ(after.uploads, 0);
    CHECK_EQ(after.prompts_doomed, 0);
    fixture_close(&f);
}

static void add(const char *id, uint32_t tokens, struct relayd_prompt_info *info)
{
    static struct relayd_prompt_info ignored;
    struct relayd_upload_desc desc = fixture_desc("t", &spec.model, id, tokens);
    struct relay_error err;
    CHECK_OK(fixture_register(&f, &desc, 1, info != NULL ? info : &ignored, &err), err);
}

static enum relay_code acquire(const char *id, struct relayd_prompt **out, struct relay_error *err)
{
    struct relayd_prompt_query query = {id, "", 0, NULL, 0};
    return relayd_prompt_acquire(model, &query, out, err);
}

static enum relay_code get(const char *id, struct relayd_prompt_info *out)
{
    struct relayd_prompt_name name = {"t", "m@1", id};
    return relayd_prompt_get(f.store, &name, out, NULL);
}

static void test_prompts_id_characters(void)
{
    char longest[RELAYD_PROMPT_ID_BYTES_MAX + 1];
    memset(longest, 'a', sizeof(longest));
    CHECK_CODE(relayd_prompt_id_check("AZaz09._:/@#+-", 14, NULL), RELAY_OK);
    CHECK_CODE(relayd_prompt_id_check("", 0, NULL), RELAY_INVALID_ARGUMENT);
    CHECK_CODE(relayd_prompt_id_check("a b", 3, NULL), RELAY_INVALID_ARGUMENT);
    CHECK_CODE(relayd_prompt_id_check("a\0b", 3, NULL), RELAY_INVALID_ARGUMENT);
    CHECK_CODE(relayd_prompt_id_check("\xc3\xa9", 2, NULL), RELAY_INVALID_ARGUMENT);
    CHECK_CODE(relayd_prompt_id_check("a\n", 2, NULL), RELAY_INVALID_ARGUMENT);
    CHECK_CODE(relayd_prompt_id_check(longest, RELAYD_PROMPT_ID_BYTES_MAX, NULL), RELAY_OK);
    CHECK_CODE(relayd_prompt_id_check(longest, RELAYD_PROMPT_ID_BYTES_MAX + 1, NULL),
               RELAY_INVALID_ARGUMENT);
}

static void test_prompts_are_found_and_counted(void)
{
    static struct relayd_prompt_info info;
    struct relayd_prompt *a = NULL, *b = NULL;
    struct relay_error err;
    setup();
    CHECK_STILL();
    add("sys", 30, &info);
    CHECK_STILL();
    CHECK_EQ(info.num_tokens, 30);
    CHECK_EQ(info.bytes, 8 * relayd_model_page_bytes(model)); /* 30 tokens, 4 a page */
    CHECK(info.generation != 0);
    CHECK_CODE(acquire("nobody", &a, &err), RELAY_NOT_FOUND);
    CHECK(strstr(err.msg, "nobody") != NULL);
    fixture_advance(&f, 10);
    CHECK_OK(acquire("sys", &a, &err), err);
    CHECK_OK(acquire("sys", &b, &err), err);
    CHECK(a == b);
    CHECK_EQ(relayd_prompt_tokens(a), 30);
    CHECK_EQ(relayd_prompt_generation(a), info.generation);
    CHECK(fixture_holds(model, relayd_prompt_pages(a), 1, 0, 0, 30));
    CHECK(fixture_holds(model, relayd_prompt_pages(a), 1, 1, 0, 30));
    CHECK_CODE(get("sys", &info), RELAY_OK);
    CHECK_EQ(info.references, 2);
    CHECK_EQ(info.hits, 2);
    CHECK_EQ(info.last_used_unix_ms, info.created_unix_ms + 10);
    relayd_prompt_release(a);
    relayd_prompt_release(b);
    relayd_prompt_release(NULL);
    CHECK_CODE(get("sys", &info), RELAY_OK);
    CHECK_EQ(info.references, 0);
    CHECK_EQ(info.hits, 2);
    teardown();
}

static void test_prompts_query_must_fit(void)
{
    static struct relayd_prompt_info info;
    struct relayd_upload_desc desc;
    struct relayd_prompt_query query = {"sys", "lora-2", 0, NULL, 0};
    struct relayd_prompt *prompt = NULL;
    struct relay_error err;
    setup();
    CHECK_STILL();
    desc = fixture_desc("t", &spec.model, "sys", 9);
    desc.variant = "lora-1";
    desc.content_key = (const uint8_t *)"key1";
    desc.content_key_bytes = 4;
    CHECK_OK(fixture_register(&f, &desc, 1, &info, &err), err);
    CHECK_CODE(relayd_prompt_acquire(model, &query, &prompt, &err), RELAY_FAILED_PRECONDITION);
    CHECK(strstr(err.msg, "lora-1") != NULL && strstr(err.msg, "lora-2") != NULL);
    query.variant = "lora-1";
    query.generation = info.generation + 1;
    CHECK_CODE(relayd_prompt_acquire(model, &query, &prompt, &err), RELAY_ABORTED);
    query.generation = info.generation;
    query.content_key = (const uint8_t *)"key2";
    query.content_key_bytes = 4;
    CHECK_CODE(relayd_prompt_acquire(model, &query, &prompt, &err), RELAY_FAILED_PRECONDITION);
    CHECK(prompt == NULL);
    CHECK_CODE(get("sys", &info), RELAY_OK);
    CHECK_EQ(info.hits, 0);
    CHECK_EQ(info.references, 0);
    query.content_key = (const uint8_t *)"key1";
    CHECK_OK(relayd_prompt_acquire(model, &query, &prompt, &err), err);
    relayd_prompt_release(prompt);
    teardown();
}

static void test_prompts_in_use_are_doomed_not_freed(void)
{
    static struct relayd_prompt_info info;
    struct relayd_prompt_name name = {"t", "m@1", "sys"};
    struct relayd_prompt *prompt = NULL, *no = NULL;
    struct relayd_store_stats stats;
    struct relay_error err;
    setup();
    CHECK_STILL();
    add("sys", 40, NULL);
    CHECK_STILL();
    CHECK_OK(acquire("sys", &prompt, &err), err);
    CHECK_CODE(relayd_prompt_unregister(f.store, &name, 12345, &info, &err), RELAY_ABORTED);
    CHECK_OK(
        relayd_prompt_unregister(f.store, &name, relayd_prompt_generation(prompt), &info, &err),
        err);
    CHECK(info.doomed);
    CHECK_EQ(info.references, 1);
    stats = fixture_stats(&f);
    CHECK_EQ(stats.prompts, 0);
    CHECK_EQ(stats.prompts_doomed, 1);
    CHECK_EQ(stats.prompt_bytes_used, 10 * relayd_model_page_bytes(model));
    CHECK_CODE(acquire("sys", &no, &err), RELAY_NOT_FOUND);
    CHECK_CODE(relayd_prompt_unregister(f.store, &name, 0, &info, &err), RELAY_NOT_FOUND);
    CHECK(fixture_holds(model, relayd_prompt_pages(prompt), 1, 1, 0, 40));
    relayd_prompt_release(prompt);
    stats = fixture_stats(&f);
    CHECK(fixture_same_stats(&before, &stats));
    add("sys", 5, NULL);
    CHECK_STILL();
    CHECK_OK(relayd_prompt_unregister(f.store, &name, 0, &info, &err), err);
    CHECK(!info.doomed);
    stats = fixture_stats(&f);
    CHECK(fixture_same_stats(&before, &stats));
    teardown();
}

static void test_prompts_expire_when_idle(void)
{
    static struct relayd_prompt_info info;
    struct relayd_prompt_name name = {"t", "m@1", "ttl"};
    struct relayd_prompt_update update = {.set_idle_ttl = true, .idle_ttl_ms = 1000};
    struct relayd_prompt *prompt = NULL;
    struct relay_error err;
    setup();
    CHECK_STILL();
    add("ttl", 8, NULL);
    add("forever", 8, NULL);
    CHECK_STILL();
    fixture_advance(&f, 1u << 30);
    CHECK_EQ(relayd_store_sweep(f.store), 0);
    update.touch = true;
    CHECK_OK(relayd_prompt_update(f.store, &name, &update, &info, &err), err);
    CHECK_EQ(info.idle_ttl_ms, 1000);
    fixture_advance(&f, 999);
    CHECK_EQ(relayd_store_sweep(f.store), 0);
    CHECK_OK(acquire("ttl", &prompt, &err), err); /* use counts */
    fixture_advance(&f, 5000);
    CHECK_EQ(relayd_store_sweep(f.store), 0); /* in use is not idle */
    relayd_prompt_release(prompt);
    fixture_advance(&f, 999);
    CHECK_EQ(relayd_store_sweep(f.store), 0);
    memset(&update, 0, sizeof(update));
    update.set_pinned = update.pinned = true;
    CHECK_OK(relayd_prompt_update(f.store, &name, &update, &info, &err), err);
    CHECK(info.pinned);
    fixture_advance(&f, 5000);
    CHECK_EQ(relayd_store_sweep(f.store), 0); /* pinned */
    update.pinned = false;
    CHECK_OK(relayd_prompt_update(f.store, &name, &update, &info, &err), err);
    CHECK_EQ(relayd_store_sweep(f.store), 1);
    CHECK_CODE(get("ttl", &info), RELAY_NOT_FOUND);
    CHECK_CODE(get("forever", &info), RELAY_OK);
    CHECK_CODE(relayd_prompt_update(f.store, &name, &update, &info, &err), RELAY_NOT_FOUND);
    CHECK_EQ(fixture_stats(&f).prompts, 1);
    CHECK_EQ(atomic_load(&f.backend.blocks) > 0, 1);
    teardown();
}

static void test_prompts_replaced_ones_serve_their_users(void)
{
    static struct relayd_prompt_info first, second;
    struct relayd_upload_desc desc;
    struct relayd_prompt *old = NULL, *new = NULL;
    struct relay_error err;
    setup();
    CHECK_STILL();
    desc = fixture_desc("t", &spec.model, "sys", 20);
    desc.on_exists = RELAYD_ON_EXISTS_REPLACE;
    CHECK_OK(fixture_register(&f, &desc, 1, &first, &err), err);
    CHECK_OK(acquire("sys", &old, &err), err);
    desc.num_tokens = 24;
    CHECK_OK(fixture_register(&f, &desc, 2, &second, &err), err);
    CHECK(first.generation != second.generation);
    CHECK_OK(acquire("sys", &new, &err), err);
    CHECK(old != new);
    CHECK_EQ(relayd_prompt_tokens(old), 20);
    CHECK_EQ(relayd_prompt_tokens(new), 24);
    CHECK(fixture_holds(model, relayd_prompt_pages(old), 1, 0, 0, 20));
    CHECK(fixture_holds(model, relayd_prompt_pages(new), 2, 0, 0, 24));
    CHECK_EQ(fixture_stats(&f).prompts, 1);
    CHECK_EQ(fixture_stats(&f).prompts_doomed, 1);
    relayd_prompt_release(old);
    CHECK_EQ(fixture_stats(&f).prompts_doomed, 0);
    CHECK_EQ(fixture_stats(&f).prompt_bytes_used, 6 * relayd_model_page_bytes(model));
    relayd_prompt_release(new);
    teardown();
}

static void test_prompts_generations_never_repeat(void)
{
    enum { TIMES = 200, STORES = 3 };
    static uint64_t seen[TIMES * STORES];
    static struct relayd_prompt_info info;
    struct relayd_upload_desc desc;
    struct relay_error err;
    uint32_t n = 0;
    for (int s = 0; s < STORES; s++) {
        setup();
        CHECK_STILL();
        desc = fixture_desc("t", &spec.model, "sys", 1);
        desc.on_exists = RELAYD_ON_EXISTS_REPLACE;
        for (int i = 0; i < TIMES; i++) {
            CHECK_OK(fixture_register(&f, &desc, 1, &info, &err), err);
            for (uint32_t j = 0; j < n; j++) {
                CHECK(seen[j] != info.generation);
            }
            seen[n++] = info.generation;
        }
        teardown();
        CHECK_STILL();
    }
}

/* ---- list ---- */

static uint32_t list_all(const struct relayd_prompt_list *query, uint32_t page, char *out,
                         size_t out_bytes)
{
    static struct relayd_prompt_info infos[32];
    char model_key[RELAY_MODEL_KEY_BYTES_MAX + 1] = "";
    char id[RELAYD_PROMPT_ID_BYTES_MAX + 1] = "";
    struct relayd_prompt_list next = *query;
    uint32_t pages = 0;
    bool more = true;
    out[0] = '\0';
    while (more && pages < 100) {
        uint32_t n;
        next.after_model_key = model_key;
        next.after_prompt_id = id;
        n = relayd_prompt_list(f.store, &next, infos, page, &more);
        for (uint32_t i = 0; i < n; i++) {
            size_t used = strlen(out);
            (void)snprintf(out + used, out_bytes - used, "%s:%s ", infos[i].model_key,
                           infos[i].prompt_id);
        }
        if (n > 0) {
            memcpy(model_key, infos[n - 1].model_key, sizeof(model_key));
            memcpy(id, infos[n - 1].prompt_id, sizeof(id));
        }
        pages++;
    }
    return pages;
}

static void test_prompts_list_in_order_by_pages(void)
{
    static struct relayd_prompt_info info;
    static const char *const ids[] = {"b", "a/2", "c", "a", "a/1", "a/3", "zz"};
    static const struct relayd_prompt_list all = {"t", "", "", "", ""};
    static const struct relayd_prompt_list a = {"t", "", "a/", "", ""};
    static const struct relayd_prompt_list one_model = {"t", "m@0", "", "", ""};
    static const struct relayd_prompt_list nothing = {"t", "m@9", "", "", ""};
    struct fixture_model other;
    struct relayd_upload_desc desc;
    struct relay_error err;
    char got[512];
    bool more = true;
    setup();
    CHECK_STILL();
    for (size_t i = 0; i < sizeof(ids) / sizeof(ids[0]); i++) {
        add(ids[i], 1, NULL);
        CHECK_STILL();
    }
    fixture_model_init(&other, "m@0", 1);
    for (size_t i = 0; i < 3; i++) {
        desc = fixture_desc("t", &other.model, ids[i], 1);
        CHECK_OK(fixture_register(&f, &desc, 1, &info, &err), err);
    }
    desc = fixture_desc("stranger", &other.model, "a/9", 1);
    CHECK_OK(fixture_register(&f, &desc, 1, &info, &err), err);
    for (uint32_t page = 1; page <= 12; page++) {
        (void)list_all(&all, page, got, sizeof(got));
        CHECK_STR(got, "m@0:a/2 m@0:b m@0:c m@1:a m@1:a/1 m@1:a/2 m@1:a/3 m@1:b m@1:c m@1:zz ");
        (void)list_all(&a, page, got, sizeof(got));
        CHECK_STR(got, "m@0:a/2 m@1:a/1 m@1:a/2 m@1:a/3 ");
        (void)list_all(&one_model, page, got, sizeof(got));
        CHECK_STR(got, "m@0:a/2 m@0:b m@0:c ");
    }
    CHECK_EQ(list_all(&all, 5, got, sizeof(got)), 2); /* no empty last page */
    (void)list_all(&nothing, 5, got, sizeof(got));
    CHECK_STR(got, "");
    CHECK_EQ(relayd_prompt_list(f.store, &all, NULL, 0, &more), 0);
    CHECK(more);
    teardown();
}

static void test_prompts_labels_come_back(void)
{
    static struct relayd_label labels[RELAYD_LABELS_MAX];
    static struct relayd_prompt_info info;
    struct relayd_upload_desc desc;
    struct relay_error err;
    setup();
    CHECK_STILL();
    for (uint32_t i = 0; i < RELAYD_LABELS_MAX; i++) {
        (void)snprintf(labels[i].key, sizeof(labels[i].key), "key%u", i);
        (void)snprintf(labels[i].value, sizeof(labels[i].value), "value%u", i);
    }
    desc = fixture_desc("t", &spec.model, "sys", 3);
    desc.labels = labels;
    desc.num_labels = RELAYD_LABELS_MAX;
    desc.pinned = true;
    desc.idle_ttl_ms = 77;
    CHECK_OK(fixture_register(&f, &desc, 1, &info, &err), err);
    CHECK_CODE(get("sys", &info), RELAY_OK);
    CHECK_EQ(info.num_labels, RELAYD_LABELS_MAX);
    CHECK_STR(info.labels[31].key, "key31");
    CHECK_STR(info.labels[31].value, "value31");
    CHECK(info.pinned);
    CHECK_EQ(info.idle_ttl_ms, 77);
    teardown();
}

int main(void)
{
    CHECK_RUN(test_prompts_id_characters);
    CHECK_RUN(test_prompts_are_found_and_counted);
    CHECK_RUN(test_prompts_query_must_fit);
    CHECK_RUN(test_prompts_in_use_are_doomed_not_freed);
    CHECK_RUN(test_prompts_expire_when_idle);
    CHECK_RUN(test_prompts_replaced_ones_serve_their_users);
    CHECK_RUN(test_prompts_generations_never_repeat);
    CHECK_RUN(test_prompts_list_in_order_by_pages);
    CHECK_RUN(test_prompts_labels_come_back);
    return check_done();
}
