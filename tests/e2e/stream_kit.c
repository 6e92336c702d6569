#include "e2e/stream_kit.h"

#include "testlib/compare.h"
#include "testlib/rng.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PROMPT_SEED 7u

enum what { WHAT_Q, WHAT_K, WHAT_V };

static const struct relay_layer_kind kinds[2] = {
    {.num_q_heads = KIT_HQ,
     .num_kv_heads = KIT_HKV,
     .head_dim_qk = KIT_D,
     .head_dim_v = KIT_D,
     .scale = 0.125f},
    {.num_q_heads = KIT_HQ,
     .num_kv_heads = KIT_HKV,
     .head_dim_qk = KIT_D,
     .head_dim_v = KIT_D,
     .window = KIT_WINDOW,
     .scale = 0.125f},
};
static const uint32_t layer_kind[KIT_LAYERS] = {0, 1, 0};
static const struct relay_model model = {.key = "kit",
                                         .num_layers = KIT_LAYERS,
                                         .num_kinds = 2,
                                         .kinds = kinds,
                                         .layer_kind = layer_kind,
                                         .kv_dtype = RELAY_DTYPE_F32};

const struct relay_model *kit_model(void)
{
    return &model;
}

/* ---- tensors ---- */

static void fill(float *to, uint64_t seed, enum what what, uint32_t layer, uint32_t position,
                 uint32_t n)
{
    struct rng rng = {seed * 0x9e3779b97f4a7c15u ^ (uint64_t)what << 60 ^ (uint64_t)layer << 40 ^
                      position};
    for (uint32_t i = 0; i < n; i++) {
        to[i] = rng_unit(&rng) * 2;
    }
}

enum relay_code kit_register(struct relay_client *client, struct relay_error *err)
{
    static float tensors[2][KIT_LAYERS][KIT_S * KIT_HKV * KIT_D];
    struct relay_kv layers[KIT_LAYERS];
    struct relay_prompt_desc desc = RELAY_PROMPT_DESC_INIT;
    for (uint32_t l = 0; l < KIT_LAYERS; l++) {
        for (uint32_t t = 0; t < KIT_S; t++) {
            const size_t at = (size_t)t * KIT_HKV * KIT_D;
            fill(tensors[0][l] + at, PROMPT_SEED, WHAT_K, l, t, KIT_HKV * KIT_D);
            fill(tensors[1][l] + at, PROMPT_SEED, WHAT_V, l, t, KIT_HKV * KIT_D);
        }
        layers[l] = (struct relay_kv){tensors[0][l], tensors[1][l], RELAY_DTYPE_F32};
    }
    desc.prompt_id = "kit";
    desc.model = &model;
    desc.num_tokens = KIT_S;
    desc.layers = layers;
    return relay_prompt_register(client, &desc, NULL, err);
}

/* ---- batches ---- */

enum relay_code kit_open(struct kit_batch *b, struct relay_session *session, uint32_t n,
                         uint64_t first_seed, uint32_t rows_max, struct relay_error *err)
{
    memset(b, 0, sizeof(*b));
    b->session = session;
    b->rows_max = rows_max;
    for (uint32_t l = 0; l < KIT_LAYERS; l++) {
        b->q[l] = calloc(rows_max, KIT_HQ * KIT_D * sizeof(float));
        b->k[l] = calloc(rows_max, KIT_HKV * KIT_D * sizeof(float));
        b->v[l] = calloc(rows_max, KIT_HKV * KIT_D * sizeof(float));
        b->out[l] = calloc(rows_max, KIT_HQ * KIT_D * sizeof(float));
        b->lse[l] = calloc(rows_max, KIT_HQ * sizeof(float));
        if (b->q[l] == NULL || b->k[l] == NULL || b->v[l] == NULL || b->out[l] == NULL ||
            b->lse[l] == NULL) {
            return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "out of memory");
        }
    }
    for (uint32_t i = 0; i < n; i++) {
        const enum relay_code code = relay_request_open(session, "kit", &b->handles[i], err);
        if (code != RELAY_OK) {
            return code;
        }
        b->seeds[i] = first_seed + i;
        b->n++;
    }
    return RELAY_OK;
}

void kit_close(struct kit_batch *b)
{
    if (b->n > 0) {
        struct relay_error err;
        if (relay_requests_close(b->session, b->handles, b->n, &err) != RELAY_OK) {
            b->n = 0; /* the session may be gone: then so are they */
        }
    }
    for (uint32_t l = 0; l < KIT_LAYERS; l++) {
        free(b->q[l]);
        free(b->k[l]);
        free(b->v[l]);
        free(b->out[l]);
        free(b->lse[l]);
    }
    memset(b, 0, sizeof(*b));
}

void kit_wipe(struct kit_batch *b)
{
    for (uint32_t l = 0; l < KIT_LAYERS; l++) {
        for (uint32_t i = 0; i < b->rows * KIT_HQ; i++) {
            b->lse[l][i] = NAN;
            for (uint32_t d = 0; d < KIT_D; d++) {
                b->out[l][i * KIT_D + d] = NAN;
            }
        }
    }
}

void kit_rows(struct kit_batch *b, uint32_t position, uint32_t q_len)
{
    b->position = position;
    b->q_len = q_len;
    b->rows = b->n * q_len;
    for (uint32_t i = 0; i < b->n; i++) {
        b->entries[i] = (struct relay_step_entry){b->handles[i], position, q_len};
        for (uint32_t l = 0; l < KIT_LAYERS; l++) {
            for (uint32_t t = 0; t < q_len; t++) {
                const size_t row = (size_t)i * q_len + t;
                const size_t kv = row * KIT_HKV * KIT_D;
                fill(b->q[l] + row * KIT_HQ * KIT_D, b->seeds[i], WHAT_Q, l, position + t,
                     KIT_HQ * KIT_D);
                fill(b->k[l] + kv, b->seeds[i], WHAT_K, l, position + t, KIT_HKV * KIT_D);
                fill(b->v[l] + kv, b->seeds[i], WHAT_V, l, position + t, KIT_HKV * KIT_D);
            }
        }
    }
    kit_wipe(b);
}

enum relay_code kit_submit(struct kit_batch *b, struct relay_step *step, uint32_t layer,
                           uint64_t *ticket, struct relay_error *err)
{
    return relay_step_submit(step, layer, b->q[layer], b->k[layer], b->v[layer], b->out[layer],
                             b->lse[layer], ticket, err);
}

enum relay_code kit_step(struct kit_batch *b, const struct relay_step_options *options,
                         struct relay_error *err)
{
    struct relay_step *step = NULL;
    enum relay_code code = relay_step_begin(b->session, b->entries, b->n, options, &step, err);
    for (uint32_t l = 0; l < KIT_LAYERS && code == RELAY_OK; l++) {
        code = relay_step_attend(step, l, b->q[l], b->k[l], b->v[l], b->out[l], b->lse[l], err);
    }
    relay_step_end(step);
    return code;
}

/* ---- the check ---- */

struct oracle {
    uint32_t tokens;
    float *k, *v;
    uint32_t *positions;
    double *scratch;
    struct dense_result result;
};

static void oracle_free(struct oracle *o)
{
    free(o->k);
    free(o->v);
    free(o->positions);
    free(o->scratch);
    free(o->result.out);
    free(o->result.magnitude);
    free(o->result.lse);
    free(o->result.score);
}

/* All keys of a request in a layer: the prompt's and its own up to the last row. */
static bool oracle_init(struct oracle *o, uint64_t seed, uint32_t layer, uint32_t context)
{
    const size_t kv = KIT_HKV * KIT_D;
    o->tokens = KIT_S + context;
    o->k = calloc(o->tokens, kv * sizeof(float));
    o->v = calloc(o->tokens, kv * sizeof(float));
    o->positions = calloc(o->tokens, sizeof(uint32_t));
    o->scratch = calloc(o->tokens, sizeof(double));
    o->result = (struct dense_result){.out = calloc(KIT_HQ * KIT_D, sizeof(double)),
                                      .magnitude = calloc(KIT_HQ * KIT_D, sizeof(double)),
                                      .lse = calloc(KIT_HQ, sizeof(double)),
                                      .score = calloc(KIT_HQ, sizeof(double))};
    if (o->k == NULL || o->v == NULL || o->positions == NULL || o->scratch == NULL ||
        o->result.out == NULL || o->result.magnitude == NULL || o->result.lse == NULL ||
        o->result.score == NULL) {
        return false;
    }
    for (uint32_t t = 0; t < o->tokens; t++) {
        const bool own = t >= KIT_S;
        o->positions[t] = t;
        fill(o->k + t * kv, own ? seed : PROMPT_SEED, WHAT_K, layer, own ? t - KIT_S : t,
             KIT_HKV * KIT_D);
        fill(o->v + t * kv, own ? seed : PROMPT_SEED, WHAT_V, layer, own ? t - KIT_S : t,
             KIT_HKV * KIT_D);
    }
    return true;
}

static bool request_right(const struct kit_batch *b, uint32_t i, uint32_t layer, uint32_t stride)
{
    const struct tolerance tolerance = tolerance_of(RELAY_DTYPE_F32, 0.0);
    const struct relay_layer_kind *kind = relay_model_kind(&model, layer);
    struct compare_stats stats = {0};
    struct oracle o = {0};
    char why[256] = "out of memory";
    bool right = oracle_init(&o, b->seeds[i], layer, b->position + b->q_len);
    const struct dense_keys keys = {o.k, o.v, o.positions, o.tokens};
    for (uint32_t t = (b->q_len - 1) % stride; t < b->q_len && right; t += stride) {
        const size_t row = (size_t)i * b->q_len + t;
        dense_attention(kind, &keys, KIT_S + b->position + t, b->q[layer] + row * KIT_HQ * KIT_D,
                        NULL, o.scratch, &o.result);
        right = compare_row(kind, &tolerance, b->out[layer] + row * KIT_HQ * KIT_D,
                            b->lse[layer] + row * KIT_HQ, &o.result, &stats, why, sizeof(why));
    }
    if (!right) {
        fprintf(stderr, "request %u, layer %u, position %u: %s\n", i, layer, b->position, why);
    }
    oracle_free(&o);
    return right;
}

bool kit_layer_right(const struct kit_batch *b, uint32_t layer, uint32_t stride)
{
    bool right = true;
    for (uint32_t i = 0; i < b->n && right; i++) {
        right = request_right(b, i, layer, stride);
    }
    return right;
}

bool kit_right(const struct kit_batch *b, uint32_t stride)
{
    bool right = true;
    for (uint32_t l = 0; l < KIT_LAYERS && right; l++) {
        right = kit_layer_right(b, l, stride);
    }
    return right;
}
