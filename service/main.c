/* relayd: builds the objects, hands out hooks, runs, drains, exits. The only place of the service
 * that knows every room, writes to stdout and sets the exit code. The main thread is the loop of
 * service/ops; threads of the other rooms are started and joined by their objects. */
#include "service/base/log.h"
#include "service/config/config.h"
#include "service/ops/ops.h"
#include "service/ops/unix_socket.h"
#include "service/rpc/rpc.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <malloc.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* <sysexits.h>, by what an operator does next. */
enum exit_code {
    EXIT_DRAINED = 0,
    EXIT_BAD_OPTIONS = 64,
    EXIT_NOT_TO_BE_HAD = 69, /* an address or the backend */
    EXIT_BROKEN = 70,        /* start it again */
    EXIT_NO_RESOURCES = 71,
};

#define BUDGET_SHARE 4 /* a budget of 0 is this part of the backend's memory */

struct app {
    struct relayd_config config;
    const char **listen; /* [num_listen], texts of config */
    uint32_t num_listen;
    struct relay_backend *backend;
    struct relayd_store *store;
    struct relayd_executor *executor;
    struct relayd_sessions *sessions;
    struct relayd_ops *ops;
    struct relayd_rpc *rpc;
    /* The watchdog's, loop thread. */
    uint64_t launches_seen;
    uint64_t progress_ns; /* when a launch was last seen to end, or nothing waited */
    bool stalled;
    atomic_bool poisoned; /* also read by the drain thread */
};

/* ---- hooks ---- */

static void sweep(void *user)
{
    struct app *app = user;
    uint32_t sessions = relayd_sessions_sweep(app->sessions);
    uint32_t objects = relayd_store_sweep(app->store);
    relayd_rpc_sweep(app->rpc);
    if (sessions + objects > 0) {
        RELAYD_LOG(INFO, "sweep", "sessions=%" PRIu32 " objects=%" PRIu32, sessions, objects);
    }
}

/* Health follows real completions: calls that wait while none ends mean a stall; a poisoned backend
 * never comes back, so the process leaves and is started again. */
static void watchdog(void *user)
{
    struct app *app = user;
    struct relayd_executor_stats stats;
    uint64_t now_ns = relayd_clock_now_ns(&relayd_clock_system);

    relayd_executor_stats(app->executor, &stats);
    if (stats.poisoned) {
        if (!atomic_exchange(&app->poisoned, true)) {
            RELAYD_LOG(ERROR, "backend.poisoned", "does=exit");
            relayd_rpc_stop_serving(app->rpc);
            relayd_ops_drain(app->ops);
        }
        return;
    }
    if (stats.waiting == 0 || stats.launches != app->launches_seen) {
        app->launches_seen = stats.launches;
        app->progress_ns = now_ns;
        if (app->stalled) {
            RELAYD_LOG(INFO, "executor.goes_on", "launches=%" PRIu64, stats.launches);
            app->stalled = false;
            relayd_rpc_set_serving(app->rpc, true);
        }
    } else if (!app->stalled &&
               now_ns - app->progress_ns > app->config.stall_timeout_ms * 1000000u) {
        RELAYD_LOG(ERROR, "executor.stalled", "waiting=%" PRIu32 " for_ms=%" PRIu64, stats.waiting,
                   (now_ns - app->progress_ns) / 1000000u);
        app->stalled = true;
        relayd_rpc_set_serving(app->rpc, false);
    }
}

static void wait_ms(uint64_t ms)
{
    struct timespec left = {.tv_sec = (time_t)(ms / 1000), .tv_nsec = (long)(ms % 1000) * 1000000};
    while (nanosleep(&left, &left) != 0 && errno == EINTR) {
    }
}

static void drain(void *user)
{
    struct app *app = user;
    const struct relayd_config *config = &app->config;

    RELAYD_LOG(INFO, "drain.begin", "delay_ms=%" PRIu64 " timeout_ms=%" PRIu64,
               config->drain_delay_ms, config->drain_timeout_ms);
    relayd_rpc_stop_serving(app->rpc);
    if (!atomic_load(&app->poisoned)) {
        wait_ms(config->drain_delay_ms);
    }
    relayd_rpc_drain(app->rpc, (uint32_t)config->drain_timeout_ms);
    RELAYD_LOG(INFO, "drain.end", "open_calls=0");
}

static void remove_sockets(const struct app *app)
{
    for (uint32_t i = 0; i < app->num_listen; i++) {
        const char *path = relayd_unix_path(app->listen[i]);
        if (path != NULL) {
            (void)unlink(path);
        }
    }
}

static void hurry(void *user, int signal_number)
{
    remove_sockets(user);
    _exit(128 + signal_number);
}

/* ---- building ---- */

static int exit_code_of(enum relay_code code)
{
    switch (code) {
    case RELAY_OK:
        return EXIT_DRAINED;
    case RELAY_INVALID_ARGUMENT:
    case RELAY_NOT_FOUND:
        return EXIT_BAD_OPTIONS;
    case RELAY_UNAVAILABLE:
    case RELAY_PERMISSION_DENIED:
    case RELAY_FAILED_PRECONDITION:
        return EXIT_NOT_TO_BE_HAD;
    case RELAY_RESOURCE_EXHAUSTED:
        return EXIT_NO_RESOURCES;
    default:
        return EXIT_BROKEN;
    }
}

static uint64_t budget(const struct app *app, uint64_t bytes)
{
    return bytes != 0 ? bytes : relay_backend_info(app->backend)->memory_bytes / BUDGET_SHARE;
}

static enum relay_code build_ops(struct app *app, struct relay_error *err)
{
    const struct relayd_ops_options options = {
        .hooks =
            {.drain = drain, .hurry = hurry, .sweep = sweep, .watchdog = watchdog, .user = app},
        .sweep_interval_ms = app->config.sweep_interval_ms,
        .watchdog_interval_ms = app->config.watchdog_interval_ms,
        .worker_threads = app->config.worker_threads,
    };
    return relayd_ops_create(&options, &app->ops, err);
}

static enum relay_code build_backend(struct app *app, struct relay_error *err)
{
    struct relay_backend_options options = RELAY_BACKEND_OPTIONS_INIT;
    options.threads = app->config.threads;
    options.isa = app->config.cpu_isa;
    return relay_backend_open(app->config.backend, &options, &app->backend, err);
}

static enum relay_code build_store(struct app *app, struct relay_error *err)
{
    const struct relayd_config *config = &app->config;
    const struct relayd_store_options options = {
        .backend = app->backend,
        .clock = &relayd_clock_system,
        .prompt_bytes_max = budget(app, config->prompt_bytes_max),
        .request_bytes_max = budget(app, config->request_bytes_max),
        .upload_expiry_ms = config->upload_expiry_ms,
        .page_tokens = config->page_tokens,
        .models_max = config->models_max,
        .prompts_max = config->prompts_max,
        .uploads_max = config->uploads_max,
        .requests_max = config->requests_max,
        .prompt_tokens_max = config->prompt_tokens_max,
        .context_tokens_max = config->context_tokens_max,
        .chunk_bytes_max = (uint32_t)config->chunk_bytes_max,
        .unacked_bytes_max = (uint32_t)config->unacked_bytes_max,
    };
    return relayd_store_create(&options, &app->store, err);
}

static enum relay_code build_executor(struct app *app, struct relay_error *err)
{
    const struct relayd_executor_options options = {
        .backend = app->backend,
        .clock = &relayd_clock_system,
        .calls_max = app->config.calls_max,
        .rows_max = app->config.launch_rows_max,
    };
    return relayd_executor_create(&options, &app->executor, err);
}

static enum relay_code build_sessions(struct app *app, struct relay_error *err)
{
    const struct relayd_config *config = &app->config;
    const struct relayd_sessions_options options = {
        .store = app->store,
        .executor = app->executor,
        .backend = app->backend,
        .clock = &relayd_clock_system,
        .sessions_max = config->sessions_max,
        .requests_per_session_max = config->requests_per_session_max,
        .lease_ms_default = (uint32_t)config->session_lease_ms,
        .lease_ms_max = (uint32_t)config->session_lease_max_ms,
        .rows_max = config->call_rows_max,
        .calls_in_flight_max = config->calls_in_flight_max,
        .response_bytes_max = (uint32_t)config->response_bytes_max,
        .response_bytes_limit = (uint32_t)config->response_bytes_limit,
    };
    return relayd_sessions_create(&options, &app->sessions, err);
}

/* gRPC core takes a port modulo 65536. */
static enum relay_code check_port(const char *address, struct relay_error *err)
{
    const char *colon = strrchr(address, ':');
    char *end = NULL;
    unsigned long port = 0;

    if (strncmp(address, "unix", 4) == 0) {
        return RELAY_OK;
    }
    if (colon != NULL && colon[1] >= '0' && colon[1] <= '9') {
        port = strtoul(colon + 1, &end, 10);
    }
    if (end == NULL || *end != '\0' || port > UINT16_MAX) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                          "listen: %.128s is neither HOST:PORT nor unix:/PATH", address);
    }
    return RELAY_OK;
}

/* Makes sure of the sockets' paths. The default socket is a convenience: where its directory is not
 * ours to make or write, the TCP address alone is served. */
static enum relay_code build_listen(struct app *app, struct relay_error *err)
{
    const struct relayd_config *config = &app->config;
    bool is_default = config->source[RELAYD_OPTION_listen] == RELAYD_CONFIG_DEFAULT;
    char text[2 * RELAY_ERROR_MSG_BYTES];

    app->listen = calloc(config->listen.n, sizeof(*app->listen));
    if (app->listen == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "out of memory");
    }
    for (uint32_t i = 0; i < config->listen.n; i++) {
        const char *address = config->listen.items[i];
        const char *path = relayd_unix_path(address);
        enum relay_code code =
            path != NULL ? relayd_unix_claim(path, is_default, err) : check_port(address, err);
        if (is_default && (code == RELAY_PERMISSION_DENIED || code == RELAY_NOT_FOUND)) {
            RELAYD_LOG(WARN, "listen.left_out", "address=%s error=%s", address,
                       relayd_log_quote(err->msg, text, sizeof(text)));
            continue;
        }
        if (code != RELAY_OK) {
            /* Whatever is wrong with a path is an address that is not to be had. */
            return code == RELAY_NOT_FOUND ? RELAY_UNAVAILABLE : code;
        }
        app->listen[app->num_listen++] = address;
    }
    return RELAY_OK;
}

/* gRPC wakes any of its queues' threads for any connection, and a wrong one has to wake the right
 * one: so one thread while it can do the work, which is to copy messages. */
#define CPUS_PER_RPC_THREAD 8u
#define RPC_THREADS_MAX     8u

static uint32_t rpc_threads(const struct relayd_config *config)
{
    cpu_set_t set;
    if (config->rpc_threads != 0) {
        return config->rpc_threads;
    }
    CPU_ZERO(&set);
    const int cpus = sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
    const uint32_t threads = (uint32_t)cpus / CPUS_PER_RPC_THREAD;
    return threads < 1 ? 1 : (threads > RPC_THREADS_MAX ? RPC_THREADS_MAX : threads);
}

static enum relay_code build_rpc(struct app *app, struct relay_error *err)
{
    const struct relayd_config *config = &app->config;
    const struct relayd_rpc_options options = {
        .store = app->store,
        .sessions = app->sessions,
        .executor = app->executor,
        .backend = app->backend,
        .clock = &relayd_clock_system,
        .worker = relayd_ops_worker(app->ops),
        .listen = app->listen,
        .num_listen = app->num_listen,
        .threads = rpc_threads(config),
        .spin_us = config->spin_us,
        .message_bytes_max = (uint32_t)config->message_bytes_max,
        .streams_max = config->streams_max,
        .metadata_bytes_max = (uint32_t)config->metadata_bytes_max,
        .keepalive_time_ms = (uint32_t)config->keepalive_time_ms,
        .keepalive_timeout_ms = (uint32_t)config->keepalive_timeout_ms,
        .list_page_max = config->list_page_max,
        .reflection = config->reflection,
        .version = RELAYD_VERSION,
    };
    return relayd_rpc_start(&options, &app->rpc, err);
}

static enum relay_code build(struct app *app, struct relay_error *err)
{
    /* ops before anything that starts threads: it sets the environment of libuv's pool. */
    static enum relay_code (*const steps[])(struct app *, struct relay_error *) = {
        build_ops,      build_backend, build_store, build_executor,
        build_sessions, build_listen,  build_rpc,
    };
    for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++) {
        enum relay_code code = steps[i](app, err);
        if (code != RELAY_OK) {
            return code;
        }
    }
    return RELAY_OK;
}

/* Backwards, and what was not built is NULL. rpc must have been drained. */
static void tear_down(struct app *app)
{
    if (app->rpc != NULL) {
        relayd_rpc_destroy(app->rpc);
        remove_sockets(app);
    }
    if (app->sessions != NULL) {
        relayd_sessions_destroy(app->sessions);
    }
    if (app->executor != NULL) {
        relayd_executor_destroy(app->executor);
    }
    if (app->store != NULL) {
        relayd_store_destroy(app->store);
    }
    relay_backend_close(app->backend);
    relayd_ops_destroy(app->ops);
    free(app->listen);
}

/* ---- running ---- */

static uint32_t first_tcp_port(const struct app *app)
{
    for (uint32_t i = 0; i < app->num_listen; i++) {
        uint32_t port = relayd_rpc_port(app->rpc, i);
        if (port != 0) {
            return port;
        }
    }
    return 0;
}

static void tell_ready(const struct app *app)
{
    const struct relay_backend_info *info = relay_backend_info(app->backend);
    uint32_t port = first_tcp_port(app);
    char text[32];

    for (uint32_t i = 0; i < app->num_listen; i++) {
        RELAYD_LOG(INFO, "listen", "address=%s port=%" PRIu32, app->listen[i],
                   relayd_rpc_port(app->rpc, i));
    }
    if (info->detail != NULL) {
        RELAYD_LOG(INFO, "kernels", "isa=%s measured=\"%s\"", info->isa, info->detail);
    }
    RELAYD_LOG(INFO, "ready", "version=%s backend=%s isa=%s threads=%" PRIu32 " pid=%ld",
               RELAYD_VERSION, info->name, info->isa, info->threads, (long)getpid());
    if (app->config.ready_fd == 0) {
        return;
    }
    int fd = (int)app->config.ready_fd;
    int bytes = snprintf(text, sizeof(text), "ready port=%" PRIu32 "\n", port);
    if (write(fd, text, (size_t)bytes) != bytes) {
        RELAYD_LOG(WARN, "ready_fd", "fd=%d error=\"%s\"", fd, strerror(errno));
    }
    if (fd > STDERR_FILENO) {
        close(fd);
    }
}

/* gRPC's buffers of half a megabyte come and go with each message. By default they would go back to
 * the system each time, and come again a page fault at a time: 50 us a call and more. */
#define HEAP_BYTES_KEPT (4 << 20)

static int serve(struct app *app)
{
    struct relay_error err = {0};

    mallopt(M_MMAP_THRESHOLD, HEAP_BYTES_KEPT);
    mallopt(M_TRIM_THRESHOLD, HEAP_BYTES_KEPT);
    enum relay_code code = build(app, &err);
    if (code == RELAY_OK) {
        app->progress_ns = relayd_clock_now_ns(&relayd_clock_system);
        relayd_rpc_set_serving(app->rpc, true);
        tell_ready(app);
        relayd_ops_run(app->ops);
    } else {
        char text[2 * RELAY_ERROR_MSG_BYTES];
        RELAYD_LOG(ERROR, "start.failed", "code=%s error=%s", relay_code_name(code),
                   relayd_log_quote(err.msg, text, sizeof(text)));
    }
    tear_down(app);
    if (atomic_load(&app->poisoned)) {
        return EXIT_BROKEN;
    }
    if (code == RELAY_OK) {
        RELAYD_LOG(INFO, "exit", "code=%d", EXIT_DRAINED);
    }
    return exit_code_of(code);
}

static void start_log(const struct relayd_config *config)
{
    enum relayd_log_level level = RELAYD_LOG_INFO;
    (void)relayd_log_level_parse(config->log_level, &level); /* checked by its choices */
    relayd_log_init(level, strcmp(config->log_format, "json") == 0);
}

int main(int argc, char **argv)
{
    extern char **environ;
    static struct app app;
    enum relayd_config_action action;
    struct relay_error err = {0};
    int exit_code = EXIT_DRAINED;

    if (relayd_config_init(&app.config, argc, (const char *const *)argv,
                           (const char *const *)environ, &action, &err) != RELAY_OK) {
        fprintf(stderr, "relayd: %s\n", err.msg);
        return EXIT_BAD_OPTIONS;
    }
    switch (action) {
    case RELAYD_CONFIG_HELP:
        relayd_config_help(stdout);
        break;
    case RELAYD_CONFIG_HELP_MARKDOWN:
        relayd_config_help_markdown(stdout);
        break;
    case RELAYD_CONFIG_VERSION:
        printf("relayd %s\n", RELAYD_VERSION);
        break;
    case RELAYD_CONFIG_PRINT:
        relayd_config_print(&app.config, stdout);
        break;
    case RELAYD_CONFIG_RUN:
        if (app.config.ready_fd != 0 && fcntl((int)app.config.ready_fd, F_GETFD) < 0) {
            fprintf(stderr, "relayd: --ready-fd %" PRIu32 ": %s\n", app.config.ready_fd,
                    strerror(errno));
            exit_code = EXIT_BAD_OPTIONS;
            break;
        }
        (void)signal(SIGPIPE, SIG_IGN); /* writes to gone peers are errors, not ends */
        start_log(&app.config);
        exit_code = serve(&app);
        break;
    }
    relayd_config_fini(&app.config);
    return exit_code;
}
