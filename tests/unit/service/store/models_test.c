/* service/store/models: one object per key and tenant, its description, its page layout. */
#include "fixture.h"

static void test_models_are_interned(void)
{
    static struct fixture f;
    struct fixture_model m;
    struct relayd_model *a = NULL, *b = NULL, *c = NULL;
    struct relay_error err;
    fixture_init(&f);
    fixture_open(&f);
    CHECK_STILL();
    fixture_model_init(&m, "llama@1", 2);
    CHECK_OK(relayd_model_acquire(f.store, "t", &m.model, &a, &err), err);
    m.model.kv_layer = NULL; /* says the same */
    CHECK_OK(relayd_model_acquire(f.store, "t", &m.model, &b, &err), err);
    CHECK(a == b);
    CHECK_OK(relayd_model_acquire(f.store, "other", &m.model, &c, &err), err);
    CHECK(a != c);
    CHECK_STR(relayd_model_tenant(c), "other");
    CHECK_STR(relayd_model_spec(a)->key, "llama@1");
    CHECK(relayd_model_store(a) == f.store);
    CHECK_EQ(fixture_stats(&f).models, 2);
    relayd_model_ref(a);
    relayd_model_release(a);
    relayd_model_release(a);
    CHECK_EQ(fixture_stats(&f).models, 2);
    relayd_model_release(b);
    CHECK_EQ(fixture_stats(&f).models, 1);
    relayd_model_release(c);
    relayd_model_release(NULL);
    CHECK_EQ(fixture_stats(&f).models, 0);
    fixture_close(&f);
}

static void test_models_another_description_is_refused(void)
{
    static struct fixture f;
    struct fixture_model m;
    struct relayd_model *a = NULL, *b = NULL;
    struct relay_error err;
    fixture_init(&f);
    fixture_open(&f);
    CHECK_STILL();
    fixture_model_init(&m, "gemma", 2);
    m.kinds[1].window = 512;
    CHECK_OK(relayd_model_acquire(f.store, "t", &m.model, &a, &err), err);
    m.kinds[1].window = 1024;
    CHECK_CODE(relayd_model_acquire(f.store, "t", &m.model, &b, &err), RELAY_FAILED_PRECONDITION);
    CHECK(strstr(err.msg, "512") != NULL && strstr(err.msg, "1024") != NULL);
    relayd_model_release(a);
    CHECK_OK(relayd_model_acquire(f.store, "t", &m.model, &b, &err), err);
    relayd_model_release(b);
    CHECK_EQ(fixture_stats(&f).models, 0);
    fixture_close(&f);
}

static void test_models_refusals_leave_nothing(void)
{
    static struct fixture f;
    struct fixture_model m;
    struct relayd_model *models[4] = {NULL};
    struct relayd_model *no = NULL;
    struct relay_error err;
    char key[8] = "m0";
    fixture_init(&f);
    fixture_open(&f);
    CHECK_STILL();
    fixture_model_init(&m, "", 1);
    CHECK_CODE(relayd_model_acquire(f.store, "t", &m.model, &no, &err), RELAY_INVALID_ARGUMENT);
    fixture_model_init(&m, "x", 3);
    m.kinds[2].head_dim_qk = 24;
    CHECK_CODE(relayd_model_acquire(f.store, "t", &m.model, &no, &err), RELAY_UNIMPLEMENTED);
    CHECK(strstr(err.msg, "layer 2") != NULL && strstr(err.msg, "24") != NULL);
    CHECK_EQ(fixture_stats(&f).models, 0);
    for (uint32_t i = 0; i < 4; i++) {
        key[1] = (char)('0' + i);
        fixture_model_init(&m, key, 1);
        CHECK_OK(relayd_model_acquire(f.store, "t", &m.model, &models[i], &err), err);
    }
    fixture_model_init(&m, "one-more", 1);
    CHECK_CODE(relayd_model_acquire(f.store, "t", &m.model, &no, &err), RELAY_RESOURCE_EXHAUSTED);
    CHECK(no == NULL);
    CHECK_OK(relayd_model_supports(models[0], RELAY_DTYPE_BF16, RELAY_DTYPE_F32, &err), err);
    CHECK_CODE(relayd_model_supports(models[0], RELAY_DTYPE_BF16, RELAY_DTYPE_F8_E4M3, &err),
               RELAY_UNIMPLEMENTED);
    for (uint32_t i = 0; i < 4; i++) {
        relayd_model_release(models[i]);
    }
    fixture_close(&f);
}

static void test_models_layers_have_their_places_in_a_page(void)
{
    static struct fixture f;
    struct fixture_model m;
    struct relayd_model *model = NULL;
    struct relay_kv_layer kv[4];
    struct relay_error err;
    float scales[4 * FIXTURE_HKV];
    size_t k_bytes, mla_bytes;
    fixture_init(&f);
    fixture_open(&f);
    CHECK_STILL();
    fixture_model_init(&m, "mixed", 4);
    m.kinds[1].head_dim_qk = 32;
    m.kinds[1].head_dim_v = 16;
    m.kinds[1].v_from_k = true;
    m.kv_layer[3] = 0; /* layer 3 reads layer 0's */
    m.model.kv_dtype = RELAY_DTYPE_F8_E4M3;
    m.model.k_scale = scales;
    for (uint32_t i = 0; i < 4 * FIXTURE_HKV; i++) {
        scales[i] = (float)(i + 1);
    }
    CHECK_OK(relayd_model_acquire(f.store, "t", &m.model, &model, &err), err);
    for (uint32_t l = 0; l < 4; l++) {
        kv[l] = relayd_model_kv(model, l);
        CHECK_EQ(kv[l].page_stride, relayd_model_page_bytes(model));
        CHECK(kv[l].v_scale == NULL);
    }
    CHECK_EQ(relayd_model_page_tokens(model), FIXTURE_PAGE_TOKENS);
    k_bytes = FIXTURE_HKV * FIXTURE_PAGE_TOKENS * FIXTURE_DIM; /* 64, needs no padding */
    mla_bytes = FIXTURE_HKV * FIXTURE_PAGE_TOKENS * 32;
    CHECK_EQ((char *)kv[0].v - (char *)kv[0].k, k_bytes);
    CHECK_EQ((char *)kv[1].k - (char *)kv[0].k, 2 * k_bytes);
    CHECK(kv[1].v == NULL);
    CHECK_EQ((char *)kv[2].k - (char *)kv[1].k, mla_bytes);
    CHECK_EQ(relayd_model_page_bytes(model), 4 * k_bytes + mla_bytes);
    CHECK(kv[3].k == kv[0].k && kv[3].v == kv[0].v);
    CHECK_EQ(kv[0].k_scale[0], 1);
    CHECK_EQ(kv[2].k_scale[0], 5);
    CHECK_EQ(kv[3].k_scale[0], 1);
    relayd_model_release(model);
    fixture_close(&f);
}

int main(void)
{
    CHECK_RUN(test_models_are_interned);
    CHECK_RUN(test_models_another_description_is_refused);
    CHECK_RUN(test_models_refusals_leave_nothing);
    CHECK_RUN(test_models_layers_have_their_places_in_a_page);
    return check_done();
}
