/* Interned models: one object per (tenant, model key) while somebody uses it, with the page pool
 * that all its prompts and requests live in. A second use under the same key must bring an equal
 * description. A page id is the same in every layer; a page is laid out
 *
 *     [layer with own K/V] { K [Hkv,page_tokens,dqk] | V [Hkv,page_tokens,dv] }
 *
 * so that one base per layer and one stride per page reach everything. */
#ifndef RELAYD_STORE_MODELS_H
#define RELAYD_STORE_MODELS_H

#include "service/store/store.h"

struct relayd_model;

/* FAILED_PRECONDITION when the key is known with another description (both values named),
 * INVALID_ARGUMENT, UNIMPLEMENTED when the backend has no kernel for a layer (naming the shape, for
 * F32 io at least), RESOURCE_EXHAUSTED past models_max. */
RELAY_MUST_CHECK enum relay_code relayd_model_acquire(struct relayd_store *store,
                                                      const char *tenant,
                                                      const struct relay_model *spec,
                                                      struct relayd_model **out,
                                                      struct relay_error *err);
void relayd_model_ref(struct relayd_model *model);
void relayd_model_release(struct relayd_model *model);

/* Immutable observers, no lock. */
struct relayd_store *relayd_model_store(const struct relayd_model *model);
const struct relay_model *relayd_model_spec(const struct relayd_model *model);
const char *relayd_model_tenant(const struct relayd_model *model);
uint32_t relayd_model_page_tokens(const struct relayd_model *model);
/* Bytes of one page over all layers. */
uint64_t relayd_model_page_bytes(const struct relayd_model *model);
/* Where a layer's K/V lies (that of kv_layer where the layer shares another's). */
struct relay_kv_layer relayd_model_kv(const struct relayd_model *model, uint32_t layer);
/* OK, or UNIMPLEMENTED naming the layer and shape, for these io and out dtypes. */
RELAY_MUST_CHECK enum relay_code relayd_model_supports(const struct relayd_model *model,
                                                       enum relay_dtype io_dtype,
                                                       enum relay_dtype out_dtype,
                                                       struct relay_error *err);

#endif
