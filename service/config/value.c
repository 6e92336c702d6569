/* One option's value, from text and to text. Not thread-safe on one config. */
#include "service/config/config_internal.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

struct unit {
    const char *suffix;
    uint64_t factor;
};
/* Largest first: a value is printed in the largest unit that divides it. */
static const struct unit byte_units[] = {
    {"G", 1u << 30}, {"M", 1u << 20}, {"K", 1u << 10}, {"", 1}};
static const struct unit time_units[] = {{"d", 86400000}, {"h", 3600000}, {"m", 60000},
                                         {"s", 1000},     {"ms", 1},      {"", 1}};

static const struct unit *units_of(enum relayd_option_type type, size_t *n)
{
    static const struct unit plain[] = {{"", 1}};
    switch (type) {
    case RELAYD_TYPE_BYTES:
        *n = sizeof(byte_units) / sizeof(byte_units[0]);
        return byte_units;
    case RELAYD_TYPE_MS:
        *n = sizeof(time_units) / sizeof(time_units[0]);
        return time_units;
    default:
        *n = 1;
        return plain;
    }
}

static const char *expected(enum relayd_option_type type)
{
    switch (type) {
    case RELAYD_TYPE_BYTES:
        return "a number of bytes such as 4096, 64K, 4M, 2G";
    case RELAYD_TYPE_MS:
        return "a time such as 500 (milliseconds), 500ms, 30s, 10m, 1h, 1d";
    default:
        return "a number";
    }
}

static bool number_parse(enum relayd_option_type type, const char *text, uint64_t *out)
{
    size_t n;
    const struct unit *units = units_of(type, &n);
    char *end;

    if (!isdigit((unsigned char)text[0])) { /* strtoull takes signs and blanks */
        return false;
    }
    errno = 0;
    uint64_t value = strtoull(text, &end, 10);
    if (errno != 0) {
        return false;
    }
    for (size_t i = 0; i < n; i++) {
        if (strcasecmp(end, units[i].suffix) == 0) {
            if (value > UINT64_MAX / units[i].factor) {
                return false;
            }
            *out = value * units[i].factor;
            return true;
        }
    }
    return false;
}

static void number_print(enum relayd_option_type type, uint64_t value, char *out, size_t out_bytes)
{
    size_t n;
    const struct unit *units = units_of(type, &n);
    for (size_t i = 0; i < n; i++) {
        if (units[i].factor == 1 || (value != 0 && value % units[i].factor == 0)) {
            snprintf(out, out_bytes, "%" PRIu64 "%s", value / units[i].factor,
                     value != 0 ? units[i].suffix : "");
            return;
        }
    }
}

static bool bool_parse(const char *text, bool *out)
{
    static const char *const yes[] = {"true", "yes", "on", "1"};
    static const char *const no[] = {"false", "no", "off", "0"};
    for (size_t i = 0; i < 4; i++) {
        if (strcasecmp(text, yes[i]) == 0 || strcasecmp(text, no[i]) == 0) {
            *out = strcasecmp(text, yes[i]) == 0;
            return true;
        }
    }
    return false;
}

static bool choice_has(const char *choices, const char *text)
{
    size_t bytes = strlen(text);
    if (bytes == 0 || strchr(text, '|') != NULL) {
        return false;
    }
    for (const char *c = choices; c != NULL; c = strchr(c, '|')) {
        c += *c == '|';
        if (strncmp(c, text, bytes) == 0 && (c[bytes] == '|' || c[bytes] == '\0')) {
            return true;
        }
    }
    return false;
}

static void *field(const struct relayd_config *config, const struct relayd_option_desc *desc)
{
    /* One accessor for readers and writers; writers hold a non-const config. */
    return (char *)(uintptr_t)config + desc->offset;
}

static enum relay_code number_set(struct relayd_config *config,
                                  const struct relayd_option_desc *desc, const char *text,
                                  const char *where, struct relay_error *err)
{
    uint64_t value;
    char min[32], max[32];

    if (!number_parse(desc->type, text, &value)) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "%s: \"%.64s\" is not %s", where, text,
                          expected(desc->type));
    }
    if (value < desc->min || value > desc->max) {
        number_print(desc->type, desc->min, min, sizeof(min));
        number_print(desc->type, desc->max, max, sizeof(max));
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "%s: %.64s is outside %s to %s", where, text,
                          min, max);
    }
    if (desc->type == RELAYD_TYPE_U32) {
        *(uint32_t *)field(config, desc) = (uint32_t)value;
    } else {
        *(uint64_t *)field(config, desc) = value;
    }
    return RELAY_OK;
}

static enum relay_code length_check(const struct relayd_option_desc *desc, size_t bytes,
                                    const char *where, struct relay_error *err)
{
    if (bytes < desc->min || bytes > desc->max) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                          "%s: a text of %zu characters, %" PRIu64 " to %" PRIu64 " are allowed",
                          where, bytes, desc->min, desc->max);
    }
    return RELAY_OK;
}

static enum relay_code text_set(struct relayd_config *config, const struct relayd_option_desc *desc,
                                const char *text, struct relay_error *err)
{
    char **slot = field(config, desc);
    char *copy = strdup(text);
    if (copy == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "out of memory");
    }
    free(*slot);
    *slot = copy;
    return RELAY_OK;
}

static void texts_clear(struct relayd_texts *texts)
{
    for (uint32_t i = 0; i < texts->n; i++) {
        free(texts->items[i]);
    }
    free(texts->items);
    *texts = (struct relayd_texts){0};
}

static enum relay_code texts_add(struct relayd_texts *texts, const char *text, size_t bytes,
                                 struct relay_error *err)
{
    char **items = reallocarray(texts->items, texts->n + 1u, sizeof(*items));
    if (items != NULL) {
        texts->items = items;
        items[texts->n] = strndup(text, bytes);
        if (items[texts->n] != NULL) {
            texts->n++;
            return RELAY_OK;
        }
    }
    return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "out of memory");
}

/* Elements are split at commas and trimmed of blanks; an empty one is an error. */
static enum relay_code list_set(struct relayd_config *config, const struct relayd_option_desc *desc,
                                const char *text, bool append, const char *where,
                                struct relay_error *err)
{
    struct relayd_texts *texts = field(config, desc);
    struct relayd_texts fresh = {0};
    enum relay_code code = RELAY_OK;

    for (uint32_t i = 0; append && code == RELAY_OK && i < texts->n; i++) {
        code = texts_add(&fresh, texts->items[i], strlen(texts->items[i]), err);
    }
    for (const char *item = text; code == RELAY_OK && item != NULL;) {
        const char *comma = strchr(item, ',');
        const char *end = comma != NULL ? comma : item + strlen(item);
        while (item < end && isspace((unsigned char)*item)) {
            item++;
        }
        while (end > item && isspace((unsigned char)end[-1])) {
            end--;
        }
        code = length_check(desc, (size_t)(end - item), where, err);
        if (code == RELAY_OK) {
            code = texts_add(&fresh, item, (size_t)(end - item), err);
        }
        item = comma != NULL ? comma + 1 : NULL;
    }
    if (code != RELAY_OK) {
        texts_clear(&fresh);
        return code;
    }
    texts_clear(texts);
    *texts = fresh;
    return RELAY_OK;
}

enum relay_code relayd_value_set(struct relayd_config *config,
                                 const struct relayd_option_desc *desc, const char *text,
                                 bool append, const char *where, struct relay_error *err)
{
    enum relay_code code;

    switch (desc->type) {
    case RELAYD_TYPE_BOOL:
        if (!bool_parse(text, field(config, desc))) {
            return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                              "%s: \"%.64s\" is not true, yes, on, 1, false, no, off or 0", where,
                              text);
        }
        return RELAY_OK;
    case RELAYD_TYPE_CHOICE:
        if (!choice_has(desc->choices, text)) {
            return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "%s: \"%.64s\" is not one of %s", where,
                              text, desc->choices);
        }
        return text_set(config, desc, text, err);
    case RELAYD_TYPE_TEXT:
        code = length_check(desc, strlen(text), where, err);
        return code != RELAY_OK ? code : text_set(config, desc, text, err);
    case RELAYD_TYPE_LIST:
        return list_set(config, desc, text, append, where, err);
    default:
        return number_set(config, desc, text, where, err);
    }
}

uint32_t relayd_value_lines(const struct relayd_config *config,
                            const struct relayd_option_desc *desc)
{
    const struct relayd_texts *texts = field(config, desc);
    return desc->type == RELAYD_TYPE_LIST ? texts->n : 1;
}

void relayd_value_print(const struct relayd_config *config, const struct relayd_option_desc *desc,
                        uint32_t line, FILE *out)
{
    void *value = field(config, desc);
    char text[32];

    switch (desc->type) {
    case RELAYD_TYPE_BOOL:
        fputs(*(bool *)value ? "true" : "false", out);
        break;
    case RELAYD_TYPE_TEXT:
    case RELAYD_TYPE_CHOICE:
        fputs(*(char **)value, out);
        break;
    case RELAYD_TYPE_LIST:
        fputs(((struct relayd_texts *)value)->items[line], out);
        break;
    default:
        number_print(desc->type,
                     desc->type == RELAYD_TYPE_U32 ? *(uint32_t *)value : *(uint64_t *)value, text,
                     sizeof(text));
        fputs(text, out);
    }
}

void relayd_value_clear(struct relayd_config *config, const struct relayd_option_desc *desc)
{
    if (desc->type == RELAYD_TYPE_LIST) {
        texts_clear(field(config, desc));
    } else if (desc->type == RELAYD_TYPE_TEXT || desc->type == RELAYD_TYPE_CHOICE) {
        char **slot = field(config, desc);
        free(*slot);
        *slot = NULL;
    }
}
