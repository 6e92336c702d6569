/* Status codes and the caller-owned error record used by every relay library.
 *
 * Codes are numerically gRPC's, so they cross the wire without a table. A function that can fail
 * returns an enum relay_code and, through its last parameter, fills a struct relay_error that the
 * caller owns (NULL is allowed). The function that decides which error it is fills the record;
 * callers that only pass it up leave it alone. Thread-safe: no global state. */
#ifndef RELAY_STATUS_H
#define RELAY_STATUS_H

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__) || defined(__clang__)
#define RELAY_MUST_CHECK        __attribute__((warn_unused_result))
#define RELAY_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#define RELAY_EXPORT            __attribute__((visibility("default")))
#else
#define RELAY_MUST_CHECK
#define RELAY_PRINTF(fmt, args)
#define RELAY_EXPORT
#endif

/* One list: name, gRPC value. */
#define RELAY_CODES(X)                                                                             \
    X(OK, 0)                                                                                       \
    X(CANCELLED, 1)                                                                                \
    X(UNKNOWN, 2)                                                                                  \
    X(INVALID_ARGUMENT, 3)                                                                         \
    X(DEADLINE_EXCEEDED, 4)                                                                        \
    X(NOT_FOUND, 5)                                                                                \
    X(ALREADY_EXISTS, 6)                                                                           \
    X(PERMISSION_DENIED, 7)                                                                        \
    X(RESOURCE_EXHAUSTED, 8)                                                                       \
    X(FAILED_PRECONDITION, 9)                                                                      \
    X(ABORTED, 10)                                                                                 \
    X(OUT_OF_RANGE, 11)                                                                            \
    X(UNIMPLEMENTED, 12)                                                                           \
    X(INTERNAL, 13)                                                                                \
    X(UNAVAILABLE, 14)                                                                             \
    X(DATA_LOSS, 15)                                                                               \
    X(UNAUTHENTICATED, 16)

enum relay_code {
#define RELAY_CODE_ENUM(name, value) RELAY_##name = value,
    RELAY_CODES(RELAY_CODE_ENUM)
#undef RELAY_CODE_ENUM
};

#define RELAY_ERROR_MSG_BYTES 256

struct relay_error {
    enum relay_code code;
    const char *file; /* static string of the deciding source file; never sent to a client */
    int line;
    char msg[RELAY_ERROR_MSG_BYTES]; /* NUL-terminated; names no address, path or other tenant */
};

/* Fills `err` (if not NULL) and returns `code`. Use through RELAY_FAIL. */
RELAY_EXPORT enum relay_code relay_error_set(struct relay_error *err, enum relay_code code,
                                             const char *file, int line, const char *fmt, ...)
    RELAY_PRINTF(5, 6);

/* return RELAY_FAIL(err, RELAY_NOT_FOUND, "prompt %s", id); */
#define RELAY_FAIL(err, code, ...) relay_error_set((err), (code), __FILE__, __LINE__, __VA_ARGS__)

/* "INVALID_ARGUMENT" for RELAY_INVALID_ARGUMENT; "UNKNOWN" for values out of range. */
RELAY_EXPORT const char *relay_code_name(enum relay_code code);

#ifdef __cplusplus
}
#endif
#endif
