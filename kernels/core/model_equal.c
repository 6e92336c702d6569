/* Comparing two model descriptions and naming the first difference. Pure; any thread. */
#include <relay/types.h>

#include <stdio.h>
#include <string.h>

/* Where the reason goes; nothing is written when out is NULL. */
struct reason {
    char *out;
    size_t bytes;
};

static bool differs_u32(struct reason why, const char *name, uint32_t a, uint32_t b)
{
    if (a == b) {
        return false;
    }
    if (why.out != NULL && why.bytes != 0) {
        (void)snprintf(why.out, why.bytes, "%s %u is not %u", name, a, b);
    }
    return true;
}

/* Bit by bit: -0 is not 0 and one NaN is not another, since either changes results. */
static bool differs_f32(struct reason why, const char *name, float a, float b)
{
    if (memcmp(&a, &b, sizeof(a)) == 0) {
        return false;
    }
    if (why.out != NULL && why.bytes != 0) {
        (void)snprintf(why.out, why.bytes, "%s %.9g is not %.9g", name, (double)a, (double)b);
    }
    return true;
}

static bool differs_floats(struct reason why, const char *name, const float *a, const float *b,
                           size_t n)
{
    if (a == NULL || b == NULL) {
        char label[64];
        (void)snprintf(label, sizeof(label), "%s given", name);
        return differs_u32(why, label, a != NULL, b != NULL);
    }
    for (size_t i = 0; i < n; i++) {
        char label[64];
        if (memcmp(&a[i], &b[i], sizeof(a[i])) != 0) {
            (void)snprintf(label, sizeof(label), "%s[%zu]", name, i);
            return differs_f32(why, label, a[i], b[i]);
        }
    }
    return false;
}

static bool differs_kind(struct reason why, uint32_t i, const struct relay_layer_kind *a,
                         const struct relay_layer_kind *b)
{
    char label[64];
#define FIELD(differs, field)                                                                      \
    (void)snprintf(label, sizeof(label), "kinds[%u]." #field, i);                                  \
    if (differs(why, label, a->field, b->field)) {                                                 \
        return true;                                                                               \
    }
    FIELD(differs_u32, num_q_heads)
    FIELD(differs_u32, num_kv_heads)
    FIELD(differs_u32, head_dim_qk)
    FIELD(differs_u32, head_dim_v)
    FIELD(differs_u32, window)
    FIELD(differs_u32, chunk)
    FIELD(differs_f32, scale)
    FIELD(differs_f32, softcap)
    FIELD(differs_u32, v_from_k)
#undef FIELD
    (void)snprintf(label, sizeof(label), "kinds[%u].alibi_slopes", i);
    return differs_floats(why, label, a->alibi_slopes, b->alibi_slopes, a->num_q_heads);
}

static bool differs_layers(struct reason why, const struct relay_model *a,
                           const struct relay_model *b)
{
    for (uint32_t l = 0; l < a->num_layers; l++) {
        char label[64];
        (void)snprintf(label, sizeof(label), "layer_kind[%u]", l);
        if (differs_u32(why, label, a->layer_kind[l], b->layer_kind[l])) {
            return true;
        }
        /* A missing list and one that names every layer itself mean the same. */
        (void)snprintf(label, sizeof(label), "kv_layer[%u]", l);
        if (differs_u32(why, label, relay_model_kv_layer(a, l), relay_model_kv_layer(b, l))) {
            return true;
        }
    }
    return false;
}

bool relay_model_equal(const struct relay_model *a, const struct relay_model *b, char *why,
                       size_t why_bytes)
{
    struct reason reason = {why, why_bytes};
    size_t q_heads = 0;
    size_t kv_heads = 0;
    if (strcmp(a->key, b->key) != 0) {
        if (why != NULL && why_bytes != 0) {
            (void)snprintf(why, why_bytes, "key \"%s\" is not \"%s\"", a->key, b->key);
        }
        return false;
    }
    if (differs_u32(reason, "num_layers", a->num_layers, b->num_layers) ||
        differs_u32(reason, "num_kinds", a->num_kinds, b->num_kinds) ||
        differs_u32(reason, "kv_dtype", (uint32_t)a->kv_dtype, (uint32_t)b->kv_dtype)) {
        return false;
    }
    for (uint32_t i = 0; i < a->num_kinds; i++) {
        if (differs_kind(reason, i, &a->kinds[i], &b->kinds[i])) {
            return false;
        }
    }
    if (differs_layers(reason, a, b)) {
        return false;
    }
    for (uint32_t l = 0; l < a->num_layers; l++) {
        q_heads += relay_model_kind(a, l)->num_q_heads;
        kv_heads += relay_model_kind(a, l)->num_kv_heads;
    }
    return !differs_floats(reason, "sinks", a->sinks, b->sinks, q_heads) &&
           !differs_floats(reason, "k_scale", a->k_scale, b->k_scale, kv_heads) &&
           !differs_floats(reason, "v_scale", a->v_scale, b->v_scale, kv_heads);
}
