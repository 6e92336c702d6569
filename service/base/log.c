/* Writes log lines. Any thread: a line is built on the caller's stack and leaves in one write, so
 * lines of different threads never mix. The two settings are atomics, written once at start. */
#include "service/base/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <time.h>
#include <unistd.h>

/* A longer line is cut; PIPE_BUF (4096) keeps a write to a pipe whole. */
#define LINE_BYTES 2048u
#define TEXT_BYTES 1024u

static atomic_int log_level = RELAYD_LOG_INFO;
static atomic_bool log_json;

static const char *const level_names[] = {"debug", "info", "warn", "error"};
#define NUM_LEVELS (sizeof(level_names) / sizeof(level_names[0]))

struct line {
    size_t used;
    char text[LINE_BYTES];
};

void relayd_log_init(enum relayd_log_level min_level, bool json)
{
    atomic_store_explicit(&log_level, (int)min_level, memory_order_relaxed);
    atomic_store_explicit(&log_json, json, memory_order_relaxed);
}

bool relayd_log_level_parse(const char *text, enum relayd_log_level *out)
{
    for (size_t i = 0; i < NUM_LEVELS; i++) {
        if (strcasecmp(text, level_names[i]) == 0) {
            *out = (enum relayd_log_level)i;
            return true;
        }
    }
    return false;
}

bool relayd_log_enabled(enum relayd_log_level level)
{
    return (int)level >= atomic_load_explicit(&log_level, memory_order_relaxed);
}

/* Always leaves room for what closes a line: a quote, a brace, a newline. */
static void put(struct line *line, const char *text, size_t bytes)
{
    if (bytes > LINE_BYTES - 4 - line->used) {
        return;
    }
    memcpy(line->text + line->used, text, bytes);
    line->used += bytes;
}

static void put_text(struct line *line, const char *text)
{
    put(line, text, strlen(text));
}

/* The inside of a JSON string. Bytes past ASCII go as \u00xx: valid JSON whatever they were. */
static void put_json(struct line *line, const char *text)
{
    for (const char *c = text; *c != '\0'; c++) {
        unsigned char byte = (unsigned char)*c;
        if (byte == '"' || byte == '\\') {
            char escaped[2] = {'\\', *c};
            put(line, escaped, 2);
        } else if (byte < 0x20 || byte >= 0x7f) {
            char escaped[8];
            snprintf(escaped, sizeof(escaped), "\\u%04x", byte);
            put(line, escaped, 6);
        } else {
            put(line, c, 1);
        }
    }
}

/* Logfmt fields as they are, but for what would break the line. */
static void put_fields(struct line *line, const char *text)
{
    for (const char *c = text; *c != '\0'; c++) {
        unsigned char byte = (unsigned char)*c;
        put(line, byte < 0x20 || byte == 0x7f ? " " : c, 1);
    }
}

static void put_time(struct line *line)
{
    struct timespec now;
    struct tm utc;
    char text[48];

    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    size_t used = strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%S", &utc);
    snprintf(text + used, sizeof(text) - used, ".%03uZ", (unsigned)(now.tv_nsec / 1000000));
    put_text(line, text);
}

static void write_all(const char *text, size_t bytes)
{
    /* A short write to stderr cannot be reported anywhere: the rest of the line is lost. */
    ssize_t written = write(STDERR_FILENO, text, bytes);
    (void)written;
}

void relayd_log_write(enum relayd_log_level level, const char *event, const char *fmt, ...)
{
    struct line line = {.used = 0};
    char text[TEXT_BYTES];
    const char *name = (size_t)level < NUM_LEVELS ? level_names[level] : "error";
    bool json = atomic_load_explicit(&log_json, memory_order_relaxed);

    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);

    put_text(&line, json ? "{\"ts\":\"" : "ts=");
    put_time(&line);
    put_text(&line, json ? "\",\"level\":\"" : " level=");
    put_text(&line, name);
    put_text(&line, json ? "\",\"event\":\"" : " event=");
    if (json) {
        put_json(&line, event);
        put_text(&line, "\",\"msg\":\"");
        put_json(&line, text);
        line.text[line.used++] = '"';
        line.text[line.used++] = '}';
    } else {
        put_fields(&line, event);
        if (text[0] != '\0') {
            put_text(&line, " ");
            put_fields(&line, text);
        }
    }
    line.text[line.used++] = '\n';
    write_all(line.text, line.used);
}

const char *relayd_log_quote(const char *text, char *out, size_t out_bytes)
{
    size_t used = 0;

    if (out_bytes < 3) {
        if (out_bytes > 0) {
            out[0] = '\0';
        }
        return out;
    }
    out[used++] = '"';
    for (const char *c = text; *c != '\0'; c++) {
        unsigned char byte = (unsigned char)*c;
        char escaped[8];
        size_t bytes = 1;
        escaped[0] = *c;
        if (byte == '"' || byte == '\\') {
            escaped[0] = '\\';
            escaped[1] = *c;
            bytes = 2;
        } else if (byte < 0x20 || byte >= 0x7f) {
            bytes = (size_t)snprintf(escaped, sizeof(escaped), "\\x%02x", byte);
        }
        if (used + bytes > out_bytes - 2) {
            break;
        }
        memcpy(out + used, escaped, bytes);
        used += bytes;
    }
    out[used++] = '"';
    out[used] = '\0';
    return out;
}
