/* The option table and the reading and writing of single values, for the files of this room.
 * Pure but for allocation of texts; not thread-safe on one config. */
#ifndef RELAYD_CONFIG_INTERNAL_H
#define RELAYD_CONFIG_INTERNAL_H

#include "service/config/config.h"

#include <stddef.h>

enum relayd_option_type {
    RELAYD_TYPE_BOOL,
    RELAYD_TYPE_U32,
    RELAYD_TYPE_BYTES,
    RELAYD_TYPE_MS,
    RELAYD_TYPE_TEXT,
    RELAYD_TYPE_CHOICE,
    RELAYD_TYPE_LIST,
};

struct relayd_option_desc {
    enum relayd_option_type type;
    const char *section;
    const char *name;
    const char *def;
    uint64_t min, max;
    const char *choices; /* "a|b", CHOICE only */
    const char *help;
    size_t offset; /* in struct relayd_config */
};

struct relayd_section_desc {
    const char *name, *title;
};

extern const struct relayd_option_desc relayd_option_table[RELAYD_NUM_OPTIONS];
extern const struct relayd_section_desc relayd_section_table[];
extern const size_t relayd_num_sections;

/* The option of this name, or NULL. dash stands for '_' in the text: '-' for flags, '_' in files.
 */
const struct relayd_option_desc *relayd_option_find(const char *text, size_t bytes, char dash);
/* Writes "--name-of-option" or "RELAYD_NAME_OF_OPTION"; cut to out_bytes, NUL-terminated. */
void relayd_option_flag(const struct relayd_option_desc *desc, char *out, size_t out_bytes);
void relayd_option_env(const struct relayd_option_desc *desc, char *out, size_t out_bytes);

/* Reads one value into its field. append: a list keeps what it has. where ("flag --listen") begins
 * the message. INVALID_ARGUMENT, RESOURCE_EXHAUSTED. The field is unchanged on failure. */
RELAY_MUST_CHECK enum relay_code relayd_value_set(struct relayd_config *config,
                                                  const struct relayd_option_desc *desc,
                                                  const char *text, bool append, const char *where,
                                                  struct relay_error *err);
/* A value's text is a line, a list's one line an element; each as relayd_value_set would read it.
 */
uint32_t relayd_value_lines(const struct relayd_config *config,
                            const struct relayd_option_desc *desc);
void relayd_value_print(const struct relayd_config *config, const struct relayd_option_desc *desc,
                        uint32_t line, FILE *out);
void relayd_value_clear(struct relayd_config *config, const struct relayd_option_desc *desc);

/* A value from a source that can give an option more than once: lists grow within a source and
 * start over with the next. */
RELAY_MUST_CHECK enum relay_code relayd_config_take(struct relayd_config *config,
                                                    const struct relayd_option_desc *desc,
                                                    const char *text,
                                                    enum relayd_config_source source,
                                                    const char *where, struct relay_error *err);

RELAY_MUST_CHECK enum relay_code relayd_config_read_file(struct relayd_config *config,
                                                         const char *path, struct relay_error *err);

#endif
