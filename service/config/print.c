/* The option list as text: --help, OPTIONS.md, --print-config. Writes to the stream it is given. */
#include "service/config/config_internal.h"

#include <string.h>

static const char *const source_names[] = {"default", "file", "environment", "flag"};

static const char *type_text(const struct relayd_option_desc *desc)
{
    switch (desc->type) {
    case RELAYD_TYPE_BOOL:
        return "true|false";
    case RELAYD_TYPE_U32:
        return "N";
    case RELAYD_TYPE_BYTES:
        return "BYTES";
    case RELAYD_TYPE_MS:
        return "TIME";
    case RELAYD_TYPE_TEXT:
        return "TEXT";
    case RELAYD_TYPE_CHOICE:
        return desc->choices;
    case RELAYD_TYPE_LIST:
        return "TEXT,...";
    }
    return "";
}

void relayd_config_help(FILE *out)
{
    fputs("relayd: attention over shared prompts, as a service\n"
          "\n"
          "Usage: relayd [--OPTION VALUE | --OPTION=VALUE]...\n"
          "\n"
          "Each option is a flag, a variable RELAYD_OPTION of the environment, or a line\n"
          "option = value of a file; the first of these that has it wins. BYTES takes K, M, G;\n"
          "TIME takes ms (also without a unit), s, m, h, d.\n"
          "\n"
          "  --config FILE            read options from FILE (or from RELAYD_CONFIG)\n"
          "  --print-config           print the effective options as such a file, and exit\n"
          "  --help, -h               this text\n"
          "  --help-markdown          this text as a document\n"
          "  --version                print the version, and exit\n",
          out);
    for (size_t s = 0; s < relayd_num_sections; s++) {
        fprintf(out, "\n%s [%s]\n", relayd_section_table[s].title, relayd_section_table[s].name);
        for (size_t i = 0; i < RELAYD_NUM_OPTIONS; i++) {
            const struct relayd_option_desc *desc = &relayd_option_table[i];
            char flag[96];
            if (strcmp(desc->section, relayd_section_table[s].name) != 0) {
                continue;
            }
            relayd_option_flag(desc, flag, sizeof(flag));
            fprintf(out, "  %s %s\n      %s\n      default: %s\n", flag, type_text(desc),
                    desc->help, desc->def);
        }
    }
    fputs(
        "\nExit codes: 0 drained, 64 bad options, 69 an address or the backend is not to be had,\n"
        "70 the backend broke, 71 out of resources, 128 + N ended at once by a second signal N.\n",
        out);
}

/* A '|' would end a table's cell. */
static void put_cell(FILE *out, const char *text)
{
    for (; *text != '\0'; text++) {
        if (*text == '|') {
            fputc('\\', out);
        }
        fputc(*text, out);
    }
}

void relayd_config_help_markdown(FILE *out)
{
    fputs(
        "# Options of relayd\n"
        "\n"
        "Written by `relayd --help-markdown` from `options.def`; do not edit.\n"
        "Precedence: flag > environment > file (`--config FILE`) > default. BYTES takes K, M, G;\n"
        "TIME takes ms (also without a unit), s, m, h, d.\n",
        out);
    for (size_t s = 0; s < relayd_num_sections; s++) {
        fprintf(out, "\n## %s: `[%s]`\n\n", relayd_section_table[s].title,
                relayd_section_table[s].name);
        fputs("| flag | environment | value | default | what |\n|---|---|---|---|---|\n", out);
        for (size_t i = 0; i < RELAYD_NUM_OPTIONS; i++) {
            const struct relayd_option_desc *desc = &relayd_option_table[i];
            char flag[96], env[96];
            if (strcmp(desc->section, relayd_section_table[s].name) != 0) {
                continue;
            }
            relayd_option_flag(desc, flag, sizeof(flag));
            relayd_option_env(desc, env, sizeof(env));
            fprintf(out, "| `%s` | `%s` | ", flag, env);
            put_cell(out, type_text(desc));
            fprintf(out, " | `%s` | ", desc->def);
            put_cell(out, desc->help);
            fputs(" |\n", out);
        }
    }
}

void relayd_config_print(const struct relayd_config *config, FILE *out)
{
    for (size_t s = 0; s < relayd_num_sections; s++) {
        fprintf(out, "%s[%s]\n", s > 0 ? "\n" : "", relayd_section_table[s].name);
        for (size_t i = 0; i < RELAYD_NUM_OPTIONS; i++) {
            const struct relayd_option_desc *desc = &relayd_option_table[i];
            if (strcmp(desc->section, relayd_section_table[s].name) != 0) {
                continue;
            }
            uint32_t lines = relayd_value_lines(config, desc);
            for (uint32_t line = 0; line < lines; line++) {
                fprintf(out, "%s = ", desc->name);
                relayd_value_print(config, desc, line, out);
                fprintf(out, " ; %s\n", source_names[config->source[i]]);
            }
        }
    }
}
