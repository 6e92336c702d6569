/* What relayctl prints: a JSON object, or the same as text. */
#ifndef RELAY_CLI_OUTPUT_H
#define RELAY_CLI_OUTPUT_H

#include <cjson/cJSON.h>
#include <relay/client.h>
#include <stdbool.h>
#include <stdio.h>

/* Prints and frees the object: JSON on one line, or "name  value" lines. Exit code 0. */
int relay_cli_print_object(cJSON *object, bool json);
/* "relayctl: NOT_FOUND: text" on stderr. Exit code 1. */
int relay_cli_print_error(const struct relay_error *err);

/* Text that others chose, in place: without control characters a terminal would obey. */
char *relay_cli_safe(char *text);

/* A 64-bit value that a JSON number cannot hold, as "0x...". */
void relay_cli_add_hex(cJSON *object, const char *name, uint64_t value);
void relay_cli_add_bytes(cJSON *object, const char *name, const uint8_t *data, size_t bytes);
/* What the server says of itself as JSON. */
cJSON *relay_cli_info_json(const struct relay_server_info *info);
/* A prompt as JSON. */
cJSON *relay_cli_prompt_json(const struct relay_prompt *prompt);
/* "1.3 MiB", in text. */
const char *relay_cli_bytes_text(uint64_t bytes, char *text, size_t text_bytes);
/* "2026-01-31 12:00:00", UTC. */
const char *relay_cli_time_text(uint64_t unix_ms, char *text, size_t text_bytes);

#endif
