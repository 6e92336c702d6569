/* relayctl's command line: one list of options, parsed once, the same for every command. */
#ifndef RELAY_CLI_ARGS_H
#define RELAY_CLI_ARGS_H

#include <relay/client.h>

/* Commands, as bits: an option says which ones take it. */
#define RELAY_CLI_COMMANDS(X)                                                                      \
    X(INFO, "info", "", "what the server is and holds")                                            \
    X(HEALTH, "health", "", "exit 0 when the server is serving, 1 when not")                       \
    X(REGISTER, "register", "FILE", "register the K/V of a prompt from a safetensors file")        \
    X(LIST, "list", "", "registered prompts")                                                      \
    X(GET, "get", "ID", "one prompt")                                                              \
    X(UPDATE, "update", "ID", "pin, unpin, change the idle time or touch a prompt")                \
    X(UNREGISTER, "unregister", "ID", "remove a prompt; requests on it finish")                    \
    X(ATTEND, "attend", "FILE", "run recorded decode steps on a prompt, check and time them")      \
    X(BENCH, "bench", "", "time decode steps of several sessions on one made-up prompt")           \
    X(TOP, "top", "", "watch the server: rates, memory, prompts")

enum relay_cli_command {
#define RELAY_CLI_COMMAND_ENUM(name, word, operand, help) RELAY_CLI_##name,
    RELAY_CLI_COMMANDS(RELAY_CLI_COMMAND_ENUM)
#undef RELAY_CLI_COMMAND_ENUM
        RELAY_CLI_NUM_COMMANDS
};

enum relay_cli_exit {
    RELAY_CLI_EXIT_OK = 0,
    RELAY_CLI_EXIT_ERROR = 1,
    RELAY_CLI_EXIT_USAGE = 2,
    RELAY_CLI_EXIT_MISMATCH = 3, /* attend: results differ from the expected ones */
};

#define RELAY_CLI_LABELS_MAX   64u
#define RELAY_CLI_SESSIONS_MAX 256u
#define RELAY_CLI_STEPS_MAX    1000000u

struct relay_cli_args {
    enum relay_cli_command command;
    const char *operand; /* FILE or ID, or NULL */
    const char *target;
    uint32_t timeout_ms;
    bool json;
    /* prompts */
    const char *model_key;
    const char *prompt_id;
    const char *variant;
    const char *prefix;
    uint64_t generation;
    uint8_t content_key[64];
    uint32_t content_key_bytes;
    enum relay_on_exists on_exists;
    bool pin, unpin, touch, has_idle_ttl;
    uint64_t idle_ttl_ms;
    struct relay_label labels[RELAY_CLI_LABELS_MAX];
    uint32_t num_labels;
    /* attend */
    enum relay_sharing sharing;
    uint32_t batch;   /* requests; 0 = attend: as many as recorded, bench: 64 */
    uint32_t measure; /* rounds of relay against plain; 0 = none */
    double out_tolerance, lse_tolerance;
    /* bench, and sharing and batch of above */
    bool both; /* relay and plain by turns */
    uint32_t q_heads, kv_heads, head_dim;
    uint32_t prompt_tokens, context_tokens;
    uint32_t layers, sessions, steps;
    uint32_t align_us;
    enum relay_dtype dtype;
    /* top */
    bool once;
    uint32_t interval_ms;
};

/* Fills *args from argv, which it reorders and which must outlive *args. False when the process
 * should end now, with *exit_code: help was asked for and printed, or usage was wrong and that is
 * printed. */
bool relay_cli_args_parse(int argc, char **argv, struct relay_cli_args *args, int *exit_code);

#endif
