/* relayctl info, health. */
#include "commands.h"
#include "output.h"

cJSON *relay_cli_info_json(const struct relay_server_info *info)
{
    cJSON *o = cJSON_CreateObject();
    cJSON_AddStringToObject(o, "version", info->version);
    cJSON_AddStringToObject(o, "backend", info->backend);
    cJSON_AddStringToObject(o, "device", info->device);
    cJSON_AddStringToObject(o, "isa", info->isa);
    cJSON_AddNumberToObject(o, "threads", info->threads);
    cJSON_AddNumberToObject(o, "page_tokens", info->page_tokens);
    cJSON_AddBoolToObject(o, "batch_invariant", info->batch_invariant);
    cJSON_AddNumberToObject(o, "uptime_ms", (double)info->uptime_ms);
    relay_cli_add_hex(o, "server_epoch", info->server_epoch);
    cJSON_AddNumberToObject(o, "prompt_bytes_used", (double)info->prompt_bytes_used);
    cJSON_AddNumberToObject(o, "prompt_bytes_max", (double)info->prompt_bytes_max);
    cJSON_AddNumberToObject(o, "request_bytes_used", (double)info->request_bytes_used);
    cJSON_AddNumberToObject(o, "request_bytes_max", (double)info->request_bytes_max);
    cJSON_AddNumberToObject(o, "message_bytes_max", (double)info->message_bytes_max);
    cJSON_AddNumberToObject(o, "response_bytes_max", (double)info->response_bytes_max);
    cJSON_AddNumberToObject(o, "rows_max", info->rows_max);
    cJSON_AddNumberToObject(o, "entries_max", info->entries_max);
    cJSON_AddNumberToObject(o, "sessions", info->sessions);
    cJSON_AddNumberToObject(o, "requests", info->requests);
    cJSON_AddNumberToObject(o, "prompts", info->prompts);
    cJSON_AddNumberToObject(o, "uploads", info->uploads);
    cJSON_AddNumberToObject(o, "calls_in_flight", info->calls_in_flight);
    cJSON_AddNumberToObject(o, "rpcs_open", info->rpcs_open);
    cJSON_AddNumberToObject(o, "calls", (double)info->calls);
    cJSON_AddNumberToObject(o, "calls_failed", (double)info->calls_failed);
    cJSON_AddNumberToObject(o, "launches", (double)info->launches);
    cJSON_AddNumberToObject(o, "rows", (double)info->rows);
    cJSON_AddNumberToObject(o, "prompt_bytes_read", (double)info->prompt_bytes_read);
    cJSON_AddNumberToObject(o, "kv_bytes_read", (double)info->kv_bytes_read);
    cJSON_AddNumberToObject(o, "compute_us", (double)info->compute_us);
    cJSON_AddNumberToObject(o, "bytes_received", (double)info->bytes_received);
    cJSON_AddNumberToObject(o, "bytes_sent", (double)info->bytes_sent);
    return o;
}

int relay_cli_info(struct relay_client *client, const struct relay_cli_args *args)
{
    struct relay_server_info *info = NULL;
    struct relay_error err;
    if (relay_client_server_info(client, &info, &err) != RELAY_OK) {
        return relay_cli_print_error(&err);
    }
    cJSON *o = relay_cli_info_json(info);
    relay_server_info_free(info);
    return relay_cli_print_object(o, args->json);
}

int relay_cli_health(struct relay_client *client, const struct relay_cli_args *args)
{
    bool serving = false;
    struct relay_error err;
    if (relay_client_health(client, NULL, &serving, &err) != RELAY_OK) {
        return relay_cli_print_error(&err);
    }
    cJSON *o = cJSON_CreateObject();
    cJSON_AddBoolToObject(o, "serving", serving);
    relay_cli_print_object(o, args->json);
    return serving ? RELAY_CLI_EXIT_OK : RELAY_CLI_EXIT_ERROR;
}
