/* What the host hands to a launch: plain structs that C fills and device code reads.
 *
 * A unit is a piece of work of one warpgroup (or of two, PAIR) for one KV head: some packed rows
 * times some tokens of a segment. Packed rows are plan rows times query heads of a group:
 * packed = plan row * group + head in group. A launch multiplies the units by the KV heads, or, of
 * NARROW ones, by groups of them: a warpgroup then computes several heads side by side. Both sides
 * of the border; no state. */
#ifndef RELAY_CUDA_LAUNCH_H
#define RELAY_CUDA_LAUNCH_H

#include <relay/types.h>

#ifdef __cplusplus
extern "C" {
#endif

#ifdef __CUDACC__
#define RELAY_CUDA_BOTH __host__ __device__
#else
#define RELAY_CUDA_BOTH
#endif

#define RELAY_CUDA_STEP_TOKENS  64u /* tokens a warpgroup takes at a time */
#define RELAY_CUDA_ROWS_NARROW  16u
#define RELAY_CUDA_ROWS_WIDE    64u
#define RELAY_CUDA_ROWS_PAIR    128u
#define RELAY_CUDA_UNIT_WORDS   32u
#define RELAY_CUDA_UNIT_PAGES   10u
#define RELAY_CUDA_UNIT_SOURCES 6u
#define RELAY_CUDA_IOS_INLINE   12u
#define RELAY_CUDA_LOG2E        1.44269504088896340736f
#define RELAY_CUDA_PENDING      0xffffffffu /* a NaN that no arithmetic gives */
#define RELAY_CUDA_TICKET_WORDS 32u         /* keeps the ticket alone in its line */

/* How a unit's rows and tokens map to warps. */
enum relay_cuda_unit_kind {
    RELAY_CUDA_NARROW = 0, /* <= 16 packed rows; each warp has its own 16 tokens of a tile */
    RELAY_CUDA_WIDE = 1,   /* <= 64 packed rows; each warp has its own 16 rows */
    RELAY_CUDA_PAIR = 2,   /* <= 128 packed rows; two warpgroups on the same K/V; never with WIDE */
    RELAY_CUDA_MERGE = 3,  /* no tokens: merges <= 16 packed rows and writes them */
};
#define RELAY_CUDA_KIND_MASK 3u

enum relay_cuda_unit_flags {
    RELAY_CUDA_MASKED = 1u << 2,  /* some row sees less than all its tokens */
    RELAY_CUDA_FINAL = 1u << 3,   /* merges its sources with its own result and writes out */
    RELAY_CUDA_SHARED = 1u << 4,  /* K/V that others read too */
    RELAY_CUDA_ONE_ROW = 1u << 5, /* all packed rows belong to one plan row */
};
#define RELAY_CUDA_TILE_SHIFT 8u /* of flags: from here on, tokens of a tile are 1 << this */

/* Partial results to merge, in this order: packed row m of the unit has them at slots
 * slot + m * count + i, 0 <= i < count. */
struct relay_cuda_source {
    uint32_t slot;
    uint32_t count;
};

struct relay_cuda_unit {
    uint32_t flags; /* kind and flags */
    uint32_t packed_begin;
    uint32_t packed_count;
    uint32_t token_begin;
    uint32_t token_end;
    uint32_t position;    /* absolute position of the segment's token 0 */
    uint32_t page_begin;  /* of the segment in the plan's pages */
    uint32_t slot;        /* packed row m's partial result goes to slot + m * slot_stride, */
    uint32_t slot_stride; /* unless FINAL */
    uint32_t source_begin;
    uint32_t source_count; /* up to relay_cuda_sources_held(): below, else in that array */
    uint32_t append_token; /* tokens [append_token, +append_count) come with the call, */
    uint32_t append_count;
    uint32_t append_io;
    uint32_t append_row; /* the first of them in this row of the io */
    uint32_t io;         /* of the first plan row */
    uint32_t row;
    /* Tiles begin at the step that holds token_begin. Of tiles [whole_begin, whole_end) all tokens
     * belong to the unit and none comes with the call. */
    uint32_t tiles;
    uint32_t whole_begin;
    uint32_t whole_end;
    union {
        struct relay_cuda_source sources[RELAY_CUDA_UNIT_SOURCES];
        struct {
            struct relay_cuda_source source;
            /* Ids, from the page of the first step's token 0. A MERGE unit has none. */
            uint32_t pages[RELAY_CUDA_UNIT_PAGES];
        };
    };
};

/* How many sources a unit has room for, by its flags. */
static inline RELAY_CUDA_BOTH uint32_t relay_cuda_sources_held(uint32_t flags)
{
    return (flags & RELAY_CUDA_KIND_MASK) == RELAY_CUDA_MERGE ? RELAY_CUDA_UNIT_SOURCES : 1u;
}

struct relay_cuda_row {
    uint32_t io;
    uint32_t row;
    uint32_t position;
    uint32_t unused;
};

/* A token to store: row `row` of io `io` goes to token `token` of page `page`. */
struct relay_cuda_append {
    uint32_t io;
    uint32_t row;
    uint32_t page;
    uint32_t token;
};

/* Like struct relay_io. */
struct relay_cuda_io {
    const void *q;
    const void *k;
    const void *v;
    void *out;
    float *lse;
};

enum relay_cuda_param_flags {
    RELAY_CUDA_P_EARLY = 1u << 0,   /* K/V may be read before the previous launch is done */
    RELAY_CUDA_P_DYNAMIC = 1u << 1, /* more units than two for each warpgroup: use the ticket */
    RELAY_CUDA_P_STAGED = 1u << 2,  /* queries lie packed at q, K/V is appended already */
    RELAY_CUDA_P_POW2 = 1u << 3,    /* page_tokens is a power of two >= 16 */
    RELAY_CUDA_P_STREAM = 1u << 4,  /* own tokens leave L2 first */
    RELAY_CUDA_P_EXACT = 1u << 5,   /* head dims are the kernel's, nothing is padded */
    RELAY_CUDA_P_APART = 1u << 6,   /* blocks with PAIR units have no others */
    RELAY_CUDA_P_ORDERED = 1u << 7, /* partial results are added one by one, for the bits' sake */
};

struct relay_cuda_params {
    const struct relay_cuda_unit *units;
    const struct relay_cuda_source *sources;
    const struct relay_cuda_row *rows;
    const uint32_t *pages;
    const unsigned char *k; /* page p of the layer at k + p * page_stride, as in backend.h */
    const unsigned char *v;
    uint64_t page_stride;
    const void *q;         /* STAGED: [rows * Hkv * group, dqk] */
    float *partial_out;    /* [Hkv,slots,partial_stride] normalised */
    uint32_t *partial_lse; /* [Hkv,slots] float32 bits, base 2 */
    uint32_t *ticket;
    const float *slopes;  /* [Hq] or NULL */
    const float *sinks;   /* [Hq] or NULL */
    const float *k_scale; /* [Hkv] or NULL; F8_E4M3 */
    const float *v_scale;
    const struct relay_cuda_io *io_table; /* when more than the inline ones */
    uint32_t num_ios;
    uint32_t num_rows;
    uint32_t units_wide;   /* units [0, units_wide) are PAIR and WIDE, */
    uint32_t units_narrow; /* [units_wide, units_narrow) NARROW, the others MERGE */
    uint32_t narrow_shift; /* KV heads of a NARROW unit's warpgroup are 1 << this: 1, 2 or 4 */
    /* Numbers of units times heads: PAIR, WIDE, NARROW, MERGE end where these say. */
    uint32_t number_begin; /* of this launch */
    uint32_t pair_end;
    uint32_t wide_end;
    uint32_t narrow_end;
    uint32_t number_end; /* of this launch */
    uint32_t slots;
    uint32_t partial_stride; /* floats */
    uint32_t num_q_heads;
    uint32_t num_kv_heads;
    uint32_t group;
    /* ceil(2^32 / n): x / n is the upper word of the product for all x that a launch has. */
    uint32_t group_reciprocal;
    uint32_t heads_reciprocal;  /* of num_kv_heads */
    uint32_t narrow_reciprocal; /* of num_kv_heads >> narrow_shift */
    uint32_t dqk;
    uint32_t dv;
    uint32_t page_tokens;
    uint32_t page_shift;  /* POW2 */
    uint32_t k_row_bytes; /* a token's row of one head in a page */
    uint32_t v_row_bytes;
    uint32_t window;
    uint32_t chunk;
    float scale;      /* of scores, natural */
    float scale_log2; /* the same for base 2: scale * log2(e) */
    float softcap;
    uint32_t kv_dtype; /* enum relay_dtype */
    uint32_t io_dtype;
    uint32_t out_dtype;
    uint32_t flags;
    struct relay_cuda_io ios[RELAY_CUDA_IOS_INLINE];
    /* For kernels whose WIDE units may be FINAL; last, where the others' code does not notice them.
     * So many first numbers (0: not so) are WIDE units that wait for NARROW ones: until theirs is
     * done, their warpgroups take no ticket. Their second units are from late_begin on, which
     * nobody waits for; others are before that. */
    uint32_t beside;
    uint32_t late_begin;
};

#ifdef __cplusplus
}
#endif
#endif
