/* The options file: inih does the syntax, this file the line numbers it does not give. Lines are
 * `name = value`, under their section's [heading] or before any heading; `;` and `#` begin
 * comments. Not thread-safe. */
#include "service/config/config_internal.h"

#include <errno.h>
#include <ini.h>
#include <string.h>

struct reader {
    FILE *file;
    const char *path;
    struct relayd_config *config;
    unsigned line;
    bool seen[RELAYD_NUM_OPTIONS];
    enum relay_code code; /* of the first error; later lines are not looked at */
    struct relay_error *err;
};

/* inih would take the tail of a line that is too long for its buffer as a line of its own, and an
 * indented line as more of the value before it: neither is wanted here. */
static char *read_line(char *out, int bytes, void *stream)
{
    struct reader *reader = stream;
    if (reader->code != RELAY_OK || fgets(out, bytes, reader->file) == NULL) {
        return NULL;
    }
    reader->line++;
    if (strchr(out, '\n') == NULL && !feof(reader->file)) {
        reader->code =
            RELAY_FAIL(reader->err, RELAY_INVALID_ARGUMENT, "%s:%u: a line longer than %d bytes",
                       reader->path, reader->line, bytes - 2);
        return NULL;
    }
    size_t blanks = strspn(out, " \t");
    memmove(out, out + blanks, strlen(out) - blanks + 1);
    return out;
}

static int take_pair(void *user, const char *section, const char *name, const char *value)
{
    struct reader *reader = user;
    const struct relayd_option_desc *desc = relayd_option_find(name, strlen(name), '_');
    char where[160];

    if (reader->code != RELAY_OK) {
        return 1;
    }
    snprintf(where, sizeof(where), "%.100s:%u: %.40s", reader->path, reader->line, name);
    if (desc == NULL) {
        reader->code = RELAY_FAIL(reader->err, RELAY_INVALID_ARGUMENT, "%s: no such option", where);
    } else if (section[0] != '\0' && strcmp(section, desc->section) != 0) {
        reader->code =
            RELAY_FAIL(reader->err, RELAY_INVALID_ARGUMENT,
                       "%s: stands in [%.32s], belongs in [%s]", where, section, desc->section);
    } else if (reader->seen[desc - relayd_option_table] && desc->type != RELAYD_TYPE_LIST) {
        reader->code = RELAY_FAIL(reader->err, RELAY_INVALID_ARGUMENT, "%s: given twice", where);
    } else {
        reader->seen[desc - relayd_option_table] = true;
        reader->code =
            relayd_config_take(reader->config, desc, value, RELAYD_CONFIG_FILE, where, reader->err);
    }
    return 1;
}

enum relay_code relayd_config_read_file(struct relayd_config *config, const char *path,
                                        struct relay_error *err)
{
    struct reader reader = {.path = path, .config = config, .code = RELAY_OK, .err = err};

    reader.file = fopen(path, "re");
    if (reader.file == NULL) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "%.150s: %s", path, strerror(errno));
    }
    int bad_line = ini_parse_stream(read_line, &reader, take_pair, &reader);
    if (reader.code == RELAY_OK && ferror(reader.file)) {
        reader.code = RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "%.150s: cannot be read", path);
    }
    fclose(reader.file);
    if (reader.code == RELAY_OK && bad_line != 0) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                          "%.150s:%d: neither [section] nor name = value", path, bad_line);
    }
    return reader.code;
}
