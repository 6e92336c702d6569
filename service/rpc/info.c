/* GetServerInfo: what this server is and can do. No side effects; queue's thread. */
#include "service/rpc/messages.h"

#include <stdio.h>

static void add_counts(const struct relayd_rpc *rpc, const struct relayd_executor_stats *executor,
                       Relay__V1__GetServerInfoResponse *out)
{
    struct relayd_rpc_stats rpcs;
    relayd_rpc_stats(rpc, &rpcs);
    out->calls = executor->calls;
    out->calls_failed = executor->errors;
    out->launches = executor->launches;
    out->rows = executor->rows;
    out->prompt_bytes_read = executor->prompt_bytes;
    out->kv_bytes_read = executor->kv_bytes;
    out->compute_us = executor->compute_us;
    out->bytes_received = rpcs.bytes_received;
    out->bytes_sent = rpcs.bytes_sent;
    out->rpcs_open = rpcs.open_calls;
}

static enum relay_code get_server_info(struct relayd_rpc_unary *unary,
                                       const ProtobufCMessage *request, ProtobufCMessage *response,
                                       struct relay_error *err)
{
    struct parts {
        Relay__V1__Limits limits;
        Relay__V1__TierMemory memory;
        Relay__V1__TierMemory *memories[1];
        char *devices[1];
        Relay__V1__Plane planes[1];
    };
    const struct relayd_rpc *rpc = unary->base.rpc;
    const struct relay_backend_info *backend = relay_backend_info(rpc->opt.backend);
    Relay__V1__GetServerInfoResponse *out = (Relay__V1__GetServerInfoResponse *)response;
    struct relayd_store_stats store;
    struct relayd_executor_stats executor;
    struct parts *parts = relayd_rpc_alloc(unary, sizeof(*parts), err);
    (void)request;
    if (parts == NULL) {
        return RELAY_RESOURCE_EXHAUSTED;
    }
    relayd_store_stats(rpc->opt.store, &store);
    relayd_executor_stats(rpc->opt.executor, &executor);

    relay__v1__tier_memory__init(&parts->memory);
    parts->memory.tier = RELAY__V1__TIER__TIER_HOST;
    parts->memory.prompt_bytes_used = store.prompt_bytes_used;
    parts->memory.prompt_bytes_max = store.prompt_bytes_max;
    parts->memory.request_bytes_used = store.request_bytes_used;
    parts->memory.request_bytes_max = store.request_bytes_max;
    parts->memories[0] = &parts->memory;
    parts->devices[0] = (char *)backend->name;
    parts->planes[0] = RELAY__V1__PLANE__PLANE_INLINE;
    relayd_rpc_limits(rpc, NULL, &parts->limits);

    out->version = (char *)rpc->opt.version;
    out->backend = (char *)backend->name;
    out->n_devices = 1;
    out->devices = parts->devices;
    out->isa = (char *)backend->isa;
    out->limits = &parts->limits;
    out->n_memory = 1;
    out->memory = parts->memories;
    out->uptime_ms = (relayd_clock_now_ns(rpc->opt.clock) - rpc->started_ns) / 1000000u;
    out->server_epoch = rpc->epoch;
    out->batch_invariant = backend->batch_invariant;
    out->n_planes = 1;
    out->planes = parts->planes;
    out->sessions = relayd_sessions_count(rpc->opt.sessions);
    out->requests = store.requests;
    out->prompts = store.prompts + store.prompts_doomed;
    out->uploads = store.uploads;
    out->calls_in_flight = executor.waiting;
    out->threads = backend->threads;
    out->page_tokens = backend->page_tokens;
    uint32_t page_tokens = relayd_store_limits(rpc->opt.store)->page_tokens;
    if (page_tokens != 0) {
        out->page_tokens = page_tokens;
    }
    add_counts(rpc, &executor, out);
    return RELAY_OK;
}

static const struct relayd_rpc_unary_spec get_server_info_spec = {
    .request = &relay__v1__get_server_info_request__descriptor,
    .response = &relay__v1__get_server_info_response__descriptor,
    .handle = get_server_info,
};

const struct relayd_rpc_method relayd_rpc_info_methods[] = {
    RELAYD_RPC_UNARY(RELAYD_RPC_SERVICE "GetServerInfo", &get_server_info_spec),
    {.start = NULL},
};
