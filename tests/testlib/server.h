/* A relayd of a test's own: started on a private unix socket and a free TCP port, stopped or
 * killed, asked what it holds. It dies with the thread that started it.
 *
 * The binary is the build's, or RELAYD of the environment. Its log is <dir>/log, printed when
 * something here fails. For one thread. */
#ifndef RELAY_TESTLIB_SERVER_H
#define RELAY_TESTLIB_SERVER_H

#include <relay/client.h>
#include <sys/types.h>

struct test_server {
    pid_t pid; /* 0 = none runs */
    uint32_t port;
    char dir[64];         /* holds the socket and the log; removed by fini */
    char unix_target[96]; /* "unix:///..." */
    char tcp_target[32];  /* "127.0.0.1:port" */
};

/* Starts it and waits until it is ready. args: more options, NULL-terminated, may be NULL. After a
 * stop or kill it starts a new one on the same socket (and another port). False: the reason is
 * printed. A zeroed struct first. */
bool test_server_start(struct test_server *server, const char *const *args);
/* SIGTERM, then waits. Its exit code; 128 + the signal that ended it; -1 when it did not end within
 * a minute and was killed. */
int test_server_stop(struct test_server *server);
/* SIGKILL. */
void test_server_kill(struct test_server *server);
/* SIGSTOP; on return nothing of it runs. SIGCONT or a kill is the caller's. */
void test_server_freeze(struct test_server *server);
/* Kills what still runs and removes the directory. Fine on a zeroed one. */
void test_server_fini(struct test_server *server);
/* Prints the log to stderr. */
void test_server_print_log(const struct test_server *server);

/* What it holds now. The caller frees it. NULL: the reason is printed. */
struct relay_server_info *test_server_info(const struct test_server *server);
/* Polls until it holds no session, request, upload or call (prompts stay). False after a while. */
bool test_server_wait_idle(const struct test_server *server);

#endif
