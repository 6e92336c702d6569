/* Rules of layer kinds and shapes, for everyone in core and plan who must refuse a wrong one.
 * Pure; any thread. */
#ifndef RELAY_CORE_SHAPE_H
#define RELAY_CORE_SHAPE_H

#include <relay/plan.h>

/* INVALID_ARGUMENT naming the field; `what` precedes it ("kinds[2]", "shape"). A scale of 0, which
 * stands for 1 / sqrt(head_dim_qk), is taken only when zero_scale is true. */
enum relay_code relay_kind_validate(const struct relay_layer_kind *kind, bool zero_scale,
                                    const char *what, struct relay_error *err);
enum relay_code relay_shape_validate(const struct relay_shape *shape, struct relay_error *err);

#endif
