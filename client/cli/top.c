/* relayctl top: a look at the server every second: what it holds, what it did since the last look,
 * and its most used prompts. Plain ANSI; q or Ctrl-C ends. */
#include "commands.h"
#include "output.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

/* Rows of a frame that are not prompts. */
#define HEAD_ROWS 8
/* Prompts shown where the output has no height. */
#define PROMPTS_SHOWN 20
/* More are counted and not looked at. */
#define PROMPTS_MAX 10000u

struct row {
    char id[48], model[32];
    uint64_t bytes, references, hits;
    uint32_t tokens;
    bool pinned, doomed;
};

struct look {
    struct relay_server_info *info;
    uint64_t at_us;
    struct row *rows;
    uint32_t n, max, more;
    bool out_of_memory;
};

static volatile sig_atomic_t interrupted;

static void interrupt(int number)
{
    (void)number;
    interrupted = 1;
}

static uint64_t now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000u + (uint64_t)now.tv_nsec / 1000u;
}

/* ---- looking ---- */

static bool take_prompt(void *user, const struct relay_prompt *p)
{
    struct look *look = user;
    if (look->n == PROMPTS_MAX) {
        look->more++;
        return true;
    }
    if (look->n == look->max) {
        const uint32_t max = look->max > 0 ? 2 * look->max : 64;
        struct row *rows = realloc(look->rows, max * sizeof(rows[0]));
        if (rows == NULL) {
            look->out_of_memory = true;
            return false;
        }
        look->rows = rows;
        look->max = max;
    }
    struct row *row = &look->rows[look->n++];
    *row = (struct row){.bytes = p->bytes,
                        .references = p->references,
                        .hits = p->hits,
                        .tokens = p->num_tokens,
                        .pinned = p->pinned,
                        .doomed = p->doomed};
    snprintf(row->id, sizeof(row->id), "%s", p->prompt_id);
    snprintf(row->model, sizeof(row->model), "%s", p->model_key);
    relay_cli_safe(row->model);
    return true;
}

/* Most used first. */
static int compare_rows(const void *a, const void *b)
{
    const struct row *x = a, *y = b;
    if (x->references != y->references) {
        return x->references < y->references ? 1 : -1;
    }
    if (x->hits != y->hits) {
        return x->hits < y->hits ? 1 : -1;
    }
    return strcmp(x->id, y->id);
}

static void look_free(struct look *look)
{
    relay_server_info_free(look->info);
    free(look->rows);
    *look = (struct look){.info = NULL};
}

static enum relay_code take_look(struct relay_client *client, struct look *look,
                                 struct relay_error *err)
{
    *look = (struct look){.info = NULL};
    enum relay_code code = relay_client_server_info(client, &look->info, err);
    look->at_us = now_us();
    if (code == RELAY_OK) {
        code = relay_prompts_list(client, NULL, NULL, take_prompt, look, err);
    }
    if (code == RELAY_OK && look->out_of_memory) {
        code = RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "out of memory");
    }
    if (code != RELAY_OK) {
        look_free(look);
        return code;
    }
    if (look->n > 0) {
        qsort(look->rows, look->n, sizeof(look->rows[0]), compare_rows);
    }
    return RELAY_OK;
}

/* ---- printing ---- */

/* Counts between two looks, a second; without an earlier one, on the average since the start. */
struct rates {
    double calls, failed, launches, rows, prompt_bytes, kv_bytes, in, out; /* a second */
    double busy; /* part of the time that is spent in launches */
    double rows_per_launch;
};

static double per(uint64_t now, uint64_t before, double divisor)
{
    return divisor > 0 && now >= before ? (double)(now - before) / divisor : 0;
}

static struct rates rates_of(const struct look *now, const struct look *before)
{
    static const struct relay_server_info nothing = {.version = ""};
    const struct relay_server_info *a = now->info;
    const struct relay_server_info *b = &nothing;
    double s = (double)a->uptime_ms / 1e3;
    if (before->info != NULL && before->info->server_epoch == a->server_epoch) {
        b = before->info;
        s = (double)(now->at_us - before->at_us) / 1e6;
    }
    return (struct rates){
        .calls = per(a->calls, b->calls, s),
        .failed = per(a->calls_failed, b->calls_failed, s),
        .launches = per(a->launches, b->launches, s),
        .rows = per(a->rows, b->rows, s),
        .prompt_bytes = per(a->prompt_bytes_read, b->prompt_bytes_read, s),
        .kv_bytes = per(a->kv_bytes_read, b->kv_bytes_read, s),
        .in = per(a->bytes_received, b->bytes_received, s),
        .out = per(a->bytes_sent, b->bytes_sent, s),
        .busy = per(a->compute_us, b->compute_us, s * 1e6),
        .rows_per_launch = per(a->rows, b->rows, per(a->launches, b->launches, 1)),
    };
}

static const char *bytes_text(double bytes, char *text, size_t size)
{
    return relay_cli_bytes_text((uint64_t)bytes, text, size);
}

/* end: what closes each line, so that a shorter one wipes what was there. */
static void print_head(const struct look *now, const struct look *before, const char *end)
{
    const struct relay_server_info *i = now->info;
    const struct rates r = rates_of(now, before);
    const uint64_t s = i->uptime_ms / 1000;
    char a[32], b[32], c[32], d[32];
    printf("relayd %s  %s %s, %u threads  up %llud %02llu:%02llu:%02llu%s", i->version, i->backend,
           i->isa, i->threads, (unsigned long long)(s / 86400), (unsigned long long)(s / 3600 % 24),
           (unsigned long long)(s / 60 % 60), (unsigned long long)(s % 60), end);
    printf("sessions %u  requests %u  calls in flight %u  rpcs %u  uploads %u  prompts %u%s",
           i->sessions, i->requests, i->calls_in_flight, i->rpcs_open, i->uploads, i->prompts, end);
    printf("memory   prompts %s of %s   requests %s of %s%s",
           relay_cli_bytes_text(i->prompt_bytes_used, a, sizeof(a)),
           relay_cli_bytes_text(i->prompt_bytes_max, b, sizeof(b)),
           relay_cli_bytes_text(i->request_bytes_used, c, sizeof(c)),
           relay_cli_bytes_text(i->request_bytes_max, d, sizeof(d)), end);
    printf("compute  %.0f %% busy   %.0f launches/s of %.1f rows   %.0f rows/s   %.0f calls/s, "
           "%.0f failed%s",
           100 * r.busy, r.launches, r.rows_per_launch, r.rows, r.calls, r.failed, end);
    printf("K/V read %s/s of prompts   %s/s of contexts      messages %s/s in, %s/s out%s",
           bytes_text(r.prompt_bytes, a, sizeof(a)), bytes_text(r.kv_bytes, b, sizeof(b)),
           bytes_text(r.in, c, sizeof(c)), bytes_text(r.out, d, sizeof(d)), end);
}

static const struct row *find(const struct look *look, const struct row *row)
{
    for (uint32_t i = 0; i < look->n; i++) {
        if (strcmp(look->rows[i].id, row->id) == 0 &&
            strcmp(look->rows[i].model, row->model) == 0) {
            return &look->rows[i];
        }
    }
    return NULL;
}

static void print_prompts(const struct look *now, const struct look *before, uint32_t most,
                          const char *end)
{
    printf("%s%-32s %-20s %9s %10s %6s %9s %7s%s", end, "prompt", "model", "tokens", "bytes",
           "refs", "hits", "hits/s", end);
    for (uint32_t i = 0; i < now->n && i < most; i++) {
        const struct row *row = &now->rows[i];
        const struct row *old = find(before, row);
        char bytes[32];
        const double s = (double)(now->at_us - before->at_us) / 1e6;
        printf("%-32.32s %-20.20s %9u %10s %6llu %9llu %7.1f%s%s%s", row->id, row->model,
               row->tokens, relay_cli_bytes_text(row->bytes, bytes, sizeof(bytes)),
               (unsigned long long)row->references, (unsigned long long)row->hits,
               old != NULL ? per(row->hits, old->hits, s) : 0, row->pinned ? " pinned" : "",
               row->doomed ? " doomed" : "", end);
    }
    if (now->n + now->more > most) {
        printf("and %u more%s", now->n + now->more - most, end);
    }
}

static int print_json(const struct look *now)
{
    const struct relay_server_info *i = now->info;
    cJSON *o = relay_cli_info_json(i);
    cJSON *prompts = cJSON_AddArrayToObject(o, "prompt_list");
    for (uint32_t k = 0; k < now->n; k++) {
        const struct row *row = &now->rows[k];
        cJSON *p = cJSON_CreateObject();
        cJSON_AddItemToArray(prompts, p);
        cJSON_AddStringToObject(p, "prompt_id", row->id);
        cJSON_AddStringToObject(p, "model_key", row->model);
        cJSON_AddNumberToObject(p, "num_tokens", row->tokens);
        cJSON_AddNumberToObject(p, "bytes", (double)row->bytes);
        cJSON_AddNumberToObject(p, "references", (double)row->references);
        cJSON_AddNumberToObject(p, "hits", (double)row->hits);
    }
    return relay_cli_print_object(o, true);
}

/* ---- the loop ---- */

static uint32_t prompts_that_fit(void)
{
    struct winsize size;
    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_row == 0) {
        return PROMPTS_SHOWN;
    }
    return size.ws_row > HEAD_ROWS + 1 ? (uint32_t)(size.ws_row - HEAD_ROWS - 1) : 1;
}

/* Sleeps; true when q was typed. */
static bool wait_for_key(uint32_t ms)
{
    struct pollfd p = {.fd = STDIN_FILENO, .events = POLLIN};
    char key = '\0';
    if (poll(&p, 1, ms < 3600000u ? (int)ms : 3600000) <= 0) {
        return false;
    }
    if (read(STDIN_FILENO, &key, 1) <= 0) { /* no input any more: just sleep */
        const struct timespec t = {ms / 1000, (long)(ms % 1000) * 1000000};
        nanosleep(&t, NULL);
    }
    return key == 'q' || key == 'Q';
}

static enum relay_code watch(struct relay_client *client, const struct relay_cli_args *args,
                             struct relay_error *err)
{
    struct look before = {.info = NULL}, now;
    enum relay_code code = RELAY_OK;
    bool quit = false;
    printf("\033[2J");
    while (!quit && !interrupted && (code = take_look(client, &now, err)) == RELAY_OK) {
        printf("\033[H");
        print_head(&now, &before, "\033[K\n");
        print_prompts(&now, &before, prompts_that_fit(), "\033[K\n");
        printf("\033[J");
        fflush(stdout);
        look_free(&before);
        before = now;
        quit = wait_for_key(args->interval_ms);
    }
    look_free(&before);
    return interrupted ? RELAY_OK : code;
}

int relay_cli_top(struct relay_client *client, const struct relay_cli_args *args)
{
    struct relay_error err;
    enum relay_code code;
    if (args->once || args->json || !isatty(STDOUT_FILENO)) {
        const struct look before = {.info = NULL};
        struct look now;
        code = take_look(client, &now, &err);
        if (code == RELAY_OK && args->json) {
            print_json(&now);
        } else if (code == RELAY_OK) {
            print_head(&now, &before, "\n");
            print_prompts(&now, &before, PROMPTS_SHOWN, "\n");
        }
        look_free(&now);
    } else {
        const struct sigaction action = {.sa_handler = interrupt};
        struct termios old, raw;
        const bool is_terminal = tcgetattr(STDIN_FILENO, &old) == 0;
        sigaction(SIGINT, &action, NULL);
        sigaction(SIGTERM, &action, NULL);
        if (is_terminal) { /* keys as they are typed */
            raw = old;
            raw.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
            tcsetattr(STDIN_FILENO, TCSANOW, &raw);
        }
        code = watch(client, args, &err);
        if (is_terminal) {
            tcsetattr(STDIN_FILENO, TCSANOW, &old);
        }
    }
    return code == RELAY_OK ? RELAY_CLI_EXIT_OK : relay_cli_print_error(&err);
}
