/* The reference backend's parts: its object, with the byte counter, and one problem's pass.
 * One thread uses a backend. */
#ifndef RELAY_REF_INTERNAL_H
#define RELAY_REF_INTERNAL_H

#include "core/backend_internal.h"

struct ref_backend {
    struct relay_backend base;
    uint64_t ticket;
    uint64_t shared_bytes; /* K/V bytes read from prompt levels */
    uint64_t own_bytes;    /* and from requests' own pages */
};

size_t ref_workspace_bytes(const struct relay_backend *backend, const struct relay_shape *shape,
                           const struct relay_plan *plan);

/* Computes all items, then merges every row. K/V of this call is already stored. */
void ref_attention(struct ref_backend *ref, const struct relay_problem *problem);

#endif
