/* Objects of the service as protobuf messages. Pure but for the counters they read. */
#include "service/rpc/messages.h"

#include <string.h>

void relayd_rpc_limits(const struct relayd_rpc *rpc, const struct relayd_session_info *session,
                       Relay__V1__Limits *out)
{
    const struct relayd_sessions_options *sessions = relayd_sessions_limits(rpc->opt.sessions);
    const struct relayd_store_options *store = relayd_store_limits(rpc->opt.store);
    relay__v1__limits__init(out);
    out->message_bytes_max = rpc->opt.message_bytes_max;
    out->response_bytes_max =
        session != NULL ? session->response_bytes_max : sessions->response_bytes_limit;
    out->chunk_bytes_max = store->chunk_bytes_max;
    out->unacked_bytes_max = store->unacked_bytes_max;
    out->rows_max = session != NULL ? session->rows_max : sessions->rows_max;
    out->entries_max = out->rows_max; /* an entry has a row at least */
    out->requests_max = sessions->requests_per_session_max;
    out->sessions_max = sessions->sessions_max;
    out->calls_in_flight_max = sessions->calls_in_flight_max;
    out->prompts_max = store->prompts_max;
    out->prompt_tokens_max = store->prompt_tokens_max;
    out->context_tokens_max = store->context_tokens_max;
    out->uploads_max = store->uploads_max;
    out->upload_expires_ms = store->upload_expiry_ms;
    out->lease_ms_max = sessions->lease_ms_max;
    out->layers_max = RELAY_LAYERS_MAX;
    out->heads_max = RELAY_HEADS_MAX;
    out->head_dim_max = RELAY_HEAD_DIM_MAX;
    out->models_max = store->models_max;
    out->prompt_id_bytes_max = RELAYD_PROMPT_ID_BYTES_MAX;
    out->model_key_bytes_max = RELAY_MODEL_KEY_BYTES_MAX;
    out->variant_bytes_max = RELAYD_VARIANT_BYTES_MAX;
    out->content_key_bytes_max = RELAYD_CONTENT_KEY_BYTES_MAX;
    out->labels_max = RELAYD_LABELS_MAX;
    out->label_bytes_max = RELAYD_LABEL_BYTES_MAX;
    out->features_max = RELAYD_RPC_FEATURES_MAX;
    out->page_size_max = rpc->opt.list_page_max;
    out->prompt_bytes_max = store->prompt_bytes_max;
    out->request_bytes_max = store->request_bytes_max;
}

static enum relay_code labels(struct relay_wire_arena *arena, const struct relayd_prompt_info *info,
                              Relay__V1__Prompt *out, struct relay_error *err)
{
    if (info->num_labels == 0) {
        return RELAY_OK;
    }
    relay_wire_arena_grant(arena, info->num_labels * (sizeof(Relay__V1__Label) + sizeof(void *)) +
                                      4 * _Alignof(max_align_t));
    Relay__V1__Label *all = relay_wire_arena_alloc(arena, info->num_labels * sizeof(*all));
    Relay__V1__Label **pointers =
        relay_wire_arena_alloc(arena, info->num_labels * sizeof(*pointers));
    if (all == NULL || pointers == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for the answer");
    }
    for (uint32_t i = 0; i < info->num_labels; i++) {
        relay__v1__label__init(&all[i]);
        all[i].key = (char *)info->labels[i].key;
        all[i].value = (char *)info->labels[i].value;
        pointers[i] = &all[i];
    }
    out->n_labels = info->num_labels;
    out->labels = pointers;
    return RELAY_OK;
}

enum relay_code relayd_rpc_prompt(struct relay_wire_arena *arena,
                                  const struct relayd_prompt_info *info, Relay__V1__Prompt *out,
                                  struct relay_error *err)
{
    relay__v1__prompt__init(out);
    out->prompt_id = (char *)info->prompt_id;
    out->model_key = (char *)info->model_key;
    out->variant = (char *)info->variant;
    out->generation = info->generation;
    out->content_key.data = (uint8_t *)info->content_key;
    out->content_key.len = info->content_key_bytes;
    out->digest.data = (uint8_t *)info->digest;
    out->digest.len = sizeof(info->digest);
    out->num_tokens = info->num_tokens;
    out->total_tokens = info->num_tokens; /* no prompt has a parent */
    out->bytes = info->bytes;
    out->references = info->references;
    out->hits = info->hits;
    out->idle_ttl_ms = info->idle_ttl_ms;
    out->created_unix_ms = info->created_unix_ms;
    out->last_used_unix_ms = info->last_used_unix_ms;
    out->tier = RELAY__V1__TIER__TIER_HOST;
    out->pinned = info->pinned;
    out->doomed = info->doomed;
    return labels(arena, info, out, err);
}

enum relay_code relayd_rpc_check_model_key(struct relayd_rpc_detail *detail, const char *key,
                                           struct relay_error *err)
{
    size_t bytes = strlen(key);
    if (bytes == 0 || bytes > RELAY_MODEL_KEY_BYTES_MAX) {
        return RELAYD_RPC_BLAME(detail, "model_key", err, "model_key: 1 to %u bytes, got %zu",
                                RELAY_MODEL_KEY_BYTES_MAX, bytes);
    }
    return RELAY_OK;
}

enum relay_code relayd_rpc_check_prompt_id(struct relayd_rpc_detail *detail, const char *field,
                                           const char *id, struct relay_error *err)
{
    enum relay_code code = relayd_prompt_id_check(id, strlen(id), err);
    if (code != RELAY_OK) {
        detail->field = field;
    }
    return code;
}
