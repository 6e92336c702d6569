/* ModelSpec <-> struct relay_model, also through the wire. */
#include "kit.h"
#include "testlib/check.h"

#include <proto/wire/convert.h>

static const float slopes[] = {0.5f, 0.25f, 0.125f, 0.0625f};
static const float sinks[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
static const float k_scale[] = {0.5f, 0.25f, 2, 4, 8};
static const float v_scale[] = {1, 2, 3, 4, 5};
static const uint32_t layer_kind[] = {0, 1, 0};
static const uint32_t kv_layer[] = {0, 1, 0};
static const struct relay_layer_kind kinds[] = {
    {.num_q_heads = 4,
     .num_kv_heads = 2,
     .head_dim_qk = 64,
     .head_dim_v = 32,
     .window = 512,
     .scale = 0.1f,
     .alibi_slopes = slopes},
    {.num_q_heads = 4,
     .num_kv_heads = 1,
     .head_dim_qk = 576,
     .head_dim_v = 512,
     .chunk = 8192,
     .softcap = 30.0f,
     .v_from_k = true},
};
static const struct relay_model model = {
    .key = "test@1#tp1of2",
    .num_layers = 3,
    .num_kinds = 2,
    .kinds = kinds,
    .layer_kind = layer_kind,
    .kv_layer = kv_layer,
    .kv_dtype = RELAY_DTYPE_F8_E4M3,
    .sinks = sinks,
    .k_scale = k_scale,
    .v_scale = v_scale,
};

static bool same_floats(const float *a, const float *b, size_t n)
{
    return (a == NULL) == (b == NULL) && (a == NULL || memcmp(a, b, n * sizeof(*a)) == 0);
}

static bool same_u32s(const uint32_t *a, const uint32_t *b, size_t n)
{
    return (a == NULL) == (b == NULL) && (a == NULL || memcmp(a, b, n * sizeof(*a)) == 0);
}

static void check_same(const struct relay_model *a, const struct relay_model *b)
{
    CHECK_STR(a->key, b->key);
    CHECK_EQ(a->num_layers, b->num_layers);
    CHECK_EQ(a->num_kinds, b->num_kinds);
    CHECK_EQ(a->kv_dtype, b->kv_dtype);
    CHECK(same_u32s(a->layer_kind, b->layer_kind, a->num_layers));
    CHECK(same_u32s(a->kv_layer, b->kv_layer, a->num_layers));
    CHECK(same_floats(a->sinks, b->sinks, 12));
    CHECK(same_floats(a->k_scale, b->k_scale, 5));
    CHECK(same_floats(a->v_scale, b->v_scale, 5));
    for (uint32_t i = 0; i < a->num_kinds; i++) {
        const struct relay_layer_kind *x = &a->kinds[i], *y = &b->kinds[i];
        CHECK_EQ(x->num_q_heads, y->num_q_heads);
        CHECK_EQ(x->num_kv_heads, y->num_kv_heads);
        CHECK_EQ(x->head_dim_qk, y->head_dim_qk);
        CHECK_EQ(x->head_dim_v, y->head_dim_v);
        CHECK_EQ(x->window, y->window);
        CHECK_EQ(x->chunk, y->chunk);
        CHECK(same_floats(&x->scale, &y->scale, 1));
        CHECK(same_floats(&x->softcap, &y->softcap, 1));
        CHECK_EQ(x->v_from_k, y->v_from_k);
        CHECK(same_floats(x->alibi_slopes, y->alibi_slopes, x->num_q_heads));
    }
}

/* To a spec, to bytes, and back. */
static void round_trip(const struct relay_model *in)
{
    struct relay_wire_arena out_arena, in_arena;
    struct relay_wire_view view;
    struct relay_error err;
    struct relay_model read;
    Relay__V1__ModelSpec *spec;
    ProtobufCMessage *message;

    relay_wire_arena_init(&out_arena);
    relay_wire_arena_init(&in_arena);
    CHECK_OK(relay_wire_model_to_spec(in, &out_arena, &spec, &err), err);
    grpc_byte_buffer *buffer = relay_wire_pack(&spec->base);
    CHECK_OK(relay_wire_view_init(&view, buffer, &err), err);
    CHECK_OK(relay_wire_unpack_request(&view, &relay__v1__model_spec__descriptor, &in_arena,
                                       &message, &err),
             err);
    CHECK_OK(relay_wire_model_from_spec((Relay__V1__ModelSpec *)message, &in_arena, &read, &err),
             err);
    check_same(in, &read);
    CHECK_STILL();
    grpc_byte_buffer_destroy(buffer);
    relay_wire_arena_fini(&out_arena);
    relay_wire_arena_fini(&in_arena);
}

static void test_convert_model_round_trips(void)
{
    struct relay_model plain = model;
    round_trip(&model);
    CHECK_STILL();
    plain.kv_dtype = RELAY_DTYPE_BF16;
    plain.kv_layer = NULL;
    plain.sinks = NULL;
    plain.k_scale = NULL;
    plain.v_scale = NULL;
    round_trip(&plain);
}

/* The spec of the model above with one thing wrong at a time. */
static enum relay_code convert_with(void (*spoil_fn)(Relay__V1__ModelSpec *spec),
                                    struct relay_error *err)
{
    struct relay_wire_arena arena;
    struct relay_model read = {.num_layers = 99};
    Relay__V1__ModelSpec *spec;
    enum relay_code code;

    relay_wire_arena_init(&arena);
    code = relay_wire_model_to_spec(&model, &arena, &spec, err);
    if (code == RELAY_OK) {
        spoil_fn(spec);
        code = relay_wire_model_from_spec(spec, &arena, &read, err);
        if (code != RELAY_OK && read.num_layers != 99) {
            code = RELAY_INTERNAL; /* outputs are written only on success */
        }
    }
    relay_wire_arena_fini(&arena);
    return code;
}

static void no_kinds(Relay__V1__ModelSpec *spec)
{
    spec->n_kinds = 0;
}

static void no_layers(Relay__V1__ModelSpec *spec)
{
    spec->n_layer_kind = 0;
}

static void unknown_kind(Relay__V1__ModelSpec *spec)
{
    static uint32_t bad[] = {0, 2, 0};
    spec->layer_kind = bad;
}

static void short_kv_layer(Relay__V1__ModelSpec *spec)
{
    spec->n_kv_layer--;
}

static void short_sinks(Relay__V1__ModelSpec *spec)
{
    spec->n_sinks--;
}

static void long_k_scale(Relay__V1__ModelSpec *spec)
{
    spec->n_k_scale++;
}

static void long_v_scale(Relay__V1__ModelSpec *spec)
{
    spec->n_v_scale++;
}

static void short_slopes(Relay__V1__ModelSpec *spec)
{
    spec->kinds[0]->n_alibi_slopes--;
}

static void test_convert_names_the_wrong_field(void)
{
    static const struct {
        void (*spoil_fn)(Relay__V1__ModelSpec *spec);
        const char *field;
    } cases[] = {
        {no_kinds, "model.kinds"},       {no_layers, "model.layer_kind"},
        {unknown_kind, "layer_kind[1]"}, {short_kv_layer, "model.kv_layer"},
        {short_sinks, "model.sinks"},    {long_k_scale, "model.k_scale"},
        {long_v_scale, "model.v_scale"}, {short_slopes, "kinds[0].alibi_slopes"},
    };
    struct relay_wire_arena arena;
    struct relay_model read;
    struct relay_error err;

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        CHECK_CODE(convert_with(cases[i].spoil_fn, &err), RELAY_INVALID_ARGUMENT);
        if (strstr(err.msg, cases[i].field) == NULL) {
            CHECK_FAIL("\"%s\" does not name %s", err.msg, cases[i].field);
        }
    }
    relay_wire_arena_init(&arena);
    CHECK_CODE(relay_wire_model_from_spec(NULL, &arena, &read, &err), RELAY_INVALID_ARGUMENT);
    relay_wire_arena_fini(&arena);
}

int main(void)
{
    grpc_init();
    CHECK_RUN(test_convert_model_round_trips);
    CHECK_RUN(test_convert_names_the_wrong_field);
    grpc_shutdown();
    return check_done();
}
