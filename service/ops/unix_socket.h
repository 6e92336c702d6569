/* Paths of unix sockets before somebody binds them: whether the path is free, or can be made so.
 * Pure but for the file system; any thread. */
#ifndef RELAYD_OPS_UNIX_SOCKET_H
#define RELAYD_OPS_UNIX_SOCKET_H

#include <relay/status.h>
#include <stdbool.h>

/* The path inside "unix:/path", "unix:path" or "unix:///path", borrowed; NULL for other addresses,
 * also for abstract sockets, which have no file. */
const char *relayd_unix_path(const char *address);

/* Leaves the path free to be bound. A socket that refuses connections is dead and is removed; one
 * that takes them, or cannot be asked, is not. make_dir: a missing directory is made, mode 0755
 * (its last component only).
 * INVALID_ARGUMENT (too long), NOT_FOUND (no directory), PERMISSION_DENIED (directory not
 * writable), FAILED_PRECONDITION (a file that is no socket), UNAVAILABLE (somebody serves it). */
RELAY_MUST_CHECK enum relay_code relayd_unix_claim(const char *path, bool make_dir,
                                                   struct relay_error *err);

#endif
