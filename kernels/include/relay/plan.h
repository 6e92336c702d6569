/* Plans: who reads which keys, decided once per step and used for every layer.
 *
 * Everything a row can see is a segment: a prompt, one level of a prompt tree, or a request's own
 * pages. The planner orders the requests' rows so that each shared segment covers one contiguous
 * row range, cuts (row range) x (segment token range) into items, and lists for every row which
 * partial results its output is merged from, in a fixed order. Pure: no threads, device or clock.
 *
 * Bits never depend on who shares a launch: token splits lie on a grid that starts at a segment's
 * first token and whose step depends on the segment's own length, so a row's partials are the same
 * alone or in any batch, shared or not.
 *
 * A plan object is built again and again; it keeps its memory and allocates only to grow. One
 * thread at a time builds it; any number may read it between builds. */
#ifndef RELAY_PLAN_H
#define RELAY_PLAN_H

#include <relay/types.h>

#ifdef __cplusplus
extern "C" {
#endif

#define RELAY_NO_SEGMENT UINT32_MAX
/* relay_item.partial of an item whose rows have no other item: it writes out and LSE itself. */
#define RELAY_DIRECT UINT32_MAX

/* Everything a kernel is chosen by: a layer kind and the dtypes around it. */
struct relay_shape {
    struct relay_layer_kind kind; /* scale already resolved: never 0 */
    enum relay_dtype kv_dtype;    /* stored K/V */
    enum relay_dtype io_dtype;    /* q and new k, v */
    enum relay_dtype out_dtype;   /* out; LSE is always float32 */
};

/* ---- input ---- */

/* K/V that rows of several requests may share. Its parent, if any, holds tokens before it: position
 * is at or past the parent's end (past it where a window layer keeps only the end of each). */
struct relay_segment {
    const uint32_t *pages; /* [ceil(tokens / page_tokens)] page ids, copied by the build */
    uint32_t tokens;       /* may be 0 */
    uint32_t position;     /* absolute position of token 0 */
    uint32_t parent;       /* index of the level above, smaller than its own, or RELAY_NO_SEGMENT */
};

/* One request's rows. Row i (0 <= i < q_len) has absolute position `position + i`. */
struct relay_entry {
    uint32_t io;               /* which relay_io of the problem its tensors are in */
    uint32_t row_begin;        /* first row in that io's tensors */
    uint32_t q_len;            /* >= 1 */
    uint32_t segment;          /* the prompt (its deepest level), or RELAY_NO_SEGMENT */
    uint32_t position;         /* absolute position of row 0 */
    const uint32_t *pages;     /* own context pages, copied by the build */
    uint32_t context_position; /* of context token 0, absolute; not before the prompt's end */
    uint32_t context_tokens;   /* context tokens held, this call's new ones included */
    bool append;               /* store k, v rows first, at [position, +q_len) of the context */
};

/* What work costs on the machine that will do it, and among how many threads it is divided. They
 * decide into how many row tiles a shared segment is cut, from one for all its readers to one for
 * each, which is not sharing at all: so that threads end together. Never a bit of a result.
 * All 0: shared segments are cut at item_rows_max only. */
struct relay_plan_costs {
    uint32_t threads;
    float item_ns;  /* of an item and KV head, whatever its size */
    float block_ns; /* of block_tokens tokens and a KV head, whoever reads them */
    float row_ns;   /* more for each packed row (query row x query head) that reads them */
};

struct relay_plan_input {
    const struct relay_shape *shape;
    const struct relay_segment *segments; /* [num_segments] */
    uint32_t num_segments;
    const struct relay_entry *entries; /* [num_entries] any order */
    uint32_t num_entries;
    enum relay_part part;
    enum relay_sharing sharing;
    uint32_t page_tokens;      /* tokens per page, >= 1 */
    uint32_t split_tokens_min; /* smallest split of a segment; a multiple of block_tokens */
    uint32_t splits_max;       /* at most so many splits of one segment, >= 1 */
    uint32_t block_tokens;  /* kernels walk a segment in blocks of so many tokens from its start */
    uint32_t item_rows_max; /* rows of one item at most; 0 = no limit */
    struct relay_plan_costs costs; /* used with RELAY_SHARING_AUTO */
};

/* ---- output: what backends read ---- */

struct relay_plan_segment {
    uint32_t page_begin; /* into plan->pages */
    uint32_t tokens;
    uint32_t position;
    bool shared; /* a prompt level, not one request's own pages */
};

/* One row, in plan order. Its output is merged from partials merge_index[merge_begin, +count). */
struct relay_plan_row {
    uint32_t io;
    uint32_t row; /* in that io's tensors */
    uint32_t position;
    uint32_t merge_begin;
    uint32_t merge_count; /* 0: sees nothing, or its only item is DIRECT (then direct is set) */
    bool direct;
};

/* Rows [row_begin, +row_count) x tokens [token_begin, token_end) of a segment, for every KV head.
 * Row r sees relay_plan_interval() of the segment, cut to the item's tokens. Its partial result is
 * partial row `partial + (r - row_begin)`. */
struct relay_item {
    uint32_t segment;
    uint32_t row_begin;
    uint32_t row_count;
    uint32_t token_begin; /* cut to what at least one row sees */
    uint32_t token_end;
    uint32_t partial; /* or RELAY_DIRECT */
    bool masked;      /* some row sees less than [token_begin, token_end) */
};

/* K/V rows to store before any item reads: rows [row_begin, +q_len) of an io go to context tokens
 * [token_begin, +q_len) of a segment. */
struct relay_append {
    uint32_t segment;
    uint32_t io;
    uint32_t row_begin;
    uint32_t q_len;
    uint32_t token_begin;
};

struct relay_plan {
    uint64_t serial; /* of this build: no other build in the process has it; 0 = not built */
    enum relay_part part;
    uint32_t page_tokens;
    uint32_t block_tokens;
    uint32_t num_segments;
    uint32_t num_pages;
    uint32_t num_rows;
    uint32_t num_items;
    uint32_t num_appends;
    uint32_t num_merge_index;
    uint32_t num_partials; /* partial rows: [Hq] LSE + [Hq,dv] float32 each */
    uint64_t
        prompt_tokens_read; /* sum over items of shared segments; times bytes per token = bytes */
    uint64_t context_tokens_read;
    const struct relay_plan_segment *segments;
    const uint32_t *pages;
    const struct relay_plan_row *rows;
    const struct relay_item *items; /* shared segments first, then the requests' own */
    const struct relay_append *appends;
    const uint32_t *merge_index; /* partial rows, ascending in (level, token) order per row */
};

/* An empty plan, the caller's. RESOURCE_EXHAUSTED. */
RELAY_EXPORT RELAY_MUST_CHECK enum relay_code relay_plan_create(struct relay_plan **out,
                                                                struct relay_error *err);
/* NULL is fine. */
RELAY_EXPORT void relay_plan_destroy(struct relay_plan *plan);

/* Rebuilds the plan. INVALID_ARGUMENT for input that breaks the rules above (naming the entry or
 * segment), RESOURCE_EXHAUSTED when memory is out; the plan is then empty. O(entries + items). */
RELAY_EXPORT RELAY_MUST_CHECK enum relay_code relay_plan_build(struct relay_plan *plan,
                                                               const struct relay_plan_input *in,
                                                               struct relay_error *err);

/* What the row at absolute position p sees of a segment's tokens: [*lo, *hi), empty as lo == hi. */
static inline void relay_plan_interval(const struct relay_layer_kind *kind, uint32_t p,
                                       uint32_t segment_position, uint32_t segment_tokens,
                                       uint32_t *lo, uint32_t *hi)
{
    uint64_t first = 0; /* first visible absolute position */
    uint64_t end = (uint64_t)p + 1u;
    uint64_t begin = segment_position;
    uint64_t stop = begin + segment_tokens;
    if (kind->window != 0 && end > kind->window) {
        first = end - kind->window;
    }
    if (kind->chunk != 0 && (uint64_t)p / kind->chunk * kind->chunk > first) {
        first = (uint64_t)p / kind->chunk * kind->chunk;
    }
    if (first < begin) {
        first = begin;
    }
    if (end > stop) {
        end = stop;
    }
    if (first >= end) {
        *lo = 0;
        *hi = 0;
        return;
    }
    *lo = (uint32_t)(first - begin);
    *hi = (uint32_t)(end - begin);
}

/* Bytes of one token's stored K and V over all KV heads of a layer of this shape. */
RELAY_EXPORT size_t relay_shape_kv_bytes(const struct relay_shape *shape);
/* The shape of a model's layer for given io and out dtypes; resolves scale 0. */
RELAY_EXPORT struct relay_shape relay_shape_of(const struct relay_model *model, uint32_t layer,
                                               enum relay_dtype io_dtype,
                                               enum relay_dtype out_dtype);

#ifdef __cplusplus
}
#endif
#endif
