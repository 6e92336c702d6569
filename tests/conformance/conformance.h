/* The frame of the conformance suite: every test here is compiled once and run against a backend
 * given by name:  test_conformance_attention cpu [--full] [--threads N] [--batch-invariant] [--isa
 * NAME]
 *
 * A backend that opens with UNAVAILABLE skips with its reason; any other error fails. What a
 * backend is known not to do is in the table below with the reason, so that nothing else can hide
 * behind UNIMPLEMENTED. One thread. */
#ifndef RELAY_CONFORMANCE_H
#define RELAY_CONFORMANCE_H

#include "testlib/check.h"
#include "testlib/problem.h"

#define COUNT(array) ((uint32_t)(sizeof(array) / sizeof((array)[0])))

/* Shapes that a backend does not take: it must say UNIMPLEMENTED to all of them, OK to all others.
 */
struct exclusion {
    const char *backend;
    bool (*match)(const struct relay_shape *shape);
    const char *reason;
};

static inline bool shape_has_8_bit_io(const struct relay_shape *shape)
{
    return shape->io_dtype == RELAY_DTYPE_F8_E4M3 || shape->out_dtype == RELAY_DTYPE_F8_E4M3;
}

static const struct exclusion exclusions[] = {
    {"cpu", shape_has_8_bit_io,
     "queries and outputs have no scales, so 8 bits of them are of no use to an engine"},
};

static struct relay_backend *backend;
static const char *isa; /* kernels asked for by name, or NULL */
static bool full;       /* also the shapes that take minutes */

/* Rows x keys x query heads of one problem at most, unless --full: about a second in ref. */
#define WORK_MAX ((uint64_t)1 << 22)

/* -1: go on; else the exit code. */
static inline int conformance_open(int argc, char **argv)
{
    struct relay_backend_options options = RELAY_BACKEND_OPTIONS_INIT;
    struct relay_error err;
    enum relay_code code;
    for (int i = 2; i < argc; i++) {
        full = full || strcmp(argv[i], "--full") == 0;
        options.batch_invariant =
            options.batch_invariant || strcmp(argv[i], "--batch-invariant") == 0;
        if (strcmp(argv[i], "--threads") == 0 && i + 1 < argc) {
            options.threads = (uint32_t)strtoul(argv[i + 1], NULL, 10);
        }
        if (strcmp(argv[i], "--isa") == 0 && i + 1 < argc) {
            isa = options.isa = argv[i + 1];
        }
    }
    code = relay_backend_open(argc > 1 ? argv[1] : "", &options, &backend, &err);
    if (code == RELAY_UNAVAILABLE) {
        fprintf(stderr, "skipped: %s\n", err.msg);
        return 77;
    }
    if (code != RELAY_OK) {
        fprintf(stderr, "%s: %s\n", relay_code_name(code), err.msg);
        return 1;
    }
    return -1;
}

static inline int conformance_close(void)
{
    relay_backend_close(backend);
    return check_done();
}

/* The reason why this backend is excused from the shape, or NULL. */
static inline const char *excluded(const struct relay_shape *shape)
{
    const char *own = relay_backend_info(backend)->name;
    for (size_t i = 0; i < sizeof(exclusions) / sizeof(exclusions[0]); i++) {
        if (strcmp(exclusions[i].backend, own) == 0 && exclusions[i].match(shape)) {
            return exclusions[i].reason;
        }
    }
    return NULL;
}

/* ---- one problem ---- */

static inline uint64_t problem_work(const struct problem_config *c)
{
    uint64_t work = 0;
    for (uint32_t i = 0; i < c->num_entries; i++) {
        uint64_t keys = c->entries[i].context;
        for (uint32_t s = c->entries[i].segment; s != PROBLEM_NONE; s = c->segments[s].parent) {
            keys += c->segments[s].tokens;
        }
        work += keys * c->entries[i].q_len * c->shape.kind.num_q_heads;
    }
    return work;
}

/* For error messages: what the case was. */
static inline const char *problem_name(const struct problem_config *c, char *name, size_t bytes)
{
    const struct relay_layer_kind *k = &c->shape.kind;
    (void)snprintf(name, bytes,
                   "heads %u/%u dims %u/%u window %u chunk %u %s/%s/%s page %u prompts %u (%u "
                   "tokens) entries %u (q_len %u context %u) seed %llu",
                   k->num_q_heads, k->num_kv_heads, k->head_dim_qk, k->head_dim_v, k->window,
                   k->chunk, relay_dtype_name(c->shape.kv_dtype),
                   relay_dtype_name(c->shape.io_dtype), relay_dtype_name(c->shape.out_dtype),
                   c->page_tokens, c->num_segments, c->num_segments ? c->segments[0].tokens : 0,
                   c->num_entries, c->num_entries ? c->entries[0].q_len : 0,
                   c->num_entries ? c->entries[0].context : 0, (unsigned long long)c->seed);
    return name;
}

/* Plans, runs and compares with the dense oracle. */
static inline void run_and_check(struct problem *problem, const struct problem_plan *how)
{
    struct relay_error err;
    char name[320];
    char why[320] = "";
    (void)problem_name(&problem->config, name, sizeof(name));
    err.msg[0] = '\0';
    if (problem_plan(problem, how, &err) != RELAY_OK || problem_run(problem, &err) != RELAY_OK) {
        CHECK_FAIL("%s: %s", name, err.msg);
    }
    if (!problem_check(problem, why, sizeof(why))) {
        CHECK_FAIL("%s: %s", name, why);
    }
}

static inline void init_case(struct problem *problem, const struct problem_config *config)
{
    struct relay_error err;
    char name[320];
    enum relay_code code = problem_init(problem, backend, config, &err);
    if (code != RELAY_OK) {
        CHECK_FAIL("%s: %s", problem_name(config, name, sizeof(name)), err.msg);
    }
}

/* The whole call, compared with the oracle; skipped quietly when it is too much work. */
static inline void check_case(const struct problem_config *config)
{
    struct problem problem;
    struct relay_error err;
    if (!full && problem_work(config) > WORK_MAX) {
        return;
    }
    if (excluded(&config->shape) != NULL) {
        struct relay_shape shape = config->shape;
        shape.kind.scale = 1.0f;
        CHECK_CODE(relay_backend_supports(backend, &shape, &err), RELAY_UNIMPLEMENTED);
        return;
    }
    init_case(&problem, config);
    CHECK_STILL();
    run_and_check(&problem, NULL);
    problem_fini(&problem);
}

#endif
