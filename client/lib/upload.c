/* Registering a prompt: chunks under the server's flow control, taken up again after a break.
 *
 * All of it runs on the registering thread, over a channel of its own. */
#include "chunks.h"
#include "prompts.h"
#include "stream.h"

#include <proto/wire/convert.h>
#include <stdlib.h>
#include <string.h>

#define UPLOAD_PATH "/relay.v1.RelayAttention/RegisterPrompt"
/* Room for the model spec that is packed into the header. */
#define SPEC_ARENA_BYTES ((size_t)4 << 20)

struct layer {
    bool own; /* has K/V of its own */
    enum relay_dtype dtype;
    size_t k_bytes, v_bytes; /* of one token, as sent */
    uint32_t next;           /* first token that was not sent on this stream */
    uint32_t held;           /* first token the server has not said it holds */
    uint32_t first;          /* first token it needs */
};

struct upload {
    struct relay_client *client;
    const struct relay_prompt_desc *desc;
    const struct relay_model *model;
    grpc_channel *channel;
    grpc_byte_buffer *header;
    struct layer *layers; /* [L] */
    uint64_t chunk_bytes_max, unacked_bytes_max;
    uint64_t bytes_total;
    bool started;    /* the server told where to begin, on this stream */
    bool progressed; /* it took bytes, on this stream */
    struct relay_prompt *prompt;
};

static enum relay_code check(const struct relay_prompt_desc *desc, struct relay_error *err)
{
    if (desc == NULL || desc->size != sizeof(*desc)) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "prompt desc: NULL, or size is not %zu",
                          sizeof(*desc));
    }
    if (desc->prompt_id == NULL || desc->model == NULL || desc->num_tokens == 0 ||
        (desc->layers == NULL) == (desc->source == NULL)) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                          "prompt desc: prompt_id, model and num_tokens are needed, and one of "
                          "layers and source");
    }
    return relay_model_validate(desc->model, err);
}

static enum relay_code plan_layers(struct upload *u, struct relay_error *err)
{
    const struct relay_prompt_desc *desc = u->desc;
    u->layers = calloc(u->model->num_layers, sizeof(*u->layers));
    if (u->layers == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "out of memory");
    }
    for (uint32_t l = 0; l < u->model->num_layers; l++) {
        struct layer *layer = &u->layers[l];
        layer->own = relay_model_kv_layer(u->model, l) == l;
        if (!layer->own) {
            continue;
        }
        layer->dtype = desc->layers != NULL ? desc->layers[l].dtype : desc->source_dtype;
        relay_layer_token_bytes(u->model, l, layer->dtype, &layer->k_bytes, &layer->v_bytes);
        layer->first = relay_chunk_first(u->model, l, desc->num_tokens);
        if (layer->k_bytes == 0 ||
            (desc->layers != NULL && layer->first < desc->num_tokens &&
             (desc->layers[l].k == NULL || (layer->v_bytes > 0 && desc->layers[l].v == NULL)))) {
            return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "layers[%u]: k, v or dtype is missing",
                              l);
        }
        u->bytes_total +=
            (uint64_t)(desc->num_tokens - layer->first) * (layer->k_bytes + layer->v_bytes);
    }
    return RELAY_OK;
}

static char *text(const char *s)
{
    return (char *)(uintptr_t)(s != NULL ? s : "");
}

static enum relay_code pack_header(struct upload *u, struct relay_error *err)
{
    const struct relay_prompt_desc *desc = u->desc;
    struct relay_wire_arena arena;
    relay_wire_arena_init(&arena);
    relay_wire_arena_grant(&arena, SPEC_ARENA_BYTES);
    Relay__V1__RegisterHeader header = RELAY__V1__REGISTER_HEADER__INIT;
    Relay__V1__RegisterPromptRequest message = RELAY__V1__REGISTER_PROMPT_REQUEST__INIT;
    uint8_t upload_id[16];
    Relay__V1__Label *labels = calloc((size_t)desc->num_labels + 1, sizeof(*labels));
    Relay__V1__Label **list = calloc((size_t)desc->num_labels + 1, sizeof(Relay__V1__Label *));
    enum relay_code code = RELAY_OK;
    if (labels == NULL || list == NULL) {
        code = RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "out of memory");
        goto out;
    }
    code = relay_wire_model_to_spec(u->model, &arena, &header.model, err);
    if (code != RELAY_OK) {
        goto out;
    }
    for (uint32_t i = 0; i < desc->num_labels; i++) {
        relay__v1__label__init(&labels[i]);
        labels[i].key = text(desc->labels[i].key);
        labels[i].value = text(desc->labels[i].value);
        list[i] = &labels[i];
    }
    if (desc->upload_id != NULL) {
        memcpy(upload_id, desc->upload_id, sizeof(upload_id));
    } else {
        relay_random(upload_id, sizeof(upload_id));
    }
    header.prompt_id = text(desc->prompt_id);
    header.num_tokens = desc->num_tokens;
    header.variant = text(desc->variant);
    header.content_key.data = (uint8_t *)(uintptr_t)desc->content_key;
    header.content_key.len = desc->content_key != NULL ? desc->content_key_bytes : 0;
    header.on_exists = (Relay__V1__OnExists)desc->on_exists;
    header.upload_id.data = upload_id;
    header.upload_id.len = sizeof(upload_id);
    header.idle_ttl_ms = desc->idle_ttl_ms;
    header.pinned = desc->pinned;
    header.n_labels = desc->num_labels;
    header.labels = list;
    header.n_token_ids = desc->token_ids != NULL ? desc->num_tokens : 0;
    header.token_ids = (uint32_t *)(uintptr_t)desc->token_ids;
    message.message_case = RELAY__V1__REGISTER_PROMPT_REQUEST__MESSAGE_HEADER;
    message.header = &header;
    u->header = relay_wire_pack(&message.base);
out:
    free(list);
    free(labels);
    relay_wire_arena_fini(&arena);
    return code;
}

static uint64_t layer_bytes(const struct layer *layer, uint32_t begin, uint32_t end)
{
    return (uint64_t)(end - begin) * (layer->k_bytes + layer->v_bytes);
}

static enum relay_code take_state(struct upload *u, const Relay__V1__UploadState *state,
                                  struct relay_error *err)
{
    if (state->n_held != u->model->num_layers || state->chunk_bytes_max == 0) {
        return RELAY_FAIL(err, RELAY_INTERNAL, "the server's upload state has %zu layers, not %u",
                          state->n_held, u->model->num_layers);
    }
    uint64_t done = 0;
    for (uint32_t l = 0; l < u->model->num_layers; l++) {
        struct layer *layer = &u->layers[l];
        if (!layer->own) {
            continue;
        }
        uint32_t held = state->held[l] > layer->first ? state->held[l] : layer->first;
        if (held > u->desc->num_tokens || (u->started && held > layer->next)) {
            return RELAY_FAIL(err, RELAY_INTERNAL,
                              "the server holds %u tokens of layer %u, more than were sent", held,
                              l);
        }
        u->progressed = u->progressed || (u->started && held > layer->held);
        layer->held = held;
        if (!u->started) {
            layer->next = held;
        }
        done += layer_bytes(layer, layer->first, held);
    }
    u->started = true;
    u->chunk_bytes_max = state->chunk_bytes_max;
    u->unacked_bytes_max =
        state->unacked_bytes_max > 0 ? state->unacked_bytes_max : state->chunk_bytes_max;
    if (u->desc->progress != NULL &&
        !u->desc->progress(u->desc->progress_user, done, u->bytes_total)) {
        return RELAY_FAIL(err, RELAY_CANCELLED, "upload stopped by the caller");
    }
    return RELAY_OK;
}

static enum relay_code take_message(struct upload *u, grpc_byte_buffer *buffer,
                                    struct relay_error *err)
{
    struct relay_wire_arena arena;
    struct relay_wire_view view;
    ProtobufCMessage *message = NULL;
    struct relay_error why;
    relay_wire_arena_init(&arena);
    enum relay_code code = relay_wire_view_init(&view, buffer, &why);
    if (code == RELAY_OK) {
        code = relay_wire_unpack_response(&view, relay_wire_whole(&view),
                                          &relay__v1__register_prompt_response__descriptor, &arena,
                                          &message, &why);
    }
    if (code != RELAY_OK) {
        code =
            RELAY_FAIL(err, RELAY_INTERNAL, "the server's answer is not readable: %.180s", why.msg);
        goto out;
    }
    const Relay__V1__RegisterPromptResponse *m = (const Relay__V1__RegisterPromptResponse *)message;
    if (m->message_case == RELAY__V1__REGISTER_PROMPT_RESPONSE__MESSAGE_STATE) {
        code = take_state(u, m->state, err);
    } else if (m->message_case == RELAY__V1__REGISTER_PROMPT_RESPONSE__MESSAGE_PROMPT) {
        relay_prompt_free(u->prompt);
        u->prompt = NULL;
        code = relay_prompt_from_message(m->prompt, &u->prompt, err);
    }
out:
    grpc_byte_buffer_destroy(buffer);
    relay_wire_arena_fini(&arena);
    return code;
}

/* Tokens of the layer that may go now; 0 = wait for the server to take some. */
static uint32_t tokens_allowed(const struct upload *u, const struct layer *layer)
{
    const uint64_t token_bytes = layer->k_bytes + layer->v_bytes;
    const uint32_t left = u->desc->num_tokens - layer->next;
    uint64_t unacked = 0;
    for (uint32_t l = 0; l < u->model->num_layers; l++) {
        if (u->layers[l].own) {
            unacked += layer_bytes(&u->layers[l], u->layers[l].held, u->layers[l].next);
        }
    }
    uint64_t count = u->chunk_bytes_max / token_bytes;
    count = count > 0 ? count : 1; /* too big even so: the server says how much */
    count = count < left ? count : left;
    if (unacked > 0 && unacked + count * token_bytes > u->unacked_bytes_max) {
        return 0;
    }
    return (uint32_t)count;
}

static enum relay_code chunk_source(const struct upload *u, uint32_t l, uint32_t begin,
                                    uint32_t count, struct relay_kv *out, struct relay_error *err)
{
    const struct relay_prompt_desc *desc = u->desc;
    const struct layer *layer = &u->layers[l];
    if (desc->source != NULL) {
        const enum relay_code code = desc->source(desc->source_user, l, begin, count, out, err);
        if (code == RELAY_OK && (out->k == NULL || (layer->v_bytes > 0 && out->v == NULL))) {
            return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "the source gave no k or v");
        }
        return code;
    }
    out->k = (const uint8_t *)desc->layers[l].k + begin * layer->k_bytes;
    out->v =
        layer->v_bytes > 0 ? (const uint8_t *)desc->layers[l].v + begin * layer->v_bytes : NULL;
    return RELAY_OK;
}

/* Sends what may be sent now: a chunk, or the half-close that commits. */
static enum relay_code send_more(struct upload *u, struct relay_stream *stream,
                                 struct relay_error *err)
{
    uint32_t l = 0;
    while (l < u->model->num_layers &&
           (!u->layers[l].own || u->layers[l].next == u->desc->num_tokens)) {
        l++;
    }
    if (l == u->model->num_layers) {
        return relay_stream_half_close(stream, err);
    }
    struct layer *layer = &u->layers[l];
    const uint32_t count = tokens_allowed(u, layer);
    if (count == 0) {
        return RELAY_OK;
    }
    struct relay_kv kv = {NULL, NULL, layer->dtype};
    enum relay_code code = chunk_source(u, l, layer->next, count, &kv, err);
    if (code != RELAY_OK) {
        return code;
    }
    const struct relay_wire_chunk chunk = {
        .layer = l, .token_begin = layer->next, .token_count = count, .dtype = layer->dtype};
    grpc_byte_buffer *message =
        relay_chunk_message(u->client, chunk, kv.k, count * layer->k_bytes, kv.v,
                            count * layer->v_bytes, !u->desc->no_checksums);
    if (message == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "out of memory");
    }
    layer->next += count;
    return relay_stream_send(stream, message, err);
}

/* One stream, from the header to its status. */
static enum relay_code attempt(struct upload *u, struct relay_error *err)
{
    struct relay_stream *stream = NULL;
    u->started = false;
    u->progressed = false;
    enum relay_code code = relay_stream_open(u->client, u->channel, UPLOAD_PATH, &stream, err);
    if (code == RELAY_OK) {
        code = relay_stream_send(stream, grpc_byte_buffer_copy(u->header), err);
    }
    while (code == RELAY_OK) {
        if (relay_stream_can_send(stream)) {
            if (u->prompt != NULL) {
                code = relay_stream_half_close(stream, err);
            } else if (u->started) {
                code = send_more(u, stream, err);
            }
            if (code != RELAY_OK) {
                break;
            }
        }
        const enum relay_stream_event event =
            relay_stream_wait(stream, u->client->options.upload_stall_ms);
        if (event == RELAY_STREAM_TIMEOUT) {
            code = RELAY_FAIL(err, RELAY_DEADLINE_EXCEEDED, "upload: no progress for %u ms",
                              u->client->options.upload_stall_ms);
        } else if (event == RELAY_STREAM_RECEIVED) {
            code = take_message(u, relay_stream_take(stream), err);
        } else if (event == RELAY_STREAM_END) {
            code = relay_stream_status(stream, err);
            if (code == RELAY_OK && u->prompt == NULL) {
                code = RELAY_FAIL(err, RELAY_INTERNAL, "the server sent OK and no prompt");
            }
            break;
        }
    }
    relay_stream_close(stream);
    return code;
}

/* Attempts until it is done or stuck. */
static enum relay_code run(struct upload *u, struct relay_error *err)
{
    for (uint32_t stuck = 0;; stuck++) {
        const enum relay_code code = attempt(u, err);
        /* After a break, of this call or of an earlier one with the same upload_id, the server may
         * still be storing a chunk of the old stream. */
        const bool resumes = stuck > 0 || u->desc->upload_id != NULL;
        const bool broken =
            code == RELAY_UNAVAILABLE || (code == RELAY_ABORTED && resumes && !u->started);
        if (!broken) {
            return code;
        }
        if (u->progressed) {
            stuck = 0;
        }
        if (stuck >= u->client->options.retries_max ||
            !relay_backoff(u->client, stuck, UINT64_MAX)) {
            return code;
        }
    }
}

enum relay_code relay_prompt_register(struct relay_client *client,
                                      const struct relay_prompt_desc *desc,
                                      struct relay_prompt **out, struct relay_error *err)
{
    enum relay_code code = check(desc, err);
    if (code != RELAY_OK) {
        return code;
    }
    struct upload u = {.client = client, .desc = desc, .model = desc->model};
    code = plan_layers(&u, err);
    if (code == RELAY_OK) {
        code = pack_header(&u, err);
    }
    if (code == RELAY_OK) {
        code = relay_client_channel(client, &u.channel, err);
    }
    if (code == RELAY_OK) {
        code = run(&u, err);
    }
    if (u.channel != NULL) {
        grpc_channel_destroy(u.channel);
    }
    grpc_byte_buffer_destroy(u.header);
    free(u.layers);
    if (code == RELAY_OK && out != NULL) {
        *out = u.prompt;
    } else {
        relay_prompt_free(u.prompt);
    }
    return code;
}
