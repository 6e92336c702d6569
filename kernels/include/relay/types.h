/* Data types, layer shapes and model descriptions shared by kernels, service and client.
 *
 * Letters: R rows, Hq query heads, Hkv KV heads, D head dim (dqk, dv), L layers. Tensors are
 * row-major, little-endian and contiguous: q [R,Hq,dqk], out [R,Hq,dv], K [tokens,Hkv,dqk],
 * V [tokens,Hkv,dv], LSE [R,Hq] float32, natural logarithm, empty = -inf.
 * Plain values, no hidden state: every function here is pure and thread-safe. */
#ifndef RELAY_TYPES_H
#define RELAY_TYPES_H

#include <relay/status.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Values are those of DType in relay.proto. */
enum relay_dtype {
    RELAY_DTYPE_UNSPECIFIED = 0,
    RELAY_DTYPE_F32 = 1,
    RELAY_DTYPE_F16 = 2,     /* IEEE binary16 */
    RELAY_DTYPE_BF16 = 3,    /* upper half of binary32 */
    RELAY_DTYPE_F8_E4M3 = 4, /* OCP FP8 E4M3: no infinities, max 448, NaN = 0x7f */
};

/* Bytes of one element; 0 for a value that is no dtype. */
RELAY_EXPORT size_t relay_dtype_size(enum relay_dtype dtype);
/* "BF16"; "?" for a value that is no dtype. */
RELAY_EXPORT const char *relay_dtype_name(enum relay_dtype dtype);

/* Converts n elements, round-to-nearest-even, NaN stays NaN, overflow goes to infinity (to NaN for
 * F8_E4M3, which has none). src and dst must not overlap unless they are equal and same-sized. */
RELAY_EXPORT void relay_dtype_convert(enum relay_dtype dst_dtype, void *dst,
                                      enum relay_dtype src_dtype, const void *src, size_t n);

/* Which keys a call attends to. Parts leave sinks out: whoever merges adds them. */
enum relay_part {
    RELAY_PART_FULL = 0,
    RELAY_PART_PROMPT_ONLY = 1,
    RELAY_PART_CONTEXT_ONLY = 2,
};

/* Whether rows with the same prompt read its K/V once (relay) or once per request (plain). */
enum relay_sharing {
    RELAY_SHARING_AUTO = 0,
    RELAY_SHARING_ALWAYS = 1,
    RELAY_SHARING_NEVER = 2,
};

/* What one layer computes. Query head h reads KV head h / (num_q_heads / num_kv_heads).
 *   s = cap(scale * q.k) + alibi_slopes[h] * (j - p),   cap(x) = softcap * tanh(x / softcap)
 * Key j is visible to the row at position p iff j <= p, and j > p - window (window > 0), and
 * j / chunk == p / chunk (chunk > 0). Source of the split into prompt and context parts:
 * RelayAttention, Zhu et al., ACL 2024. */
struct relay_layer_kind {
    uint32_t num_q_heads; /* a multiple of num_kv_heads */
    uint32_t num_kv_heads;
    uint32_t head_dim_qk;      /* multiple of 8 */
    uint32_t head_dim_v;       /* multiple of 8 */
    uint32_t window;           /* tokens, the row's own included; 0 = no window */
    uint32_t chunk;            /* tokens; 0 = no chunks */
    float scale;               /* 0 = 1 / sqrt(head_dim_qk) */
    float softcap;             /* 0 = none */
    bool v_from_k;             /* V is the first head_dim_v elements of K; no V is stored */
    const float *alibi_slopes; /* [Hq] or NULL */
};

/* What the maths needs to know of a model, and a key that says whose weights. All pointers are
 * borrowed from whoever built the struct. */
struct relay_model {
    const char *key; /* 1..256 bytes, compared, never parsed */
    uint32_t num_layers;
    uint32_t num_kinds;
    const struct relay_layer_kind *kinds; /* [num_kinds] */
    const uint32_t *layer_kind;           /* [L] index into kinds */
    const uint32_t *kv_layer;  /* [L] layer whose K/V is used (own index = own), or NULL */
    enum relay_dtype kv_dtype; /* stored */
    const float *sinks;        /* NULL, or per layer its kind's Hq floats; -inf = none */
    const float *k_scale;      /* F8_E4M3: per layer Hkv floats; value = stored * scale; NULL = 1 */
    const float *v_scale;
};

/* Limits a model must keep; what exceeds them is INVALID_ARGUMENT. */
#define RELAY_LAYERS_MAX          512u
#define RELAY_HEADS_MAX           1024u
#define RELAY_HEAD_DIM_MAX        576u
#define RELAY_MODEL_KEY_BYTES_MAX 256u

/* INVALID_ARGUMENT naming the first field that is wrong. */
RELAY_EXPORT RELAY_MUST_CHECK enum relay_code relay_model_validate(const struct relay_model *model,
                                                                   struct relay_error *err);
/* Field by field, floats bit by bit. On a difference writes its name, e.g. "kinds[1].window 512 is
 * not 1024", to why (NUL-terminated, may be NULL). */
RELAY_EXPORT bool relay_model_equal(const struct relay_model *a, const struct relay_model *b,
                                    char *why, size_t why_bytes);
/* Deep copy in one block; free with relay_model_destroy. RESOURCE_EXHAUSTED. */
RELAY_EXPORT RELAY_MUST_CHECK enum relay_code relay_model_copy(const struct relay_model *model,
                                                               struct relay_model **out,
                                                               struct relay_error *err);
RELAY_EXPORT void relay_model_destroy(struct relay_model *model);

/* The kind of a layer; layer < num_layers. */
RELAY_EXPORT const struct relay_layer_kind *relay_model_kind(const struct relay_model *model,
                                                             uint32_t layer);
/* The layer whose K/V this layer reads (itself if it has its own). */
RELAY_EXPORT uint32_t relay_model_kv_layer(const struct relay_model *model, uint32_t layer);
/* The layer's sinks [Hq], or NULL when the model has none. */
RELAY_EXPORT const float *relay_model_sinks(const struct relay_model *model, uint32_t layer);
/* The scales [Hkv] of the K/V this layer reads, or NULL when the model has none (all 1). */
RELAY_EXPORT const float *relay_model_k_scale(const struct relay_model *model, uint32_t layer);
RELAY_EXPORT const float *relay_model_v_scale(const struct relay_model *model, uint32_t layer);

#ifdef __cplusplus
}
#endif
#endif
