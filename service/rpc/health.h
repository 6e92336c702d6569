/* grpc.health.v1.Health: one state for "" and relay.v1.RelayAttention, and who watches it. */
#ifndef RELAYD_RPC_HEALTH_H
#define RELAYD_RPC_HEALTH_H

#include <pthread.h>
#include <stdbool.h>

struct relayd_rpc_watch;

struct relayd_rpc_health {
    pthread_mutex_t mutex; /* guards all; taken before a stream's */
    bool serving;
    bool stopped;  /* never serving again */
    bool draining; /* watches end at once */
    struct relayd_rpc_watch *watches;
};

void relayd_rpc_health_init(struct relayd_rpc_health *health);
void relayd_rpc_health_fini(struct relayd_rpc_health *health);
/* Any thread. */
void relayd_rpc_health_set(struct relayd_rpc_health *health, bool serving);
void relayd_rpc_health_stop(struct relayd_rpc_health *health);
/* Ends all watches, now and to come. Any thread. */
void relayd_rpc_health_drain(struct relayd_rpc_health *health);

#endif
