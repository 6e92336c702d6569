/* relayctl: the command line of relayd, on librelay. One thread. */
#include "commands.h"
#include "output.h"

static int (*const runs[RELAY_CLI_NUM_COMMANDS])(struct relay_client *client,
                                                 const struct relay_cli_args *args) = {
    [RELAY_CLI_INFO] = relay_cli_info,
    [RELAY_CLI_HEALTH] = relay_cli_health,
    [RELAY_CLI_REGISTER] = relay_cli_register,
    [RELAY_CLI_LIST] = relay_cli_list,
    [RELAY_CLI_GET] = relay_cli_get,
    [RELAY_CLI_UPDATE] = relay_cli_update,
    [RELAY_CLI_UNREGISTER] = relay_cli_unregister,
    [RELAY_CLI_ATTEND] = relay_cli_attend,
    [RELAY_CLI_BENCH] = relay_cli_bench,
    [RELAY_CLI_TOP] = relay_cli_top,
};

int main(int argc, char **argv)
{
    struct relay_cli_args args;
    struct relay_client_options options = RELAY_CLIENT_OPTIONS_INIT;
    struct relay_client *client = NULL;
    struct relay_error err = {.code = RELAY_OK};
    int exit_code = RELAY_CLI_EXIT_OK;
    if (!relay_cli_args_parse(argc, argv, &args, &exit_code)) {
        return exit_code;
    }
    options.timeout_ms = args.timeout_ms;
    if (relay_client_open(args.target, &options, &client, &err) != RELAY_OK) {
        relay_cli_print_error(&err);
        return RELAY_CLI_EXIT_USAGE;
    }
    exit_code = runs[args.command](client, &args);
    relay_client_close(client);
    return exit_code;
}
