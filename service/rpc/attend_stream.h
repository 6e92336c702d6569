/* The open StreamRelayAttention calls, so that a drain can tell them. */
#ifndef RELAYD_RPC_ATTEND_STREAM_H
#define RELAYD_RPC_ATTEND_STREAM_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

struct attend_stream;

struct relayd_rpc_attend_streams {
    pthread_mutex_t mutex; /* guards what follows */
    struct attend_stream *first;
    bool draining; /* whoever attaches now is told at once */
    uint32_t deadline_ms;
};

void relayd_rpc_attend_streams_init(struct relayd_rpc_attend_streams *streams);
void relayd_rpc_attend_streams_fini(struct relayd_rpc_attend_streams *streams);
/* Sends Drain to each, and to those that attach later. Any thread. */
void relayd_rpc_attend_streams_drain(struct relayd_rpc_attend_streams *streams,
                                     uint32_t deadline_ms);

#endif
