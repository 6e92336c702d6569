#include "e2e/faults_kit.h"
#include "testlib/rng.h"

#include <dirent.h>
#include <proto/wire/convert.h>
#include <proto/wire/upload.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define POLL_MS          20u
#define FDS_COUNTS       5 /* of which the least counts: a file may be open for a moment */
#define BACK_MS          30000u
#define CHUNK_BYTES      ((size_t)256 << 10)
#define SPEC_ARENA_BYTES ((size_t)1 << 20)

/* ---- model ---- */

void faults_model_init(struct faults_model *model, const char *key, uint32_t layers, uint32_t hq,
                       uint32_t hkv, uint32_t d)
{
    memset(model, 0, sizeof(*model));
    model->kind = (struct relay_layer_kind){
        .num_q_heads = hq, .num_kv_heads = hkv, .head_dim_qk = d, .head_dim_v = d};
    model->model = (struct relay_model){.key = key,
                                        .num_layers = layers,
                                        .num_kinds = 1,
                                        .kinds = &model->kind,
                                        .layer_kind = model->layer_kind,
                                        .kv_dtype = RELAY_DTYPE_F32};
}

size_t faults_kv_floats(const struct faults_model *model)
{
    return (size_t)model->kind.num_kv_heads * model->kind.head_dim_qk;
}

size_t faults_q_floats(const struct faults_model *model)
{
    return (size_t)model->kind.num_q_heads * model->kind.head_dim_qk;
}

Relay__V1__ModelSpec *faults_spec(const struct faults_model *model, struct relay_wire_arena *arena)
{
    Relay__V1__ModelSpec *spec = NULL;
    relay_wire_arena_init(arena);
    relay_wire_arena_grant(arena, SPEC_ARENA_BYTES);
    if (relay_wire_model_to_spec(&model->model, arena, &spec, NULL) != RELAY_OK) {
        abort();
    }
    return spec;
}

/* ---- what the server holds ---- */

void faults_sleep_ms(uint32_t ms)
{
    const struct timespec t = {ms / 1000, (long)(ms % 1000) * 1000000};
    nanosleep(&t, NULL);
}

uint64_t faults_now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000u + (uint64_t)t.tv_nsec / 1000000u;
}

uint64_t faults_rss_bytes(pid_t pid)
{
    char path[64];
    unsigned long pages = 0;
    snprintf(path, sizeof(path), "/proc/%ld/statm", (long)pid);
    FILE *file = fopen(path, "r");
    if (file != NULL) {
        if (fscanf(file, "%*u %lu", &pages) != 1) {
            pages = 0;
        }
        fclose(file);
    }
    return (uint64_t)pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

static uint32_t fds_now(pid_t pid)
{
    char path[64];
    uint32_t n = 0;
    snprintf(path, sizeof(path), "/proc/%ld/fd", (long)pid);
    DIR *dir = opendir(path);
    while (dir != NULL && readdir(dir) != NULL) {
        n++;
    }
    if (dir != NULL) {
        closedir(dir);
    }
    return n;
}

uint32_t faults_fds(pid_t pid)
{
    uint32_t least = fds_now(pid);
    for (int i = 1; i < FDS_COUNTS; i++) {
        faults_sleep_ms(1);
        const uint32_t n = fds_now(pid);
        least = n < least ? n : least;
    }
    return least;
}

bool faults_counts(struct faults_peer *peer, pid_t server, struct faults_counts *out)
{
    const Relay__V1__GetServerInfoRequest request = RELAY__V1__GET_SERVER_INFO_REQUEST__INIT;
    ProtobufCMessage *message = NULL;
    struct relay_error err;
    if (faults_unary(peer, "GetServerInfo", &request.base,
                     &relay__v1__get_server_info_response__descriptor, &message,
                     &err) != RELAY_OK) {
        fprintf(stderr, "GetServerInfo: %s: %s\n", relay_code_name(err.code), err.msg);
        return false;
    }
    const Relay__V1__GetServerInfoResponse *info = (Relay__V1__GetServerInfoResponse *)message;
    *out = (struct faults_counts){
        .sessions = info->sessions,
        .requests = info->requests,
        .prompts = info->prompts,
        .uploads = info->uploads,
        .calls = info->calls_in_flight,
        .fds = faults_fds(server),
        .rss_bytes = faults_rss_bytes(server),
        .epoch = info->server_epoch,
    };
    for (size_t i = 0; i < info->n_memory; i++) {
        out->prompt_bytes += info->memory[i]->prompt_bytes_used;
        out->request_bytes += info->memory[i]->request_bytes_used;
    }
    protobuf_c_message_free_unpacked(message, NULL);
    return true;
}

static void print_counts(const char *name, const struct faults_counts *c)
{
    fprintf(stderr,
            "%s: %u sessions, %u requests, %u prompts, %u uploads, %u calls, %llu + %llu bytes, "
            "%u fds\n",
            name, c->sessions, c->requests, c->prompts, c->uploads, c->calls,
            (unsigned long long)c->prompt_bytes, (unsigned long long)c->request_bytes, c->fds);
}

bool faults_back_to(struct faults_peer *peer, pid_t server, const struct faults_counts *start)
{
    struct faults_counts now;
    const uint64_t until_ms = faults_now_ms() + BACK_MS;
    for (;;) {
        if (!faults_counts(peer, server, &now)) {
            return false;
        }
        if (now.sessions == start->sessions && now.requests == start->requests &&
            now.prompts == start->prompts && now.uploads == start->uploads &&
            now.calls == start->calls && now.prompt_bytes == start->prompt_bytes &&
            now.request_bytes == start->request_bytes && now.fds == start->fds) {
            return true;
        }
        if (faults_now_ms() > until_ms) {
            print_counts("start", start);
            print_counts("now  ", &now);
            return false;
        }
        faults_sleep_ms(POLL_MS);
    }
}

/* ---- prompts ---- */

struct faults_call *faults_upload_begin(struct faults_peer *peer, const struct faults_model *model,
                                        const char *id, uint32_t tokens, bool replace,
                                        const char *upload_id, struct relay_error *err)
{
    struct relay_wire_arena arena;
    Relay__V1__RegisterHeader header = RELAY__V1__REGISTER_HEADER__INIT;
    Relay__V1__RegisterPromptRequest request = RELAY__V1__REGISTER_PROMPT_REQUEST__INIT;
    grpc_byte_buffer *answer = NULL;
    header.prompt_id = (char *)(uintptr_t)id;
    header.model = faults_spec(model, &arena);
    header.num_tokens = tokens;
    header.on_exists = replace ? RELAY__V1__ON_EXISTS__ON_EXISTS_REPLACE
                               : RELAY__V1__ON_EXISTS__ON_EXISTS_SAME_OR_FAIL;
    if (upload_id != NULL) {
        header.upload_id = (ProtobufCBinaryData){16, (uint8_t *)(uintptr_t)upload_id};
    }
    request.message_case = RELAY__V1__REGISTER_PROMPT_REQUEST__MESSAGE_HEADER;
    request.header = &header;
    struct faults_call *call = faults_call_open(peer, "RegisterPrompt");
    grpc_byte_buffer *message = relay_wire_pack(&request.base);
    relay_wire_arena_fini(&arena);
    (void)faults_call_send(call, message, FAULTS_TIMEOUT_MS);
    if (faults_call_receive(call, FAULTS_TIMEOUT_MS, &answer) != FAULTS_MESSAGE) {
        (void)faults_call_status(call, err);
        faults_call_close(call);
        return NULL;
    }
    grpc_byte_buffer_destroy(answer);
    return call;
}

bool faults_upload_chunk(struct faults_call *call, const struct faults_model *model, uint32_t layer,
                         uint32_t begin, uint32_t count, uint64_t seed)
{
    const size_t n = faults_kv_floats(model);
    const struct relay_wire_chunk chunk = {
        .layer = layer, .token_begin = begin, .token_count = count};
    grpc_slice k = grpc_slice_malloc(n * count * sizeof(float));
    grpc_slice v = grpc_slice_malloc(n * count * sizeof(float));
    for (uint32_t t = 0; t < count; t++) { /* the same bits however it is cut into chunks */
        struct rng rng = {seed * 1000003u + layer * 10007u + begin + t};
        float *kt = (float *)(void *)GRPC_SLICE_START_PTR(k) + t * n;
        float *vt = (float *)(void *)GRPC_SLICE_START_PTR(v) + t * n;
        for (size_t i = 0; i < n; i++) {
            kt[i] = rng_unit(&rng);
            vt[i] = rng_unit(&rng);
        }
    }
    return faults_call_send(call, relay_wire_chunk_encode(&chunk, k, v), FAULTS_TIMEOUT_MS);
}

enum relay_code faults_register(struct faults_peer *peer, const struct faults_model *model,
                                const char *id, uint32_t tokens, uint64_t seed, bool replace,
                                struct relay_error *err)
{
    struct faults_call *call = faults_upload_begin(peer, model, id, tokens, replace, NULL, err);
    if (call == NULL) {
        return err->code;
    }
    const uint32_t most = (uint32_t)(CHUNK_BYTES / (2 * faults_kv_floats(model) * sizeof(float)));
    bool sent = true;
    for (uint32_t layer = 0; sent && layer < model->model.num_layers; layer++) {
        for (uint32_t begin = 0; sent && begin < tokens; begin += most) {
            const uint32_t count = tokens - begin < most ? tokens - begin : most;
            sent = faults_upload_chunk(call, model, layer, begin, count, seed);
        }
    }
    grpc_byte_buffer *answer = NULL;
    (void)(sent && faults_call_half_close(call));
    while (faults_call_receive(call, FAULTS_TIMEOUT_MS, &answer) == FAULTS_MESSAGE) {
        grpc_byte_buffer_destroy(answer);
    }
    const enum relay_code code = faults_call_status(call, err);
    faults_call_close(call);
    return code;
}

enum relay_code faults_unregister(struct faults_peer *peer, const struct faults_model *model,
                                  const char *id, struct relay_error *err)
{
    Relay__V1__UnregisterPromptRequest request = RELAY__V1__UNREGISTER_PROMPT_REQUEST__INIT;
    request.model_key = (char *)(uintptr_t)model->model.key;
    request.prompt_id = (char *)(uintptr_t)id;
    return faults_unary(peer, "UnregisterPrompt", &request.base, NULL, NULL, err);
}
