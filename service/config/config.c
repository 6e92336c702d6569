/* Puts the sources of options together and checks what no single option can. Not thread-safe. */
#include "service/config/config_internal.h"

#include <inttypes.h>
#include <string.h>

#define ENV_PREFIX "RELAYD_"
/* What an uploaded chunk's message needs besides its tensors. */
#define MESSAGE_HEAD_BYTES 65536u

enum relay_code relayd_config_take(struct relayd_config *config,
                                   const struct relayd_option_desc *desc, const char *text,
                                   enum relayd_config_source source, const char *where,
                                   struct relay_error *err)
{
    uint8_t *from = &config->source[desc - relayd_option_table];
    enum relay_code code = relayd_value_set(config, desc, text, *from == source, where, err);
    if (code == RELAY_OK) {
        *from = (uint8_t)source;
    }
    return code;
}

static enum relay_code set_defaults(struct relayd_config *config, struct relay_error *err)
{
    for (size_t i = 0; i < RELAYD_NUM_OPTIONS; i++) {
        const struct relayd_option_desc *desc = &relayd_option_table[i];
        enum relay_code code = relayd_value_set(config, desc, desc->def, false, desc->name, err);
        if (code != RELAY_OK) {
            return code;
        }
    }
    return RELAY_OK;
}

/* ---- environment ---- */

/* Kubernetes gives every container variables for every service of its namespace; a service called
 * relayd or relayd-something makes names that begin as ours do. */
static bool is_service_link(const char *name, size_t bytes)
{
    char copy[256];
    if (bytes >= sizeof(copy)) {
        return false;
    }
    memcpy(copy, name, bytes);
    copy[bytes] = '\0';
    return strstr(copy, "_SERVICE_HOST") != NULL || strstr(copy, "_SERVICE_PORT") != NULL ||
           strstr(copy, "_PORT_") != NULL ||
           (bytes >= 5 && memcmp(copy + bytes - 5, "_PORT", 5) == 0);
}

static const struct relayd_option_desc *find_env(const char *name, size_t bytes)
{
    char env[96];
    for (size_t i = 0; i < RELAYD_NUM_OPTIONS; i++) {
        relayd_option_env(&relayd_option_table[i], env, sizeof(env));
        if (strlen(env) == bytes && memcmp(env, name, bytes) == 0) {
            return &relayd_option_table[i];
        }
    }
    return NULL;
}

static enum relay_code read_environment(struct relayd_config *config, const char *const *envp,
                                        struct relay_error *err)
{
    for (; *envp != NULL; envp++) {
        const char *equals = strchr(*envp, '=');
        if (equals == NULL || strncmp(*envp, ENV_PREFIX, strlen(ENV_PREFIX)) != 0) {
            continue;
        }
        size_t bytes = (size_t)(equals - *envp);
        if (bytes == strlen("RELAYD_CONFIG") && strncmp(*envp, "RELAYD_CONFIG", bytes) == 0) {
            continue;
        }
        const struct relayd_option_desc *desc = find_env(*envp, bytes);
        if (desc == NULL) {
            if (is_service_link(*envp, bytes)) {
                continue;
            }
            return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "environment %.*s: no such option",
                              (int)(bytes < 64 ? bytes : 64), *envp);
        }
        char where[128];
        snprintf(where, sizeof(where), "environment %.*s", (int)bytes, *envp);
        enum relay_code code =
            relayd_config_take(config, desc, equals + 1, RELAYD_CONFIG_ENVIRONMENT, where, err);
        if (code != RELAY_OK) {
            return code;
        }
    }
    return RELAY_OK;
}

/* ---- flags ---- */

/* One argument, taken apart. */
struct flag {
    const struct relayd_option_desc *desc; /* or NULL: --config */
    const char *value;
    int args; /* how many of argv it is */
};

static bool flag_is(const char *arg, size_t bytes, const char *name)
{
    return strlen(name) == bytes && memcmp(arg, name, bytes) == 0;
}

static enum relay_code split_flag(int argc, const char *const *argv, int i, struct flag *out,
                                  struct relay_error *err)
{
    const char *arg = argv[i];
    const char *equals = strchr(arg, '=');
    size_t bytes = equals != NULL ? (size_t)(equals - arg) : strlen(arg);
    bool is_config = flag_is(arg, bytes, "--config");

    *out = (struct flag){.value = equals != NULL ? equals + 1 : NULL, .args = 1};
    if (bytes > 2 && strncmp(arg, "--", 2) == 0) {
        out->desc = relayd_option_find(arg + 2, bytes - 2, '-');
        if (out->desc == NULL && bytes > 5 && strncmp(arg, "--no-", 5) == 0 && equals == NULL) {
            out->desc = relayd_option_find(arg + 5, bytes - 5, '-');
            if (out->desc != NULL && out->desc->type == RELAYD_TYPE_BOOL) {
                out->value = "false";
                return RELAY_OK;
            }
            out->desc = NULL;
        }
    }
    if (out->desc == NULL && !is_config) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "%s %.*s: no such option (see --help)",
                          arg[0] == '-' ? "flag" : "argument", (int)(bytes < 64 ? bytes : 64), arg);
    }
    if (out->value == NULL && out->desc != NULL && out->desc->type == RELAYD_TYPE_BOOL) {
        out->value = "true";
    } else if (out->value == NULL) {
        if (i + 1 >= argc) {
            return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "flag %s: its value is missing", arg);
        }
        out->value = argv[i + 1];
        out->args = 2;
    }
    return RELAY_OK;
}

static bool find_action(const char *arg, enum relayd_config_action *action)
{
    static const struct {
        const char *flag;
        enum relayd_config_action action;
    } actions[] = {
        {"--help", RELAYD_CONFIG_HELP},
        {"-h", RELAYD_CONFIG_HELP},
        {"--help-markdown", RELAYD_CONFIG_HELP_MARKDOWN},
        {"--version", RELAYD_CONFIG_VERSION},
        {"--print-config", RELAYD_CONFIG_PRINT},
    };
    for (size_t i = 0; i < sizeof(actions) / sizeof(actions[0]); i++) {
        if (strcmp(arg, actions[i].flag) == 0) {
            *action = actions[i].action;
            return true;
        }
    }
    return false;
}

/* First pass (take = false): the action and the file's name. Second: the values. */
static enum relay_code read_flags(struct relayd_config *config, int argc, const char *const *argv,
                                  bool take, enum relayd_config_action *action, const char **file,
                                  struct relay_error *err)
{
    for (int i = 1; i < argc;) {
        struct flag flag;
        enum relayd_config_action asked;
        if (find_action(argv[i], &asked)) {
            *action = asked;
            if (asked != RELAYD_CONFIG_PRINT) {
                return RELAY_OK;
            }
            i++;
            continue;
        }
        enum relay_code code = split_flag(argc, argv, i, &flag, err);
        if (code == RELAY_OK && flag.desc == NULL) {
            *file = flag.value;
        } else if (code == RELAY_OK && take) {
            char name[96], where[128];
            relayd_option_flag(flag.desc, name, sizeof(name));
            snprintf(where, sizeof(where), "flag %s", name);
            code =
                relayd_config_take(config, flag.desc, flag.value, RELAYD_CONFIG_FLAG, where, err);
        }
        if (code != RELAY_OK) {
            return code;
        }
        i += flag.args;
    }
    return RELAY_OK;
}

/* ---- together ---- */

static enum relay_code check_pair(uint64_t small, const char *small_name, uint64_t large,
                                  const char *large_name, struct relay_error *err)
{
    if (small > large) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                          "%s (%" PRIu64 ") must not exceed %s (%" PRIu64 ")", small_name, small,
                          large_name, large);
    }
    return RELAY_OK;
}

static enum relay_code check_together(const struct relayd_config *c, struct relay_error *err)
{
    const struct {
        uint64_t small;
        const char *small_name;
        uint64_t large;
        const char *large_name;
    } pairs[] = {
        {c->session_lease_ms, "session_lease_ms", c->session_lease_max_ms, "session_lease_max_ms"},
        {c->response_bytes_max, "response_bytes_max", c->response_bytes_limit,
         "response_bytes_limit"},
        {c->call_rows_max, "call_rows_max", c->launch_rows_max, "launch_rows_max"},
        {c->chunk_bytes_max + MESSAGE_HEAD_BYTES, "chunk_bytes_max plus 64K", c->message_bytes_max,
         "message_bytes_max"},
    };
    for (size_t i = 0; i < sizeof(pairs) / sizeof(pairs[0]); i++) {
        enum relay_code code = check_pair(pairs[i].small, pairs[i].small_name, pairs[i].large,
                                          pairs[i].large_name, err);
        if (code != RELAY_OK) {
            return code;
        }
    }
    return RELAY_OK;
}

static const char *file_of_environment(const char *const *envp)
{
    for (; *envp != NULL; envp++) {
        if (strncmp(*envp, "RELAYD_CONFIG=", strlen("RELAYD_CONFIG=")) == 0) {
            return *envp + strlen("RELAYD_CONFIG=");
        }
    }
    return NULL;
}

enum relay_code relayd_config_init(struct relayd_config *config, int argc, const char *const *argv,
                                   const char *const *envp, enum relayd_config_action *action,
                                   struct relay_error *err)
{
    struct relayd_config fresh = {0};
    enum relayd_config_action asked = RELAYD_CONFIG_RUN;
    const char *file = NULL;

    enum relay_code code = set_defaults(&fresh, err);
    if (code == RELAY_OK) {
        code = read_flags(&fresh, argc, argv, false, &asked, &file, err);
    }
    if (code == RELAY_OK && (asked == RELAYD_CONFIG_RUN || asked == RELAYD_CONFIG_PRINT)) {
        file = file != NULL ? file : file_of_environment(envp);
        code = file != NULL ? relayd_config_read_file(&fresh, file, err) : RELAY_OK;
        if (code == RELAY_OK) {
            code = read_environment(&fresh, envp, err);
        }
        if (code == RELAY_OK) {
            code = read_flags(&fresh, argc, argv, true, &asked, &file, err);
        }
        if (code == RELAY_OK) {
            code = check_together(&fresh, err);
        }
    }
    if (code != RELAY_OK) {
        relayd_config_fini(&fresh);
        return code;
    }
    *config = fresh;
    *action = asked;
    return RELAY_OK;
}

void relayd_config_fini(struct relayd_config *config)
{
    for (size_t i = 0; i < RELAYD_NUM_OPTIONS; i++) {
        relayd_value_clear(config, &relayd_option_table[i]);
    }
}
