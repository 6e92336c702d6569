/* A backend for tests: ref behind a gate. While the gate is closed, wait blocks, so that a test can
 * let calls pile up behind a running launch without any timing; and it can be told to fail. */
#ifndef RELAY_TESTLIB_GATE_BACKEND_H
#define RELAY_TESTLIB_GATE_BACKEND_H

#include <relay/backend.h>

struct relay_backend *gate_backend_open(void); /* open gate; close with relay_backend_close */
void gate_backend_close_gate(struct relay_backend *backend);
void gate_backend_open_gate(struct relay_backend *backend);
/* Blocks until n launches in all have been enqueued. */
void gate_backend_wait_runs(struct relay_backend *backend, unsigned n);
unsigned gate_backend_runs(struct relay_backend *backend);
/* From now on run says UNAVAILABLE, as a broken device does. */
void gate_backend_break(struct relay_backend *backend);
/* The next run says RESOURCE_EXHAUSTED, as a device out of memory does; those after it are fine. */
void gate_backend_refuse_once(struct relay_backend *backend);

#endif
