/* The schedule's own view: tiles, who covers which rows, and the memory kept between builds.
 *
 * A build runs: tiles, covers, splits, groups, units. One thread. */
#ifndef RELAY_CUDA_SCHEDULE_INTERNAL_H
#define RELAY_CUDA_SCHEDULE_INTERNAL_H

#include "cuda/schedule.h"

struct schedule_array {
    void *data;
    size_t capacity; /* elements */
    size_t elem;
};

/* Packed rows of an item that one unit takes, times all the item's tokens. */
struct schedule_tile {
    uint32_t item;
    uint32_t packed_begin;
    uint32_t packed_end;
    uint32_t kind;        /* NARROW, WIDE or PAIR */
    uint32_t split_first; /* on the segment's grid of splits */
    uint32_t splits;
    uint32_t slot;  /* of the first packed row's first split */
    uint32_t group; /* of the rows it finishes, when `final` */
    bool alone;     /* its rows see nothing else */
    bool final;     /* its last split merges and writes */
};

/* Rows that one unit merges and writes: at most 16 packed ones that the same tiles cover. */
struct schedule_group {
    uint32_t packed_begin;
    uint32_t packed_end;
    uint32_t cover_begin; /* into covers */
    uint32_t cover_count;
    uint32_t source_begin;
    uint32_t source_count;
    bool finished; /* by a tile, so there is no MERGE unit for it */
};

/* How a segment's tokens are cut. */
struct schedule_split {
    uint32_t tokens; /* of a split, a multiple of the step; 0 = segment not read */
    uint32_t steps;  /* most that one of its tiles has */
    uint32_t tiles;
    uint32_t kind; /* the widest of its tiles */
};

/* What the device has to do in all for the shared segments or for the own ones. */
struct schedule_load {
    uint64_t steps;   /* of all tiles and KV heads, in warpgroups */
    uint64_t tiles;   /* times KV heads, in warpgroups */
    uint64_t stored;  /* tokens times KV heads, each once however many tiles read it */
    uint32_t longest; /* tokens of an item */
    uint32_t kinds;   /* 1 << kind of each tile */
    bool cut;         /* some item begins past its segment's first token */
};

/* Hundredths of a step (64 tokens of one warpgroup): one of a WIDE tile, a partial result more. */
#define SCHEDULE_WIDE_STEP 120u
#define SCHEDULE_SLOT_COST 10u

#define SCHEDULE_STEPS_LEAST 2u   /* of a unit that is one of several splits */
#define SCHEDULE_SPLITS_MOST 256u /* of a segment */

struct schedule_builder {
    struct relay_cuda_schedule pub; /* first */
    struct schedule_array units;
    struct schedule_array sources;
    struct schedule_array appends;

    const struct relay_plan *plan;
    const struct relay_cuda_geometry *geometry;
    const struct relay_cuda_tuning *tuning;
    uint32_t heads; /* KV heads */
    uint32_t group; /* query heads of a KV head */

    struct schedule_array tiles;
    struct schedule_array splits;      /* of each plan segment */
    struct schedule_array cover_begin; /* uint32_t of each atom, one more at the end */
    struct schedule_array covers;      /* uint32_t tiles, in merge order */
    struct schedule_array groups;
    struct schedule_array order;     /* two uint32_t: tokens and tile of a FINAL unit */
    struct schedule_array append_of; /* uint32_t of each plan segment */
    uint32_t num_tiles;
    uint32_t num_groups;
    uint32_t atom_rows; /* packed rows of an atom at most; atoms of a plan row: atoms_of_row */
    uint32_t atoms_of_row;
    uint32_t narrow_heads; /* KV heads side by side if the splits rely on it, else 0 */
    uint32_t early_tiles;  /* shared ones that finish their rows; see schedule_beside.c */
};

/* Makes room for n elements, keeping the content. */
enum relay_code schedule_grow(struct schedule_array *array, size_t n, struct relay_error *err);

/* Whether rows of so many partial results are each merged by a warpgroup of their own. */
bool schedule_spreads(const struct schedule_builder *b, uint32_t parts);

/* schedule_split.c: fills splits from tiles, by cost. */
enum relay_code schedule_split_choose(struct schedule_builder *b, struct relay_error *err);

/* schedule_beside.c: the steps of a shared unit where own tokens are best computed beside the
 * shared ones, with narrow_heads and early_tiles of `b`; 0 where not. `loads`: of shared and of own
 * segments. */
uint32_t schedule_beside(struct schedule_builder *b, const struct schedule_load loads[2]);

/* What it costs to compute the shared segments by all warpgroups and then the own ones, hundredths
 * of a step; UINT64_MAX where their tiles are not of many and of few rows. */
uint64_t schedule_after_cost(const struct schedule_builder *b, const struct schedule_load loads[2]);

/* Makes FINAL which of the early tiles can be, after splits and covers. */
void schedule_beside_mark(struct schedule_builder *b);

/* KV heads side by side in NARROW units; after the units are made. */
uint32_t schedule_narrow_heads(const struct schedule_builder *b);

/* Cuts all units into tiles, which takes narrow_heads. */
void schedule_units_cut(struct schedule_builder *b);

/* schedule_units.c: fills sources and units from tiles and groups. */
enum relay_code schedule_units_make(struct schedule_builder *b, struct relay_error *err);

static inline uint32_t schedule_min(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static inline uint32_t schedule_max(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

/* Warpgroups that run at once. */
static inline uint32_t schedule_warpgroups(const struct schedule_builder *b)
{
    return b->geometry->blocks * b->geometry->groups;
}

/* Warpgroups that a unit of this kind takes. */
static inline uint32_t schedule_groups_of(uint32_t kind)
{
    return kind == RELAY_CUDA_PAIR ? 2 : 1;
}

static inline struct schedule_tile *schedule_tiles(const struct schedule_builder *b)
{
    return b->tiles.data;
}

static inline uint32_t schedule_steps(const struct relay_item *item)
{
    uint32_t first = item->token_begin / RELAY_CUDA_STEP_TOKENS;
    return (item->token_end - 1) / RELAY_CUDA_STEP_TOKENS - first + 1;
}

#endif
