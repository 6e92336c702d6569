/* What a call costs besides computing, against a bare gRPC echo of the same bytes, all by turns in
 * one run: unary and stream of relayd, unary and stream of the echo, and a stream of the echo whose
 * server is as busy before it answers as relayd was.
 *
 *     rpc_bench [--tcp] [--rounds N] [--rows R] [--spin-us N] [--rpc-threads N] [--keep-heap]
 *
 * R rows x 32 query heads x 128, bf16, K and V of 8 KV heads with them: 384 KiB in and 256 KiB out
 * for 32 rows. One layer, no prompt, one token of context: computing is next to nothing, and its
 * time is taken off all the same. One JSON line per kind, then the ratios. Exit code 1 on failure,
 * not on slowness: bars are for whoever reads. Starts relayd and the echo server (this program
 * again) as processes of their own; one thread here. */
#include "bench/rpc_echo.h"
#include "testlib/server.h"

#include <getopt.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define HQ         32u
#define HKV        8u
#define D          128u
#define ROWS_MAX   512u
#define ROUNDS_MAX 100000u
#define WARMUP     50u
#define HEAP_BYTES (8 << 20)

static const struct relay_layer_kind kind = {
    .num_q_heads = HQ, .num_kv_heads = HKV, .head_dim_qk = D, .head_dim_v = D};
static const uint32_t layer_kind[1] = {0};
static const struct relay_model model = {.key = "rpc-bench",
                                         .num_layers = 1,
                                         .num_kinds = 1,
                                         .kinds = &kind,
                                         .layer_kind = layer_kind,
                                         .kv_dtype = RELAY_DTYPE_BF16};

enum { ECHO_UNARY, RELAY_UNARY, ECHO_STREAM, RELAY_STREAM, BUSY_ECHO_STREAM, KINDS };
static const char *const names[KINDS] = {"echo_unary", "relay_unary", "echo_stream", "relay_stream",
                                         "busy_echo_stream"};

struct bench {
    uint32_t rows, rounds, spin_us, rpc_threads;
    bool tcp, keep_heap;
    struct test_server server;
    pid_t echo_pid;
    char echo_dir[32], echo_target[64];
    struct rpc_echo_client *echo;
    struct relay_client *client;
    struct relay_session *sessions[2]; /* unary, stream */
    struct relay_step *steps[2];
    uint16_t *q, *k, *v, *out;
    double *us[KINDS]; /* [rounds] of relay without compute_us */
    double *raw[KINDS];
    double *queue_us[KINDS], *plan_us[KINDS]; /* relay's, as the server tells them */
};

static struct relay_error err;

static bool failed(const char *what)
{
    fprintf(stderr, "rpc_bench: %s: %s\n", what, err.msg);
    return false;
}

/* ---- the echo server's process ---- */

static bool start_echo(struct bench *b, const char *self)
{
    char address[64], fd_text[16], bytes_text[16], line[16] = "";
    int fds[2];
    snprintf(b->echo_dir, sizeof(b->echo_dir), "/tmp/rpc-bench-XXXXXX");
    if (mkdtemp(b->echo_dir) == NULL || pipe(fds) != 0) {
        perror("rpc_bench");
        return false;
    }
    snprintf(address, sizeof(address), "unix:%s/sock", b->echo_dir);
    snprintf(fd_text, sizeof(fd_text), "%d", fds[1]);
    snprintf(bytes_text, sizeof(bytes_text), "%u", b->rows * HQ * D * 2);
    b->echo_pid = fork();
    if (b->echo_pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        execl(self, self, "--echo", b->tcp ? "127.0.0.1:0" : address, bytes_text, fd_text,
              b->keep_heap ? "--keep-heap" : NULL, (char *)NULL);
        _exit(127);
    }
    close(fds[1]);
    const ssize_t got = read(fds[0], line, sizeof(line) - 1);
    close(fds[0]);
    if (got <= 0) {
        fprintf(stderr, "rpc_bench: no echo server\n");
        return false;
    }
    snprintf(b->echo_target, sizeof(b->echo_target), "%s", address);
    if (b->tcp) {
        snprintf(b->echo_target, sizeof(b->echo_target), "127.0.0.1:%ld", strtol(line, NULL, 10));
    }
    return true;
}

static void stop_echo(struct bench *b)
{
    char path[64];
    if (b->echo_pid > 0) {
        kill(b->echo_pid, SIGKILL);
        waitpid(b->echo_pid, NULL, 0);
        snprintf(path, sizeof(path), "%s/sock", b->echo_dir);
        unlink(path);
        rmdir(b->echo_dir);
    }
}

/* ---- relayd ---- */

static bool open_session(struct bench *b, int i)
{
    struct relay_session_options options = RELAY_SESSION_OPTIONS_INIT;
    struct relay_step_options step_options = RELAY_STEP_OPTIONS_INIT;
    struct relay_step_entry entries[ROWS_MAX];
    options.io_dtype = RELAY_DTYPE_BF16;
    options.stream = i == 1;
    options.spin_us = b->spin_us;
    step_options.want_lse = false;
    if (relay_session_open(b->client, &model, &options, &b->sessions[i], &err) != RELAY_OK) {
        return failed("session");
    }
    for (uint32_t r = 0; r < b->rows; r++) {
        entries[r] = (struct relay_step_entry){0, 0, 1};
        if (relay_request_open(b->sessions[i], NULL, &entries[r].request, &err) != RELAY_OK) {
            return failed("request");
        }
    }
    return relay_step_begin(b->sessions[i], entries, b->rows, &step_options, &b->steps[i], &err) ==
                   RELAY_OK
               ? true
               : failed("step");
}

static bool open_relay(struct bench *b)
{
    char spin[16], threads[16];
    const char *const args[] = {"--spin-us", spin, b->rpc_threads > 0 ? "--rpc-threads" : NULL,
                                threads, NULL};
    snprintf(spin, sizeof(spin), "%u", b->spin_us);
    snprintf(threads, sizeof(threads), "%u", b->rpc_threads);
    if (!test_server_start(&b->server, args)) {
        return false;
    }
    if (relay_client_open(b->tcp ? b->server.tcp_target : b->server.unix_target, NULL, &b->client,
                          &err) != RELAY_OK) {
        return failed("client");
    }
    return open_session(b, 0) && open_session(b, 1);
}

static double run_relay(struct bench *b, int i, double *raw, double *queue_us, double *plan_us)
{
    if (relay_step_attend(b->steps[i], 0, b->q, b->k, b->v, b->out, NULL, &err) != RELAY_OK) {
        (void)failed("call");
        return -1;
    }
    const struct relay_timings *t = relay_step_timings(b->steps[i]);
    *raw = (double)t->total_us;
    *queue_us = (double)t->queue_us;
    *plan_us = (double)t->plan_us;
    return (double)t->total_us - (double)t->compute_us;
}

/* ---- the run ---- */

static bool run(struct bench *b)
{
    for (uint32_t i = 0; i < WARMUP + b->rounds; i++) {
        const uint32_t at = i < WARMUP ? 0 : i - WARMUP;
        double computed_us = 0;
        for (int k = 0; k < KINDS; k++) {
            double raw = 0;
            double us;
            switch (k) {
            case ECHO_UNARY:
                raw = us = rpc_echo_unary(b->echo);
                break;
            case ECHO_STREAM:
                raw = us = rpc_echo_stream(b->echo, 0);
                break;
            case BUSY_ECHO_STREAM: /* as long as relayd computed a moment ago */
                us = rpc_echo_stream(b->echo, (uint32_t)computed_us);
                raw = us + computed_us;
                break;
            default:
                us = run_relay(b, k == RELAY_STREAM, &raw, &b->queue_us[k][at], &b->plan_us[k][at]);
                computed_us = raw - us;
                break;
            }
            if (raw <= 0) {
                return false;
            }
            b->us[k][at] = us;
            b->raw[k][at] = raw;
        }
    }
    return true;
}

static int compare_doubles(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double quantile(const double *sorted, uint32_t n, double q)
{
    const uint32_t i = (uint32_t)(q * n);
    return sorted[i < n ? i : n - 1];
}

static void machine(char *name, size_t bytes)
{
    char line[256];
    snprintf(name, bytes, "unknown");
    FILE *f = fopen("/proc/cpuinfo", "r");
    while (f != NULL && fgets(line, sizeof(line), f) != NULL) {
        const char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) == 0 && colon != NULL) {
            line[strcspn(line, "\n\"\\")] = '\0';
            snprintf(name, bytes, "%s", colon + 2);
            break;
        }
    }
    if (f != NULL) {
        fclose(f);
    }
}

static void print(struct bench *b)
{
    char name[128];
    double p50[KINDS], p99[KINDS];
    machine(name, sizeof(name));
    const uint32_t row = D * 2;
    for (int k = 0; k < KINDS; k++) {
        qsort(b->us[k], b->rounds, sizeof(double), compare_doubles);
        qsort(b->raw[k], b->rounds, sizeof(double), compare_doubles);
        qsort(b->queue_us[k], b->rounds, sizeof(double), compare_doubles);
        qsort(b->plan_us[k], b->rounds, sizeof(double), compare_doubles);
        p50[k] = quantile(b->us[k], b->rounds, 0.5);
        p99[k] = quantile(b->us[k], b->rounds, 0.99);
        printf("{\"bench\": \"rpc\", \"kind\": \"%s\", \"transport\": \"%s\", \"machine\": "
               "\"%s\", \"cpus\": %ld, \"bytes_in\": %u, \"bytes_out\": %u, \"spin_us\": %u, "
               "\"keep_heap\": %s, \"rounds\": %u, \"p50_us\": %.1f, \"p99_us\": %.1f, "
               "\"with_compute_p50_us\": "
               "%.1f, \"queue_p50_us\": %.1f, \"plan_p50_us\": %.1f}\n",
               names[k], b->tcp ? "tcp" : "unix", name, sysconf(_SC_NPROCESSORS_ONLN),
               b->rows * (HQ + 2 * HKV) * row, b->rows * HQ * row, b->spin_us,
               b->keep_heap ? "true" : "false", b->rounds, p50[k], p99[k],
               quantile(b->raw[k], b->rounds, 0.5), quantile(b->queue_us[k], b->rounds, 0.5),
               quantile(b->plan_us[k], b->rounds, 0.5));
    }
    printf("{\"bench\": \"rpc\", \"kind\": \"ratios\", \"transport\": \"%s\", "
           "\"keep_heap\": %s, "
           "\"unary_to_echo_p50\": %.2f, \"unary_to_echo_p99\": %.2f, \"stream_to_echo_p50\": "
           "%.2f, \"stream_to_echo_p99\": %.2f, \"stream_to_busy_echo_p50\": %.2f, "
           "\"stream_to_busy_echo_p99\": %.2f, \"stream_to_unary_p50\": %.2f}\n",
           b->tcp ? "tcp" : "unix", b->keep_heap ? "true" : "false",
           p50[RELAY_UNARY] / p50[ECHO_UNARY], p99[RELAY_UNARY] / p99[ECHO_UNARY],
           p50[RELAY_STREAM] / p50[ECHO_STREAM], p99[RELAY_STREAM] / p99[ECHO_STREAM],
           p50[RELAY_STREAM] / p50[BUSY_ECHO_STREAM], p99[RELAY_STREAM] / p99[BUSY_ECHO_STREAM],
           p50[RELAY_STREAM] / p50[RELAY_UNARY]);
}

static bool allocate(struct bench *b)
{
    bool ok = true;
    b->q = calloc(b->rows, HQ * D * 2);
    b->k = calloc(b->rows, HKV * D * 2);
    b->v = calloc(b->rows, HKV * D * 2);
    b->out = calloc(b->rows, HQ * D * 2);
    for (int k = 0; k < KINDS; k++) {
        b->us[k] = calloc(b->rounds, sizeof(double));
        b->raw[k] = calloc(b->rounds, sizeof(double));
        b->queue_us[k] = calloc(b->rounds, sizeof(double));
        b->plan_us[k] = calloc(b->rounds, sizeof(double));
        ok = ok && b->us[k] != NULL && b->raw[k] != NULL && b->queue_us[k] != NULL &&
             b->plan_us[k] != NULL;
    }
    return ok && b->q != NULL && b->k != NULL && b->v != NULL && b->out != NULL;
}

/* As in any process that has once freed a large block: gRPC's buffers come back to the heap and not
 * to the system, page faults and all. For both clients and the echo server; relayd always does. */
static void keep_heap(void)
{
    mallopt(M_MMAP_THRESHOLD, HEAP_BYTES);
    mallopt(M_TRIM_THRESHOLD, HEAP_BYTES);
}

static bool parse(struct bench *b, int argc, char **argv)
{
    static const struct option options[] = {{"tcp", no_argument, NULL, 't'},
                                            {"rounds", required_argument, NULL, 'n'},
                                            {"rows", required_argument, NULL, 'r'},
                                            {"spin-us", required_argument, NULL, 's'},
                                            {"rpc-threads", required_argument, NULL, 'c'},
                                            {"keep-heap", no_argument, NULL, 'h'},
                                            {NULL, 0, NULL, 0}};
    for (int got; (got = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        const unsigned long value = optarg != NULL ? strtoul(optarg, NULL, 10) : 0;
        switch (got) {
        case 't':
            b->tcp = true;
            break;
        case 'n':
            b->rounds = (uint32_t)value;
            break;
        case 'r':
            b->rows = (uint32_t)value;
            break;
        case 's':
            b->spin_us = (uint32_t)value;
            break;
        case 'h':
            b->keep_heap = true;
            keep_heap();
            break;
        case 'c':
            b->rpc_threads = (uint32_t)value;
            break;
        default:
            return false;
        }
    }
    return b->rounds >= 1 && b->rounds <= ROUNDS_MAX && b->rows >= 1 && b->rows <= ROWS_MAX;
}

int main(int argc, char **argv)
{
    struct bench b = {.rows = 32, .rounds = 500};
    if (argc >= 5 && strcmp(argv[1], "--echo") == 0) {
        if (argc > 5) {
            keep_heap();
        }
        return rpc_echo_serve(argv[2], strtoul(argv[3], NULL, 10), (int)strtol(argv[4], NULL, 10));
    }
    if (!parse(&b, argc, argv)) {
        fprintf(stderr, "usage: rpc_bench [--tcp] [--rounds N] [--rows R] [--spin-us N] "
                        "[--rpc-threads N] [--keep-heap]\n");
        return 2;
    }
    bool ok = allocate(&b) && start_echo(&b, argv[0]) && open_relay(&b);
    if (ok) {
        b.echo = rpc_echo_open(b.echo_target, (size_t)b.rows * (HQ + 2 * HKV) * D * 2,
                               (size_t)b.rows * HQ * D * 2);
        ok = b.echo != NULL && run(&b);
    }
    if (ok) {
        print(&b);
    }
    rpc_echo_close(b.echo);
    for (int i = 0; i < 2; i++) {
        relay_step_end(b.steps[i]);
        relay_session_close(b.sessions[i]);
    }
    relay_client_close(b.client);
    test_server_fini(&b.server);
    stop_echo(&b);
    for (int k = 0; k < KINDS; k++) {
        free(b.us[k]);
        free(b.raw[k]);
        free(b.queue_us[k]);
        free(b.plan_us[k]);
    }
    free(b.q);
    free(b.k);
    free(b.v);
    free(b.out);
    return ok ? 0 : 1;
}
