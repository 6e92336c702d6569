#include "output.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

char *relay_cli_safe(char *text)
{
    for (char *at = text; *at != '\0'; at++) {
        if ((unsigned char)*at < ' ' || *at == 0x7f) {
            *at = '?';
        }
    }
    return text;
}

static void print_value(const cJSON *item)
{
    if (cJSON_IsString(item)) {
        printf("%s\n", relay_cli_safe(item->valuestring));
    } else if (cJSON_IsBool(item)) {
        printf("%s\n", cJSON_IsTrue(item) ? "yes" : "no");
    } else if (cJSON_IsNumber(item) && floor(item->valuedouble) == item->valuedouble) {
        printf("%.0f\n", item->valuedouble);
    } else {
        char *text = cJSON_PrintUnformatted(item);
        printf("%s\n", text != NULL ? text : "");
        cJSON_free(text);
    }
}

int relay_cli_print_object(cJSON *object, bool json)
{
    if (json) {
        char *text = cJSON_PrintUnformatted(object);
        printf("%s\n", text != NULL ? text : "{}");
        cJSON_free(text);
    } else {
        const cJSON *item;
        cJSON_ArrayForEach(item, object)
        {
            printf("%-20s ", item->string);
            print_value(item);
        }
    }
    cJSON_Delete(object);
    return 0;
}

int relay_cli_print_error(const struct relay_error *err)
{
    fprintf(stderr, "relayctl: %s: %s\n", relay_code_name(err->code), err->msg);
    return 1;
}

void relay_cli_add_hex(cJSON *object, const char *name, uint64_t value)
{
    char text[32];
    snprintf(text, sizeof(text), "0x%llx", (unsigned long long)value);
    cJSON_AddStringToObject(object, name, text);
}

void relay_cli_add_bytes(cJSON *object, const char *name, const uint8_t *data, size_t bytes)
{
    char *text = calloc(1, 2 * bytes + 1);
    for (size_t i = 0; text != NULL && i < bytes; i++) {
        snprintf(text + 2 * i, 3, "%02x", data[i]);
    }
    cJSON_AddStringToObject(object, name, text != NULL ? text : "");
    free(text);
}

const char *relay_cli_bytes_text(uint64_t bytes, char *text, size_t text_bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double value = (double)bytes;
    int unit = 0;
    while (value >= 1024 && unit < 4) {
        value /= 1024;
        unit++;
    }
    snprintf(text, text_bytes, unit == 0 ? "%.0f %s" : "%.1f %s", value, units[unit]);
    return text;
}

const char *relay_cli_time_text(uint64_t unix_ms, char *text, size_t text_bytes)
{
    const time_t seconds = (time_t)(unix_ms / 1000);
    struct tm tm;
    if (gmtime_r(&seconds, &tm) == NULL ||
        strftime(text, text_bytes, "%Y-%m-%d %H:%M:%S", &tm) == 0) {
        snprintf(text, text_bytes, "?");
    }
    return text;
}

cJSON *relay_cli_prompt_json(const struct relay_prompt *p)
{
    static const char *const tiers[] = {"unspecified", "host", "device"};
    cJSON *o = cJSON_CreateObject();
    cJSON_AddStringToObject(o, "prompt_id", p->prompt_id);
    cJSON_AddStringToObject(o, "model_key", p->model_key);
    cJSON_AddStringToObject(o, "variant", p->variant);
    relay_cli_add_hex(o, "generation", p->generation);
    cJSON_AddNumberToObject(o, "num_tokens", p->num_tokens);
    cJSON_AddNumberToObject(o, "bytes", (double)p->bytes);
    cJSON_AddNumberToObject(o, "references", (double)p->references);
    cJSON_AddNumberToObject(o, "hits", (double)p->hits);
    cJSON_AddNumberToObject(o, "idle_ttl_ms", (double)p->idle_ttl_ms);
    cJSON_AddNumberToObject(o, "created_unix_ms", (double)p->created_unix_ms);
    cJSON_AddNumberToObject(o, "last_used_unix_ms", (double)p->last_used_unix_ms);
    cJSON_AddStringToObject(o, "tier", (unsigned)p->tier < 3 ? tiers[p->tier] : "?");
    cJSON_AddBoolToObject(o, "pinned", p->pinned);
    cJSON_AddBoolToObject(o, "doomed", p->doomed);
    relay_cli_add_bytes(o, "content_key", p->content_key, p->content_key_bytes);
    relay_cli_add_bytes(o, "digest", p->digest, p->digest_bytes);
    cJSON *labels = cJSON_AddObjectToObject(o, "labels");
    for (uint32_t i = 0; i < p->num_labels; i++) {
        cJSON_AddStringToObject(labels, p->labels[i].key, p->labels[i].value);
    }
    return o;
}
