/* Structured logs to stderr: one line an event, logfmt or JSON.
 *
 *     RELAYD_LOG(INFO, "prompt.live", "id=%s tokens=%u", id, tokens);
 *
 * The place that decides an error logs it; never tensor data, tokens of sessions or secrets. Field
 * values that come from clients must pass relayd_log_quote. Thread-safe: one write a line. */
#ifndef RELAYD_BASE_LOG_H
#define RELAYD_BASE_LOG_H

#include <relay/status.h>
#include <stdbool.h>
#include <stddef.h>

enum relayd_log_level {
    RELAYD_LOG_DEBUG,
    RELAYD_LOG_INFO,
    RELAYD_LOG_WARN,
    RELAYD_LOG_ERROR,
};

/* Set once at start. json: {"ts":..,"level":..,"event":..,"msg":".."} in place of logfmt. */
void relayd_log_init(enum relayd_log_level min_level, bool json);
bool relayd_log_level_parse(const char *text, enum relayd_log_level *out);
bool relayd_log_enabled(enum relayd_log_level level);
void relayd_log_write(enum relayd_log_level level, const char *event, const char *fmt, ...)
    RELAY_PRINTF(3, 4);
/* Quotes and escapes a client's text for a key=value field; always NUL-terminated; returns out. */
const char *relayd_log_quote(const char *text, char *out, size_t out_bytes);

#define RELAYD_LOG(level, event, ...)                                                              \
    do {                                                                                           \
        if (relayd_log_enabled(RELAYD_LOG_##level)) {                                              \
            relayd_log_write(RELAYD_LOG_##level, (event), __VA_ARGS__);                            \
        }                                                                                          \
    } while (0)

#endif
