/* Puts waiting calls together and describes the launch to the planner. Executor's thread only. */
#include "service/batch/problem.h"

#include <stdlib.h>
#include <string.h>

/* A set or map from pointers, open addressing, emptied by moving the stamp on. */
struct pointer_map {
    struct pointer_slot {
        const void *key;
        uint32_t value;
        uint32_t stamp;
    } * slots;
    uint32_t capacity; /* power of two */
    uint32_t used;
    uint32_t stamp;
};

struct relayd_problem {
    struct relay_backend *backend;
    struct relayd_plans *plans; /* borrowed: all problems of an executor share one */
    struct relay_shape shape;
    uint64_t *key; /* what the plan depends on */
    size_t key_capacity;
    struct pointer_map map;
    struct relay_segment *segments;
    uint32_t segments_capacity;
    struct relay_entry *entries;
    uint32_t entries_capacity;
    struct relay_io *ios;
    uint32_t ios_capacity;
    void *workspace;
    size_t workspace_bytes;
};

/* ---- pointer map ---- */

static void map_clear(struct pointer_map *map)
{
    map->used = 0;
    if (++map->stamp == 0) {
        memset(map->slots, 0, map->capacity * sizeof(*map->slots));
        map->stamp = 1;
    }
}

/* Room for n keys in all at a load of at most one half; keeps nothing. */
static enum relay_code map_reserve(struct pointer_map *map, uint32_t n, struct relay_error *err)
{
    uint32_t capacity = 64;
    while (capacity / 2 < n) {
        capacity *= 2;
    }
    if (capacity > map->capacity) {
        struct pointer_slot *slots = calloc(capacity, sizeof(*slots));
        if (slots == NULL) {
            return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for a launch");
        }
        free(map->slots);
        map->slots = slots;
        map->capacity = capacity;
        map->stamp = 0;
    }
    map_clear(map);
    return RELAY_OK;
}

/* The slot of a key, its stamp current iff the key is in. */
static struct pointer_slot *map_find(struct pointer_map *map, const void *key)
{
    uint64_t hash = (uint64_t)(uintptr_t)key * UINT64_C(0x9E3779B97F4A7C15);
    uint32_t i = (uint32_t)(hash >> 32) & (map->capacity - 1);
    while (map->slots[i].stamp == map->stamp && map->slots[i].key != key) {
        i = (i + 1) & (map->capacity - 1);
    }
    return &map->slots[i];
}

static void map_put(struct pointer_map *map, struct pointer_slot *slot, const void *key,
                    uint32_t value)
{
    slot->key = key;
    slot->value = value;
    slot->stamp = map->stamp;
    map->used++;
}

/* ---- picking ---- */

/* Puts the call's requests into the map; says whether one was there already. A prompt-only call
 * neither reads nor writes a request's own K/V and conflicts with nobody. */
static bool claim_requests(struct pointer_map *map, const struct relayd_call *call)
{
    bool taken = false;
    if (call->part == RELAY_PART_PROMPT_ONLY) {
        return false;
    }
    for (uint32_t i = 0; i < call->num_entries; i++) {
        struct pointer_slot *slot = map_find(map, call->entries[i].request);
        if (slot->stamp == map->stamp) {
            taken = true;
        } else {
            map_put(map, slot, call->entries[i].request, 0);
        }
    }
    return taken;
}

/* The first call that may go and overtakes nobody on its requests, or NULL. */
static const struct relayd_call *find_lead(struct relayd_problem *problem,
                                           const struct relayd_call_list *waiting,
                                           struct relayd_align *align, uint64_t now_ns)
{
    const struct relayd_call *call = waiting->head;
    while (call != NULL && (claim_requests(&problem->map, call) ||
                            relayd_align_until(align, call, waiting, now_ns) != 0)) {
        call = call->next;
    }
    return call;
}

enum relay_code relayd_problem_pick(struct relayd_problem *problem,
                                    struct relayd_call_list *waiting, struct relayd_align *align,
                                    uint64_t now_ns, uint32_t rows_max,
                                    struct relayd_call_list *picked, struct relay_error *err)
{
    uint32_t entries = 0;
    for (const struct relayd_call *call = waiting->head; call != NULL; call = call->next) {
        entries += call->num_entries;
    }
    enum relay_code code = map_reserve(&problem->map, entries, err);
    if (code != RELAY_OK) {
        relayd_call_list_push(picked, relayd_call_list_pop(waiting));
        return code;
    }
    const struct relayd_call *lead = find_lead(problem, waiting, align, now_ns);
    if (lead == NULL) {
        return RELAY_OK;
    }
    map_clear(&problem->map);
    uint32_t rows = lead->rows;
    struct relayd_call_list rest = {0};
    struct relayd_call *call;
    while ((call = relayd_call_list_pop(waiting)) != NULL) {
        /* Claimed even when it stays: a later call on the same request must not overtake it. */
        bool conflict = claim_requests(&problem->map, call);
        bool fits = call == lead || (rows <= rows_max && call->rows <= rows_max - rows);
        if (!conflict && fits && relayd_call_same_launch(lead, call)) {
            rows += call == lead ? 0 : call->rows;
            relayd_call_list_push(picked, call);
        } else {
            relayd_call_list_push(&rest, call);
        }
    }
    *waiting = rest;
    return RELAY_OK;
}

/* ---- building ---- */

static enum relay_code grow(void **array, uint32_t *capacity, uint32_t need, size_t element,
                            struct relay_error *err)
{
    if (need <= *capacity) {
        return RELAY_OK;
    }
    uint32_t n = need + need / 2;
    void *p = reallocarray(*array, n, element);
    if (p == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for a launch");
    }
    *array = p;
    *capacity = n;
    return RELAY_OK;
}

/* May this call run now? Fills its error if not. Writes nothing. */
static bool admit(struct relayd_call *call, uint32_t kv_layer, uint64_t now_ns)
{
    struct relay_error *err = &call->error;
    if (atomic_load_explicit(&call->cancelled, memory_order_relaxed)) {
        (void)RELAY_FAIL(err, RELAY_CANCELLED, "cancelled before launch");
        return false;
    }
    if (now_ns >= call->deadline_ns) {
        (void)RELAY_FAIL(err, RELAY_DEADLINE_EXCEEDED, "deadline passed before launch");
        return false;
    }
    if (call->part == RELAY_PART_PROMPT_ONLY) {
        return true; /* a position only places the row */
    }
    for (uint32_t i = 0; i < call->num_entries; i++) {
        const struct relayd_call_entry *e = &call->entries[i];
        struct relay_error why = {0};
        enum relay_code code = relayd_request_layer_check(e->request, kv_layer, e->position,
                                                          e->q_len, call->has_kv, &why);
        if (code != RELAY_OK) {
            (void)RELAY_FAIL(err, code, "entry %u: %.200s", i, why.msg);
            return false;
        }
    }
    return true;
}

/* The segment of an entry's prompt, made when it is the first one on it. */
static uint32_t segment_of(struct relayd_problem *p, const struct relayd_prompt *prompt,
                           uint32_t *num_segments)
{
    struct pointer_slot *slot = map_find(&p->map, prompt);
    if (slot->stamp != p->map.stamp) {
        p->segments[*num_segments] = (struct relay_segment){
            .pages = relayd_prompt_pages(prompt),
            .tokens = relayd_prompt_tokens(prompt),
            .position = 0,
            .parent = RELAY_NO_SEGMENT,
        };
        map_put(&p->map, slot, prompt, (*num_segments)++);
    }
    return slot->value;
}

static void add_entries(struct relayd_problem *p, const struct relayd_call *call, uint32_t io,
                        struct relay_plan_input *in)
{
    for (uint32_t i = 0; i < call->num_entries; i++) {
        const struct relayd_call_entry *e = &call->entries[i];
        const struct relayd_prompt *prompt = relayd_request_prompt(e->request);
        uint32_t prompt_tokens = relayd_request_prompt_tokens(e->request);
        bool own = call->part != RELAY_PART_PROMPT_ONLY;
        p->entries[in->num_entries++] = (struct relay_entry){
            .io = io,
            .row_begin = e->row_begin,
            .q_len = e->q_len,
            .segment = prompt == NULL ? RELAY_NO_SEGMENT : segment_of(p, prompt, &in->num_segments),
            .position = prompt_tokens + e->position,
            .pages = own ? relayd_request_pages(e->request) : NULL,
            .context_position = prompt_tokens,
            .context_tokens = own ? e->position + e->q_len : 0,
            .append = call->has_kv,
        };
    }
}

/* Words of the plan's key besides four for each entry, and those for each call. */
#define KEY_HEAD_WORDS  5u
#define KEY_ENTRY_WORDS 4u

/* Everything the plan input was made from. Pages are named by their stamp; a prompt by one of the
 * requests that keep it. */
static size_t write_key(struct relayd_problem *p, const struct relayd_call_list *calls,
                        const struct relay_plan_input *in)
{
    const struct relayd_call *first = calls->head;
    uint64_t *key = p->key;
    size_t n = 0;
    key[n++] = (uint64_t)(uintptr_t)first->model;
    key[n++] = (uint64_t)(uintptr_t)relay_model_kind(relayd_model_spec(first->model), first->layer);
    key[n++] = (uint64_t)first->part << 32 | (uint64_t)first->sharing;
    key[n++] = (uint64_t)first->io_dtype << 32 | (uint64_t)first->out_dtype;
    key[n++] = in->num_entries;
    for (const struct relayd_call *call = calls->head; call != NULL; call = call->next) {
        key[n++] = (uint64_t)call->num_entries << 1 | call->has_kv;
        for (uint32_t i = 0; i < call->num_entries; i++) {
            const struct relayd_call_entry *e = &call->entries[i];
            key[n++] = relayd_request_pages_stamp(e->request);
            key[n++] = (uint64_t)e->position << 32 | e->q_len;
            key[n++] = e->row_begin;
            key[n++] = (uint64_t)(uintptr_t)relayd_request_prompt(e->request);
        }
    }
    return n;
}

static enum relay_code reserve(struct relayd_problem *p, uint32_t calls, uint32_t entries,
                               struct relay_error *err)
{
    size_t words = KEY_HEAD_WORDS + calls + (size_t)entries * KEY_ENTRY_WORDS;
    if (words > p->key_capacity) {
        uint64_t *grown = reallocarray(p->key, words * 2, sizeof(*grown));
        if (grown == NULL) {
            return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for a launch");
        }
        p->key = grown;
        p->key_capacity = words * 2;
    }
    enum relay_code code =
        grow((void **)&p->entries, &p->entries_capacity, entries, sizeof(*p->entries), err);
    if (code == RELAY_OK) {
        code =
            grow((void **)&p->segments, &p->segments_capacity, entries, sizeof(*p->segments), err);
    }
    if (code == RELAY_OK) {
        code = grow((void **)&p->ios, &p->ios_capacity, calls, sizeof(*p->ios), err);
    }
    return code == RELAY_OK ? map_reserve(&p->map, entries, err) : code;
}

static enum relay_code reserve_workspace(struct relayd_problem *p, const struct relay_plan *plan,
                                         struct relay_error *err)
{
    size_t need = relay_backend_workspace_bytes(p->backend, &p->shape, plan);
    if (need <= p->workspace_bytes) {
        return RELAY_OK;
    }
    relay_backend_io_free(p->backend, p->workspace);
    p->workspace_bytes = 0;
    p->workspace = relay_backend_io_alloc(p->backend, need + need / 4);
    if (p->workspace == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for %zu bytes of workspace",
                          need);
    }
    p->workspace_bytes = need + need / 4;
    return RELAY_OK;
}

enum relay_code relayd_problem_build(struct relayd_problem *p, struct relayd_call_list *picked,
                                     struct relayd_call_list *failed, uint64_t now_ns,
                                     struct relay_problem *out, struct relay_error *err)
{
    struct relayd_call_list good = {0};
    struct relayd_call *call = picked->head;
    const uint32_t layer = call->layer;
    struct relayd_model *model = call->model;
    const struct relay_model *spec = relayd_model_spec(model);
    const uint32_t kv_layer = relay_model_kv_layer(spec, layer);
    uint32_t num_entries = 0;
    while ((call = relayd_call_list_pop(picked)) != NULL) {
        bool ok = admit(call, kv_layer, now_ns);
        relayd_call_list_push(ok ? &good : failed, call);
        num_entries += ok ? call->num_entries : 0;
    }
    *picked = good;
    if (good.head == NULL) {
        return RELAY_OK;
    }
    enum relay_code code = reserve(p, good.count, num_entries, err);
    if (code != RELAY_OK) {
        return code;
    }
    const struct relayd_call *first = good.head;
    p->shape = relay_shape_of(spec, layer, first->io_dtype, first->out_dtype);
    struct relay_plan_input in = {
        .shape = &p->shape,
        .segments = p->segments,
        .entries = p->entries,
        .part = first->part,
        .sharing = first->sharing,
        .page_tokens = relayd_model_page_tokens(model),
    };
    relay_backend_plan_defaults(p->backend, &in);
    uint32_t io = 0;
    for (call = good.head; call != NULL; call = call->next) {
        p->ios[io] = call->io;
        if (!call->want_lse) {
            p->ios[io].lse = NULL;
        }
        add_entries(p, call, io++, &in);
    }
    const struct relay_plan *plan = NULL;
    code = relayd_plans_get(p->plans, p->key, write_key(p, &good, &in), &in, &plan, err);
    if (code == RELAY_OK) {
        code = reserve_workspace(p, plan, err);
    }
    if (code != RELAY_OK) {
        return code;
    }
    *out = (struct relay_problem){
        .shape = &p->shape,
        .plan = plan,
        .kv = relayd_model_kv(model, layer),
        .sinks = relay_model_sinks(spec, layer),
        .ios = p->ios,
        .num_ios = io,
        .workspace = p->workspace,
        .workspace_bytes = p->workspace_bytes,
    };
    return RELAY_OK;
}

void relayd_problem_written(const struct relayd_call_list *calls)
{
    for (const struct relayd_call *call = calls->head; call != NULL; call = call->next) {
        /* A layer that uses another's K/V brings none, so the call's layer is the one written. */
        for (uint32_t i = 0; call->has_kv && i < call->num_entries; i++) {
            const struct relayd_call_entry *e = &call->entries[i];
            relayd_request_layer_write(e->request, call->layer, call->step_id, e->position,
                                       e->q_len);
        }
    }
}

enum relay_code relayd_problem_create(struct relay_backend *backend, struct relayd_plans *plans,
                                      struct relayd_problem **out, struct relay_error *err)
{
    struct relayd_problem *problem = calloc(1, sizeof(*problem));
    if (problem == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for a launch");
    }
    problem->backend = backend;
    problem->plans = plans;
    *out = problem;
    return RELAY_OK;
}

void relayd_problem_destroy(struct relayd_problem *problem)
{
    if (problem == NULL) {
        return;
    }
    relay_backend_io_free(problem->backend, problem->workspace);
    free(problem->key);
    free(problem->map.slots);
    free(problem->segments);
    free(problem->entries);
    free(problem->ios);
    free(problem);
}
