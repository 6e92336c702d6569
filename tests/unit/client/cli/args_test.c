/* relayctl's command line: commands, options before and after them, and what is refused. */
#include "testlib/check.h"

#include "client/cli/args.h"

#define ARGS_MAX 32

/* Words separated by blanks. True: *args is filled; the words live until the next call. */
static bool parse(const char *line, struct relay_cli_args *args, int *exit_code)
{
    static char text[512], name[] = "relayctl";
    char *argv[ARGS_MAX + 1] = {name}, *rest = text;
    int argc = 1;
    snprintf(text, sizeof(text), "%s", line);
    while (rest != NULL && rest[0] != '\0' && argc < ARGS_MAX) {
        argv[argc++] = strsep(&rest, " ");
    }
    argv[argc] = NULL;
    *exit_code = -1;
    return relay_cli_args_parse(argc, argv, args, exit_code);
}

static void test_args_anywhere(void)
{
    static const char *const lines[] = {
        "--target h:1 register --id p --model-key m file --pin --label a=b",
        "register file --label=a=b --target=h:1 --model-key m --pin --id p",
        "--pin --label a=b --id p --model-key m --target h:1 register file",
    };
    for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
        struct relay_cli_args args;
        int exit_code;
        CHECK(parse(lines[i], &args, &exit_code));
        CHECK_EQ(args.command, RELAY_CLI_REGISTER);
        CHECK_STR(args.target, "h:1");
        CHECK_STR(args.operand, "file");
        CHECK_STR(args.prompt_id, "p");
        CHECK_STR(args.model_key, "m");
        CHECK(args.pin);
        CHECK_EQ(args.num_labels, 1);
        CHECK_STR(args.labels[0].key, "a");
        CHECK_STR(args.labels[0].value, "b");
    }
}

static void test_args_values(void)
{
    struct relay_cli_args args;
    int exit_code;
    CHECK(parse("attend f --id p --model-key m --sharing never --batch 32 --measure 7 "
                "--out-tolerance 1e-3 --lse-tolerance 0 --timeout-ms 5 --text",
                &args, &exit_code));
    CHECK_EQ(args.sharing, RELAY_SHARING_NEVER);
    CHECK_EQ(args.batch, 32);
    CHECK_EQ(args.measure, 7);
    CHECK(args.out_tolerance == 1e-3 && args.lse_tolerance == 0.0);
    CHECK_EQ(args.timeout_ms, 5);
    CHECK(!args.json);
    CHECK(parse("register f --id p --model-key m --on-exists replace --content-key 0aFF --json "
                "--idle-ttl-ms 9 --variant v",
                &args, &exit_code));
    CHECK_EQ(args.on_exists, RELAY_ON_EXISTS_REPLACE);
    CHECK_EQ(args.content_key_bytes, 2);
    CHECK_EQ(args.content_key[1], 0xff);
    CHECK(args.json && args.has_idle_ttl);
    CHECK_EQ(args.idle_ttl_ms, 9);
    CHECK(parse("get p --model-key m --generation 0x10", &args, &exit_code));
    CHECK_EQ(args.generation, 16);
}

static void test_args_of_a_bench(void)
{
    struct relay_cli_args args;
    int exit_code;
    CHECK(parse("bench", &args, &exit_code));
    CHECK_EQ(args.command, RELAY_CLI_BENCH);
    CHECK(args.both);
    CHECK(args.q_heads == 32 && args.kv_heads == 8 && args.head_dim == 128);
    CHECK_EQ(args.dtype, RELAY_DTYPE_BF16);
    CHECK(parse("bench --heads 4/2 --head-dim 64 --batch 3 --prompt 300 --context 0 --layers 2 "
                "--steps 4 --sessions 5 --dtype f16 --sharing never --align-us 7",
                &args, &exit_code));
    CHECK(!args.both);
    CHECK_EQ(args.sharing, RELAY_SHARING_NEVER);
    CHECK(args.q_heads == 4 && args.kv_heads == 2 && args.head_dim == 64 && args.batch == 3);
    CHECK(args.prompt_tokens == 300 && args.context_tokens == 0 && args.layers == 2);
    CHECK(args.steps == 4 && args.sessions == 5 && args.align_us == 7);
    CHECK_EQ(args.dtype, RELAY_DTYPE_F16);
    CHECK(parse("top --once --interval-ms 50", &args, &exit_code));
    CHECK(args.once && args.interval_ms == 50);
}

static void test_args_usage_errors(void)
{
    static const char *const lines[] = {
        "",
        "frobnicate",
        "info extra",
        "info --model-key m",
        "register f --id p",
        "register f --model-key m",
        "register --id p --model-key m",
        "get --model-key m",
        "get p q --model-key m",
        "update p --model-key m",
        "update p --model-key m --pin --unpin",
        "get p --model-key m --generation -1",
        "get p --model-key m --generation 1x",
        "register f --id p --model-key m --on-exists maybe",
        "register f --id p --model-key m --content-key abc",
        "register f --id p --model-key m --label =v",
        "attend f --id p --model-key m --batch 0",
        "attend f --id p --model-key m --sharing sometimes",
        "attend f --id p --model-key m --out-tolerance nan",
        "bench --heads 32",
        "bench --heads 30/8",
        "bench --heads 8/0",
        "bench --dtype f8",
        "bench --sessions 0",
        "bench --sessions 257",
        "bench --steps 0",
        "bench --once",
        "top --interval-ms 0",
        "top --steps 3",
        "info --timeout-ms 0",
        "info --target",
        "info --nonsense",
    };
    for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
        struct relay_cli_args args;
        int exit_code;
        if (parse(lines[i], &args, &exit_code) || exit_code != RELAY_CLI_EXIT_USAGE) {
            CHECK_FAIL("taken: \"%s\"", lines[i]);
        }
    }
}

static void test_args_help(void)
{
    static const char *const lines[] = {"--help", "-h", "help", "attend --help", "list -h"};
    for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
        struct relay_cli_args args;
        int exit_code;
        CHECK(!parse(lines[i], &args, &exit_code));
        CHECK_EQ(exit_code, RELAY_CLI_EXIT_OK);
    }
}

int main(void)
{
    CHECK_RUN(test_args_anywhere);
    CHECK_RUN(test_args_values);
    CHECK_RUN(test_args_of_a_bench);
    CHECK_RUN(test_args_usage_errors);
    CHECK_RUN(test_args_help);
    return check_done();
}
