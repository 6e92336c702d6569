/* One run as three stages of the pool: store the appended K/V, compute the items (item by item in
 * plan order, which has the prompts first, KV head by KV head), merge the rows.
 *
 * run and wait are the caller's thread; the task functions are the pool's. Workspace: the partial
 * results, then a scratch for each thread. */
#include "cpu/cpu_internal.h"

#include "core/host_memory.h"
#include "cpu/pages.h"

#define APPEND_ROWS_OF_TASK 2u
#define MERGE_HEADS_OF_TASK 32u /* query heads over rows, about */
#define OWN_HEADS_MAX       8u
#define TASKS_OF_THREAD     16u /* at least, if a task has more than one head */
#define READ_PAST           64u /* what merging may read past the end of partial results */

_Static_assert(CPU_JOBS_MAX *CPU_STAGES_OF_JOB <= RELAY_CPU_POOL_STAGES_MAX,
               "run would block inside submit");

static size_t up_to_64(size_t n)
{
    return (n + 63) / 64 * 64;
}

/* ---- workspace ---------------------------------------------------------------------------------
 */

struct layout {
    size_t head_bytes; /* of m, and of l */
    size_t out_bytes;
    size_t attend_bytes;
    size_t scratch_stride;
    size_t total;
};

static struct layout layout_of(const struct cpu_backend *cpu, const struct relay_shape *shape,
                               const struct relay_plan *plan)
{
    const struct relay_layer_kind *kind = &shape->kind;
    uint32_t group = kind->num_q_heads / kind->num_kv_heads;
    size_t heads = (size_t)plan->num_partials * kind->num_q_heads;
    uint32_t rows = 0;
    uint32_t rows_direct = 0;
    struct layout layout;
    for (uint32_t i = 0; i < plan->num_items; i++) {
        const struct relay_item *item = &plan->items[i];
        rows = item->row_count > rows ? item->row_count : rows;
        if (item->partial == RELAY_DIRECT && item->row_count > rows_direct) {
            rows_direct = item->row_count;
        }
    }
    layout.head_bytes = up_to_64(heads * sizeof(float)) + READ_PAST;
    layout.out_bytes = up_to_64(heads * kind->head_dim_v * sizeof(float)) + READ_PAST;
    layout.attend_bytes = 0;
    for (int items = 0; items < RELAY_CPU_ITEMS; items++) {
        const struct relay_cpu_isa *isa =
            relay_cpu_isa_for(&cpu->isas, shape, (enum relay_cpu_items)items);
        size_t bytes = up_to_64(isa->scratch_bytes(shape, rows * group, plan->block_tokens));
        layout.attend_bytes = bytes > layout.attend_bytes ? bytes : layout.attend_bytes;
    }
    layout.scratch_stride =
        layout.attend_bytes +
        up_to_64((size_t)rows_direct * group * (2u + kind->head_dim_v) * sizeof(float)) + READ_PAST;
    layout.total = plan->num_items == 0 ? 0
                                        : 2 * layout.head_bytes + layout.out_bytes +
                                              cpu->base.info.threads * layout.scratch_stride;
    return layout;
}

size_t cpu_workspace_bytes(const struct relay_backend *backend, const struct relay_shape *shape,
                           const struct relay_plan *plan)
{
    return layout_of((const struct cpu_backend *)backend, shape, plan).total;
}

/* As many as leave each thread enough tasks to end with the others. */
static uint32_t own_heads_of_task(uint32_t heads, uint32_t items, uint32_t threads)
{
    uint32_t n = 1;
    while (n < OWN_HEADS_MAX && heads % (2 * n) == 0 &&
           (uint64_t)items * heads / (2 * n) >= (uint64_t)threads * TASKS_OF_THREAD) {
        n *= 2;
    }
    return n;
}

static void job_init(struct cpu_job *job, const struct cpu_backend *cpu,
                     const struct relay_problem *problem)
{
    const struct relay_layer_kind *kind = &problem->shape->kind;
    struct layout layout = layout_of(cpu, problem->shape, problem->plan);
    unsigned char *base = problem->workspace;
    job->problem = *problem;
    for (int items = 0; items < RELAY_CPU_ITEMS; items++) {
        job->isa[items] =
            relay_cpu_isa_for(&cpu->isas, problem->shape, (enum relay_cpu_items)items);
    }
    job->second_cache = cpu->isas.second_cache;
    job->packed =
        cpu->packs_pages && relay_cpu_pages_packed(problem->shape, problem->plan->page_tokens);
    job->append_rows = 0;
    for (uint32_t a = 0; a < problem->plan->num_appends; a++) {
        job->append_rows += problem->plan->appends[a].q_len;
    }
    job->prompts = 0;
    while (job->prompts < problem->plan->num_items &&
           problem->plan->segments[problem->plan->items[job->prompts].segment].shared) {
        job->prompts++;
    }
    job->own_heads = own_heads_of_task(kind->num_kv_heads, problem->plan->num_items - job->prompts,
                                       cpu->base.info.threads);
    if (problem->plan->num_items == 0) {
        return; /* no workspace, and nothing that would use it */
    }
    job->partials.m = (float *)(void *)base;
    job->partials.l = (float *)(void *)(base + layout.head_bytes);
    job->partials.head_stride = kind->num_q_heads;
    job->partials.out = (float *)(void *)(base + 2 * layout.head_bytes);
    job->partials.out_stride = (size_t)kind->num_q_heads * kind->head_dim_v;
    job->scratch = base + 2 * layout.head_bytes + layout.out_bytes;
    job->scratch_stride = layout.scratch_stride;
    job->attend_bytes = layout.attend_bytes;
}

/* ---- tasks -------------------------------------------------------------------------------------
 */

/* Appended rows are counted through, append after append; a task has so many of them. */
static void append_task(void *context, uint32_t task, uint32_t next, uint32_t thread)
{
    const struct cpu_job *job = context;
    const struct relay_plan *plan = job->problem.plan;
    uint32_t begin = task * APPEND_ROWS_OF_TASK;
    uint32_t end = begin + APPEND_ROWS_OF_TASK;
    uint32_t first = 0; /* the append's first row in that count */
    (void)next;
    (void)thread;
    for (uint32_t a = 0; a < plan->num_appends && first < end; a++) {
        const struct relay_append *append = &plan->appends[a];
        uint32_t last = first + append->q_len;
        if (last > begin) {
            uint32_t from = first > begin ? first : begin;
            uint32_t to = last < end ? last : end;
            if (job->packed) {
                relay_cpu_append_rows(&job->problem, append, from - first, to - from);
            } else {
                relay_host_append_rows(&job->problem, append, from - first, to - from);
            }
        }
        first = last;
    }
}

/* What a task computes: one KV head of a prompt's item, or a few of a request's own, since heads
 * lie side by side in a page and what a core reads ahead of one is the beginning of the next. */
struct place {
    uint32_t item;
    uint32_t head;
    uint32_t heads;
};

static struct place place_of(const struct cpu_job *job, uint32_t task)
{
    const uint32_t heads = job->problem.shape->kind.num_kv_heads;
    const uint32_t prompt_tasks = job->prompts * heads;
    if (task < prompt_tasks) {
        return (struct place){task / heads, task % heads, 1};
    }
    const uint32_t parts = heads / job->own_heads;
    task -= prompt_tasks;
    return (struct place){job->prompts + task / parts, task % parts * job->own_heads,
                          job->own_heads};
}

static uint32_t item_tasks(const struct cpu_job *job)
{
    const uint32_t heads = job->problem.shape->kind.num_kv_heads;
    return job->prompts * heads +
           (job->problem.plan->num_items - job->prompts) * (heads / job->own_heads);
}

/* work's item and KV head, into the partial results or, if it is DIRECT, to the caller's tensors.
 */
static void attend_head(const struct cpu_job *job, struct relay_cpu_attend *work)
{
    const struct relay_problem *problem = &job->problem;
    const struct relay_layer_kind *kind = &problem->shape->kind;
    const struct relay_item *item = work->item;
    const struct relay_cpu_isa *isa =
        job->isa[problem->plan->segments[item->segment].shared ? RELAY_CPU_PROMPT : RELAY_CPU_OWN];
    const uint32_t group = kind->num_q_heads / kind->num_kv_heads;
    const uint32_t head = work->kv_head * group;
    if (item->partial != RELAY_DIRECT) {
        work->to = job->partials;
        work->to.m += item->partial * work->to.head_stride + head;
        work->to.l += item->partial * work->to.head_stride + head;
        work->to.out += item->partial * work->to.out_stride + (size_t)head * kind->head_dim_v;
        isa->attend(work);
        return;
    }
    work->to.out = (float *)(void *)((unsigned char *)work->scratch + job->attend_bytes);
    work->to.out_stride = (size_t)group * kind->head_dim_v;
    work->to.m = work->to.out + item->row_count * work->to.out_stride;
    work->to.l = work->to.m + (size_t)item->row_count * group;
    work->to.head_stride = group;
    isa->attend(work);
    for (uint32_t r = 0; r < item->row_count; r++) {
        job->isa[RELAY_CPU_PROMPT]->merge(
            &(struct relay_cpu_merge){.problem = problem,
                                      .row = &problem->plan->rows[item->row_begin + r],
                                      .from = work->to,
                                      .index = &r,
                                      .count = 1,
                                      .q_head = head,
                                      .heads = group});
    }
}

static void item_task(void *context, uint32_t task, uint32_t next, uint32_t thread)
{
    const struct cpu_job *job = context;
    const struct place at = place_of(job, task);
    const struct relay_item *items = job->problem.plan->items;
    struct relay_cpu_attend work = {
        .problem = &job->problem,
        .item = &items[at.item],
        .packed = job->packed,
        .next_item = &items[at.item],
        .second_cache = job->second_cache,
        .scratch = job->scratch + thread * job->scratch_stride,
    };
    for (uint32_t h = at.head; h < at.head + at.heads; h++) {
        work.kv_head = h;
        work.next_kv_head = h + 1;
        if (h + 1 == at.head + at.heads) {
            const struct place after = next != RELAY_CPU_NO_TASK ? place_of(job, next) : at;
            work.next_item = next != RELAY_CPU_NO_TASK ? &items[after.item] : NULL;
            work.next_kv_head = after.head;
        }
        attend_head(job, &work);
    }
}

static uint32_t merge_rows_of_task(const struct relay_shape *shape)
{
    uint32_t rows = MERGE_HEADS_OF_TASK / shape->kind.num_q_heads;
    return rows == 0 ? 1 : rows;
}

static void merge_task(void *context, uint32_t task, uint32_t next, uint32_t thread)
{
    const struct cpu_job *job = context;
    const struct relay_plan *plan = job->problem.plan;
    uint32_t rows = merge_rows_of_task(job->problem.shape);
    uint32_t begin = task * rows;
    uint32_t end = plan->num_rows - begin < rows ? plan->num_rows : begin + rows;
    (void)next;
    (void)thread;
    for (uint32_t r = begin; r < end; r++) {
        const struct relay_plan_row *row = &plan->rows[r];
        if (!row->direct) {
            job->isa[RELAY_CPU_PROMPT]->merge(
                &(struct relay_cpu_merge){.problem = &job->problem,
                                          .row = row,
                                          .from = job->partials,
                                          .index = plan->merge_index + row->merge_begin,
                                          .count = row->merge_count,
                                          .q_head = 0,
                                          .heads = job->problem.shape->kind.num_q_heads});
        }
    }
}

/* ---- run and wait ------------------------------------------------------------------------------
 */

static uint32_t tasks_of(uint32_t count, uint32_t of_task)
{
    return count / of_task + (count % of_task != 0 ? 1u : 0u);
}

enum relay_code cpu_run(struct relay_backend *backend, const struct relay_problem *problem,
                        uint64_t *ticket, struct relay_error *err)
{
    struct cpu_backend *cpu = (struct cpu_backend *)backend;
    const struct relay_plan *plan = problem->plan;
    uint64_t tasks = (uint64_t)plan->num_items * problem->shape->kind.num_kv_heads;
    if (tasks > UINT32_MAX) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "%u items of %u KV heads are too many",
                          plan->num_items, problem->shape->kind.num_kv_heads);
    }
    uint64_t run = cpu->runs + 1u;
    uint32_t slot = (uint32_t)(run % CPU_JOBS_MAX);
    struct cpu_job *job = &cpu->jobs[slot];
    if (run > CPU_JOBS_MAX) {
        relay_cpu_pool_wait(cpu->pool, cpu->last_stage[slot]);
    }
    job_init(job, cpu, problem);
    (void)relay_cpu_pool_submit(cpu->pool, append_task, job,
                                tasks_of(job->append_rows, APPEND_ROWS_OF_TASK), 0);
    (void)relay_cpu_pool_submit(cpu->pool, item_task, job, item_tasks(job),
                                job->prompts * problem->shape->kind.num_kv_heads);
    cpu->last_stage[slot] =
        relay_cpu_pool_submit(cpu->pool, merge_task, job,
                              tasks_of(plan->num_rows, merge_rows_of_task(problem->shape)), 0);
    cpu->runs = run;
    *ticket = run;
    return RELAY_OK;
}

enum relay_code cpu_wait(struct relay_backend *backend, uint64_t ticket, struct relay_error *err)
{
    struct cpu_backend *cpu = (struct cpu_backend *)backend;
    if (ticket == 0 || ticket > cpu->runs) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "ticket %llu was never given out",
                          (unsigned long long)ticket);
    }
    if (ticket + CPU_JOBS_MAX > cpu->runs) { /* an older one was done before its slot was reused */
        relay_cpu_pool_wait(cpu->pool, cpu->last_stage[ticket % CPU_JOBS_MAX]);
    }
    return RELAY_OK;
}
