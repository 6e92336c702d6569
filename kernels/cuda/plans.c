/* Plans and small constants on the device: uploaded once, found again by identity or content. The
 * thread that calls run. */
#include "cuda/cuda_internal.h"

#include "core/checked.h"

#include <stdlib.h>
#include <string.h>

/* ---- plans ---- */

/* Where the tables lie in a blob, each at 128 bytes. */
struct blob_layout {
    size_t units, sources, appends, rows, pages, total;
};

static size_t place(size_t *total, size_t bytes)
{
    size_t at = *total;
    *total = (at + bytes + 127) / 128 * 128;
    return at;
}

static struct blob_layout layout_of(const struct relay_cuda_schedule *s,
                                    const struct relay_plan *plan)
{
    struct blob_layout l = {0, 0, 0, 0, 0, 0};
    l.units = place(&l.total, s->num_units * sizeof(*s->units));
    l.sources = place(&l.total, s->num_sources * sizeof(*s->sources));
    l.appends = place(&l.total, s->num_appends * sizeof(*s->appends));
    l.rows = place(&l.total, plan->num_rows * sizeof(struct relay_cuda_row));
    l.pages = place(&l.total, plan->num_pages * sizeof(uint32_t));
    return l;
}

static void copy_table(unsigned char *to, const void *from, size_t bytes)
{
    if (bytes != 0) {
        memcpy(to, from, bytes);
    }
}

static void fill_blob(unsigned char *to, const struct blob_layout *l,
                      const struct relay_cuda_schedule *s, const struct relay_plan *plan)
{
    struct relay_cuda_row *rows = (struct relay_cuda_row *)(void *)(to + l->rows);
    copy_table(to + l->units, s->units, s->num_units * sizeof(*s->units));
    copy_table(to + l->sources, s->sources, s->num_sources * sizeof(*s->sources));
    copy_table(to + l->appends, s->appends, s->num_appends * sizeof(*s->appends));
    copy_table(to + l->pages, plan->pages, plan->num_pages * sizeof(uint32_t));
    for (uint32_t r = 0; r < plan->num_rows; r++) {
        rows[r] =
            (struct relay_cuda_row){plan->rows[r].io, plan->rows[r].row, plan->rows[r].position, 0};
    }
}

static enum relay_code upload(struct cuda_backend *cuda, struct cuda_plan *to,
                              const struct relay_plan *plan, struct relay_error *err)
{
    const struct relay_cuda_schedule *s = cuda->schedule;
    struct cuda_staging *staging = &cuda->stagings[cuda->next_staging];
    struct blob_layout l = layout_of(s, plan);
    const unsigned char *base;
    bool grown = false;
    enum relay_code code = cuda_buffer_grow(cuda, &to->blob, l.total + 128, &grown, err);
    if (code == RELAY_OK && staging->done != NULL) {
        code = cuda_check(cuda, cudaEventSynchronize(staging->done), "an upload", err);
    }
    if (code == RELAY_OK) {
        code = cuda_staging_grow(cuda, staging, l.total + 128, err);
    }
    if (code != RELAY_OK) {
        return code;
    }
    fill_blob(staging->data, &l, s, plan);
    code = cuda_check(cuda,
                      cudaMemcpyAsync(to->blob.data, staging->data, l.total, cudaMemcpyHostToDevice,
                                      cuda->stream),
                      "an upload", err);
    if (code == RELAY_OK) {
        code = cuda_check(cuda, cudaEventRecord(staging->done, cuda->stream), "an upload", err);
    }
    if (code != RELAY_OK) {
        return code;
    }
    cuda->next_staging = (cuda->next_staging + 1) % CUDA_STAGINGS;
    cuda->last_attends = false;
    base = to->blob.data;
    to->units = (const struct relay_cuda_unit *)(const void *)(base + l.units);
    to->sources = (const struct relay_cuda_source *)(const void *)(base + l.sources);
    to->appends = (const struct relay_cuda_append *)(const void *)(base + l.appends);
    to->rows = (const struct relay_cuda_row *)(const void *)(base + l.rows);
    to->pages = (const uint32_t *)(const void *)(base + l.pages);
    to->num_units = s->num_units;
    to->num_pairs = s->num_pairs;
    to->num_wide = s->num_wide;
    to->num_produce = s->num_produce;
    to->num_narrow = s->num_narrow;
    to->beside = s->beside;
    to->num_appends = s->num_appends;
    to->slots = s->slots;
    to->narrow_heads = s->narrow_heads;
    return RELAY_OK;
}

static struct cuda_plan *plan_victim(struct cuda_backend *cuda)
{
    struct cuda_plan *victim = &cuda->plans[0];
    for (uint32_t i = 0; i < CUDA_PLANS; i++) {
        if (cuda->plans[i].serial == 0) {
            return &cuda->plans[i];
        }
        if (cuda->plans[i].used < victim->used) {
            victim = &cuda->plans[i];
        }
    }
    return victim;
}

enum relay_code cuda_plan_get(struct cuda_backend *cuda, const struct relay_problem *problem,
                              uint32_t kernel, struct cuda_plan **out, struct relay_error *err)
{
    const struct relay_plan *plan = problem->plan;
    const struct relay_cuda_traits *traits = cuda->traits[kernel];
    uint32_t heads = problem->shape->kind.num_kv_heads;
    uint32_t group = problem->shape->kind.num_q_heads / heads;
    struct relay_cuda_geometry geometry = {
        .blocks = cuda_blocks_of(cuda, kernel),
        .groups = traits->groups != 0 ? traits->groups : 1,
        .pair = traits->sharing == RELAY_CUDA_PAIRED,
        .finals = traits->sharing == RELAY_CUDA_BESIDE,
        .fused = traits->groups != 0 && !cuda->options.two_launches,
        .one_head = traits->groups == 0,
    };
    struct relay_cuda_tuning tuning = cuda->options.tuning;
    struct cuda_plan *to;
    enum relay_code code;
    for (uint32_t i = 0; plan->serial != 0 && i < CUDA_PLANS; i++) {
        to = &cuda->plans[i];
        if (to->serial == plan->serial && to->kernel == kernel && to->num_kv_heads == heads &&
            to->group == group) {
            to->used = cuda->runs + 1;
            *out = to;
            return RELAY_OK;
        }
    }
    if (cuda->recording) {
        return RELAY_FAIL(err, RELAY_FAILED_PRECONDITION,
                          "a graph's problems must have run before it is recorded");
    }
    tuning.batch_invariant = tuning.batch_invariant || cuda->batch_invariant;
    code = relay_cuda_schedule_build(cuda->schedule, plan, heads, group, &geometry, &tuning, err);
    if (code != RELAY_OK) {
        return code;
    }
    to = plan_victim(cuda);
    to->serial = 0;
    code = upload(cuda, to, plan, err);
    if (code == RELAY_OK) {
        to->serial = plan->serial;
        to->kernel = kernel;
        to->num_kv_heads = heads;
        to->group = group;
        to->used = cuda->runs + 1;
        *out = to;
    }
    return code;
}

/* ---- constants ---- */

static uint64_t hash_of(const float *values, size_t n)
{
    const unsigned char *bytes = (const unsigned char *)values;
    uint64_t hash = UINT64_C(14695981039346656037) + n;
    for (size_t i = 0; i < n * sizeof(float); i++) {
        hash = (hash ^ bytes[i]) * UINT64_C(1099511628211);
    }
    return hash;
}

static enum relay_code constant_add(struct cuda_backend *cuda, struct cuda_constant *to,
                                    const float *values, size_t n, uint64_t hash,
                                    struct relay_error *err)
{
    struct cuda_constant added = {calloc(n, sizeof(float)), NULL, n, hash};
    enum relay_code code;
    if (added.copy == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for constants");
    }
    memcpy(added.copy, values, n * sizeof(float));
    code =
        cuda_check(cuda, cudaMalloc((void **)&added.device, n * sizeof(float)), "constants", err);
    if (code == RELAY_OK) {
        code = cuda_check(
            cuda, cudaMemcpy(added.device, added.copy, n * sizeof(float), cudaMemcpyHostToDevice),
            "constants", err);
    }
    if (code != RELAY_OK) {
        (void)cudaFree(added.device);
        free(added.copy);
        return code;
    }
    *to = added;
    cuda->num_constants++;
    return RELAY_OK;
}

enum relay_code cuda_constant_get(struct cuda_backend *cuda, const float *values, size_t n,
                                  const float **out, struct relay_error *err)
{
    uint64_t hash;
    struct cuda_constant *at;
    *out = NULL;
    if (values == NULL) {
        return RELAY_OK;
    }
    hash = hash_of(values, n);
    for (uint32_t i = 0; i < CUDA_CONSTANTS; i++) {
        at = &cuda->constants[(hash + i) % CUDA_CONSTANTS];
        if (at->copy == NULL) {
            enum relay_code code;
            /* Never full: a search must end. */
            if (cuda->recording || cuda->num_constants + 1 >= CUDA_CONSTANTS) {
                return RELAY_FAIL(
                    err, cuda->recording ? RELAY_FAILED_PRECONDITION : RELAY_RESOURCE_EXHAUSTED,
                    "no room for new constants");
            }
            code = constant_add(cuda, at, values, n, hash, err);
            *out = at->device;
            return code;
        }
        if (at->hash == hash && at->n == n && memcmp(at->copy, values, n * sizeof(float)) == 0) {
            *out = at->device;
            return RELAY_OK;
        }
    }
    return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no room for new constants");
}
