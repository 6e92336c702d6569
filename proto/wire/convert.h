/* ModelSpec on the wire <-> struct relay_model of the kernels.
 *
 * Any thread. What it returns borrows from its input and from the arena. */
#ifndef RELAY_WIRE_CONVERT_H
#define RELAY_WIRE_CONVERT_H

#include <proto/wire/unpack.h>
#include <relay/types.h>
#include <relay/v1/relay.pb-c.h>

/* Makes a model that borrows from spec and arena: valid until the arena's fini. Array lengths are
 * checked against each other here, since relay_model has no room for them; the rest is for the
 * caller's relay_model_validate. INVALID_ARGUMENT naming the field, RESOURCE_EXHAUSTED. spec NULL
 * (no model came) is INVALID_ARGUMENT. */
RELAY_MUST_CHECK enum relay_code relay_wire_model_from_spec(const Relay__V1__ModelSpec *spec,
                                                            struct relay_wire_arena *arena,
                                                            struct relay_model *out,
                                                            struct relay_error *err);
/* Makes a spec, for packing, that borrows from model and arena. RESOURCE_EXHAUSTED. The model must
 * be valid. */
RELAY_MUST_CHECK enum relay_code relay_wire_model_to_spec(const struct relay_model *model,
                                                          struct relay_wire_arena *arena,
                                                          Relay__V1__ModelSpec **out,
                                                          struct relay_error *err);

#endif
