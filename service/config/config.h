/* relayd's options: one list (options.def), read from flags, environment and a file.
 *
 * Precedence: flag > environment > file > default. A list in a stronger source replaces the whole
 * list of a weaker one. Whatever is wrong (an unknown name, a bad or out-of-range value, a scalar
 * twice in a file) is INVALID_ARGUMENT naming the key and where it stood, also when a stronger
 * source overrides it. Not thread-safe: read once, at start. */
#ifndef RELAYD_CONFIG_CONFIG_H
#define RELAYD_CONFIG_CONFIG_H

#include <relay/status.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

struct relayd_texts {
    char **items; /* [n] */
    uint32_t n;
};

/* Where an option's value comes from. */
enum relayd_config_source {
    RELAYD_CONFIG_DEFAULT,
    RELAYD_CONFIG_FILE,
    RELAYD_CONFIG_ENVIRONMENT,
    RELAYD_CONFIG_FLAG,
};

enum relayd_option {
#define SECTION(name, title)
#define OPTION(type, section, name, def, min, max, choices, help) RELAYD_OPTION_##name,
#include "service/config/options.def"
#undef OPTION
#undef SECTION
    RELAYD_NUM_OPTIONS,
};

#define RELAYD_FIELD_BOOL   bool
#define RELAYD_FIELD_U32    uint32_t
#define RELAYD_FIELD_BYTES  uint64_t
#define RELAYD_FIELD_MS     uint64_t
#define RELAYD_FIELD_TEXT   char *
#define RELAYD_FIELD_CHOICE char *
#define RELAYD_FIELD_LIST   struct relayd_texts

/* A field an option; texts belong to the config. */
struct relayd_config {
#define SECTION(name, title)
#define OPTION(type, section, name, def, min, max, choices, help) RELAYD_FIELD_##type name;
#include "service/config/options.def"
#undef OPTION
#undef SECTION
    uint8_t source[RELAYD_NUM_OPTIONS]; /* enum relayd_config_source, by enum relayd_option */
};

/* What the command line asks for. */
enum relayd_config_action {
    RELAYD_CONFIG_RUN,
    RELAYD_CONFIG_HELP,          /* --help, -h */
    RELAYD_CONFIG_HELP_MARKDOWN, /* --help-markdown */
    RELAYD_CONFIG_VERSION,       /* --version */
    RELAYD_CONFIG_PRINT,         /* --print-config */
};

/* argv[0] is skipped; envp ends with NULL. The file is --config, else RELAYD_CONFIG, else none.
 * With HELP, HELP_MARKDOWN and VERSION the rest is not read and config holds the defaults.
 * config needs relayd_config_fini after success only. */
RELAY_MUST_CHECK enum relay_code relayd_config_init(struct relayd_config *config, int argc,
                                                    const char *const *argv,
                                                    const char *const *envp,
                                                    enum relayd_config_action *action,
                                                    struct relay_error *err);
/* A zeroed config is fine. */
void relayd_config_fini(struct relayd_config *config);

/* The --help text. */
void relayd_config_help(FILE *out);
/* OPTIONS.md, the same content as a document. */
void relayd_config_help_markdown(FILE *out);
/* The effective values as a file that --config takes, each with its source as a comment. */
void relayd_config_print(const struct relayd_config *config, FILE *out);

#endif
