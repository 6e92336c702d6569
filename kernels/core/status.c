/* Error records: see <relay/status.h>. No state; any thread. */
#include <relay/status.h>

#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

enum relay_code relay_error_set(struct relay_error *err, enum relay_code code, const char *file,
                                int line, const char *fmt, ...)
{
    if (err != NULL) {
        va_list args;
        err->code = code;
        err->file = file;
        err->line = line;
        va_start(args, fmt);
        /* A longer message is cut: the first 255 bytes name the cause. */
        if (vsnprintf(err->msg, sizeof(err->msg), fmt, args) < 0) {
            err->msg[0] = '\0';
        }
        va_end(args);
    }
    return code;
}

const char *relay_code_name(enum relay_code code)
{
    switch (code) {
#define RELAY_CODE_NAME(name, value)                                                               \
    case RELAY_##name:                                                                             \
        return #name;
        RELAY_CODES(RELAY_CODE_NAME)
#undef RELAY_CODE_NAME
    default:
        return "UNKNOWN";
    }
}
