/* service/store/uploads: how a prompt comes to be, and every way in which it does not. */
#include "fixture.h"

#include <openssl/sha.h>
#include <xxhash.h>

static struct fixture f;
static struct fixture_model spec;
static struct relayd_store_stats before;
static struct relayd_prompt_info info;

static void setup(uint32_t layers)
{
    fixture_init(&f);
    fixture_open(&f);
    fixture_model_init(&spec, "m", layers);
    before = fixture_stats(&f);
}

/* Whatever happened, everything has been given back. */
static void teardown(void)
{
    struct relayd_store_stats after = fixture_stats(&f);
    CHECK(fixture_same_stats(&before, &after));
    CHECK_EQ(after.models, 0);
    fixture_close(&f);
}

static void unregister(const char *id)
{
    struct relayd_prompt_name name = {"t", "m", id};
    struct relay_error err;
    CHECK_OK(relayd_prompt_unregister(f.store, &name, 0, &info, &err), err);
}

static void test_uploads_publish_at_commit_only(void)
{
    struct relayd_prompt_name name = {"t", "m", "sys"};
    struct relayd_upload_desc desc;
    struct relayd_upload *upload = NULL;
    struct relay_error err;
    uint32_t held[2], layers;
    setup(2);
    CHECK_STILL();
    desc = fixture_desc("t", &spec.model, "sys", 21);
    CHECK_OK(relayd_upload_begin(f.store, &desc, &upload, &info, &err), err);
    CHECK(upload != NULL);
    CHECK_EQ(fixture_stats(&f).uploads, 1);
    CHECK(fixture_stats(&f).prompt_bytes_used > 0); /* charged from the start */
    CHECK_OK(fixture_send(upload, 1, 1, 0, 21, 5, &err), err);
    CHECK_OK(fixture_send(upload, 1, 0, 0, 20, 20, &err), err);
    CHECK_OK(relayd_upload_held(upload, held, &layers, &err), err);
    CHECK_EQ(layers, 2);
    CHECK_EQ(held[0], 20);
    CHECK_EQ(held[1], 21);
    CHECK_CODE(relayd_prompt_get(f.store, &name, &info, NULL), RELAY_NOT_FOUND);
    CHECK_OK(fixture_send(upload, 1, 0, 20, 21, 1, &err), err);
    CHECK_CODE(relayd_prompt_get(f.store, &name, &info, NULL), RELAY_NOT_FOUND);
    CHECK_OK(relayd_upload_commit(upload, &info, &err), err);
    CHECK_STR(info.prompt_id, "sys");
    CHECK_STR(info.model_key, "m");
    CHECK_CODE(relayd_prompt_get(f.store, &name, &info, NULL), RELAY_OK);
    CHECK_EQ(fixture_stats(&f).uploads, 0);
    unregister("sys");
    teardown();
}

static void test_uploads_incomplete_commit_leaves_nothing(void)
{
    struct relayd_upload_desc desc;
    struct relayd_upload *upload = NULL;
    struct relay_error err;
    setup(2);
    CHECK_STILL();
    desc = fixture_desc("t", &spec.model, "sys", 10);
    CHECK_OK(relayd_upload_begin(f.store, &desc, &upload, &info, &err), err);
    CHECK_OK(fixture_send(upload, 1, 0, 0, 10, 10, &err), err);
    CHECK_OK(fixture_send(upload, 1, 1, 0, 9, 9, &err), err);
    CHECK_CODE(relayd_upload_commit(upload, &info, &err), RELAY_FAILED_PRECONDITION);
    CHECK(strstr(err.msg, "layer 1") != NULL && strstr(err.msg, "[9, 10)") != NULL);
    CHECK_OK(relayd_upload_begin(f.store, &desc, &upload, &info, &err), err);
    relayd_upload_abort(upload);
    relayd_upload_abort(NULL);
    teardown();
}

static void test_uploads_bad_descriptions(void)
{
    static struct relayd_label labels[RELAYD_LABELS_MAX + 1];
    static char variant[RELAYD_VARIANT_BYTES_MAX + 2];
    struct relayd_upload_desc good, desc;
    struct relayd_upload *no = NULL;
    setup(1);
    CHECK_STILL();
    good = desc = fixture_desc("t", &spec.model, "sys", 10);
#define REFUSED(want)                                                                              \
    CHECK_CODE(relayd_upload_begin(f.store, &desc, &no, &info, NULL), want);                       \
    desc = good
    desc.prompt_id = "a b";
    REFUSED(RELAY_INVALID_ARGUMENT);
    desc.num_tokens = 0;
    REFUSED(RELAY_INVALID_ARGUMENT);
    desc.num_tokens = 1001;
    REFUSED(RELAY_INVALID_ARGUMENT);
    desc.content_key_bytes = RELAYD_CONTENT_KEY_BYTES_MAX + 1;
    REFUSED(RELAY_INVALID_ARGUMENT);
    memset(variant, 'v', RELAYD_VARIANT_BYTES_MAX + 1);
    desc.variant = variant;
    REFUSED(RELAY_INVALID_ARGUMENT);
    desc.labels = labels;
    desc.num_labels = RELAYD_LABELS_MAX + 1;
    REFUSED(RELAY_INVALID_ARGUMENT);
    memset(labels[0].value, 'x', sizeof(labels[0].value)); /* no NUL */
    desc.labels = labels;
    desc.num_labels = 1;
    REFUSED(RELAY_INVALID_ARGUMENT);
    desc.on_exists = (enum relayd_on_exists)3;
    REFUSED(RELAY_UNIMPLEMENTED);
    spec.kinds[0].head_dim_qk = 24;
    REFUSED(RELAY_UNIMPLEMENTED);
    spec.kinds[0].head_dim_qk = 7;
    REFUSED(RELAY_INVALID_ARGUMENT);
#undef REFUSED
    CHECK(no == NULL);
    teardown();
}

/* Each bad chunk is refused, and the good ones after it make the same prompt as without it. */
static void test_uploads_bad_chunks_change_nothing(void)
{
    float k[8 * FIXTURE_ROW], v[8 * FIXTURE_ROW];
    size_t bytes = 8 * FIXTURE_ROW * sizeof(float);
    struct relayd_kv_chunk good = {0, 0, 8, RELAY_DTYPE_UNSPECIFIED, 0, k, 0, v, 0};
    struct relayd_kv_chunk chunk;
    uint8_t digest[RELAYD_DIGEST_BYTES];
    struct relayd_upload_desc desc;
    struct relayd_upload *upload = NULL;
    struct relay_error err;
    uint32_t held[3], layers;
    setup(3);
    CHECK_STILL();
    spec.kv_layer[2] = 0;
    desc = fixture_desc("t", &spec.model, "sys", 16);
    CHECK_OK(fixture_register(&f, &desc, 1, &info, &err), err);
    memcpy(digest, info.digest, sizeof(digest));
    unregister("sys");
    CHECK_STILL();
    good.k_bytes = good.v_bytes = bytes;
    fixture_fill(1, 0, 0, 8, k, v);
    chunk = good;
    CHECK_OK(relayd_upload_begin(f.store, &desc, &upload, &info, &err), err);
#define REFUSED(want, text)                                                                        \
    CHECK_CODE(relayd_upload_chunk(upload, &chunk, &err), want);                                   \
    CHECK(strstr(err.msg, text) != NULL);                                                          \
    chunk = good
    chunk.layer = 3;
    REFUSED(RELAY_INVALID_ARGUMENT, "layer 3");
    chunk.layer = 2;
    REFUSED(RELAY_INVALID_ARGUMENT, "K/V of layer 0");
    chunk.token_count = 0;
    REFUSED(RELAY_INVALID_ARGUMENT, "[0, +0)");
    chunk.token_begin = 9;
    REFUSED(RELAY_INVALID_ARGUMENT, "[9, +8)");
    chunk.token_begin = UINT32_MAX;
    REFUSED(RELAY_INVALID_ARGUMENT, "+8)");
    chunk.token_count = UINT32_MAX;
    REFUSED(RELAY_INVALID_ARGUMENT, "not in [0, 16)");
    chunk.dtype = (enum relay_dtype)9;
    REFUSED(RELAY_INVALID_ARGUMENT, "dtype 9");
    chunk.k_bytes -= 4;
    REFUSED(RELAY_INVALID_ARGUMENT, "expected 512 bytes, got 508");
    chunk.v_bytes = 0;
    REFUSED(RELAY_INVALID_ARGUMENT, "expected 512 bytes, got 0");
    chunk.k = NULL;
    REFUSED(RELAY_INVALID_ARGUMENT, "k of 8 tokens");
    chunk.dtype = RELAY_DTYPE_BF16;
    REFUSED(RELAY_INVALID_ARGUMENT, "expected 256 bytes");
    chunk.k_bytes = (size_t)1 << 40;
    REFUSED(RELAY_INVALID_ARGUMENT, "at most 65536");
    chunk.xxh64 = 1;
    REFUSED(RELAY_DATA_LOSS, "xxh64");
    chunk.token_begin = 1;
    REFUSED(RELAY_FAILED_PRECONDITION, "begin at token 0");
    atomic_store(&f.backend.fail_writes, 1);
    REFUSED(RELAY_UNAVAILABLE, "no write");
    CHECK_OK(relayd_upload_held(upload, held, &layers, &err), err);
    CHECK_EQ(held[0], 0);
    {
        XXH64_state_t *state = XXH64_createState();
        (void)XXH64_reset(state, 0);
        (void)XXH64_update(state, k, bytes);
        (void)XXH64_update(state, v, bytes);
        chunk.xxh64 = XXH64_digest(state);
        (void)XXH64_freeState(state);
    }
    CHECK_OK(relayd_upload_chunk(upload, &chunk, &err), err);
    chunk = good;
    REFUSED(RELAY_FAILED_PRECONDITION, "goes on at token 8, got 0"); /* again */
    chunk.token_begin = 7;
    REFUSED(RELAY_FAILED_PRECONDITION, "got 7");
    chunk.token_begin = 8;
    chunk.xxh64 = 5;
    REFUSED(RELAY_DATA_LOSS, "tokens [8, +8) of layer 0");
#undef REFUSED
    CHECK_OK(relayd_upload_held(upload, held, &layers, &err), err);
    CHECK_EQ(held[0], 8);
    CHECK_EQ(held[1], 0);
    CHECK_EQ(held[2], 8); /* layer 0's */
    CHECK_OK(fixture_send(upload, 1, 0, 8, 16, 8, &err), err);
    CHECK_OK(fixture_send(upload, 1, 1, 0, 16, 8, &err), err);
    CHECK_OK(relayd_upload_commit(upload, &info, &err), err);
    CHECK(memcmp(digest, info.digest, sizeof(digest)) == 0);
    unregister("sys");
    teardown();
}

static void test_uploads_digest_is_that_of_the_bytes(void)
{
    enum { TOKENS = 19 };
    static float k[2][TOKENS * FIXTURE_ROW], v[2][TOKENS * FIXTURE_ROW];
    uint8_t layers[2][SHA256_DIGEST_LENGTH], want[SHA256_DIGEST_LENGTH];
    struct relayd_upload_desc desc;
    struct relay_error err;
    setup(3);
    CHECK_STILL();
    spec.kv_layer[2] = 0; /* brings nothing, so it is not in there */
    for (uint32_t l = 0; l < 2; l++) {
        uint8_t parts[2][SHA256_DIGEST_LENGTH];
        fixture_fill(3, l, 0, TOKENS, k[l], v[l]);
        (void)SHA256((const unsigned char *)k[l], sizeof(k[l]), parts[0]);
        (void)SHA256((const unsigned char *)v[l], sizeof(v[l]), parts[1]);
        (void)SHA256(parts[0], sizeof(parts), layers[l]);
    }
    (void)SHA256(layers[0], sizeof(layers), want);
    desc = fixture_desc("t", &spec.model, "sys", TOKENS);
    for (uint32_t step = 1; step <= TOKENS; step++) {
        struct relayd_upload *upload = NULL;
        CHECK_OK(relayd_upload_begin(f.store, &desc, &upload, &info, &err), err);
        for (uint32_t i = 0; i < 2; i++) { /* layers in either order */
            CHECK_OK(fixture_send(upload, 3, (step + i) % 2, 0, TOKENS, step, &err), err);
        }
        CHECK_OK(relayd_upload_commit(upload, &info, &err), err);
        CHECK(memcmp(info.digest, want, sizeof(want)) == 0);
        unregister("sys");
        CHECK_STILL();
    }
    teardown();
}

static void test_uploads_convert_to_the_stored_type(void)
{
    struct relayd_prompt_query query = {"sys", "", 0, NULL, 0};
    struct relayd_upload_desc desc;
    struct relayd_model *model = NULL;
    struct relayd_prompt *prompt = NULL;
    struct relay_error err;
    setup(1);
    CHECK_STILL();
    spec.model.kv_dtype = RELAY_DTYPE_BF16;
    desc = fixture_desc("t", &spec.model, "sys", 13);
    CHECK_OK(fixture_register(&f, &desc, 5, &info, &err), err); /* sends F32 */
    CHECK_OK(relayd_model_acquire(f.store, "t", &spec.model, &model, &err), err);
    CHECK_OK(relayd_prompt_acquire(model, &query, &prompt, &err), err);
    CHECK(fixture_holds(model, relayd_prompt_pages(prompt), 5, 0, 0, 13));
    relayd_prompt_release(prompt);
    relayd_model_release(model);
    unregister("sys");
    teardown();
}

static void test_uploads_fp8_is_divided_by_its_scale(void)
{
    enum { TOKENS = 3 };
    static float k[TOKENS * FIXTURE_ROW], v[TOKENS * FIXTURE_ROW];
    uint8_t raw[2][TOKENS * FIXTURE_ROW];
    float scales[FIXTURE_HKV] = {2.0f, 16.0f};
    struct relayd_prompt_query query = {"sys", "", 0, NULL, 0};
    struct relayd_kv_chunk chunk = {0, 0, TOKENS, RELAY_DTYPE_F32, 0, k, 0, v, 0};
    struct relayd_upload_desc desc;
    struct relayd_upload *upload = NULL;
    struct relayd_model *model = NULL;
    struct relayd_prompt *prompt = NULL;
    struct relay_error err;
    setup(1);
    CHECK_STILL();
    spec.model.kv_dtype = RELAY_DTYPE_F8_E4M3;
    spec.model.k_scale = scales;
    for (uint32_t i = 0; i < TOKENS * FIXTURE_ROW; i++) {
        k[i] = v[i] = (float)(1u << (i % 5)) * scales[i / FIXTURE_DIM % FIXTURE_HKV];
    }
    chunk.k_bytes = chunk.v_bytes = sizeof(k);
    desc = fixture_desc("t", &spec.model, "sys", TOKENS);
    CHECK_OK(relayd_upload_begin(f.store, &desc, &upload, &info, &err), err);
    CHECK_OK(relayd_upload_chunk(upload, &chunk, &err), err);
    CHECK_OK(relayd_upload_commit(upload, &info, &err), err);
    CHECK_OK(relayd_model_acquire(f.store, "t", &spec.model, &model, &err), err);
    CHECK_OK(relayd_prompt_acquire(model, &query, &prompt, &err), err);
    {
        struct relay_shape shape = relay_shape_of(&spec.model, 0, RELAY_DTYPE_F32, RELAY_DTYPE_F32);
        struct relay_pages_span span = {
            &shape, relayd_model_kv(model, 0), FIXTURE_PAGE_TOKENS, relayd_prompt_pages(prompt), 0,
            TOKENS};
        CHECK_OK(relay_backend_pages_read(&f.backend.base, &span, raw[0], raw[1], &err), err);
    }
    for (uint32_t i = 0; i < TOKENS * FIXTURE_ROW; i++) {
        float stored[2];
        relay_dtype_convert(RELAY_DTYPE_F32, &stored[0], RELAY_DTYPE_F8_E4M3, &raw[0][i], 1);
        relay_dtype_convert(RELAY_DTYPE_F32, &stored[1], RELAY_DTYPE_F8_E4M3, &raw[1][i], 1);
        CHECK_EQ(stored[0], 1u << (i % 5)); /* V has no scales */
        CHECK_EQ(stored[1], v[i]);
    }
    relayd_prompt_release(prompt);
    relayd_model_release(model);
    unregister("sys");
    teardown();
}

/* ---- layers that need only their last tokens ---- */

/* By definition: the least j < S that some row at p >= S can see. */
static uint32_t first_by_definition(const struct relay_layer_kind *kind, uint32_t tokens)
{
    uint32_t first = tokens;
    for (uint32_t p = tokens; p < tokens + 64; p++) {
        for (uint32_t j = 0; j < first; j++) {
            bool in_window = kind->window == 0 || (uint64_t)j + kind->window > p;
            bool in_chunk = kind->chunk == 0 || j / kind->chunk == p / kind->chunk;
            if (in_window && in_chunk) {
                first = j;
            }
        }
    }
    return first;
}

static void test_uploads_first_needed_token(void)
{
    static const struct {
        uint32_t window, chunk;
    } kinds[8] = {{0, 0}, {1, 0}, {2, 0}, {8, 0}, {0, 8}, {0, 1}, {5, 8}, {64, 16}};
    struct relayd_upload_desc desc;
    struct relay_error err;
    setup(8);
    CHECK_STILL();
    for (uint32_t l = 0; l < 8; l++) {
        spec.kinds[l].window = kinds[l].window;
        spec.kinds[l].chunk = kinds[l].chunk;
    }
    for (uint32_t tokens = 1; tokens < 40; tokens++) {
        struct relayd_upload *upload = NULL;
        desc = fixture_desc("t", &spec.model, "sys", tokens);
        CHECK_OK(relayd_upload_begin(f.store, &desc, &upload, &info, &err), err);
        for (uint32_t l = 0; l < 8; l++) {
            CHECK_EQ(relayd_upload_first(upload, l), first_by_definition(&spec.kinds[l], tokens));
        }
        relayd_upload_abort(upload);
        CHECK_OK(fixture_register(&f, &desc, 1, &info, &err), err); /* exactly those suffice */
        unregister("sys");
        CHECK_STILL();
    }
    teardown();
}

static void test_uploads_shared_kv_needs_what_any_reader_sees(void)
{
    struct relayd_upload_desc desc;
    struct relayd_upload *upload = NULL;
    struct relay_error err;
    setup(4);
    CHECK_STILL();
    spec.kinds[0].window = 4;
    spec.kinds[1].window = 4;
    spec.kinds[2].window = 11;
    spec.kinds[3].window = 2;
    spec.kv_layer[2] = 0;
    spec.kv_layer[3] = 0;
    desc = fixture_desc("t", &spec.model, "sys", 30);
    CHECK_OK(relayd_upload_begin(f.store, &desc, &upload, &info, &err), err);
    CHECK_EQ(relayd_upload_first(upload, 0), 20);
    CHECK_EQ(relayd_upload_first(upload, 1), 27);
    CHECK_EQ(relayd_upload_first(upload, 2), 20);
    CHECK_CODE(fixture_send(upload, 1, 0, 21, 30, 9, &err), RELAY_FAILED_PRECONDITION);
    CHECK_OK(fixture_send(upload, 1, 0, 12, 30, 9, &err), err); /* more than needed is welcome */
    CHECK_OK(fixture_send(upload, 1, 1, 27, 29, 9, &err), err);
    CHECK_CODE(relayd_upload_commit(upload, &info, &err), RELAY_FAILED_PRECONDITION);
    CHECK(strstr(err.msg, "layer 1 misses tokens [29, 30)") != NULL);
    teardown();
}

/* ---- resuming ---- */

static void test_uploads_resume_by_id(void)
{
    static const uint8_t id[RELAYD_UPLOAD_ID_BYTES] = "0123456789abcde";
    uint8_t digest[RELAYD_DIGEST_BYTES];
    struct relayd_upload_desc desc, other;
    struct relayd_upload *upload = NULL, *again = NULL;
    struct relay_error err;
    uint32_t held[2], layers;
    setup(2);
    CHECK_STILL();
    desc = fixture_desc("t", &spec.model, "sys", 12);
    CHECK_OK(fixture_register(&f, &desc, 1, &info, &err), err);
    memcpy(digest, info.digest, sizeof(digest));
    unregister("sys");
    CHECK_STILL();
    desc.upload_id = id;
    CHECK_OK(relayd_upload_begin(f.store, &desc, &upload, &info, &err), err);
    CHECK_OK(fixture_send(upload, 1, 0, 0, 12, 4, &err), err);
    other = desc;
    other.tenant = "u"; /* another tenant's id is another id */
    CHECK_OK(relayd_upload_begin(f.store, &other, &again, &info, &err), err);
    CHECK_EQ(fixture_stats(&f).uploads, 2);
    relayd_upload_abort(again);
    CHECK_OK(fixture_send(upload, 1, 1, 0, 5, 5, &err), err);
    relayd_upload_abort(upload); /* the connection broke */
    CHECK_EQ(fixture_stats(&f).uploads, 2);
    CHECK(fixture_stats(&f).prompt_bytes_used > before.prompt_bytes_used);
    fixture_advance(&f, 4999);
    CHECK_EQ(relayd_store_sweep(f.store), 0);
    other = desc;
    other.num_tokens = 13;
    CHECK_CODE(relayd_upload_begin(f.store, &other, &again, &info, &err),
               RELAY_FAILED_PRECONDITION);
    CHECK(strstr(err.msg, "12") != NULL && strstr(err.msg, "13") != NULL);
    other = desc;
    other.idle_ttl_ms = 5;
    CHECK_CODE(relayd_upload_begin(f.store, &other, &again, &info, &err),
               RELAY_FAILED_PRECONDITION);
    other = desc;
    other.prompt_id = "sys2";
    CHECK_CODE(relayd_upload_begin(f.store, &other, &again, &info, &err),
               RELAY_FAILED_PRECONDITION);
    CHECK_OK(relayd_upload_begin(f.store, &desc, &again, &info, &err), err);
    CHECK_OK(relayd_upload_held(again, held, &layers, &err), err);
    CHECK_EQ(held[0], 12);
    CHECK_EQ(held[1], 5);
    fixture_advance(&f, 4000);
    CHECK_OK(fixture_send(again, 1, 1, 5, 6, 1, &err), err);
    fixture_advance(&f, 4000);
    CHECK_EQ(relayd_store_sweep(f.store), 1); /* the other tenant's; this one is being driven */
    CHECK_CODE(relayd_upload_commit(again, &info, &err), RELAY_FAILED_PRECONDITION);
    CHECK_OK(relayd_upload_begin(f.store, &desc, &again, &info, &err), err); /* it waited */
    CHECK_OK(fixture_send(again, 1, 1, 6, 12, 3, &err), err);
    CHECK_OK(relayd_upload_commit(again, &info, &err), err);
    CHECK(memcmp(digest, info.digest, sizeof(digest)) == 0);
    CHECK_EQ(fixture_stats(&f).uploads, 0);
    unregister("sys");
    CHECK_STILL();
    /* Nobody comes back. */
    CHECK_OK(relayd_upload_begin(f.store, &desc, &upload, &info, &err), err);
    relayd_upload_abort(upload);
    fixture_advance(&f, 5000);
    CHECK_EQ(relayd_store_sweep(f.store), 1);
    teardown();
}

/* The older stream may be dead without anybody knowing: the newer one goes on. */
static void test_uploads_are_taken_over(void)
{
    static const uint8_t id[RELAYD_UPLOAD_ID_BYTES] = "0123456789abcde";
    struct relayd_upload_desc desc;
    struct relayd_upload *older = NULL, *newer = NULL;
    struct relay_error err;
    uint32_t held[2], layers;
    setup(2);
    CHECK_STILL();
    desc = fixture_desc("t", &spec.model, "sys", 12);
    desc.upload_id = id;
    CHECK_OK(relayd_upload_begin(f.store, &desc, &older, &info, &err), err);
    CHECK_OK(fixture_send(older, 1, 0, 0, 12, 4, &err), err);
    CHECK_OK(relayd_upload_begin(f.store, &desc, &newer, &info, &err), err);
    CHECK_EQ(fixture_stats(&f).uploads, 1);
    CHECK_CODE(fixture_send(older, 1, 1, 0, 12, 4, &err), RELAY_ABORTED);
    CHECK_CODE(relayd_upload_held(older, held, &layers, &err), RELAY_ABORTED);
    CHECK_OK(relayd_upload_held(newer, held, &layers, &err), err);
    CHECK_EQ(held[0], 12);
    CHECK_EQ(held[1], 0);
    CHECK_CODE(relayd_upload_commit(older, &info, &err), RELAY_ABORTED);
    CHECK_OK(fixture_send(newer, 1, 1, 0, 12, 4, &err), err);
    CHECK_OK(relayd_upload_commit(newer, &info, &err), err);
    unregister("sys");
    CHECK_STILL();
    /* A stream that sends nothing holds its budget for upload_expiry_ms only, named or not. */
    CHECK_OK(relayd_upload_begin(f.store, &desc, &older, &info, &err), err);
    desc.upload_id = NULL;
    desc.prompt_id = "other";
    CHECK_OK(relayd_upload_begin(f.store, &desc, &newer, &info, &err), err);
    fixture_advance(&f, 4999);
    CHECK_EQ(relayd_store_sweep(f.store), 0);
    fixture_advance(&f, 1);
    CHECK_EQ(relayd_store_sweep(f.store), 2);
    CHECK_EQ(fixture_stats(&f).uploads, 0);
    CHECK_CODE(fixture_send(newer, 1, 0, 0, 12, 4, &err), RELAY_ABORTED);
    relayd_upload_abort(older);
    relayd_upload_abort(newer);
    teardown();
}

static void test_uploads_partial_dies_with_the_store(void)
{
    static const uint8_t id[RELAYD_UPLOAD_ID_BYTES] = "x";
    struct relayd_upload_desc desc;
    struct relayd_upload *upload = NULL;
    struct relay_error err;
    setup(1);
    CHECK_STILL();
    desc = fixture_desc("t", &spec.model, "sys", 12);
    desc.upload_id = id;
    CHECK_OK(relayd_upload_begin(f.store, &desc, &upload, &info, &err), err);
    relayd_upload_abort(upload);
    CHECK_EQ(fixture_stats(&f).uploads, 1);
    fixture_close(&f);
}

/* ---- on_exists ---- */

static void test_uploads_keep(void)
{
    struct relayd_upload_desc desc;
    struct relayd_upload *upload = NULL, *late = NULL;
    struct relay_error err;
    uint64_t generation;
    setup(1);
    CHECK_STILL();
    desc = fixture_desc("t", &spec.model, "sys", 6);
    desc.on_exists = RELAYD_ON_EXISTS_KEEP;
    CHECK_OK(relayd_upload_begin(f.store, &desc, &late, &info, &err), err);
    CHECK_OK(fixture_register(&f, &desc, 1, &info, &err), err);
    generation = info.generation;
    CHECK_OK(relayd_upload_begin(f.store, &desc, &upload, &info, &err), err);
    CHECK(upload == NULL);
    CHECK_EQ(info.generation, generation);
    /* It appeared while another upload was on its way: what is there is kept. */
    CHECK_OK(fixture_send(late, 2, 0, 0, 6, 6, &err), err);
    CHECK_OK(relayd_upload_commit(late, &info, &err), err);
    CHECK_EQ(info.generation, generation);
    CHECK_EQ(fixture_stats(&f).prompts, 1);
    unregister("sys");
    teardown();
}

static void test_uploads_same_or_fail_by_digest(void)
{
    struct relayd_upload_desc desc;
    struct relay_error err;
    uint64_t generation;
    setup(1);
    CHECK_STILL();
    desc = fixture_desc("t", &spec.model, "sys", 6);
    CHECK_OK(fixture_register(&f, &desc, 1, &info, &err), err);
    generation = info.generation;
    CHECK_OK(fixture_register(&f, &desc, 1, &info, &err), err); /* uploads it again */
    CHECK_EQ(info.generation, generation);
    CHECK_CODE(fixture_register(&f, &desc, 2, &info, &err), RELAY_ALREADY_EXISTS);
    desc.num_tokens = 7;
    CHECK_CODE(fixture_register(&f, &desc, 1, &info, &err), RELAY_ALREADY_EXISTS);
    desc.num_tokens = 6;
    desc.variant = "lora";
    CHECK_CODE(fixture_register(&f, &desc, 1, &info, &err), RELAY_ALREADY_EXISTS);
    CHECK_EQ(fixture_stats(&f).uploads, 0);
    unregister("sys");
    teardown();
}

static void test_uploads_same_or_fail_by_content_key(void)
{
    struct relayd_upload_desc desc;
    struct relayd_upload *upload = NULL;
    struct relay_error err;
    setup(1);
    CHECK_STILL();
    desc = fixture_desc("t", &spec.model, "sys", 6);
    desc.content_key = (const uint8_t *)"one";
    desc.content_key_bytes = 3;
    CHECK_OK(fixture_register(&f, &desc, 1, &info, &err), err);
    CHECK_OK(relayd_upload_begin(f.store, &desc, &upload, &info, &err), err);
    CHECK(upload == NULL); /* no byte is sent */
    desc.content_key = (const uint8_t *)"two";
    CHECK_CODE(relayd_upload_begin(f.store, &desc, &upload, &info, &err), RELAY_ALREADY_EXISTS);
    desc.content_key_bytes = 0; /* only one side has a key: digests decide */
    CHECK_OK(fixture_register(&f, &desc, 1, &info, &err), err);
    CHECK_CODE(fixture_register(&f, &desc, 2, &info, &err), RELAY_ALREADY_EXISTS);
    unregister("sys");
    teardown();
}

static void test_uploads_two_of_one_id_race(void)
{
    struct relayd_upload_desc desc;
    struct relayd_upload *a = NULL, *b = NULL, *c = NULL;
    static struct relayd_prompt_info first;
    struct relay_error err;
    setup(1);
    CHECK_STILL();
    desc = fixture_desc("t", &spec.model, "sys", 6);
    CHECK_OK(relayd_upload_begin(f.store, &desc, &a, &info, &err), err);
    CHECK_OK(relayd_upload_begin(f.store, &desc, &b, &info, &err), err);
    desc.on_exists = RELAYD_ON_EXISTS_REPLACE;
    CHECK_OK(relayd_upload_begin(f.store, &desc, &c, &info, &err), err);
    CHECK_OK(fixture_send(a, 1, 0, 0, 6, 6, &err), err);
    CHECK_OK(fixture_send(b, 2, 0, 0, 6, 6, &err), err);
    CHECK_OK(fixture_send(c, 3, 0, 0, 6, 6, &err), err);
    CHECK_OK(relayd_upload_commit(a, &first, &err), err);
    CHECK_CODE(relayd_upload_commit(b, &info, &err), RELAY_ALREADY_EXISTS);
    CHECK_OK(relayd_upload_commit(c, &info, &err), err);
    CHECK(info.generation != first.generation);
    CHECK_EQ(fixture_stats(&f).prompts, 1);
    CHECK_EQ(fixture_stats(&f).prompts_doomed, 0);
    unregister("sys");
    teardown();
}

/* ---- limits ---- */

static void test_uploads_budget(void)
{
    struct relayd_upload_desc desc;
    struct relayd_upload *upload = NULL, *no = NULL;
    struct relayd_store_stats full, after;
    struct relay_error err;
    /* A page of 4 tokens of one layer has 2 x 256 bytes. */
    fixture_init(&f);
    f.options.prompt_bytes_max = 10 * 512 + 511;
    fixture_open(&f);
    CHECK_STILL();
    fixture_model_init(&spec, "m", 1);
    before = fixture_stats(&f);
    desc = fixture_desc("t", &spec.model, "a", 41);
    CHECK_CODE(relayd_upload_begin(f.store, &desc, &no, &info, &err), RELAY_RESOURCE_EXHAUSTED);
    desc.num_tokens = 36;
    CHECK_OK(relayd_upload_begin(f.store, &desc, &upload, &info, &err), err);
    full = fixture_stats(&f);
    CHECK_EQ(full.prompt_bytes_used, 9 * 512);
    desc.prompt_id = "b";
    desc.num_tokens = 5;
    CHECK_CODE(relayd_upload_begin(f.store, &desc, &no, &info, &err), RELAY_RESOURCE_EXHAUSTED);
    after = fixture_stats(&f);
    CHECK(fixture_same_stats(&full, &after));
    desc.num_tokens = 4;
    CHECK_OK(fixture_register(&f, &desc, 1, &info, &err), err);
    relayd_upload_abort(upload);
    unregister("b");
    CHECK_STILL();
    atomic_store(&f.backend.fail_commits, 1); /* the system has no memory */
    (void)relayd_store_sweep(f.store);
    CHECK_CODE(relayd_upload_begin(f.store, &desc, &no, &info, &err), RELAY_RESOURCE_EXHAUSTED);
    CHECK_OK(fixture_register(&f, &desc, 1, &info, &err), err);
    unregister("b");
    CHECK(no == NULL);
    teardown();
}

static void test_uploads_counts(void)
{
    struct relayd_upload_desc desc;
    struct relayd_upload *uploads[3] = {NULL}, *no = NULL;
    struct relay_error err;
    char id[4] = "p0";
    fixture_init(&f);
    f.options.uploads_max = 3;
    f.options.prompts_max = 4;
    fixture_open(&f);
    CHECK_STILL();
    fixture_model_init(&spec, "m", 1);
    before = fixture_stats(&f);
    desc = fixture_desc("t", &spec.model, id, 4);
    for (uint32_t i = 0; i < 3; i++) {
        id[1] = (char)('0' + i);
        CHECK_OK(relayd_upload_begin(f.store, &desc, &uploads[i], &info, &err), err);
    }
    id[1] = '3';
    CHECK_CODE(relayd_upload_begin(f.store, &desc, &no, &info, &err), RELAY_RESOURCE_EXHAUSTED);
    CHECK(strstr(err.msg, "3 uploads") != NULL);
    relayd_upload_abort(uploads[2]);
    CHECK_OK(fixture_register(&f, &desc, 1, &info, &err), err);
    id[1] = '4';
    CHECK_OK(fixture_register(&f, &desc, 1, &info, &err), err);
    id[1] = '5'; /* 2 live, 2 uploading */
    CHECK_CODE(relayd_upload_begin(f.store, &desc, &no, &info, &err), RELAY_RESOURCE_EXHAUSTED);
    CHECK(strstr(err.msg, "4 prompts") != NULL);
    relayd_upload_abort(uploads[0]);
    relayd_upload_abort(uploads[1]);
    unregister("p3");
    unregister("p4");
    teardown();
}

int main(void)
{
    CHECK_RUN(test_uploads_publish_at_commit_only);
    CHECK_RUN(test_uploads_incomplete_commit_leaves_nothing);
    CHECK_RUN(test_uploads_bad_descriptions);
    CHECK_RUN(test_uploads_bad_chunks_change_nothing);
    CHECK_RUN(test_uploads_digest_is_that_of_the_bytes);
    CHECK_RUN(test_uploads_convert_to_the_stored_type);
    CHECK_RUN(test_uploads_fp8_is_divided_by_its_scale);
    CHECK_RUN(test_uploads_first_needed_token);
    CHECK_RUN(test_uploads_shared_kv_needs_what_any_reader_sees);
    CHECK_RUN(test_uploads_resume_by_id);
    CHECK_RUN(test_uploads_are_taken_over);
    CHECK_RUN(test_uploads_partial_dies_with_the_store);
    CHECK_RUN(test_uploads_keep);
    CHECK_RUN(test_uploads_same_or_fail_by_digest);
    CHECK_RUN(test_uploads_same_or_fail_by_content_key);
    CHECK_RUN(test_uploads_two_of_one_id_race);
    CHECK_RUN(test_uploads_budget);
    CHECK_RUN(test_uploads_counts);
    return check_done();
}
