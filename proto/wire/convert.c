/* ModelSpec <-> struct relay_model: see convert.h. */
#include <proto/wire/convert.h>
#include <string.h>

static struct relay_layer_kind kind_from(const Relay__V1__LayerKind *kind)
{
    return (struct relay_layer_kind){
        .num_q_heads = kind->num_q_heads,
        .num_kv_heads = kind->num_kv_heads,
        .head_dim_qk = kind->head_dim_qk,
        .head_dim_v = kind->head_dim_v,
        .window = kind->window,
        .chunk = kind->chunk,
        .scale = kind->scale,
        .softcap = kind->softcap,
        .v_from_k = kind->v_from_k != 0,
        .alibi_slopes = kind->n_alibi_slopes > 0 ? kind->alibi_slopes : NULL,
    };
}

/* Empty, or exactly as long as the shapes say. */
static enum relay_code check_count(const char *field, size_t got, uint64_t expected,
                                   struct relay_error *err)
{
    if (got != 0 && got != expected) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "model.%s: %llu values expected, got %zu",
                          field, (unsigned long long)expected, got);
    }
    return RELAY_OK;
}

/* Array lengths that struct relay_model has no room for. */
static enum relay_code check_counts(const Relay__V1__ModelSpec *spec, struct relay_error *err)
{
    uint64_t q_heads = 0, kv_heads = 0;
    enum relay_code code;

    if (spec->n_kinds == 0 || spec->n_kinds > RELAY_LAYERS_MAX) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "model.kinds: 1 to %u expected, got %zu",
                          RELAY_LAYERS_MAX, spec->n_kinds);
    }
    if (spec->n_layer_kind == 0 || spec->n_layer_kind > RELAY_LAYERS_MAX) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                          "model.layer_kind: 1 to %u layers expected, got %zu", RELAY_LAYERS_MAX,
                          spec->n_layer_kind);
    }
    for (size_t i = 0; i < spec->n_kinds; i++) {
        const Relay__V1__LayerKind *kind = spec->kinds[i];
        if (kind->n_alibi_slopes != 0 && kind->n_alibi_slopes != kind->num_q_heads) {
            return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                              "model.kinds[%zu].alibi_slopes: %u values expected, got %zu", i,
                              kind->num_q_heads, kind->n_alibi_slopes);
        }
    }
    for (size_t i = 0; i < spec->n_layer_kind; i++) {
        if (spec->layer_kind[i] >= spec->n_kinds) {
            return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "model.layer_kind[%zu]: no kind %u", i,
                              spec->layer_kind[i]);
        }
        q_heads += spec->kinds[spec->layer_kind[i]]->num_q_heads;
        kv_heads += spec->kinds[spec->layer_kind[i]]->num_kv_heads;
    }
    code = check_count("kv_layer", spec->n_kv_layer, spec->n_layer_kind, err);
    if (code == RELAY_OK) {
        code = check_count("sinks", spec->n_sinks, q_heads, err);
    }
    if (code == RELAY_OK) {
        code = check_count("k_scale", spec->n_k_scale, kv_heads, err);
    }
    return code == RELAY_OK ? check_count("v_scale", spec->n_v_scale, kv_heads, err) : code;
}

enum relay_code relay_wire_model_from_spec(const Relay__V1__ModelSpec *spec,
                                           struct relay_wire_arena *arena, struct relay_model *out,
                                           struct relay_error *err)
{
    struct relay_layer_kind *kinds;
    enum relay_code code;

    if (spec == NULL) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "model: none given");
    }
    code = check_counts(spec, err);
    if (code != RELAY_OK) {
        return code;
    }
    relay_wire_arena_grant(arena, spec->n_kinds * sizeof(*kinds) + RELAY_WIRE_ARENA_ALIGN);
    kinds = relay_wire_arena_alloc(arena, spec->n_kinds * sizeof(*kinds));
    if (kinds == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "out of memory");
    }
    for (size_t i = 0; i < spec->n_kinds; i++) {
        kinds[i] = kind_from(spec->kinds[i]);
    }
    *out = (struct relay_model){
        .key = spec->model_key,
        .num_layers = (uint32_t)spec->n_layer_kind,
        .num_kinds = (uint32_t)spec->n_kinds,
        .kinds = kinds,
        .layer_kind = spec->layer_kind,
        .kv_layer = spec->n_kv_layer > 0 ? spec->kv_layer : NULL,
        .kv_dtype = (enum relay_dtype)spec->kv_dtype,
        .sinks = spec->n_sinks > 0 ? spec->sinks : NULL,
        .k_scale = spec->n_k_scale > 0 ? spec->k_scale : NULL,
        .v_scale = spec->n_v_scale > 0 ? spec->v_scale : NULL,
    };
    return RELAY_OK;
}

/* Packing only reads, so the generated structs' missing const is lent away here and nowhere else.
 */
static float *lend_floats(const float *values)
{
    return (float *)(uintptr_t)values;
}

static uint32_t *lend_u32s(const uint32_t *values)
{
    return (uint32_t *)(uintptr_t)values;
}

static void kind_to(const struct relay_layer_kind *kind, Relay__V1__LayerKind *out)
{
    relay__v1__layer_kind__init(out);
    out->num_q_heads = kind->num_q_heads;
    out->num_kv_heads = kind->num_kv_heads;
    out->head_dim_qk = kind->head_dim_qk;
    out->head_dim_v = kind->head_dim_v;
    out->window = kind->window;
    out->chunk = kind->chunk;
    out->scale = kind->scale;
    out->softcap = kind->softcap;
    out->v_from_k = kind->v_from_k;
    if (kind->alibi_slopes != NULL) {
        out->alibi_slopes = lend_floats(kind->alibi_slopes);
        out->n_alibi_slopes = kind->num_q_heads;
    }
}

static void fill_spec(const struct relay_model *model, Relay__V1__ModelSpec *spec)
{
    size_t q_heads = 0, kv_heads = 0;

    for (uint32_t i = 0; i < model->num_layers; i++) {
        q_heads += model->kinds[model->layer_kind[i]].num_q_heads;
        kv_heads += model->kinds[model->layer_kind[i]].num_kv_heads;
    }
    spec->model_key = (char *)(uintptr_t)model->key;
    spec->kv_dtype = (Relay__V1__DType)model->kv_dtype;
    spec->layer_kind = lend_u32s(model->layer_kind);
    spec->n_layer_kind = model->num_layers;
    spec->kv_layer = lend_u32s(model->kv_layer);
    spec->n_kv_layer = model->kv_layer != NULL ? model->num_layers : 0;
    spec->sinks = lend_floats(model->sinks);
    spec->n_sinks = model->sinks != NULL ? q_heads : 0;
    spec->k_scale = lend_floats(model->k_scale);
    spec->n_k_scale = model->k_scale != NULL ? kv_heads : 0;
    spec->v_scale = lend_floats(model->v_scale);
    spec->n_v_scale = model->v_scale != NULL ? kv_heads : 0;
}

enum relay_code relay_wire_model_to_spec(const struct relay_model *model,
                                         struct relay_wire_arena *arena, Relay__V1__ModelSpec **out,
                                         struct relay_error *err)
{
    Relay__V1__ModelSpec *spec;
    Relay__V1__LayerKind *kinds;
    size_t spec_bytes = sizeof(*spec);
    size_t kind_bytes = model->num_kinds * sizeof(*kinds);
    size_t list_bytes = model->num_kinds * sizeof(*spec->kinds);

    relay_wire_arena_grant(arena,
                           spec_bytes + kind_bytes + list_bytes + 3 * RELAY_WIRE_ARENA_ALIGN);
    spec = relay_wire_arena_alloc(arena, spec_bytes);
    kinds = relay_wire_arena_alloc(arena, kind_bytes);
    Relay__V1__LayerKind **list = relay_wire_arena_alloc(arena, list_bytes);
    if (spec == NULL || kinds == NULL || list == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "out of memory");
    }
    relay__v1__model_spec__init(spec);
    for (uint32_t i = 0; i < model->num_kinds; i++) {
        kind_to(&model->kinds[i], &kinds[i]);
        list[i] = &kinds[i];
    }
    spec->kinds = list;
    spec->n_kinds = model->num_kinds;
    fill_spec(model, spec);
    *out = spec;
    return RELAY_OK;
}
