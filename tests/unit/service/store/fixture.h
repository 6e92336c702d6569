/* A store on plain host memory for tests: a clock that stands still until told otherwise, a backend
 * that counts and can fail, small models, and K/V that says where it belongs. */
#ifndef STORE_TEST_FIXTURE_H
#define STORE_TEST_FIXTURE_H

#include "service/base/log.h"
#include "service/store/requests.h"
#include "testlib/check.h"

#include "core/backend_internal.h"
#include <stdatomic.h>

#define FIXTURE_BLOCKS_MAX 512u

/* Wraps the reference backend's host memory. Commits of committed blocks, decommits of absent ones
 * and anything outside of a reservation count as faults. */
struct fake_backend {
    struct relay_backend base;
    struct relay_backend_vtable vtable;
    atomic_uint fail_commits; /* so many next commits fail */
    atomic_uint fail_writes;
    atomic_uint faults;
    atomic_int blocks;   /* committed now, over all reservations */
    atomic_int reserved; /* reservations */
    /* For one reservation at a time (pool_test): what is committed. */
    void *tracked;
    atomic_uchar state[FIXTURE_BLOCKS_MAX];
};

struct fixture {
    struct fake_backend backend;
    struct relayd_clock clock;
    atomic_uint_least64_t now_ms;
    struct relayd_store_options options; /* change before fixture_open */
    struct relayd_store *store;
};

/* A model description with its arrays inside; point at .model. */
struct fixture_model {
    struct relay_layer_kind kinds[8];
    uint32_t layer_kind[8];
    uint32_t kv_layer[8];
    struct relay_model model;
};

#define FIXTURE_HKV         2u
#define FIXTURE_DIM         8u
#define FIXTURE_PAGE_TOKENS 4u
#define FIXTURE_ROW         (FIXTURE_HKV * FIXTURE_DIM) /* elements of one token's K */

void fixture_init(struct fixture *f);
/* Fails the test (check_failed_now) when it cannot. */
void fixture_open(struct fixture *f);
/* Destroys the store; checks that no memory and no reservation is left. */
void fixture_close(struct fixture *f);
void fixture_advance(struct fixture *f, uint64_t ms);
struct relayd_store_stats fixture_stats(struct fixture *f);
/* Whether all counters but those of models equal. */
bool fixture_same_stats(const struct relayd_store_stats *a, const struct relayd_store_stats *b);

/* n full layers with own F32 K/V. */
void fixture_model_init(struct fixture_model *m, const char *key, uint32_t layers);

/* The K (v = false) or V element of a token: different for every argument, exact in bfloat16. */
float fixture_value(uint32_t seed, uint32_t layer, bool v, uint32_t token, uint32_t element);
/* Fills k and v [count,Hkv,dim] for tokens [begin, +count) of a layer. */
void fixture_fill(uint32_t seed, uint32_t layer, uint32_t begin, uint32_t count, float *k,
                  float *v);

struct relayd_upload_desc fixture_desc(const char *tenant, const struct relay_model *model,
                                       const char *id, uint32_t tokens);
/* Sends tokens [begin, end) of a layer in chunks of so many tokens. */
enum relay_code fixture_send(struct relayd_upload *upload, uint32_t seed, uint32_t layer,
                             uint32_t begin, uint32_t end, uint32_t step, struct relay_error *err);
/* begin, every layer from its first needed token on (own K/V only), commit. When the prompt is
 * there already, *info is what begin said. */
enum relay_code fixture_register(struct fixture *f, const struct relayd_upload_desc *desc,
                                 uint32_t seed, struct relayd_prompt_info *info,
                                 struct relay_error *err);
/* Whether a layer's tokens in pages are those of the seed. */
bool fixture_holds(const struct relayd_model *model, const uint32_t *pages, uint32_t seed,
                   uint32_t layer, uint32_t begin, uint32_t end);

#endif
