/* relayctl's commands. Each prints its result and returns the exit code. */
#ifndef RELAY_CLI_COMMANDS_H
#define RELAY_CLI_COMMANDS_H

#include "args.h"

int relay_cli_info(struct relay_client *client, const struct relay_cli_args *args);
int relay_cli_health(struct relay_client *client, const struct relay_cli_args *args);
int relay_cli_register(struct relay_client *client, const struct relay_cli_args *args);
int relay_cli_list(struct relay_client *client, const struct relay_cli_args *args);
int relay_cli_get(struct relay_client *client, const struct relay_cli_args *args);
int relay_cli_update(struct relay_client *client, const struct relay_cli_args *args);
int relay_cli_unregister(struct relay_client *client, const struct relay_cli_args *args);
int relay_cli_attend(struct relay_client *client, const struct relay_cli_args *args);
int relay_cli_bench(struct relay_client *client, const struct relay_cli_args *args);
int relay_cli_top(struct relay_client *client, const struct relay_cli_args *args);

#endif
