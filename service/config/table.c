/* options.def as a table, and the names an option goes by. Pure; any thread. */
#include "service/config/config_internal.h"

#include <ctype.h>
#include <string.h>

const struct relayd_option_desc relayd_option_table[RELAYD_NUM_OPTIONS] = {
#define SECTION(name, title)
#define OPTION(type, section, name, def, min, max, choices, help)                                  \
    {RELAYD_TYPE_##type,                                                                           \
     #section,                                                                                     \
     #name,                                                                                        \
     def,                                                                                          \
     (uint64_t)(min),                                                                              \
     (uint64_t)(max),                                                                              \
     choices,                                                                                      \
     help,                                                                                         \
     offsetof(struct relayd_config, name)},
#include "service/config/options.def"
#undef OPTION
#undef SECTION
};

const struct relayd_section_desc relayd_section_table[] = {
#define SECTION(name, title) {#name, title},
#define OPTION(type, section, name, def, min, max, choices, help)
#include "service/config/options.def"
#undef OPTION
#undef SECTION
};
const size_t relayd_num_sections = sizeof(relayd_section_table) / sizeof(relayd_section_table[0]);

static bool same_name(const char *name, const char *text, size_t bytes, char dash)
{
    if (strlen(name) != bytes) {
        return false;
    }
    for (size_t i = 0; i < bytes; i++) {
        if (text[i] != (name[i] == '_' ? dash : name[i])) {
            return false;
        }
    }
    return true;
}

const struct relayd_option_desc *relayd_option_find(const char *text, size_t bytes, char dash)
{
    for (size_t i = 0; i < RELAYD_NUM_OPTIONS; i++) {
        if (same_name(relayd_option_table[i].name, text, bytes, dash)) {
            return &relayd_option_table[i];
        }
    }
    return NULL;
}

void relayd_option_flag(const struct relayd_option_desc *desc, char *out, size_t out_bytes)
{
    int used = snprintf(out, out_bytes, "--%s", desc->name);
    for (int i = 2; i < used && (size_t)i + 1 < out_bytes; i++) {
        out[i] = out[i] == '_' ? '-' : out[i];
    }
}

void relayd_option_env(const struct relayd_option_desc *desc, char *out, size_t out_bytes)
{
    int used = snprintf(out, out_bytes, "RELAYD_%s", desc->name);
    for (int i = 7; i < used && (size_t)i + 1 < out_bytes; i++) {
        out[i] = (char)toupper((unsigned char)out[i]);
    }
}
