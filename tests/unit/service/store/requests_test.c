/* service/store/requests: pages in all layers or in none, fencing, what layers hold. */
#include "fixture.h"

static struct fixture f;
static struct fixture_model spec;
static struct relayd_model *model;
static struct relayd_store_stats before;

/* A page of 4 tokens: 512 bytes a layer; layer 2 reads layer 0's. */
#define PAGE_BYTES 1024u

static void setup(uint32_t pages)
{
    struct relay_error err;
    fixture_init(&f);
    f.options.request_bytes_max = (uint64_t)pages * PAGE_BYTES;
    fixture_open(&f);
    fixture_model_init(&spec, "m", 3);
    spec.kv_layer[2] = 0;
    CHECK_OK(relayd_model_acquire(f.store, "t", &spec.model, &model, &err), err);
    CHECK_EQ(relayd_model_page_bytes(model), PAGE_BYTES);
    before = fixture_stats(&f);
}

static void teardown(void)
{
    struct relayd_store_stats after = fixture_stats(&f);
    CHECK(fixture_same_stats(&before, &after));
    relayd_model_release(model);
    model = NULL;
    fixture_close(&f);
}

static void open_request(uint32_t tokens_reserved, struct relayd_request **out)
{
    struct relay_error err;
    CHECK_OK(relayd_request_create(model, NULL, 7, tokens_reserved, out, &err), err);
}

static enum relay_code lend(struct relayd_request *request, uint32_t tokens, uint64_t step,
                            struct relay_error *err)
{
    struct relayd_lend lends = {request, tokens, RELAY_OK, ""};
    return relayd_request_lend_all(&lends, 1, step, NULL, err);
}

/* What the executor does with one call, all layers with own K/V. */
static enum relay_code step(struct relayd_request *request, uint64_t id, uint32_t position,
                            uint32_t q_len, struct relay_error *err)
{
    enum relay_code code = lend(request, position + q_len, id, err);
    if (code != RELAY_OK) {
        return code;
    }
    for (uint32_t l = 0; l < 2 && code == RELAY_OK; l++) {
        code = relayd_request_layer_check(request, l, position, q_len, true, err);
        if (code == RELAY_OK) {
            relayd_request_layer_write(request, l, id, position, q_len);
        }
    }
    relayd_request_unlend(request);
    return code;
}

static uint64_t pages_used(void)
{
    struct relayd_store_stats stats = fixture_stats(&f);
    return stats.request_bytes_used % PAGE_BYTES == 0 &&
                   stats.request_bytes_used / PAGE_BYTES == stats.pages_used - before.pages_used
               ? stats.pages_used - before.pages_used
               : UINT64_MAX;
}

static void test_requests_open_and_close(void)
{
    static struct relayd_prompt_info info;
    struct relayd_prompt_query query = {"sys", "", 0, NULL, 0};
    struct relayd_upload_desc desc;
    struct relayd_prompt *prompt = NULL;
    struct relayd_request *request = NULL;
    struct relay_error err;
    setup(16);
    CHECK_STILL();
    desc = fixture_desc("t", &spec.model, "sys", 10);
    CHECK_OK(fixture_register(&f, &desc, 1, &info, &err), err);
    before = fixture_stats(&f);
    CHECK_OK(relayd_prompt_acquire(model, &query, &prompt, &err), err);
    CHECK_OK(relayd_request_create(model, prompt, 42, 9, &request, &err), err);
    CHECK_EQ(relayd_request_tag(request), 42);
    CHECK(relayd_request_model(request) == model);
    CHECK(relayd_request_prompt(request) == prompt);
    CHECK_EQ(relayd_request_prompt_tokens(request), 10);
    CHECK_EQ(relayd_request_length(request), 0);
    CHECK_EQ(relayd_request_held_max(request), 0);
    CHECK_EQ(relayd_request_last_step(request), 0);
    CHECK_EQ(pages_used(), 3);
    CHECK_EQ(fixture_stats(&f).requests, 1);
    relayd_request_ref(request);
    relayd_request_close(request);
    CHECK_EQ(pages_used(), 3); /* a reference is left */
    CHECK_CODE(lend(request, 1, 1, &err), RELAY_NOT_FOUND);
    CHECK_CODE(relayd_request_truncate(request, 0, &err), RELAY_NOT_FOUND);
    relayd_request_unref(request);
    relayd_request_close(NULL);
    teardown();
}

static void test_requests_refused_at_open(void)
{
    static struct relayd_prompt_info info;
    struct relayd_prompt_query query = {"sys", "", 0, NULL, 0};
    struct relayd_prompt_name name = {"t", "m", "sys"};
    struct relayd_upload_desc desc;
    struct relayd_prompt *prompt = NULL;
    struct relayd_request *requests[16] = {NULL}, *no = NULL;
    struct relay_error err;
    setup(4);
    CHECK_STILL();
    desc = fixture_desc("t", &spec.model, "sys", 10);
    CHECK_OK(fixture_register(&f, &desc, 1, &info, &err), err);
    before = fixture_stats(&f);
    CHECK_OK(relayd_prompt_acquire(model, &query, &prompt, &err), err);
    CHECK_CODE(relayd_request_create(model, prompt, 1, 17, &no, &err), RELAY_RESOURCE_EXHAUSTED);
    CHECK_CODE(relayd_request_create(model, NULL, 1, 501, &no, &err), RELAY_RESOURCE_EXHAUSTED);
    CHECK(no == NULL);
    CHECK_OK(relayd_prompt_get(f.store, &name, &info, &err), err);
    CHECK_EQ(info.references, 0); /* the prompt was given back */
    for (uint32_t i = 0; i < 16; i++) {
        open_request(0, &requests[i]);
        CHECK_STILL();
    }
    CHECK_CODE(relayd_request_create(model, NULL, 1, 0, &no, &err), RELAY_RESOURCE_EXHAUSTED);
    for (uint32_t i = 0; i < 16; i++) {
        relayd_request_close(requests[i]);
    }
    teardown();
}

static void test_requests_grow_by_steps(void)
{
    struct relayd_request *request = NULL;
    struct relay_error err;
    setup(16);
    CHECK_STILL();
    open_request(0, &request);
    CHECK_STILL();
    for (uint32_t t = 0; t < 40; t++) {
        const uint32_t *pages;
        CHECK_OK(step(request, t + 1, t, 1, &err), err);
        CHECK_EQ(relayd_request_length(request), t + 1);
        CHECK_EQ(pages_used(), t / 4 + 1);
        pages = relayd_request_pages(request);
        for (uint32_t i = 0; i < t / 4; i++) {
            CHECK(pages[i] != pages[t / 4]);
        }
    }
    CHECK_EQ(relayd_request_last_step(request), 40);
    CHECK_EQ(relayd_request_held(request, 0), 40);
    CHECK_EQ(relayd_request_held(request, 2), 40); /* layer 0's */
    relayd_request_close(request);
    teardown();
}

static void test_requests_fence_older_steps(void)
{
    struct relayd_request *request = NULL;
    struct relay_error err;
    setup(16);
    CHECK_STILL();
    open_request(0, &request);
    CHECK_STILL();
    CHECK_OK(step(request, 5, 0, 4, &err), err);
    CHECK_CODE(step(request, 4, 4, 4, &err), RELAY_ABORTED);
    CHECK(strstr(err.msg, "step 4 is older than step 5") != NULL);
    CHECK_EQ(pages_used(), 1);
    CHECK_OK(step(request, 0, 4, 1, &err), err); /* unfenced */
    CHECK_EQ(relayd_request_last_step(request), 5);
    CHECK_OK(step(request, 5, 4, 2, &err), err);
    CHECK_OK(lend(request, 0, 9, &err), err); /* admission alone counts */
    relayd_request_unlend(request);
    CHECK_CODE(step(request, 8, 4, 1, &err), RELAY_ABORTED);
    CHECK_EQ(relayd_request_length(request), 6);
    relayd_request_close(request);
    teardown();
}

static void test_requests_same_step_never_shortens(void)
{
    struct relayd_request *request = NULL;
    struct relay_error err;
    setup(16);
    CHECK_STILL();
    open_request(0, &request);
    CHECK_STILL();
    CHECK_OK(step(request, 1, 0, 8, &err), err);
    CHECK_OK(step(request, 1, 0, 3, &err), err); /* a piece of it again */
    CHECK_EQ(relayd_request_length(request), 8);
    CHECK_OK(step(request, 1, 8, 2, &err), err);
    CHECK_EQ(relayd_request_length(request), 10);
    CHECK_OK(step(request, 2, 4, 1, &err), err); /* a newer step goes back */
    CHECK_EQ(relayd_request_length(request), 5);
    CHECK_OK(step(request, 2, 4, 1, &err), err);
    CHECK_EQ(relayd_request_length(request), 5);
    CHECK_OK(step(request, 0, 2, 1, &err), err); /* and so does an unfenced one */
    CHECK_EQ(relayd_request_length(request), 3);
    relayd_request_close(request);
    teardown();
}

static void test_requests_layers_fill_one_by_one(void)
{
    struct relayd_request *request = NULL;
    struct relay_error err;
    setup(16);
    CHECK_STILL();
    open_request(0, &request);
    CHECK_STILL();
    CHECK_OK(lend(request, 6, 1, &err), err);
    CHECK_OK(relayd_request_layer_check(request, 0, 0, 6, true, &err), err);
    CHECK_CODE(relayd_request_layer_check(request, 2, 0, 6, false, &err),
               RELAY_FAILED_PRECONDITION);
    relayd_request_layer_write(request, 0, 1, 0, 6);
    CHECK_OK(relayd_request_layer_check(request, 2, 0, 6, false, &err), err);
    CHECK_CODE(relayd_request_layer_check(request, 2, 0, 6, true, &err), RELAY_FAILED_PRECONDITION);
    CHECK_CODE(relayd_request_layer_check(request, 2, 6, 1, false, &err),
               RELAY_FAILED_PRECONDITION);
    relayd_request_unlend(request);
    CHECK_EQ(relayd_request_length(request), 0);
    CHECK_EQ(relayd_request_held_max(request), 6);
    CHECK_EQ(pages_used(), 2); /* reserved in all layers by the first write */
    relayd_request_close(request);
    teardown();
}

static void test_requests_gap_leaves_nothing(void)
{
    struct relayd_request *request = NULL;
    struct relay_error err;
    setup(16);
    CHECK_STILL();
    open_request(0, &request);
    CHECK_STILL();
    CHECK_OK(step(request, 1, 0, 5, &err), err);
    CHECK_CODE(step(request, 2, 6, 40, &err), RELAY_FAILED_PRECONDITION);
    CHECK(strstr(err.msg, "position 6") != NULL && strstr(err.msg, "holds 5") != NULL);
    CHECK_EQ(pages_used(), 2); /* what admission had reserved went back */
    CHECK_EQ(relayd_request_length(request), 5);
    CHECK_OK(step(request, 3, 5, 1, &err), err);
    CHECK_CODE(relayd_request_layer_check(request, 0, UINT32_MAX, 1, false, &err),
               RELAY_FAILED_PRECONDITION);
    CHECK_CODE(relayd_request_layer_check(request, 0, 6, 3, true, &err), RELAY_INTERNAL);
    relayd_request_close(request);
    teardown();
}

static void test_requests_exhausted_pool_lends_none(void)
{
    struct relayd_request *r[3] = {NULL};
    struct relayd_lend lends[3];
    struct relayd_store_stats stats, full;
    struct relay_error err;
    uint64_t left = 0;
    setup(8);
    CHECK_STILL();
    for (uint32_t i = 0; i < 3; i++) {
        open_request(4, &r[i]);
        CHECK_STILL();
    }
    full = fixture_stats(&f);
    memset(lends, 0, sizeof(lends));
    for (uint32_t i = 0; i < 3; i++) {
        lends[i].request = r[i];
        lends[i].tokens_needed = 12; /* 2 more pages each, 5 are left */
    }
    CHECK_CODE(relayd_request_lend_all(lends, 3, 1, &left, &err), RELAY_RESOURCE_EXHAUSTED);
    CHECK_EQ(lends[0].code, RELAY_OK);
    CHECK_EQ(lends[1].code, RELAY_OK);
    CHECK_EQ(lends[2].code, RELAY_RESOURCE_EXHAUSTED);
    CHECK(lends[2].msg[0] != '\0');
    stats = fixture_stats(&f);
    CHECK(fixture_same_stats(&full, &stats));
    for (uint32_t i = 0; i < 3; i++) {
        CHECK_EQ(relayd_request_last_step(r[i]), 0);
        CHECK_OK(relayd_request_truncate(r[i], 0, &err), err); /* not lent */
    }
    lends[1].tokens_needed = 8;
    CHECK_OK(relayd_request_lend_all(lends, 3, 1, &left, &err), err);
    CHECK_EQ(left, 0);
    CHECK_EQ(pages_used(), 8);
    CHECK_CODE(lend(r[1], 9, 1, &err), RELAY_RESOURCE_EXHAUSTED);
    CHECK_CODE(lend(r[1], 501, 1, &err), RELAY_RESOURCE_EXHAUSTED);
    CHECK_CODE(relayd_request_lend_all(lends, 0, 1, &left, &err), RELAY_INVALID_ARGUMENT);
    for (uint32_t i = 0; i < 3; i++) {
        relayd_request_unlend(r[i]);
    }
    CHECK_EQ(pages_used(), 3); /* nothing was written: only what open reserved stays */
    /* Every bad one is named, and nothing happens to the good one. */
    CHECK_OK(step(r[0], 5, 0, 1, &err), err);
    CHECK_OK(step(r[2], 6, 0, 1, &err), err);
    CHECK_CODE(relayd_request_lend_all(lends, 3, 4, &left, &err), RELAY_ABORTED);
    CHECK_EQ(lends[0].code, RELAY_ABORTED);
    CHECK_EQ(lends[1].code, RELAY_OK);
    CHECK_EQ(lends[2].code, RELAY_ABORTED);
    CHECK_EQ(relayd_request_last_step(r[1]), 1);
    for (uint32_t i = 0; i < 3; i++) {
        relayd_request_close(r[i]);
    }
    teardown();
}

static void test_requests_no_memory_lends_none(void)
{
    struct relayd_request *request = NULL;
    struct relayd_lend lends[1];
    struct relay_error err;
    setup(8);
    CHECK_STILL();
    atomic_store(&f.backend.fail_commits, 1);
    CHECK_CODE(relayd_request_create(model, NULL, 1, 4, &request, &err), RELAY_RESOURCE_EXHAUSTED);
    CHECK(request == NULL);
    open_request(0, &request);
    CHECK_STILL();
    lends[0].request = request;
    lends[0].tokens_needed = 4;
    atomic_store(&f.backend.fail_commits, 1);
    CHECK_CODE(relayd_request_lend_all(lends, 1, 1, NULL, &err), RELAY_RESOURCE_EXHAUSTED);
    CHECK_EQ(lends[0].code, RELAY_RESOURCE_EXHAUSTED);
    CHECK_EQ(pages_used(), 0);
    CHECK_EQ(relayd_request_last_step(request), 0);
    CHECK_OK(step(request, 1, 0, 4, &err), err);
    relayd_request_close(request);
    teardown();
}

static void test_requests_lends_nest(void)
{
    struct relayd_request *request = NULL;
    const uint32_t *early;
    uint32_t first;
    struct relay_error err;
    setup(128);
    CHECK_STILL();
    open_request(0, &request);
    CHECK_STILL();
    CHECK_OK(lend(request, 1, 1, &err), err);
    early = relayd_request_pages(request);
    first = early[0];
    CHECK_OK(lend(request, 400, 1, &err), err); /* the array moves; the old one stays readable */
    CHECK(relayd_request_pages(request) != early);
    CHECK_EQ(early[0], first);
    CHECK_EQ(relayd_request_pages(request)[0], first);
    relayd_request_unlend(request);
    CHECK_EQ(early[0], first);
    CHECK_EQ(pages_used(), 100);
    relayd_request_unlend(request);
    CHECK_EQ(pages_used(), 0);
    relayd_request_close(request);
    teardown();
}

static void test_requests_close_while_lent(void)
{
    struct relayd_request *request = NULL;
    struct relay_error err;
    setup(16);
    CHECK_STILL();
    open_request(0, &request);
    CHECK_STILL();
    CHECK_OK(lend(request, 4, 1, &err), err);
    CHECK_OK(lend(request, 8, 1, &err), err);
    relayd_request_close(request);
    CHECK_EQ(fixture_stats(&f).requests, 1);
    CHECK_EQ(pages_used(), 2);
    relayd_request_layer_write(request, 0, 1, 0, 8);
    relayd_request_unlend(request);
    CHECK_EQ(fixture_stats(&f).requests, 1);
    relayd_request_unlend(request);
    CHECK_EQ(fixture_stats(&f).requests, 0);
    teardown();
}

/* ---- append and truncate ---- */

static enum relay_code append(struct relayd_request *request, uint32_t layer, uint32_t begin,
                              uint32_t count, uint64_t xxh64, struct relay_error *err)
{
    static float k[64 * FIXTURE_ROW], v[64 * FIXTURE_ROW];
    struct relayd_kv_chunk chunk = {layer, begin, count, RELAY_DTYPE_F32, xxh64, k, 0, v, 0};
    chunk.k_bytes = chunk.v_bytes = count * FIXTURE_ROW * sizeof(float);
    fixture_fill(9, layer, begin, count, k, v);
    return relayd_request_append(request, &chunk, err);
}

static void test_requests_append(void)
{
    struct relayd_request *request = NULL;
    struct relay_error err;
    setup(16);
    CHECK_STILL();
    open_request(0, &request);
    CHECK_STILL();
    CHECK_OK(append(request, 0, 0, 10, 0, &err), err);
    CHECK_OK(append(request, 1, 0, 7, 0, &err), err);
    CHECK_EQ(relayd_request_length(request), 7);
    CHECK_EQ(relayd_request_held_max(request), 10);
    CHECK_CODE(append(request, 0, 11, 2, 0, &err), RELAY_FAILED_PRECONDITION);
    CHECK_CODE(append(request, 2, 0, 2, 0, &err), RELAY_INVALID_ARGUMENT);
    CHECK_CODE(append(request, 1, 7, 2, 1, &err), RELAY_DATA_LOSS);
    CHECK_CODE(append(request, 1, UINT32_MAX - 1, 2, 0, &err), RELAY_INVALID_ARGUMENT);
    atomic_store(&f.backend.fail_writes, 1);
    CHECK_CODE(append(request, 0, 10, 20, 0, &err), RELAY_UNAVAILABLE);
    CHECK_EQ(pages_used(), 3);
    CHECK_EQ(relayd_request_held(request, 0), 10);
    CHECK_CODE(append(request, 0, 10, 60, 0, &err), RELAY_RESOURCE_EXHAUSTED);
    CHECK_EQ(pages_used(), 3);
    CHECK_OK(append(request, 0, 5, 3, 0, &err), err); /* over what is there: no shorter */
    CHECK_EQ(relayd_request_held(request, 0), 10);
    CHECK_OK(append(request, 1, 7, 6, 0, &err), err);
    CHECK_OK(append(request, 0, 10, 3, 0, &err), err);
    CHECK_EQ(relayd_request_length(request), 13);
    CHECK(fixture_holds(model, relayd_request_pages(request), 9, 0, 0, 13));
    CHECK(fixture_holds(model, relayd_request_pages(request), 9, 1, 0, 13));
    CHECK_OK(lend(request, 0, 1, &err), err);
    CHECK_CODE(append(request, 0, 13, 1, 0, &err), RELAY_FAILED_PRECONDITION);
    CHECK_CODE(relayd_request_truncate(request, 3, &err), RELAY_FAILED_PRECONDITION);
    relayd_request_unlend(request);
    relayd_request_close(request);
    teardown();
}

static void test_requests_truncate(void)
{
    struct relayd_request *request = NULL;
    struct relay_error err;
    setup(16);
    CHECK_STILL();
    open_request(6, &request);
    CHECK_STILL();
    CHECK_OK(append(request, 0, 0, 20, 0, &err), err);
    CHECK_OK(append(request, 1, 0, 15, 0, &err), err);
    CHECK_EQ(pages_used(), 5);
    CHECK_OK(relayd_request_truncate(request, 17, &err), err);
    CHECK_EQ(relayd_request_held(request, 0), 17);
    CHECK_EQ(relayd_request_held(request, 1), 15);
    CHECK_EQ(pages_used(), 5);
    CHECK_OK(relayd_request_truncate(request, 9, &err), err);
    CHECK_EQ(relayd_request_length(request), 9);
    CHECK_EQ(pages_used(), 3);
    CHECK_OK(relayd_request_truncate(request, 100, &err), err);
    CHECK_EQ(relayd_request_length(request), 9);
    CHECK(fixture_holds(model, relayd_request_pages(request), 9, 0, 0, 9));
    CHECK_OK(relayd_request_truncate(request, 0, &err), err);
    CHECK_EQ(relayd_request_held_max(request), 0);
    CHECK_EQ(pages_used(), 2); /* what open reserved stays */
    CHECK_OK(step(request, 1, 0, 1, &err), err);
    relayd_request_close(request);
    teardown();
}

int main(void)
{
    CHECK_RUN(test_requests_open_and_close);
    CHECK_RUN(test_requests_refused_at_open);
    CHECK_RUN(test_requests_grow_by_steps);
    CHECK_RUN(test_requests_fence_older_steps);
    CHECK_RUN(test_requests_same_step_never_shortens);
    CHECK_RUN(test_requests_layers_fill_one_by_one);
    CHECK_RUN(test_requests_gap_leaves_nothing);
    CHECK_RUN(test_requests_exhausted_pool_lends_none);
    CHECK_RUN(test_requests_no_memory_lends_none);
    CHECK_RUN(test_requests_lends_nest);
    CHECK_RUN(test_requests_close_while_lent);
    CHECK_RUN(test_requests_append);
    CHECK_RUN(test_requests_truncate);
    return check_done();
}
