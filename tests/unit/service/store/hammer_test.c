/* The store from four threads at once: uploads that replace and break, requests that open, grow,
 * append and close under lends, sweeps that expire and give memory back. Whatever they meet, a
 * prompt's bytes are those of its generation, and in the end every counter is back at nothing.
 * A fixed number of rounds; no thread waits for another but by the store's own mutex. */
#include "fixture.h"

#include <pthread.h>

#define THREADS 4u
#define ROUNDS  1500u
#define TOKENS  40u
#define KINDS   5u

struct hammer {
    struct fixture f;
    struct fixture_model spec;
    struct fixture_model big; /* a page of 1 MiB: memory comes and goes all the time */
    atomic_uint wrong;        /* bytes or codes that must not be */
    atomic_uint done[KINDS];  /* rounds of each kind that went the whole way */
};

static struct hammer h;

static void expect(bool ok)
{
    if (!ok) {
        atomic_fetch_add(&h.wrong, 1);
    }
}

/* What a seed registers: the variant says which bytes a prompt must have. */
static void upload_round(uint32_t random, bool finish)
{
    struct relayd_prompt_info *info = malloc(sizeof(*info));
    struct relayd_upload *upload = NULL;
    struct relayd_upload_desc desc = fixture_desc("t", &h.spec.model, "p0", TOKENS);
    uint8_t upload_id[RELAYD_UPLOAD_ID_BYTES] = {0};
    char id[3] = "p0";
    char variant[8];
    struct relay_error err;
    enum relay_code code;
    uint32_t seed = random % 5;
    if (info == NULL) {
        expect(false);
        return;
    }
    id[1] = (char)('0' + random / 8 % 3);
    (void)snprintf(variant, sizeof(variant), "%u", seed);
    upload_id[0] = (uint8_t)(random % 4);
    desc.prompt_id = id;
    desc.variant = variant;
    desc.on_exists = (enum relayd_on_exists)(random / 32 % 3);
    desc.idle_ttl_ms = 20;
    desc.upload_id = random / 128 % 2 == 0 ? upload_id : NULL;
    code = relayd_upload_begin(h.f.store, &desc, &upload, info, &err);
    expect(code == RELAY_OK || code == RELAY_ABORTED || code == RELAY_FAILED_PRECONDITION ||
           code == RELAY_ALREADY_EXISTS || code == RELAY_RESOURCE_EXHAUSTED);
    for (uint32_t l = 0; code == RELAY_OK && upload != NULL && l < 2; l++) {
        uint32_t held[2], layers;
        code = relayd_upload_held(upload, held, &layers, &err);
        if (code == RELAY_OK) {
            code = fixture_send(upload, seed, l, held[l], finish || l == 0 ? TOKENS : TOKENS / 2,
                                13, &err);
        }
        expect(code == RELAY_OK || code == RELAY_ABORTED);
    }
    if (code == RELAY_OK && upload != NULL && finish) {
        code = relayd_upload_commit(upload, info, &err);
        expect(code == RELAY_OK || code == RELAY_ALREADY_EXISTS || code == RELAY_ABORTED);
        atomic_fetch_add(&h.done[0], code == RELAY_OK);
    } else if (upload != NULL) {
        relayd_upload_abort(upload);
    }
    free(info);
}

/* A request's life; the executor's part is played on the spot. */
static void request_round(uint32_t random)
{
    struct relayd_model *model = NULL;
    struct relayd_prompt *prompt = NULL;
    struct relayd_request *request[2] = {NULL, NULL};
    struct relay_error err;
    char id[3] = "p0";
    char variant[8];
    struct relayd_prompt_query query = {id, variant, 0, NULL, 0};
    id[1] = (char)('0' + random % 3);
    (void)snprintf(variant, sizeof(variant), "%u", random / 4 % 5);
    if (relayd_model_acquire(h.f.store, "t", &h.spec.model, &model, &err) != RELAY_OK) {
        expect(false);
        return;
    }
    if (relayd_prompt_acquire(model, &query, &prompt, &err) == RELAY_OK) {
        uint32_t token = random / 32 % TOKENS;
        expect(
            fixture_holds(model, relayd_prompt_pages(prompt), random / 4 % 5, 1, token, token + 1));
        atomic_fetch_add(&h.done[1], 1);
    } else {
        prompt = NULL;
    }
    for (uint32_t i = 0; i < 2; i++) {
        enum relay_code code =
            relayd_request_create(model, i == 0 ? prompt : NULL, i, random % 16, &request[i], &err);
        expect(code == RELAY_OK || code == RELAY_RESOURCE_EXHAUSTED);
        request[i] = code == RELAY_OK ? request[i] : NULL;
    }
    for (uint32_t step = 1; step < 6 && request[0] != NULL && request[1] != NULL; step++) {
        struct relayd_lend lends[2] = {{request[0], step * 9, RELAY_OK, ""},
                                       {request[1], step * 5, RELAY_OK, ""}};
        if (relayd_request_lend_all(lends, 2, step, NULL, &err) != RELAY_OK) {
            continue;
        }
        for (uint32_t i = 0; i < 2; i++) {
            uint32_t held = relayd_request_held(request[i], 0);
            uint32_t rows = lends[i].tokens_needed - held;
            if (relayd_request_layer_check(request[i], 0, held, rows, true, &err) == RELAY_OK) {
                relayd_request_layer_write(request[i], 0, step, held, rows);
                relayd_request_layer_write(request[i], 1, step, held, rows);
            } else {
                expect(false);
            }
            if (step == 5 && i == 0) { /* its session goes while it is lent */
                relayd_request_close(request[0]);
            }
            relayd_request_unlend(request[i]);
        }
        if (step == 5) {
            request[0] = NULL;
            atomic_fetch_add(&h.done[2], 1);
        }
    }
    if (request[1] != NULL) {
        expect(relayd_request_truncate(request[1], random % 7, &err) == RELAY_OK);
        expect(relayd_request_length(request[1]) <= random % 7);
    }
    relayd_request_close(request[0]);
    relayd_request_close(request[1]);
    relayd_model_release(model);
}

/* One request, two threads: calls of one step are lent and given back on both, nested as they
 * come. */
static struct relayd_request *shared;

static void shared_round(uint32_t random)
{
    struct relay_error err;
    struct relayd_lend lends = {shared, 1 + random % 150, RELAY_OK, ""};
    if (relayd_request_lend_all(&lends, 1, 1, NULL, &err) == RELAY_OK) {
        const uint32_t *pages = relayd_request_pages(shared);
        uint32_t last = pages[(lends.tokens_needed - 1) / FIXTURE_PAGE_TOKENS];
        expect(last != UINT32_MAX);
        relayd_request_unlend(shared);
        atomic_fetch_add(&h.done[3], 1);
    }
}

/* A model that nobody keeps: its pool is made and destroyed under the sweeps. */
static void big_round(uint32_t random)
{
    struct relayd_model *model = NULL;
    struct relayd_request *request = NULL;
    struct relay_error err;
    if (relayd_model_acquire(h.f.store, "t", &h.big.model, &model, &err) != RELAY_OK) {
        expect(false);
        return;
    }
    if (relayd_request_create(model, NULL, 1, random % 60, &request, &err) == RELAY_OK) {
        struct relayd_lend lends = {request, random / 64 % 120, RELAY_OK, ""};
        if (relayd_request_lend_all(&lends, 1, 1, NULL, &err) == RELAY_OK) {
            relayd_request_unlend(request);
            atomic_fetch_add(&h.done[4], 1);
        }
    }
    relayd_model_release(model);
    relayd_request_close(request);
}

static void *run(void *arg)
{
    uint32_t thread = *(const uint32_t *)arg;
    uint32_t random = thread * 7919u + 1u;
    for (uint32_t i = 0; i < ROUNDS; i++) {
        random = random * 1664525u + 1013904223u;
        switch ((thread + i) % KINDS) {
        case 0:
            upload_round(random >> 8, i % 3 != 0);
            break;
        case 1:
            request_round(random >> 8);
            break;
        case 2:
            shared_round(random >> 8);
            break;
        case 3:
            big_round(random >> 8);
            break;
        default:
            fixture_advance(&h.f, 3);
            (void)relayd_store_sweep(h.f.store);
            (void)fixture_stats(&h.f);
            break;
        }
    }
    return NULL;
}

static void test_store_under_four_threads(void)
{
    static const struct relayd_store_stats nothing;
    struct relayd_store_stats stats;
    struct relayd_model *model = NULL;
    struct relay_error err;
    pthread_t threads[THREADS];
    uint32_t numbers[THREADS];
    memset(&h, 0, sizeof(h));
    fixture_init(&h.f);
    h.f.options.prompt_bytes_max = 70 * 1024; /* 7 prompts of 10 pages: some do not fit */
    h.f.options.request_bytes_max = (uint64_t)64 << 20;
    h.f.options.upload_expiry_ms = 30;
    fixture_open(&h.f);
    CHECK_STILL();
    fixture_model_init(&h.spec, "m", 2);
    fixture_model_init(&h.big, "big", 1);
    h.big.kinds[0].num_q_heads = h.big.kinds[0].num_kv_heads = 64;
    h.big.kinds[0].head_dim_qk = h.big.kinds[0].head_dim_v = 512;
    CHECK_OK(relayd_model_acquire(h.f.store, "t", &h.spec.model, &model, &err), err);
    CHECK_OK(relayd_request_create(model, NULL, 1, 0, &shared, &err), err);
    relayd_model_release(model);
    for (uint32_t t = 0; t < THREADS; t++) {
        numbers[t] = t;
        CHECK(pthread_create(&threads[t], NULL, run, &numbers[t]) == 0);
    }
    for (uint32_t t = 0; t < THREADS; t++) {
        (void)pthread_join(threads[t], NULL);
    }
    CHECK_EQ(atomic_load(&h.wrong), 0);
    for (uint32_t i = 0; i < KINDS; i++) { /* it was not all refusals */
        CHECK(atomic_load(&h.done[i]) > 10);
    }
    relayd_request_close(shared);
    fixture_advance(&h.f, 100000);
    (void)relayd_store_sweep(h.f.store);
    stats = fixture_stats(&h.f);
    CHECK(fixture_same_stats(&stats, &nothing));
    CHECK_EQ(stats.models, 0);
    fixture_close(&h.f);
}

/* ---- one prompt, found and let go from all threads ---- */

static void *use(void *arg)
{
    struct relayd_model *model = arg;
    struct relayd_prompt_query query = {"p", "", 0, NULL, 0};
    for (uint32_t i = 0; i < 4 * ROUNDS; i++) {
        struct relayd_prompt *prompt = NULL;
        expect(relayd_prompt_acquire(model, &query, &prompt, NULL) == RELAY_OK);
        relayd_prompt_release(prompt);
    }
    return NULL;
}

static void test_prompt_counts_from_four_threads(void)
{
    static struct relayd_prompt_info info;
    struct relayd_prompt_name name = {"t", "m", "p"};
    struct relayd_model *model = NULL;
    struct relayd_upload_desc desc;
    struct relay_error err;
    pthread_t threads[THREADS];
    memset(&h, 0, sizeof(h));
    fixture_init(&h.f);
    fixture_open(&h.f);
    CHECK_STILL();
    fixture_model_init(&h.spec, "m", 1);
    desc = fixture_desc("t", &h.spec.model, "p", 4);
    CHECK_OK(relayd_model_acquire(h.f.store, "t", &h.spec.model, &model, &err), err);
    CHECK_OK(fixture_register(&h.f, &desc, 1, &info, &err), err);
    for (uint32_t t = 0; t < THREADS; t++) {
        CHECK(pthread_create(&threads[t], NULL, use, model) == 0);
    }
    for (uint32_t t = 0; t < THREADS; t++) {
        (void)pthread_join(threads[t], NULL);
    }
    CHECK_EQ(atomic_load(&h.wrong), 0);
    CHECK_OK(relayd_prompt_get(h.f.store, &name, &info, &err), err);
    CHECK_EQ(info.hits, 4 * ROUNDS * THREADS);
    CHECK_EQ(info.references, 0);
    relayd_model_release(model);
    fixture_close(&h.f);
}

int main(void)
{
    CHECK_RUN(test_prompt_counts_from_four_threads);
    CHECK_RUN(test_store_under_four_threads);
    return check_done();
}
