#include "args.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TARGET_DEFAULT "unix:///run/relayd/relayd.sock"
/* Largest error in units of max(1, |expected|). K/V and q are the same bits on both sides; what is
 * left is float32 accumulation over a few hundred tokens against float64: a few 1e-6 seen. */
#define TOLERANCE_DEFAULT 2e-5

#define ALL    (~0u)
#define BIT(c) (1u << RELAY_CLI_##c)
#define PROMPT (BIT(GET) | BIT(UPDATE) | BIT(UNREGISTER))

/* name, argument or NULL, commands that take it, help */
#define OPTIONS(X)                                                                                 \
    X(target, "TARGET", ALL, "unix:///path or host:port; else RELAY_TARGET, else " TARGET_DEFAULT) \
    X(timeout_ms, "MS", ALL, "of one call (30000)")                                                \
    X(json, NULL, ALL, "one JSON object; the default when output is no terminal")                  \
    X(text, NULL, ALL, "tables; the default on a terminal")                                        \
    X(help, NULL, ALL, "this text")                                                                \
    X(model_key, "KEY", BIT(REGISTER) | BIT(LIST) | BIT(ATTEND) | PROMPT,                          \
      "whose weights made the K/V; compared, never parsed (list: all without it)")                 \
    X(id, "ID", BIT(REGISTER) | BIT(ATTEND), "prompt id, [A-Za-z0-9._:/@#+-]{1,128}")              \
    X(variant, "TEXT", BIT(REGISTER) | BIT(ATTEND),                                                \
      "adapter, image hashes; must be equal on both")                                              \
    X(prefix, "TEXT", BIT(LIST), "only ids that begin with it")                                    \
    X(generation, "N", PROMPT, "that very generation (any: newest)")                               \
    X(content_key, "HEX", BIT(REGISTER), "hash of model, variant and token ids")                   \
    X(on_exists, "HOW", BIT(REGISTER), "fail (when it differs; the default), keep or replace")     \
    X(pin, NULL, BIT(REGISTER) | BIT(UPDATE), "it never goes by idleness or eviction")             \
    X(unpin, NULL, BIT(UPDATE), "it may go again")                                                 \
    X(idle_ttl_ms, "MS", BIT(REGISTER) | BIT(UPDATE), "without use until it goes (0: server's)")   \
    X(touch, NULL, BIT(UPDATE), "counts as a use")                                                 \
    X(label, "KEY=VALUE", BIT(REGISTER), "a note on the prompt; may be given again")               \
    X(sharing, "HOW", BIT(ATTEND) | BIT(BENCH),                                                    \
      "auto, always or never read a prompt once a batch (attend: auto; bench: auto and never)")    \
    X(batch, "N", BIT(ATTEND) | BIT(BENCH),                                                        \
      "requests at once (attend: as recorded, repeated to fill it; bench: of a session, 64)")      \
    X(measure, "N", BIT(ATTEND), "then time relay against plain, N interleaved rounds")            \
    X(out_tolerance, "X", BIT(ATTEND), "largest error of out, relative above 1 (2e-5)")            \
    X(lse_tolerance, "X", BIT(ATTEND), "the same for LSE (2e-5)")                                  \
    X(heads, "Q/KV", BIT(BENCH), "query and KV heads (32/8)")                                      \
    X(head_dim, "D", BIT(BENCH), "elements of a head (128)")                                       \
    X(prompt, "S", BIT(BENCH), "tokens of the prompt (2048)")                                      \
    X(context, "C", BIT(BENCH), "tokens of each request's own (128)")                              \
    X(layers, "L", BIT(BENCH), "layers of a step (8)")                                             \
    X(sessions, "N", BIT(BENCH), "engines, each with a thread and a connection (2)")               \
    X(dtype, "TYPE", BIT(BENCH), "f32, f16 or bf16 (the default), of all tensors")                 \
    X(steps, "N", BIT(BENCH), "of each session and each kind of sharing (50)")                     \
    X(align_us, "US", BIT(BENCH), "how long a layer may wait for other sessions (0)")              \
    X(once, NULL, BIT(TOP), "one look, then end")                                                  \
    X(interval_ms, "MS", BIT(TOP), "between looks (1000)")

enum option_id {
#define OPTION_ENUM(name, arg, commands, help) OPTION_##name,
    OPTIONS(OPTION_ENUM)
#undef OPTION_ENUM
        NUM_OPTIONS
};

static const struct {
    const char *name, *arg;
    unsigned commands;
    const char *help;
} options[NUM_OPTIONS] = {
#define OPTION_ROW(name, arg, commands, help) {#name, arg, commands, help},
    OPTIONS(OPTION_ROW)
#undef OPTION_ROW
};

static const struct {
    const char *word, *operand, *help;
} commands[RELAY_CLI_NUM_COMMANDS] = {
#define COMMAND_ROW(name, word, operand, help) {word, operand, help},
    RELAY_CLI_COMMANDS(COMMAND_ROW)
#undef COMMAND_ROW
};

/* --like-this for like_this. */
static const char *flag(const char *name, char *out, size_t bytes)
{
    snprintf(out, bytes, "%s", name);
    for (char *at = out; *at != '\0'; at++) {
        *at = *at == '_' ? '-' : *at;
    }
    return out;
}

static void print_options(FILE *to, unsigned command)
{
    for (int i = 0; i < NUM_OPTIONS; i++) {
        char name[64], left[96];
        if ((options[i].commands & command) == 0) {
            continue;
        }
        snprintf(left, sizeof(left), "--%s%s%s", flag(options[i].name, name, sizeof(name)),
                 options[i].arg != NULL ? " " : "", options[i].arg != NULL ? options[i].arg : "");
        fprintf(to, "  %-22s %s\n", left, options[i].help);
    }
}

static void print_help(FILE *to)
{
    fprintf(to, "relayctl: the command line of relayd\n\n"
                "usage: relayctl COMMAND [OPTIONS]\n\n");
    for (int i = 0; i < RELAY_CLI_NUM_COMMANDS; i++) {
        fprintf(to, "  %-10s %-5s %s\n", commands[i].word, commands[i].operand, commands[i].help);
    }
    fprintf(to, "\nrelayctl COMMAND --help tells a command's options.\n"
                "exit code: 0 done, 1 error, 2 wrong usage, 3 results differ (attend)\n");
}

static void print_command_help(FILE *to, enum relay_cli_command command)
{
    fprintf(to, "relayctl %s: %s\n\nusage: relayctl %s%s%s [OPTIONS]\n\n", commands[command].word,
            commands[command].help, commands[command].word,
            commands[command].operand[0] != '\0' ? " " : "", commands[command].operand);
    print_options(to, 1u << command);
}

static bool parse_u64(const char *s, uint64_t max, uint64_t *out)
{
    char *end = NULL;
    errno = 0;
    const unsigned long long value = strtoull(s, &end, 0);
    if (s[0] < '0' || s[0] > '9' || *end != '\0' || errno != 0 || value > max) {
        return false;
    }
    *out = value;
    return true;
}

static bool parse_u32(const char *s, uint32_t *out)
{
    uint64_t value;
    if (!parse_u64(s, UINT32_MAX, &value)) {
        return false;
    }
    *out = (uint32_t)value;
    return true;
}

static bool parse_tolerance(const char *s, double *out)
{
    char *end = NULL;
    const double value = strtod(s, &end);
    if (end == s || *end != '\0' || !(value >= 0)) {
        return false;
    }
    *out = value;
    return true;
}

static bool parse_positive(const char *s, uint32_t *out)
{
    return parse_u32(s, out) && *out > 0;
}

/* "32/8". */
static bool parse_heads(char *s, uint32_t *q_heads, uint32_t *kv_heads)
{
    char *slash = strchr(s, '/');
    if (slash == NULL) {
        return false;
    }
    *slash = '\0';
    return parse_positive(s, q_heads) && parse_positive(slash + 1, kv_heads) &&
           *q_heads % *kv_heads == 0;
}

static bool parse_word(const char *s, const char *const *words, int n, int *out)
{
    for (int i = 0; i < n; i++) {
        if (strcmp(s, words[i]) == 0) {
            *out = i;
            return true;
        }
    }
    return false;
}

static bool parse_hex(const char *s, uint8_t *out, size_t max, uint32_t *bytes)
{
    const size_t n = strlen(s);
    if (n == 0 || n % 2 != 0 || n / 2 > max || strspn(s, "0123456789abcdefABCDEF") != n) {
        return false;
    }
    for (size_t i = 0; i < n / 2; i++) {
        const char pair[3] = {s[2 * i], s[2 * i + 1], '\0'};
        out[i] = (uint8_t)strtoul(pair, NULL, 16);
    }
    *bytes = (uint32_t)(n / 2);
    return true;
}

/* "key=value", cut in place. */
static bool parse_label(char *s, struct relay_cli_args *args)
{
    char *equals = strchr(s, '=');
    if (equals == NULL || equals == s || args->num_labels == RELAY_CLI_LABELS_MAX) {
        return false;
    }
    *equals = '\0';
    args->labels[args->num_labels++] = (struct relay_label){s, equals + 1};
    return true;
}

static bool take_bench_option(enum option_id id, char *value, struct relay_cli_args *args)
{
    static const char *const dtypes[] = {"f32", "f16", "bf16"};
    int word = 0;
    bool ok = false;
    switch ((int)id) {
    case OPTION_heads:
        return parse_heads(value, &args->q_heads, &args->kv_heads);
    case OPTION_head_dim:
        return parse_positive(value, &args->head_dim);
    case OPTION_prompt:
        return parse_positive(value, &args->prompt_tokens);
    case OPTION_context:
        return parse_u32(value, &args->context_tokens);
    case OPTION_layers:
        return parse_positive(value, &args->layers);
    case OPTION_sessions:
        return parse_positive(value, &args->sessions) && args->sessions <= RELAY_CLI_SESSIONS_MAX;
    case OPTION_steps:
        return parse_positive(value, &args->steps) && args->steps <= RELAY_CLI_STEPS_MAX;
    case OPTION_align_us:
        return parse_u32(value, &args->align_us);
    case OPTION_dtype:
        ok = parse_word(value, dtypes, 3, &word);
        args->dtype = (enum relay_dtype)(word + 1);
        break;
    default:
        break;
    }
    return ok;
}

static bool take_option(enum option_id id, char *value, struct relay_cli_args *args)
{
    static const char *const how_exists[] = {"fail", "keep", "replace"};
    static const char *const how_shared[] = {"auto", "always", "never"};
    int word = 0;
    bool ok = true;
    switch (id) {
    case OPTION_target:
        args->target = value;
        break;
    case OPTION_timeout_ms:
        return parse_u32(value, &args->timeout_ms) && args->timeout_ms > 0;
    case OPTION_json:
        args->json = true;
        break;
    case OPTION_text:
        args->json = false;
        break;
    case OPTION_model_key:
        args->model_key = value;
        break;
    case OPTION_id:
        args->prompt_id = value;
        break;
    case OPTION_variant:
        args->variant = value;
        break;
    case OPTION_prefix:
        args->prefix = value;
        break;
    case OPTION_generation:
        return parse_u64(value, UINT64_MAX, &args->generation);
    case OPTION_content_key:
        return parse_hex(value, args->content_key, sizeof(args->content_key),
                         &args->content_key_bytes);
    case OPTION_on_exists:
        ok = parse_word(value, how_exists, 3, &word);
        args->on_exists = (enum relay_on_exists)word;
        break;
    case OPTION_pin:
        args->pin = true;
        break;
    case OPTION_unpin:
        args->unpin = true;
        break;
    case OPTION_idle_ttl_ms:
        args->has_idle_ttl = true;
        return parse_u64(value, UINT64_MAX, &args->idle_ttl_ms);
    case OPTION_touch:
        args->touch = true;
        break;
    case OPTION_label:
        return parse_label(value, args);
    case OPTION_sharing:
        ok = parse_word(value, how_shared, 3, &word);
        args->sharing = (enum relay_sharing)word;
        args->both = false;
        break;
    case OPTION_batch:
        return parse_u32(value, &args->batch) && args->batch > 0;
    case OPTION_measure:
        return parse_u32(value, &args->measure);
    case OPTION_out_tolerance:
        return parse_tolerance(value, &args->out_tolerance);
    case OPTION_lse_tolerance:
        return parse_tolerance(value, &args->lse_tolerance);
    case OPTION_once:
        args->once = true;
        break;
    case OPTION_interval_ms:
        return parse_positive(value, &args->interval_ms);
    case OPTION_help:
    case NUM_OPTIONS:
        break;
    default:
        return take_bench_option(id, value, args);
    }
    return ok;
}

static bool usage(const struct relay_cli_args *args, int *exit_code)
{
    fprintf(stderr, "relayctl %s --help tells more\n", commands[args->command].word);
    *exit_code = RELAY_CLI_EXIT_USAGE;
    return false;
}

/* What a command cannot do without. */
static bool check_needed(const struct relay_cli_args *args, int *exit_code)
{
    const char *missing = NULL;
    const unsigned bit = 1u << args->command;
    if (commands[args->command].operand[0] != '\0' && args->operand == NULL) {
        missing = commands[args->command].operand;
    } else if ((bit & (BIT(REGISTER) | BIT(ATTEND) | PROMPT)) != 0 && args->model_key == NULL) {
        missing = "--model-key";
    } else if ((bit & (BIT(REGISTER) | BIT(ATTEND))) != 0 && args->prompt_id == NULL) {
        missing = "--id";
    } else if (args->command == RELAY_CLI_UPDATE && !args->pin && !args->unpin && !args->touch &&
               !args->has_idle_ttl) {
        missing = "something to change";
    }
    if (missing == NULL && args->pin && args->unpin) {
        fprintf(stderr, "relayctl: --pin and --unpin exclude each other\n");
        return usage(args, exit_code);
    }
    if (missing != NULL) {
        fprintf(stderr, "relayctl: %s: %s is missing\n", commands[args->command].word, missing);
        return usage(args, exit_code);
    }
    return true;
}

/* Where the command is: the first word that is neither an option nor an option's value. */
static int find_command(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        if (argv[i][0] != '-') {
            return i;
        }
        for (int o = 0; o < NUM_OPTIONS; o++) {
            char name[64];
            if (options[o].arg != NULL && strncmp(argv[i], "--", 2) == 0 &&
                strcmp(argv[i] + 2, flag(options[o].name, name, sizeof(name))) == 0) {
                i++;
                break;
            }
        }
    }
    return argc;
}

/* Finds the command and takes it out of argv. */
static bool parse_command(int argc, char **argv, struct relay_cli_args *args, int *exit_code)
{
    const int at = find_command(argc, argv);
    const char *word = at < argc ? argv[at] : "";
    bool help = strcmp(word, "help") == 0;
    for (int i = 1; i < argc && at == argc; i++) {
        help = help || strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0;
    }
    if (help) {
        print_help(stdout);
        *exit_code = RELAY_CLI_EXIT_OK;
        return false;
    }
    for (int i = 0; i < RELAY_CLI_NUM_COMMANDS; i++) {
        if (strcmp(word, commands[i].word) == 0) {
            args->command = (enum relay_cli_command)i;
            memmove(argv + at, argv + at + 1, (size_t)(argc - at) * sizeof(argv[0]));
            return true;
        }
    }
    if (at < argc) {
        fprintf(stderr, "relayctl: no command \"%s\"\n", word);
    }
    print_help(stderr);
    *exit_code = RELAY_CLI_EXIT_USAGE;
    return false;
}

static void set_defaults(struct relay_cli_args *args)
{
    const char *target = getenv("RELAY_TARGET");
    *args = (struct relay_cli_args){
        .target = target != NULL && target[0] != '\0' ? target : TARGET_DEFAULT,
        .timeout_ms = 30000,
        .json = !isatty(STDOUT_FILENO),
        .out_tolerance = TOLERANCE_DEFAULT,
        .lse_tolerance = TOLERANCE_DEFAULT,
        .both = true,
        .q_heads = 32,
        .kv_heads = 8,
        .head_dim = 128,
        .prompt_tokens = 2048,
        .context_tokens = 128,
        .layers = 8,
        .sessions = 2,
        .steps = 50,
        .dtype = RELAY_DTYPE_BF16,
        .interval_ms = 1000,
    };
}

bool relay_cli_args_parse(int argc, char **argv, struct relay_cli_args *args, int *exit_code)
{
    struct option longs[NUM_OPTIONS + 1];
    char names[NUM_OPTIONS][64];
    set_defaults(args);
    if (!parse_command(argc, argv, args, exit_code)) {
        return false;
    }
    argc--;
    memset(longs, 0, sizeof(longs));
    int n = 0;
    for (int i = 0; i < NUM_OPTIONS; i++) {
        if ((options[i].commands & (1u << args->command)) != 0) {
            longs[n++] = (struct option){flag(options[i].name, names[i], sizeof(names[i])),
                                         options[i].arg != NULL ? required_argument : no_argument,
                                         NULL, 256 + i};
        }
    }
    optind = 1;
    for (int got; (got = getopt_long(argc, argv, "h", longs, NULL)) != -1;) {
        if (got == 'h' || got == 256 + OPTION_help) {
            print_command_help(stdout, args->command);
            *exit_code = RELAY_CLI_EXIT_OK;
            return false;
        }
        if (got < 256) {
            return usage(args, exit_code);
        }
        if (!take_option((enum option_id)(got - 256), optarg, args)) {
            fprintf(stderr, "relayctl: --%s cannot be \"%s\"\n", names[got - 256], optarg);
            return usage(args, exit_code);
        }
    }
    char **rest = argv + optind;
    const int num_rest = argc - optind;
    if (num_rest > (commands[args->command].operand[0] != '\0' ? 1 : 0)) {
        fprintf(stderr, "relayctl: what is \"%s\"?\n", rest[num_rest - 1]);
        return usage(args, exit_code);
    }
    args->operand = num_rest > 0 ? rest[0] : NULL;
    return check_needed(args, exit_code);
}
