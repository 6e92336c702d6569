/* What every kernel of the cpu backend does the same way: packed rows, the intervals they see, K/V
 * addresses in pages, and the hand-over of results.
 *
 * Packed rows are (row, query head of the group) pairs, row-major. Pure but for the caller's
 * scratch; any thread. */
#ifndef RELAY_CPU_ATTEND_ROWS_H
#define RELAY_CPU_ATTEND_ROWS_H

#include "core/host_memory.h"
#include "cpu/isa.h"
#include "cpu/pages.h"

#define RELAY_CPU_LOG2E 1.44269504088896340736
/* Kernels walk a segment in blocks of so many tokens, on the grid from its first. */
#define RELAY_CPU_BLOCK_TOKENS 64u

/* Segment tokens [lo, hi). */
struct relay_cpu_interval {
    uint32_t lo;
    uint32_t hi;
};

/* The packed rows of one attend call; arrays lie in its scratch. */
struct relay_cpu_rows {
    const struct relay_cpu_attend *work;
    const struct relay_plan_segment *segment;
    uint32_t group; /* query heads per KV head */
    uint32_t n;     /* packed rows */
    bool packed;    /* K/V pages are as pages.h packs them */
    struct relay_cpu_place place;
    size_t dqk;
    size_t dv;
    float score_scale;              /* of q.k before softcap; base 2 where there is no softcap */
    float softcap;                  /* base 2, 0 = none: s = softcap * tanh(q.k * score_scale) */
    struct relay_cpu_interval *see; /* [n] what a packed row sees of this item */
    float *slope;                   /* [n] ALiBi slope, base 2 */
    float *origin;                  /* [n] token that a row's ALiBi distances count from */
};

/* Gives out scratch in order, 64-byte aligned; with a NULL base it only counts. */
void *relay_cpu_carve(unsigned char *base, size_t *used, size_t bytes);

/* What follows from the work alone. */
void relay_cpu_rows_of(struct relay_cpu_rows *rows, const struct relay_cpu_attend *work);
/* Sets dims and arrays, not their content; arrays are carved for `padded` rows. */
void relay_cpu_rows_layout(struct relay_cpu_rows *rows, const struct relay_shape *shape,
                           unsigned char *base, size_t *used, uint32_t padded);
/* Fills the arrays and the scales; rows past n repeat the last one up to padded. */
void relay_cpu_rows_begin(struct relay_cpu_rows *rows, const struct relay_cpu_attend *work,
                          uint32_t padded);
/* The query vector of a packed row, in the io's dtype: [dqk]. */
const void *relay_cpu_rows_q(const struct relay_cpu_rows *rows, uint32_t i);
/* Writes the partial result of packed row i: o [dv] and l, relative to 2^m. l = 0: it saw nothing.
 */
void relay_cpu_rows_end(const struct relay_cpu_rows *rows, uint32_t i, const float *o, float m,
                        float l);

/* A page's place in its pool, in bytes: of the page that holds token t of a segment. */
static inline size_t relay_cpu_page_at(const struct relay_problem *problem, uint32_t segment,
                                       uint32_t t)
{
    const struct relay_plan *plan = problem->plan;
    uint32_t page = plan->pages[plan->segments[segment].page_begin + t / plan->page_tokens];
    return page * problem->kv.page_stride;
}

/* The K and V images of the work's KV head in the page that holds token t of its segment. */
static inline const unsigned char *relay_cpu_k_image(const struct relay_cpu_rows *rows, uint32_t t)
{
    const struct relay_cpu_attend *work = rows->work;
    return rows->place.k + relay_cpu_page_at(work->problem, work->item->segment, t) +
           work->kv_head * rows->place.k_head;
}
static inline const unsigned char *relay_cpu_v_image(const struct relay_cpu_rows *rows, uint32_t t)
{
    const struct relay_cpu_attend *work = rows->work;
    return rows->place.v + relay_cpu_page_at(work->problem, work->item->segment, t) +
           work->kv_head * rows->place.v_head;
}

/* Plain pages: a run of tokens of one page, rows [dim] of token t on, *count of them. Of V if v. */
static inline const unsigned char *relay_cpu_page_run(const struct relay_cpu_rows *rows, bool v,
                                                      uint32_t t, uint32_t end, uint32_t *count)
{
    const struct relay_problem *problem = rows->work->problem;
    uint32_t in_page = t % problem->plan->page_tokens;
    uint32_t left = problem->plan->page_tokens - in_page;
    size_t row_bytes = (v ? rows->dv : rows->dqk) * relay_dtype_size(problem->shape->kv_dtype);
    *count = end - t < left ? end - t : left;
    return (v ? relay_cpu_v_image(rows, t) : relay_cpu_k_image(rows, t)) + in_page * row_bytes;
}

#endif
