/* Sizes and values of options, arguments that are refused before anything is sent, and what a call
 * says when there is no server. */
#include "testlib/check.h"

#include <relay/client.h>

static const struct relay_layer_kind kind = {
    .num_q_heads = 4, .num_kv_heads = 1, .head_dim_qk = 8, .head_dim_v = 8};
static const uint32_t layer_kind[1] = {0};
static const struct relay_model model = {.key = "m",
                                         .num_layers = 1,
                                         .num_kinds = 1,
                                         .kinds = &kind,
                                         .layer_kind = layer_kind,
                                         .kv_dtype = RELAY_DTYPE_BF16};

/* A client of an address where nobody listens, that does not repeat. */
static struct relay_client *open_nowhere(void)
{
    struct relay_client_options options = RELAY_CLIENT_OPTIONS_INIT;
    struct relay_client *client = NULL;
    options.retries_max = 0;
    if (relay_client_open("unix:///nonexistent/relayd.sock", &options, &client, NULL) != RELAY_OK) {
        return NULL;
    }
    return client;
}

static void test_options_of_a_client(void)
{
    const struct relay_client_options good = RELAY_CLIENT_OPTIONS_INIT;
    struct relay_client_options bad[8];
    struct relay_client *client = NULL;
    for (int i = 0; i < 8; i++) {
        bad[i] = good;
    }
    bad[0].size = 0;
    bad[1].size = sizeof(good) + 8;
    bad[2].timeout_ms = 0;
    bad[3].backoff_ms_min = 0;
    bad[4].backoff_ms_max = bad[4].backoff_ms_min - 1;
    bad[5].receive_bytes_max = 1;
    bad[6].keepalive_timeout_ms = 0;
    bad[7].keepalive_time_ms = 100;
    for (int i = 0; i < 8; i++) {
        CHECK_CODE(relay_client_open("host:1", &bad[i], &client, NULL), RELAY_INVALID_ARGUMENT);
        CHECK(client == NULL);
    }
    CHECK(relay_client_open("host:1", &good, &client, NULL) == RELAY_OK);
    relay_client_close(client);
    relay_client_close(NULL);
}

static void test_options_of_a_session(void)
{
    struct relay_client *client = open_nowhere();
    struct relay_session *session = NULL;
    struct relay_error err;
    CHECK(client != NULL);
    struct relay_session_options options = RELAY_SESSION_OPTIONS_INIT;
    options.size--;
    CHECK_CODE(relay_session_open(client, &model, &options, &session, &err),
               RELAY_INVALID_ARGUMENT);
    options = (struct relay_session_options)RELAY_SESSION_OPTIONS_INIT;
    options.response_bytes_max = UINT32_MAX;
    CHECK_CODE(relay_session_open(client, &model, &options, &session, &err),
               RELAY_INVALID_ARGUMENT);
    options = (struct relay_session_options)RELAY_SESSION_OPTIONS_INIT;
    options.io_dtype = (enum relay_dtype)99;
    CHECK_CODE(relay_session_open(client, &model, &options, &session, &err),
               RELAY_INVALID_ARGUMENT);
    struct relay_model bad = model;
    bad.num_layers = 0;
    CHECK_CODE(relay_session_open(client, &bad, NULL, &session, &err), RELAY_INVALID_ARGUMENT);
    CHECK_CODE(relay_session_open(client, NULL, NULL, &session, &err), RELAY_INVALID_ARGUMENT);
    CHECK(session == NULL);
    relay_session_close(NULL);
    relay_client_close(client);
}

static void test_options_of_a_prompt(void)
{
    struct relay_client *client = open_nowhere();
    const struct relay_kv layers[1] = {{"k", "v", RELAY_DTYPE_BF16}};
    const struct relay_kv no_v[1] = {{"k", NULL, RELAY_DTYPE_BF16}};
    struct relay_prompt_desc good = RELAY_PROMPT_DESC_INIT;
    struct relay_error err;
    CHECK(client != NULL);
    good.prompt_id = "p";
    good.model = &model;
    good.num_tokens = 1;
    good.layers = layers;
    struct relay_prompt_desc bad[6];
    for (int i = 0; i < 6; i++) {
        bad[i] = good;
    }
    bad[0].size = 1;
    bad[1].prompt_id = NULL;
    bad[2].model = NULL;
    bad[3].num_tokens = 0;
    bad[4].layers = NULL; /* and no source */
    bad[5].layers = no_v;
    for (int i = 0; i < 6; i++) {
        CHECK_CODE(relay_prompt_register(client, &bad[i], NULL, &err), RELAY_INVALID_ARGUMENT);
    }
    CHECK_CODE(relay_prompt_register(client, NULL, NULL, &err), RELAY_INVALID_ARGUMENT);
    const struct relay_prompt_update update = {.size = 3};
    CHECK_CODE(relay_prompt_update(client, "m", "p", &update, NULL, &err), RELAY_INVALID_ARGUMENT);
    relay_prompt_free(NULL);
    relay_client_close(client);
}

static void test_calls_without_a_server_are_unavailable(void)
{
    struct relay_client *client = open_nowhere();
    struct relay_server_info *info = NULL;
    struct relay_session *session = NULL;
    struct relay_error err;
    bool serving = true;
    CHECK(client != NULL);
    CHECK_CODE(relay_client_server_info(client, &info, &err), RELAY_UNAVAILABLE);
    CHECK(info == NULL);
    CHECK(strstr(err.msg, "no server at unix:///nonexistent/relayd.sock") != NULL);
    CHECK_CODE(relay_client_health(client, NULL, &serving, &err), RELAY_UNAVAILABLE);
    CHECK(serving);
    CHECK_CODE(relay_session_open(client, &model, NULL, &session, &err), RELAY_UNAVAILABLE);
    /* The error record is optional. */
    CHECK_CODE(relay_session_open(client, &model, NULL, &session, NULL), RELAY_UNAVAILABLE);
    const uint16_t kv[8] = {0};
    const struct relay_kv layers[1] = {{kv, kv, RELAY_DTYPE_BF16}};
    struct relay_prompt_desc desc = RELAY_PROMPT_DESC_INIT;
    desc.prompt_id = "p";
    desc.model = &model;
    desc.num_tokens = 1;
    desc.layers = layers;
    CHECK_CODE(relay_prompt_register(client, &desc, NULL, &err), RELAY_UNAVAILABLE);
    relay_client_close(client);
}

int main(void)
{
    CHECK_RUN(test_options_of_a_client);
    CHECK_RUN(test_options_of_a_session);
    CHECK_RUN(test_options_of_a_prompt);
    CHECK_RUN(test_calls_without_a_server_are_unavailable);
    return check_done();
}
