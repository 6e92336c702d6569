/* Model descriptions: every rule refused by name, copies that share nothing, differences named. */
#include <relay/plan.h>

#include "testlib/check.h"

#include <math.h>

static struct relay_error err;

/* A model with something in every field; the caller may change the statics' copies. */
struct example {
    struct relay_model model;
    struct relay_layer_kind kinds[2];
    uint32_t layer_kind[3];
    uint32_t kv_layer[3];
    float slopes[4];
    float sinks[4 + 8 + 4];
    float k_scale[2 + 2 + 2];
    float v_scale[2 + 2 + 2];
    char key[32];
};

static void example_init(struct example *x)
{
    memset(x, 0, sizeof(*x));
    x->kinds[0] = (struct relay_layer_kind){.num_q_heads = 4,
                                            .num_kv_heads = 2,
                                            .head_dim_qk = 64,
                                            .head_dim_v = 64,
                                            .window = 512,
                                            .alibi_slopes = x->slopes};
    x->kinds[1] = (struct relay_layer_kind){
        .num_q_heads = 8, .num_kv_heads = 2, .head_dim_qk = 64, .head_dim_v = 64, .scale = 0.5f};
    x->layer_kind[1] = 1;
    x->kv_layer[1] = 1;
    x->kv_layer[2] = 0;
    for (size_t i = 0; i < 16; i++) {
        x->sinks[i] = (float)i;
    }
    for (size_t i = 0; i < 6; i++) {
        x->k_scale[i] = 1.0f + (float)i;
        x->v_scale[i] = 2.0f + (float)i;
    }
    strncpy(x->key, "tiny@1", sizeof(x->key) - 1);
    x->model = (struct relay_model){.key = x->key,
                                    .num_layers = 3,
                                    .num_kinds = 2,
                                    .kinds = x->kinds,
                                    .layer_kind = x->layer_kind,
                                    .kv_layer = x->kv_layer,
                                    .kv_dtype = RELAY_DTYPE_F8_E4M3,
                                    .sinks = x->sinks,
                                    .k_scale = x->k_scale,
                                    .v_scale = x->v_scale};
}

static void expect_refused(const struct relay_model *model, const char *word)
{
    CHECK_CODE(relay_model_validate(model, &err), RELAY_INVALID_ARGUMENT);
    if (strstr(err.msg, word) == NULL) {
        CHECK_FAIL("\"%s\" does not name %s", err.msg, word);
    }
}

static void test_model_refuses_wrong_fields(void)
{
    struct example x;
    char long_key[300];
    memset(long_key, 'k', sizeof(long_key) - 1);
    long_key[sizeof(long_key) - 1] = '\0';
    example_init(&x);
    CHECK_OK(relay_model_validate(&x.model, &err), err);
#define REFUSED(set, word)                                                                         \
    example_init(&x);                                                                              \
    x.set;                                                                                         \
    expect_refused(&x.model, (word));                                                              \
    CHECK_STILL()
    REFUSED(model.key = NULL, "key");
    REFUSED(model.key = "", "key");
    REFUSED(model.key = long_key, "key");
    REFUSED(model.num_layers = 0, "num_layers");
    REFUSED(model.num_layers = RELAY_LAYERS_MAX + 1, "num_layers");
    REFUSED(model.num_kinds = 0, "num_kinds");
    REFUSED(model.num_kinds = 4, "num_kinds");
    REFUSED(model.layer_kind = NULL, "layer_kind");
    REFUSED(model.kv_dtype = RELAY_DTYPE_UNSPECIFIED, "kv_dtype");
    REFUSED(kinds[1].num_q_heads = 0, "kinds[1].num_q_heads");
    REFUSED(kinds[1].num_q_heads = RELAY_HEADS_MAX + 1, "kinds[1].num_q_heads");
    REFUSED(kinds[1].num_kv_heads = 3, "kinds[1].num_kv_heads");
    REFUSED(kinds[0].num_kv_heads = 0, "kinds[0].num_kv_heads");
    REFUSED(kinds[0].head_dim_qk = 0, "kinds[0].head_dim_qk");
    REFUSED(kinds[0].head_dim_qk = 60, "kinds[0].head_dim_qk");
    REFUSED(kinds[0].head_dim_qk = RELAY_HEAD_DIM_MAX + 8, "kinds[0].head_dim_qk");
    REFUSED(kinds[0].head_dim_v = 12, "kinds[0].head_dim_v");
    REFUSED(kinds[0].scale = -1.0f, "kinds[0].scale");
    REFUSED(kinds[0].scale = NAN, "kinds[0].scale");
    REFUSED(kinds[0].softcap = INFINITY, "kinds[0].softcap");
    REFUSED(slopes[3] = NAN, "kinds[0].alibi_slopes[3]");
    REFUSED(kinds[0].v_from_k = true; x.kinds[0].head_dim_v = 72, "v_from_k");
    REFUSED(layer_kind[2] = 2, "layer_kind[2]");
    REFUSED(kv_layer[1] = 2, "kv_layer[1]");
    REFUSED(kv_layer[0] = 1, "kv_layer[0]");
    REFUSED(kinds[1].head_dim_v = 32; x.kv_layer[1] = 0, "kv_layer[1]");
    REFUSED(sinks[15] = NAN, "sinks[15]");
    REFUSED(sinks[0] = INFINITY, "sinks[0]");
    REFUSED(k_scale[5] = 0.0f, "k_scale[5]");
    REFUSED(v_scale[0] = -1.0f, "v_scale[0]");
    REFUSED(model.kv_dtype = RELAY_DTYPE_BF16, "F8_E4M3");
#undef REFUSED
    example_init(&x);
    x.sinks[4] = -INFINITY;
    x.model.k_scale = NULL;
    CHECK_OK(relay_model_validate(&x.model, &err), err);
}

static void test_model_copy_shares_nothing(void)
{
    struct example x;
    struct relay_model *copy = NULL;
    char why[128] = "";
    example_init(&x);
    CHECK_OK(relay_model_copy(&x.model, &copy, &err), err);
    CHECK(relay_model_equal(&x.model, copy, why, sizeof(why)));
    memset(&x, 0xa5, sizeof(x)); /* the copy must not notice */
    CHECK_STR(copy->key, "tiny@1");
    CHECK_OK(relay_model_validate(copy, &err), err);
    example_init(&x);
    CHECK(relay_model_equal(&x.model, copy, why, sizeof(why)));
    relay_model_destroy(copy);
    x.model.kv_layer = NULL;
    x.model.sinks = NULL;
    x.model.k_scale = NULL;
    x.model.v_scale = NULL;
    x.kinds[0].alibi_slopes = NULL;
    CHECK_OK(relay_model_copy(&x.model, &copy, &err), err);
    CHECK(relay_model_equal(&x.model, copy, NULL, 0));
    CHECK(copy->sinks == NULL && copy->kv_layer == NULL);
    relay_model_destroy(copy);
    relay_model_destroy(NULL);
    x.model.num_layers = 0;
    copy = NULL;
    CHECK_CODE(relay_model_copy(&x.model, &copy, &err), RELAY_INVALID_ARGUMENT);
    CHECK(copy == NULL);
}

static void test_model_names_the_difference(void)
{
    struct example a, b;
    char why[128];
#define DIFFERS(set, text)                                                                         \
    example_init(&a);                                                                              \
    example_init(&b);                                                                              \
    CHECK(relay_model_equal(&a.model, &b.model, why, sizeof(why)));                                \
    b.set;                                                                                         \
    CHECK(!relay_model_equal(&a.model, &b.model, why, sizeof(why)));                               \
    CHECK_STR(why, text);                                                                          \
    CHECK(!relay_model_equal(&a.model, &b.model, NULL, 0))
    DIFFERS(model.key = "tiny@2", "key \"tiny@1\" is not \"tiny@2\"");
    DIFFERS(model.num_layers = 2, "num_layers 3 is not 2");
    DIFFERS(model.kv_dtype = RELAY_DTYPE_F32, "kv_dtype 4 is not 1");
    DIFFERS(kinds[0].window = 1024, "kinds[0].window 512 is not 1024");
    DIFFERS(kinds[1].chunk = 7, "kinds[1].chunk 0 is not 7");
    DIFFERS(kinds[1].scale = 0.25f, "kinds[1].scale 0.5 is not 0.25");
    DIFFERS(kinds[1].softcap = -0.0f, "kinds[1].softcap 0 is not -0");
    DIFFERS(kinds[1].v_from_k = true, "kinds[1].v_from_k 0 is not 1");
    DIFFERS(kinds[0].alibi_slopes = NULL, "kinds[0].alibi_slopes given 1 is not 0");
    DIFFERS(slopes[2] = 1.0f, "kinds[0].alibi_slopes[2] 0 is not 1");
    DIFFERS(layer_kind[0] = 1, "layer_kind[0] 0 is not 1");
    DIFFERS(kv_layer[2] = 2, "kv_layer[2] 0 is not 2");
    DIFFERS(sinks[15] = 0.5f, "sinks[15] 15 is not 0.5");
    DIFFERS(k_scale[1] = 3.0f, "k_scale[1] 2 is not 3");
    DIFFERS(model.v_scale = NULL, "v_scale given 1 is not 0");
#undef DIFFERS
    example_init(&a);
    example_init(&b);
    a.kv_layer[2] = 2;
    b.model.kv_layer = NULL; /* each its own, said in two ways */
    CHECK(relay_model_equal(&a.model, &b.model, why, sizeof(why)));
}

static void test_model_accessors(void)
{
    struct example x;
    struct relay_shape shape;
    example_init(&x);
    CHECK(relay_model_kind(&x.model, 1) == &x.kinds[1]);
    CHECK_EQ(relay_model_kv_layer(&x.model, 2), 0);
    CHECK(relay_model_sinks(&x.model, 2) == x.sinks + 12);
    CHECK(relay_model_k_scale(&x.model, 1) == x.k_scale + 2);
    CHECK(relay_model_k_scale(&x.model, 2) == x.k_scale); /* of the layer whose K/V it reads */
    CHECK(relay_model_v_scale(&x.model, 0) == x.v_scale);
    shape = relay_shape_of(&x.model, 0, RELAY_DTYPE_BF16, RELAY_DTYPE_F32);
    CHECK(shape.kind.scale == 0.125f); /* 1 / sqrt(64) */
    CHECK_EQ(shape.kv_dtype, RELAY_DTYPE_F8_E4M3);
    CHECK_EQ(shape.out_dtype, RELAY_DTYPE_F32);
    CHECK_EQ(relay_shape_kv_bytes(&shape), 2 * 128);
    shape.kind.v_from_k = true;
    CHECK_EQ(relay_shape_kv_bytes(&shape), 2 * 64);
    CHECK(relay_shape_of(&x.model, 1, RELAY_DTYPE_F32, RELAY_DTYPE_F32).kind.scale == 0.5f);
    x.model.sinks = NULL;
    x.model.kv_layer = NULL;
    x.model.k_scale = NULL;
    CHECK(relay_model_sinks(&x.model, 1) == NULL);
    CHECK(relay_model_k_scale(&x.model, 1) == NULL);
    CHECK_EQ(relay_model_kv_layer(&x.model, 2), 2);
}

int main(void)
{
    CHECK_RUN(test_model_refuses_wrong_fields);
    CHECK_RUN(test_model_copy_shares_nothing);
    CHECK_RUN(test_model_names_the_difference);
    CHECK_RUN(test_model_accessors);
    return check_done();
}
