/* See problem.h: life, planning, running, results. Tensors and pages are made in problem_store.c,
 * the comparison is in problem_check.c. */
#include "testlib/problem_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct relay_shape problem_shape(uint32_t num_q_heads, uint32_t num_kv_heads, uint32_t head_dim,
                                 enum relay_dtype kv, enum relay_dtype io, enum relay_dtype out)
{
    struct relay_shape shape;
    memset(&shape, 0, sizeof(shape));
    shape.kind.num_q_heads = num_q_heads;
    shape.kind.num_kv_heads = num_kv_heads;
    shape.kind.head_dim_qk = head_dim;
    shape.kind.head_dim_v = head_dim;
    shape.kv_dtype = kv;
    shape.io_dtype = io;
    shape.out_dtype = out;
    return shape;
}

float *problem_k(struct problem *problem, struct problem_strip *strip, uint32_t token,
                 uint32_t head)
{
    return strip->k + token * k_row(problem) + (size_t)head * problem->shape.kind.head_dim_qk;
}

float *problem_v(struct problem *problem, struct problem_strip *strip, uint32_t token,
                 uint32_t head)
{
    return strip->v + token * v_row(problem) + (size_t)head * problem->shape.kind.head_dim_v;
}

/* ---- io ---- */

static void *io_tensor(struct problem *p, size_t elements, enum relay_dtype dtype)
{
    size_t bytes = elements * relay_dtype_size(dtype);
    void *memory = relay_backend_io_alloc(p->backend, bytes);
    if (memory != NULL) {
        memset(memory, 0xff, bytes);
    }
    return memory;
}

/* Rounds an entry's queries and new tokens to the io dtype and puts them into its io. */
static void fill_io(struct problem *p, uint32_t i)
{
    const struct relay_entry *e = &p->entries[i];
    const struct relay_io *io = &p->ios[e->io].io;
    struct problem_strip *own = &p->contexts[i];
    size_t elem = relay_dtype_size(p->shape.io_dtype);
    size_t held = own->tokens - own->new_tokens;
    problem_round(p->shape.io_dtype, p->q[i],
                  (unsigned char *)io->q + e->row_begin * q_row(p) * elem, e->q_len * q_row(p));
    if (own->new_tokens == 0) {
        return;
    }
    problem_round(p->shape.io_dtype, own->k + held * k_row(p),
                  (unsigned char *)io->k + e->row_begin * k_row(p) * elem, e->q_len * k_row(p));
    if (!p->shape.kind.v_from_k) {
        problem_round(p->shape.io_dtype, own->v + held * v_row(p),
                      (unsigned char *)io->v + e->row_begin * v_row(p) * elem, e->q_len * v_row(p));
    }
}

static enum relay_code make_ios(struct problem *p, struct relay_error *err)
{
    for (uint32_t i = 0; i < p->num_ios; i++) {
        p->ios[i].rows = 1; /* a row that no entry owns before each entry and after the last */
    }
    for (uint32_t i = 0; i < p->config.num_entries; i++) {
        struct problem_io *io = &p->ios[i % p->num_ios];
        p->entries[i].io = i % p->num_ios;
        p->entries[i].row_begin = io->rows;
        io->rows += p->entries[i].q_len + 1;
    }
    for (uint32_t i = 0; i < p->num_ios; i++) {
        struct relay_io *io = &p->ios[i].io;
        size_t rows = p->ios[i].rows;
        size_t heads = p->shape.kind.num_q_heads;
        io->q = io_tensor(p, rows * q_row(p), p->shape.io_dtype);
        io->k = io_tensor(p, rows * k_row(p), p->shape.io_dtype);
        io->v = p->shape.kind.v_from_k ? NULL : io_tensor(p, rows * v_row(p), p->shape.io_dtype);
        io->out = io_tensor(p, rows * heads * p->shape.kind.head_dim_v, p->shape.out_dtype);
        io->lse = p->config.no_lse ? NULL : io_tensor(p, rows * heads, RELAY_DTYPE_F32);
        if (io->q == NULL || io->k == NULL || io->out == NULL ||
            (io->v == NULL && !p->shape.kind.v_from_k) || (io->lse == NULL && !p->config.no_lse)) {
            return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for a test");
        }
    }
    for (uint32_t i = 0; i < p->config.num_entries; i++) {
        fill_io(p, i);
    }
    return RELAY_OK;
}

/* ---- life ---- */

static bool make_arrays(struct problem *p)
{
    size_t segments = p->config.num_segments + 1u;
    size_t entries = p->config.num_entries + 1u;
    p->num_ios = p->config.num_ios != 0 ? p->config.num_ios : 1;
    p->segments = calloc(segments, sizeof(*p->segments));
    p->contexts = calloc(entries, sizeof(*p->contexts));
    p->entries = calloc(entries, sizeof(*p->entries));
    p->q = calloc(entries, sizeof(*p->q));
    p->ios = calloc(p->num_ios, sizeof(*p->ios));
    p->plan_segments = calloc(segments, sizeof(*p->plan_segments));
    p->chosen = calloc(entries, sizeof(*p->chosen));
    p->chosen_index = calloc(entries, sizeof(*p->chosen_index));
    return p->segments != NULL && p->contexts != NULL && p->entries != NULL && p->q != NULL &&
           p->ios != NULL && p->plan_segments != NULL && p->chosen != NULL &&
           p->chosen_index != NULL;
}

enum relay_code problem_init(struct problem *p, struct relay_backend *backend,
                             const struct problem_config *config, struct relay_error *err)
{
    struct relay_plan_input defaults;
    enum relay_code code;
    memset(p, 0, sizeof(*p));
    p->config = *config;
    p->backend = backend;
    p->shape = config->shape;
    if (p->shape.kind.scale == 0.0f) {
        p->shape.kind.scale = (float)(1.0 / sqrt((double)p->shape.kind.head_dim_qk));
    }
    memset(&defaults, 0, sizeof(defaults));
    defaults.shape = &p->shape;
    defaults.page_tokens = config->page_tokens;
    relay_backend_plan_defaults(backend, &defaults);
    p->page_tokens = defaults.page_tokens;
    code = relay_plan_create(&p->plan, err);
    if (code == RELAY_OK && (!make_arrays(p) || !problem_draw(p))) {
        code = RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for a test");
    }
    if (code == RELAY_OK) {
        if (config->edit != NULL) {
            config->edit(p);
        }
        code = make_ios(p, err); /* rounds new tokens to io first, as a call would */
    }
    if (code == RELAY_OK) {
        code = problem_store(p, err);
    }
    if (code != RELAY_OK) {
        problem_fini(p);
    }
    return code;
}

static void strips_free(struct problem_strip *strips, uint32_t n)
{
    for (uint32_t i = 0; strips != NULL && i < n; i++) {
        free(strips[i].k);
        free(strips[i].v);
        free(strips[i].pages);
    }
    free(strips);
}

static void ios_free(struct problem *p)
{
    for (uint32_t i = 0; p->ios != NULL && i < p->num_ios; i++) {
        struct relay_io *io = &p->ios[i].io;
        relay_backend_io_free(p->backend, (void *)(uintptr_t)io->q);
        relay_backend_io_free(p->backend, (void *)(uintptr_t)io->k);
        relay_backend_io_free(p->backend, (void *)(uintptr_t)io->v);
        relay_backend_io_free(p->backend, io->out);
        relay_backend_io_free(p->backend, io->lse);
    }
    free(p->ios);
}

void problem_fini(struct problem *p)
{
    strips_free(p->segments, p->config.num_segments);
    strips_free(p->contexts, p->config.num_entries);
    for (uint32_t i = 0; p->q != NULL && i < p->config.num_entries; i++) {
        free(p->q[i]);
    }
    ios_free(p);
    free(p->q);
    free(p->entries);
    free(p->plan_segments);
    free(p->chosen);
    free(p->chosen_index);
    free(p->slopes);
    free(p->sinks);
    free(p->k_scale);
    free(p->v_scale);
    if (p->backend != NULL) {
        relay_backend_io_free(p->backend, p->workspace);
        relay_backend_release(p->backend, p->pool, p->pool_bytes);
    }
    relay_plan_destroy(p->plan);
    memset(p, 0, sizeof(*p));
}

/* ---- planning and running ---- */

enum relay_code problem_plan(struct problem *p, const struct problem_plan *how,
                             struct relay_error *err)
{
    static const struct problem_plan all_defaults;
    struct relay_plan_input in;
    enum relay_code code;
    how = how != NULL ? how : &all_defaults;
    p->num_chosen = how->entries != NULL ? how->num_entries : p->config.num_entries;
    for (uint32_t i = 0; i < p->num_chosen; i++) {
        p->chosen_index[i] = how->entries != NULL ? how->entries[i] : i;
        p->chosen[i] = p->entries[p->chosen_index[i]];
        if (how->part == RELAY_PART_PROMPT_ONLY) {
            p->chosen[i].append = false;
        }
    }
    p->part = how->part;
    memset(&in, 0, sizeof(in));
    in.shape = &p->shape;
    in.segments = p->plan_segments;
    in.num_segments = p->config.num_segments;
    in.entries = p->chosen;
    in.num_entries = p->num_chosen;
    in.part = how->part;
    in.sharing = how->sharing;
    in.page_tokens = p->page_tokens;
    relay_backend_plan_defaults(p->backend, &in);
    in.item_rows_max = how->item_rows_max != 0 ? how->item_rows_max : in.item_rows_max;
    in.splits_max = how->splits_max != 0 ? how->splits_max : in.splits_max;
    if (how->split_tokens_min != 0) {
        in.split_tokens_min = how->split_tokens_min;
    }
    code = relay_plan_build(p->plan, &in, err);
    if (code != RELAY_OK) {
        return code;
    }
    relay_backend_io_free(p->backend, p->workspace);
    p->workspace_bytes = relay_backend_workspace_bytes(p->backend, &p->shape, p->plan);
    p->workspace = relay_backend_io_alloc(p->backend, p->workspace_bytes);
    if (p->workspace == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for a test");
    }
    return RELAY_OK;
}

enum relay_code problem_run(struct problem *p, struct relay_error *err)
{
    struct relay_io *ios = calloc(p->num_ios, sizeof(*ios));
    struct relay_problem problem = {
        .shape = &p->shape,
        .plan = p->plan,
        .kv = p->kv,
        .sinks = p->sinks,
        .ios = ios,
        .num_ios = p->num_ios,
        .workspace = p->workspace,
        .workspace_bytes = p->workspace_bytes,
    };
    uint64_t ticket = 0;
    enum relay_code code;
    if (ios == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for a test");
    }
    for (uint32_t i = 0; i < p->num_ios; i++) {
        size_t rows = p->ios[i].rows;
        ios[i] = p->ios[i].io;
        memset(ios[i].out, 0xff, rows * problem_out_bytes(p));
        if (ios[i].lse != NULL) {
            memset(ios[i].lse, 0xff, rows * p->shape.kind.num_q_heads * sizeof(float));
        }
    }
    memset(p->workspace, 0xff, p->workspace_bytes);
    code = relay_backend_run(p->backend, &problem, &ticket, err);
    if (code == RELAY_OK) {
        code = relay_backend_wait(p->backend, ticket, err);
    }
    free(ios);
    return code;
}

/* ---- results ---- */

size_t problem_out_bytes(const struct problem *p)
{
    return (size_t)p->shape.kind.num_q_heads * p->shape.kind.head_dim_v *
           relay_dtype_size(p->shape.out_dtype);
}

uint32_t problem_rows(const struct problem *p)
{
    uint32_t rows = 0;
    for (uint32_t i = 0; i < p->config.num_entries; i++) {
        rows += p->entries[i].q_len;
    }
    return rows;
}

const void *problem_out(const struct problem *p, uint32_t entry, uint32_t row)
{
    const struct relay_entry *e = &p->entries[entry];
    return (const unsigned char *)p->ios[e->io].io.out +
           ((size_t)e->row_begin + row) * problem_out_bytes(p);
}

const float *problem_lse(const struct problem *p, uint32_t entry, uint32_t row)
{
    const struct relay_entry *e = &p->entries[entry];
    const float *lse = p->ios[e->io].io.lse;
    return lse != NULL ? lse + ((size_t)e->row_begin + row) * p->shape.kind.num_q_heads : NULL;
}

unsigned char *problem_snapshot(const struct problem *p, size_t *bytes)
{
    size_t out = problem_out_bytes(p);
    size_t lse = p->config.no_lse ? 0 : p->shape.kind.num_q_heads * sizeof(float);
    unsigned char *block = malloc((out + lse) * problem_rows(p) + 1);
    unsigned char *at = block;
    for (uint32_t i = 0; block != NULL && i < p->config.num_entries; i++) {
        for (uint32_t r = 0; r < p->entries[i].q_len; r++) {
            memcpy(at, problem_out(p, i, r), out);
            if (lse != 0) {
                memcpy(at + out, problem_lse(p, i, r), lse);
            }
            at += out + lse;
        }
    }
    *bytes = (out + lse) * problem_rows(p);
    return block;
}
