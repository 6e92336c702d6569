#include "testlib/server.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define READY_FD       3
#define READY_WAIT_MS  60000
#define STOP_WAIT_MS   60000
#define ARGS_MAX       64
#define POLL_PERIOD_MS 10

static void sleep_ms(long ms)
{
    const struct timespec t = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&t, NULL);
}

static void log_path(const struct test_server *server, char *out, size_t bytes)
{
    snprintf(out, bytes, "%s/log", server->dir);
}

void test_server_print_log(const struct test_server *server)
{
    char path[96], line[1024];
    log_path(server, path, sizeof(path));
    FILE *log = fopen(path, "r");
    while (log != NULL && fgets(line, sizeof(line), log) != NULL) {
        fprintf(stderr, "relayd: %s", line);
    }
    if (log != NULL) {
        fclose(log);
    }
}

static bool make_dir(struct test_server *server)
{
    if (server->dir[0] != '\0') {
        return true;
    }
    snprintf(server->dir, sizeof(server->dir), "/tmp/relayd-test-XXXXXX");
    if (mkdtemp(server->dir) == NULL) {
        fprintf(stderr, "no directory in /tmp: %s\n", strerror(errno));
        server->dir[0] = '\0';
        return false;
    }
    snprintf(server->unix_target, sizeof(server->unix_target), "unix://%s/sock", server->dir);
    return true;
}

/* In the child, between fork and exec: only what is safe there. */
static void child(char *const *argv, int ready_fd, int log_fd, pid_t parent)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) {
        _exit(127);
    }
    /* The log first: it may lie where the other one goes. */
    dup2(log_fd, STDOUT_FILENO);
    dup2(log_fd, STDERR_FILENO);
    /* dup2 onto itself would leave close-on-exec set. */
    if (ready_fd == READY_FD) {
        fcntl(ready_fd, F_SETFD, 0);
    } else {
        dup2(ready_fd, READY_FD);
    }
    execv(argv[0], argv);
    _exit(127);
}

/* "ready port=N\n". */
static bool read_ready(int fd, uint32_t *port)
{
    char text[64] = "";
    size_t used = 0;
    while (strchr(text, '\n') == NULL && used + 1 < sizeof(text)) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if (poll(&p, 1, READY_WAIT_MS) <= 0) {
            return false;
        }
        const ssize_t got = read(fd, text + used, sizeof(text) - 1 - used);
        if (got <= 0) {
            return false;
        }
        used += (size_t)got;
        text[used] = '\0';
    }
    /* Until it has closed its side: a test may count its descriptors. */
    char more;
    while (read(fd, &more, 1) > 0) {
    }
    return sscanf(text, "ready port=%u", port) == 1;
}

bool test_server_start(struct test_server *server, const char *const *args)
{
    const char *binary = getenv("RELAYD");
    char listen[128], path[96], fd_text[16];
    const char *argv[ARGS_MAX + 9] = {binary != NULL ? binary : RELAYD_PATH,
                                      "--listen",
                                      listen,
                                      "--listen",
                                      "127.0.0.1:0",
                                      "--ready-fd",
                                      fd_text};
    int ready[2], n = 7;
    if (!make_dir(server)) {
        return false;
    }
    snprintf(fd_text, sizeof(fd_text), "%d", READY_FD);
    snprintf(listen, sizeof(listen), "unix:%s/sock", server->dir);
    for (int i = 0; args != NULL && args[i] != NULL && i < ARGS_MAX; i++) {
        argv[n++] = args[i];
    }
    log_path(server, path, sizeof(path));
    const int log_fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (log_fd < 0 || pipe2(ready, O_CLOEXEC) != 0) {
        fprintf(stderr, "no log or pipe: %s\n", strerror(errno));
        return false;
    }
    const pid_t parent = getpid();
    server->pid = fork();
    if (server->pid == 0) {
        child((char *const *)(uintptr_t)argv, ready[1], log_fd, parent);
    }
    close(ready[1]);
    close(log_fd);
    const bool ok = server->pid > 0 && read_ready(ready[0], &server->port);
    close(ready[0]);
    if (!ok) {
        fprintf(stderr, "%s did not become ready\n", argv[0]);
        test_server_print_log(server);
        test_server_kill(server);
        return false;
    }
    snprintf(server->tcp_target, sizeof(server->tcp_target), "127.0.0.1:%u", server->port);
    return true;
}

static int exit_code(int status)
{
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int test_server_stop(struct test_server *server)
{
    int status;
    if (server->pid <= 0) {
        return -1;
    }
    kill(server->pid, SIGTERM);
    for (long waited = 0; waited < STOP_WAIT_MS; waited += POLL_PERIOD_MS) {
        if (waitpid(server->pid, &status, WNOHANG) == server->pid) {
            server->pid = 0;
            if (exit_code(status) != 0) {
                test_server_print_log(server);
            }
            return exit_code(status);
        }
        sleep_ms(POLL_PERIOD_MS);
    }
    fprintf(stderr, "relayd did not stop\n");
    test_server_print_log(server);
    test_server_kill(server);
    return -1;
}

void test_server_kill(struct test_server *server)
{
    if (server->pid > 0) {
        kill(server->pid, SIGKILL);
        waitpid(server->pid, NULL, 0);
    }
    server->pid = 0;
}

void test_server_freeze(struct test_server *server)
{
    int status = 0;
    kill(server->pid, SIGSTOP);
    /* Threads run on until the one that takes the signal gets to it. */
    (void)waitpid(server->pid, &status, WUNTRACED);
}

void test_server_fini(struct test_server *server)
{
    char path[96];
    test_server_kill(server);
    if (server->dir[0] != '\0') {
        log_path(server, path, sizeof(path));
        unlink(path);
        snprintf(path, sizeof(path), "%s/sock", server->dir);
        unlink(path);
        rmdir(server->dir);
    }
    *server = (struct test_server){.pid = 0};
}

struct relay_server_info *test_server_info(const struct test_server *server)
{
    struct relay_client *client = NULL;
    struct relay_server_info *info = NULL;
    struct relay_error err;
    if (relay_client_open(server->unix_target, NULL, &client, &err) != RELAY_OK ||
        relay_client_server_info(client, &info, &err) != RELAY_OK) {
        fprintf(stderr, "server info: %s: %s\n", relay_code_name(err.code), err.msg);
        info = NULL;
    }
    relay_client_close(client);
    return info;
}

bool test_server_wait_idle(const struct test_server *server)
{
    for (int i = 0; i < 1000; i++) {
        struct relay_server_info *info = test_server_info(server);
        if (info == NULL) {
            return false;
        }
        const bool idle = info->sessions == 0 && info->requests == 0 && info->uploads == 0 &&
                          info->calls_in_flight == 0;
        if (!idle && i == 999) {
            fprintf(stderr, "still %u sessions, %u requests, %u uploads, %u calls\n",
                    info->sessions, info->requests, info->uploads, info->calls_in_flight);
        }
        relay_server_info_free(info);
        if (idle) {
            return true;
        }
        sleep_ms(POLL_PERIOD_MS);
    }
    return false;
}
