/* One run: plan and tensors to the device, one launch (or few), a ticket. The thread that calls
 * run.
 *
 * Tensors in reserved device memory are used where they are, and the attention kernel stores the
 * new tokens itself. Host memory is read once, by a launch before, since splits read queries again
 * and again; outputs are written to it in place. */
#include "cuda/cuda_internal.h"

#include "cuda/copy.h"

#include <string.h>

/* The workspace is the backend's own, on the device; callers still hand one in, and it is checked,
 * so that one rule holds for all backends. */
#define WORKSPACE_BYTES 64u

uint32_t cuda_kernel_of(const struct cuda_backend *cuda, const struct relay_shape *shape,
                        enum relay_cuda_sharing sharing)
{
    uint32_t i = relay_cuda_select(cuda->traits, cuda->num_kernels, shape, &cuda->properties,
                                   sharing, cuda->options.kernel);
    if (i == cuda->num_kernels && cuda->options.kernel != NULL) {
        i = relay_cuda_select(cuda->traits, cuda->num_kernels, shape, &cuda->properties, sharing,
                              NULL);
    }
    return i;
}

uint32_t cuda_blocks_of(const struct cuda_backend *cuda, uint32_t kernel)
{
    uint32_t limit = cuda->options.blocks * cuda->properties.multiprocessors;
    return limit != 0 && limit < cuda->blocks[kernel] ? limit : cuda->blocks[kernel];
}

/* The problem's kernel. Bits of what shares tiles, or finishes rows with what others streamed, are
 * its own, so neither in batch-invariant mode. */
static uint32_t kernel_for(const struct cuda_backend *cuda, const struct relay_problem *problem)
{
    const struct relay_layer_kind *kind = &problem->shape->kind;
    const struct relay_plan *plan = problem->plan;
    uint32_t group = kind->num_q_heads / kind->num_kv_heads;
    struct relay_cuda_beside beside;
    uint32_t kernel;
    if (cuda->batch_invariant || cuda->options.tuning.batch_invariant) {
        return cuda_kernel_of(cuda, problem->shape, RELAY_CUDA_SINGLE);
    }
    kernel = cuda_kernel_of(cuda, problem->shape, RELAY_CUDA_BESIDE);
    if (kernel < cuda->num_kernels && cuda->traits[kernel]->sharing == RELAY_CUDA_BESIDE &&
        relay_cuda_is_beside(plan, kind->num_kv_heads, group, cuda_blocks_of(cuda, kernel),
                             &beside)) {
        return kernel;
    }
    return cuda_kernel_of(
        cuda, problem->shape,
        relay_cuda_is_paired(plan, kind->num_kv_heads, group, cuda->properties.multiprocessors)
            ? RELAY_CUDA_PAIRED
            : RELAY_CUDA_SINGLE);
}

size_t cuda_workspace_bytes(const struct relay_backend *backend, const struct relay_shape *shape,
                            const struct relay_plan *plan)
{
    (void)backend;
    (void)shape;
    return plan->num_items != 0 ? WORKSPACE_BYTES : 0;
}

/* ceil(2^32 / n), 0 for 1. */
static uint32_t reciprocal_of(uint32_t n)
{
    return n < 2 ? 0 : (uint32_t)(((UINT64_C(1) << 32) + n - 1) / n);
}

static uint32_t log2_of(uint32_t n)
{
    uint32_t i = 0;
    while (n >> (i + 1) != 0) {
        i++;
    }
    return i;
}

/* Everything but the units and the workspace. */
static enum relay_code fill_params(struct cuda_backend *cuda, const struct relay_problem *problem,
                                   struct relay_cuda_params *p, struct relay_error *err)
{
    const struct relay_layer_kind *kind = &problem->shape->kind;
    size_t elem = relay_dtype_size(problem->shape->kv_dtype);
    uint32_t page = problem->plan->page_tokens;
    enum relay_code code;
    memset(p, 0, sizeof(*p));
    p->k = problem->kv.k;
    p->v = kind->v_from_k ? problem->kv.k : problem->kv.v;
    p->page_stride = problem->kv.page_stride;
    p->num_ios = problem->num_ios;
    p->num_rows = problem->plan->num_rows;
    p->num_q_heads = kind->num_q_heads;
    p->num_kv_heads = kind->num_kv_heads;
    p->group = kind->num_q_heads / kind->num_kv_heads;
    p->group_reciprocal = reciprocal_of(p->group);
    p->heads_reciprocal = reciprocal_of(p->num_kv_heads);
    p->dqk = kind->head_dim_qk;
    p->dv = kind->head_dim_v;
    p->page_tokens = page;
    if (page >= 16 && (page & (page - 1)) == 0) {
        p->page_shift = log2_of(page);
        p->flags |= RELAY_CUDA_P_POW2;
    }
    p->k_row_bytes = (uint32_t)(kind->head_dim_qk * elem);
    p->v_row_bytes = kind->v_from_k ? p->k_row_bytes : (uint32_t)(kind->head_dim_v * elem);
    p->window = kind->window;
    p->chunk = kind->chunk;
    p->scale = kind->scale;
    p->scale_log2 = kind->scale * RELAY_CUDA_LOG2E;
    p->softcap = kind->softcap;
    p->kv_dtype = problem->shape->kv_dtype;
    p->io_dtype = problem->shape->io_dtype;
    p->out_dtype = problem->shape->out_dtype;
    if (cuda->batch_invariant || cuda->options.tuning.batch_invariant) {
        p->flags |= RELAY_CUDA_P_ORDERED;
    }
    if (!cuda->options.keep_own) {
        p->flags |= RELAY_CUDA_P_STREAM;
    }
    code = cuda_constant_get(cuda, kind->alibi_slopes, kind->num_q_heads, &p->slopes, err);
    if (code == RELAY_OK) {
        code = cuda_constant_get(cuda, relay_problem_sinks(problem), kind->num_q_heads, &p->sinks,
                                 err);
    }
    if (code == RELAY_OK) {
        code = cuda_constant_get(cuda, problem->kv.k_scale, kind->num_kv_heads, &p->k_scale, err);
    }
    if (code == RELAY_OK) {
        code = cuda_constant_get(cuda, problem->kv.v_scale, kind->num_kv_heads, &p->v_scale, err);
    }
    return code;
}

static struct relay_cuda_io io_of(const struct relay_io *io)
{
    return (struct relay_cuda_io){io->q, io->k, io->v, io->out, io->lse};
}

static enum relay_code fill_ios(struct cuda_backend *cuda, const struct relay_problem *problem,
                                struct relay_cuda_params *p, struct relay_error *err)
{
    struct cuda_staging *staging = &cuda->stagings[cuda->next_staging];
    struct relay_cuda_io *table;
    size_t bytes = problem->num_ios * sizeof(*table);
    bool grown = false;
    enum relay_code code;
    if (problem->num_ios <= RELAY_CUDA_IOS_INLINE) {
        for (uint32_t i = 0; i < problem->num_ios; i++) {
            p->ios[i] = io_of(&problem->ios[i]);
        }
        return RELAY_OK;
    }
    if (cuda->recording) {
        return RELAY_FAIL(err, RELAY_FAILED_PRECONDITION, "a graph takes at most %u ios",
                          RELAY_CUDA_IOS_INLINE);
    }
    code = cuda_buffer_grow(cuda, &cuda->io_table, bytes, &grown, err);
    if (code == RELAY_OK && staging->done != NULL) {
        code = cuda_check(cuda, cudaEventSynchronize(staging->done), "an upload", err);
    }
    if (code == RELAY_OK) {
        code = cuda_staging_grow(cuda, staging, bytes, err);
    }
    if (code != RELAY_OK) {
        return code;
    }
    table = staging->data;
    for (uint32_t i = 0; i < problem->num_ios; i++) {
        table[i] = io_of(&problem->ios[i]);
    }
    code = cuda_check(
        cuda,
        cudaMemcpyAsync(cuda->io_table.data, table, bytes, cudaMemcpyHostToDevice, cuda->stream),
        "an upload", err);
    if (code == RELAY_OK) {
        code = cuda_check(cuda, cudaEventRecord(staging->done, cuda->stream), "an upload", err);
    }
    cuda->next_staging = (cuda->next_staging + 1) % CUDA_STAGINGS;
    cuda->last_attends = false;
    p->io_table = cuda->io_table.data;
    return code;
}

/* 16-byte copies need 16-byte addresses, which the contract of io memory gives; the kernel for
 * every shape does without. */
static bool is_aligned(const struct relay_problem *problem)
{
    uintptr_t bits = (uintptr_t)problem->kv.k | (uintptr_t)problem->kv.v | problem->kv.page_stride;
    for (uint32_t i = 0; i < problem->num_ios; i++) {
        bits |= (uintptr_t)problem->ios[i].q | (uintptr_t)problem->ios[i].k |
                (uintptr_t)problem->ios[i].v | (uintptr_t)problem->ios[i].out;
    }
    return bits % 16 == 0;
}

/* Numbers that kernels divide by multiplying stay so small that this is exact. */
static bool is_small(const struct relay_problem *problem)
{
    const struct relay_layer_kind *kind = &problem->shape->kind;
    uint64_t group = kind->num_q_heads / kind->num_kv_heads;
    uint64_t heads = kind->num_kv_heads;
    uint64_t units = (uint64_t)problem->plan->num_rows + problem->plan->num_items;
    return problem->plan->num_rows * group * group <= UINT32_MAX &&
           units * 256u * heads * heads <= UINT32_MAX * UINT64_C(16);
}

static bool on_device(struct cuda_backend *cuda, const struct relay_problem *problem)
{
    for (uint32_t i = 0; i < problem->num_ios; i++) {
        if (!cuda_is_arena(cuda, problem->ios[i].q)) {
            return false;
        }
    }
    return true;
}

/* Between launches every word of a partial result is pending and the ticket is 0. */
static enum relay_code reset_flags(struct cuda_backend *cuda, struct relay_error *err)
{
    enum relay_code code = cuda_check(
        cuda, cudaMemsetAsync(cuda->partial_lse.data, 0xff, cuda->partial_lse.bytes, cuda->stream),
        "the workspace", err);
    if (code == RELAY_OK) {
        code = cuda_check(
            cuda,
            cudaMemsetAsync(cuda->partial_out.data, 0xff, cuda->partial_out.bytes, cuda->stream),
            "the workspace", err);
    }
    if (code == RELAY_OK) {
        code = cuda_check(cuda,
                          cudaMemsetAsync(cuda->ticket.data, 0, cuda->ticket.bytes, cuda->stream),
                          "the workspace", err);
    }
    cuda->last_attends = false;
    return code;
}

/* Where the kinds end in the numbering of units times heads. */
static void fill_numbers(const struct cuda_plan *plan, struct relay_cuda_params *p)
{
    uint32_t heads = p->num_kv_heads;
    p->units_wide = plan->num_wide;
    p->units_narrow = plan->num_narrow;
    p->narrow_shift = log2_of(plan->narrow_heads);
    p->narrow_reciprocal = reciprocal_of(heads / plan->narrow_heads);
    p->pair_end = plan->num_pairs * heads;
    p->wide_end = plan->num_wide * heads;
    p->narrow_end =
        p->wide_end + (plan->num_narrow - plan->num_wide) * (heads / plan->narrow_heads);
    p->number_begin = 0;
    p->number_end = p->narrow_end + (plan->num_units - plan->num_narrow) * heads;
    p->beside = plan->beside ? p->wide_end : 0;
    p->late_begin =
        p->wide_end + (plan->num_produce - plan->num_wide) * (heads / plan->narrow_heads);
}

static enum relay_code fill_workspace(struct cuda_backend *cuda, const struct cuda_plan *plan,
                                      struct relay_cuda_params *p, uint32_t stride,
                                      struct relay_error *err)
{
    size_t slots = (size_t)plan->slots * p->num_kv_heads;
    bool grown = false;
    enum relay_code code = cuda_buffer_grow(cuda, &cuda->partial_out,
                                            (slots + 1) * stride * sizeof(float), &grown, err);
    if (code == RELAY_OK) {
        code =
            cuda_buffer_grow(cuda, &cuda->partial_lse, (slots + 1) * sizeof(uint32_t), &grown, err);
    }
    if (code == RELAY_OK) {
        code = cuda_buffer_grow(cuda, &cuda->ticket, RELAY_CUDA_TICKET_WORDS * sizeof(uint32_t),
                                &grown, err);
    }
    if (code == RELAY_OK && grown) {
        code = reset_flags(cuda, err);
    }
    p->units = plan->units;
    p->sources = plan->sources;
    p->rows = plan->rows;
    p->pages = plan->pages;
    p->partial_out = cuda->partial_out.data;
    p->partial_lse = cuda->partial_lse.data;
    p->ticket = cuda->ticket.data;
    p->slots = plan->slots;
    p->partial_stride = stride;
    fill_numbers(plan, p);
    return code;
}

static enum relay_code launch(struct cuda_backend *cuda, uint32_t kernel,
                              const struct relay_cuda_params *p, uint32_t blocks, bool overlap,
                              struct relay_error *err)
{
    if (blocks == 0) {
        return RELAY_OK;
    }
    return cuda_check(cuda,
                      relay_cuda_kernels[kernel]->launch(p, blocks, overlap ? 1 : 0, cuda->stream),
                      "an attention launch", err);
}

static uint32_t min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* Where second units begin of the warpgroups that begin with units that wait: they are the last
 * ones, if nobody waits for these (p->late_begin so far says from where on) and they wait for such
 * first units alone; else those warpgroups have no more to do. `fixed`: units without a ticket. */
static uint32_t late_begin(const struct relay_cuda_params *p, uint32_t fixed)
{
    bool seconds = p->number_end == p->narrow_end && p->number_end >= fixed + p->beside &&
                   p->number_end - p->beside >= p->late_begin;
    return p->number_end - (seconds ? p->beside : 0);
}

/* Launches numbers [begin, end) on as many blocks as are of use. */
static enum relay_code launch_numbers(struct cuda_backend *cuda, uint32_t kernel,
                                      struct relay_cuda_params *p, uint32_t begin, uint32_t end,
                                      bool overlap, struct relay_error *err)
{
    uint32_t groups = cuda->traits[kernel]->groups;
    uint32_t pairs = p->pair_end > begin ? p->pair_end - begin : 0;
    uint32_t others = end - begin - pairs;
    uint32_t blocks = min_u32(others, UINT32_MAX - pairs) + pairs;
    uint32_t fixed;
    p->number_begin = begin;
    p->number_end = end;
    p->pair_end = begin + pairs;
    p->flags &= ~(uint32_t)(RELAY_CUDA_P_DYNAMIC | RELAY_CUDA_P_APART);
    if (groups != 0) {
        blocks = min_u32(blocks, cuda_blocks_of(cuda, kernel));
        fixed = 2 * groups * blocks - p->beside; /* but for second units that are late */
        p->late_begin = late_begin(p, fixed);
        if (p->beside == 0 && pairs < blocks && others <= groups * (blocks - pairs)) {
            p->flags |= RELAY_CUDA_P_APART; /* everything at once */
        } else if (p->late_begin - p->pair_end > fixed) {
            p->flags |= RELAY_CUDA_P_DYNAMIC;
        }
    }
    return launch(cuda, kernel, p, blocks, overlap, err);
}

/* All that produce, then all that merge. */
static enum relay_code launch_plain(struct cuda_backend *cuda, uint32_t kernel,
                                    struct relay_cuda_params *p, struct relay_error *err)
{
    uint32_t end = p->number_end;
    enum relay_code code = launch_numbers(cuda, kernel, p, 0, p->narrow_end, false, err);
    return code == RELAY_OK ? launch_numbers(cuda, kernel, p, p->narrow_end, end, false, err)
                            : code;
}

static enum relay_code launch_fused(struct cuda_backend *cuda, uint32_t kernel,
                                    struct relay_cuda_params *p, struct relay_error *err)
{
    bool overlap = cuda->last_attends && !cuda->options.no_overlap;
    /* The launch before may be storing tokens of the same layer. */
    if (overlap && !cuda->options.no_early && cuda->last_k != p->k && cuda->last_v != p->v) {
        p->flags |= RELAY_CUDA_P_EARLY;
    }
    return launch_numbers(cuda, kernel, p, 0, p->number_end, overlap, err);
}

/* Enqueues a problem that has units. */
static enum relay_code enqueue(struct cuda_backend *cuda, const struct relay_problem *problem,
                               struct relay_error *err)
{
    struct relay_cuda_params p;
    struct cuda_plan *plan = NULL;
    uint32_t kernel = kernel_for(cuda, problem);
    bool staged;
    bool simt;
    bool grown = false;
    size_t queries;
    enum relay_code code = fill_params(cuda, problem, &p, err);
    if (!is_aligned(problem) || !is_small(problem)) {
        kernel = cuda->num_kernels - 1; /* the last takes everything */
    }
    simt = cuda->traits[kernel]->groups == 0;
    if (p.dqk == cuda->traits[kernel]->head_dim_most && p.dv == p.dqk) {
        p.flags |= RELAY_CUDA_P_EXACT;
    }
    staged = !simt && !cuda->options.direct_io && !on_device(cuda, problem);
    queries = staged ? (size_t)p.num_rows * p.num_q_heads * p.dqk *
                           relay_dtype_size(problem->shape->io_dtype)
                     : 0;
    if (code == RELAY_OK) {
        code = cuda_plan_get(cuda, problem, kernel, &plan, err);
    }
    if (code == RELAY_OK) {
        code = fill_ios(cuda, problem, &p, err);
    }
    if (code == RELAY_OK) {
        uint32_t stride = simt ? p.dv : cuda->traits[kernel]->head_dim_most;
        code = fill_workspace(cuda, plan, &p, stride, err);
    }
    if (code == RELAY_OK) {
        code = cuda_buffer_grow(cuda, &cuda->queries, queries, &grown, err);
    }
    if (code == RELAY_OK && (staged || simt)) {
        p.q = cuda->queries.data;
        p.flags |= RELAY_CUDA_P_STAGED;
        code = cuda_check(cuda,
                          relay_cuda_stage(&p, plan->appends, plan->num_appends,
                                           staged ? cuda->queries.data : NULL, cuda->stream),
                          "a staging launch", err);
        cuda->last_attends = false;
    }
    if (code != RELAY_OK) {
        return code;
    }
    if (simt || cuda->options.two_launches) {
        code = launch_plain(cuda, kernel, &p, err);
        cuda->last_attends = false;
    } else {
        code = launch_fused(cuda, kernel, &p, err);
        cuda->last_attends = true;
    }
    cuda->last_kernel = kernel;
    cuda->last_k = p.k;
    cuda->last_v = p.v;
    if (code != RELAY_OK) {
        struct relay_error ignored;
        (void)reset_flags(cuda, &ignored); /* some of them may be set */
    }
    return code;
}

enum relay_code cuda_run(struct relay_backend *backend, const struct relay_problem *problem,
                         uint64_t *ticket, struct relay_error *err)
{
    struct cuda_backend *cuda = cuda_of(backend);
    uint64_t run = cuda->runs + 1;
    cudaEvent_t done = cuda->done[run % CUDA_TICKETS];
    enum relay_code code = cuda_enter(cuda, err);
    if (code == RELAY_OK && !cuda->recording && run > CUDA_TICKETS) {
        code = cuda_check(cuda, cudaEventSynchronize(done), "a run", err);
    }
    if (code == RELAY_OK && problem->plan->num_rows != 0) {
        code = enqueue(cuda, problem, err);
    }
    if (code == RELAY_OK && !cuda->recording) {
        code = cuda_check(cuda, cudaEventRecord(done, cuda->stream), "a run", err);
    }
    if (code != RELAY_OK) {
        return code;
    }
    if (!cuda->recording) {
        cuda->runs = run;
    }
    *ticket = cuda->runs;
    return RELAY_OK;
}

enum relay_code cuda_wait(struct relay_backend *backend, uint64_t ticket, struct relay_error *err)
{
    struct cuda_backend *cuda = cuda_of(backend);
    enum relay_code code = cuda_enter(cuda, err);
    if (code != RELAY_OK) {
        return code;
    }
    if (ticket == 0 || ticket > cuda->runs) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "ticket %llu was never given out",
                          (unsigned long long)ticket);
    }
    if (ticket + CUDA_TICKETS <= cuda->runs) {
        return RELAY_OK; /* done before its event was used again */
    }
    return cuda_check(cuda, cudaEventSynchronize(cuda->done[ticket % CUDA_TICKETS]), "a run", err);
}
