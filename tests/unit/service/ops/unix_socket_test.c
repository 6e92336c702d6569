/* service/ops/unix_socket: only what is provably dead is removed. */
#include "service/ops/unix_socket.h"

#include "testlib/check.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static struct relay_error err;
static char dir[64], path[96];

static void begin(void)
{
    snprintf(dir, sizeof(dir), "/tmp/relayd_socket_XXXXXX");
    CHECK(mkdtemp(dir) != NULL);
    snprintf(path, sizeof(path), "%s/relayd.sock", dir);
}

static void end(void)
{
    unlink(path);
    rmdir(dir);
}

/* A socket bound to the path; -1 on failure. */
static int serve(const char *at, int backlog)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof(address.sun_path), "%s", at);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(fd, (struct sockaddr *)&address, sizeof(address)) != 0 ||
        (backlog > 0 && listen(fd, backlog) != 0)) {
        close(fd);
        return -1;
    }
    return fd;
}

static void test_addresses(void)
{
    CHECK_STR(relayd_unix_path("unix:/a/b"), "/a/b");
    CHECK_STR(relayd_unix_path("unix:b"), "b");
    CHECK_STR(relayd_unix_path("unix:///a/b"), "/a/b");
    CHECK(relayd_unix_path("127.0.0.1:7070") == NULL);
    CHECK(relayd_unix_path("unix-abstract:relayd") == NULL);
}

static void test_a_free_path_stays_free(void)
{
    struct stat info;
    begin();
    CHECK_STILL();
    CHECK_OK(relayd_unix_claim(path, false, &err), err);
    CHECK(lstat(path, &info) != 0);
    end();
}

static void test_a_dead_socket_is_removed(void)
{
    struct stat info;
    begin();
    CHECK_STILL();
    int fd = serve(path, 1);
    CHECK(fd >= 0);
    close(fd);
    CHECK_EQ(lstat(path, &info), 0);
    CHECK_OK(relayd_unix_claim(path, false, &err), err);
    CHECK(lstat(path, &info) != 0);
    end();
}

static void test_a_served_socket_stays(void)
{
    struct stat info;
    begin();
    CHECK_STILL();
    int fd = serve(path, 1);
    CHECK(fd >= 0);
    CHECK_CODE(relayd_unix_claim(path, false, &err), RELAY_UNAVAILABLE);
    CHECK(strstr(err.msg, path) != NULL);
    /* A full backlog answers with EAGAIN: alive all the same. */
    for (int i = 0; i < 8; i++) {
        CHECK_CODE(relayd_unix_claim(path, false, &err), RELAY_UNAVAILABLE);
    }
    CHECK_EQ(lstat(path, &info), 0);
    close(fd);
    end();
}

static void test_other_files_stay(void)
{
    struct stat info;
    begin();
    CHECK_STILL();
    FILE *file = fopen(path, "w");
    CHECK(file != NULL);
    fclose(file);
    CHECK_CODE(relayd_unix_claim(path, false, &err), RELAY_FAILED_PRECONDITION);
    CHECK_EQ(lstat(path, &info), 0);
    unlink(path);
    /* A link is not followed to what it names. */
    CHECK_EQ(symlink("/dev/null", path), 0);
    CHECK_CODE(relayd_unix_claim(path, false, &err), RELAY_FAILED_PRECONDITION);
    CHECK_EQ(lstat(path, &info), 0);
    end();
}

static void test_directories_are_made_when_asked(void)
{
    char deep[128];
    struct stat info;
    begin();
    CHECK_STILL();
    rmdir(dir);
    CHECK_CODE(relayd_unix_claim(path, false, &err), RELAY_NOT_FOUND);
    CHECK_OK(relayd_unix_claim(path, true, &err), err);
    CHECK_EQ(stat(dir, &info), 0);
    CHECK_EQ(info.st_mode & 0777 & ~0755u, 0);
    CHECK_OK(relayd_unix_claim(path, true, &err), err);
    snprintf(deep, sizeof(deep), "%s/x/y/z.sock", dir);
    CHECK_CODE(relayd_unix_claim(deep, true, &err), RELAY_PERMISSION_DENIED);
    end();
}

static void test_paths_that_are_too_long_are_refused(void)
{
    char text[200];
    memset(text, 'a', sizeof(text));
    text[108] = '\0';
    CHECK_CODE(relayd_unix_claim(text, false, &err), RELAY_INVALID_ARGUMENT);
    CHECK_CODE(relayd_unix_claim("", false, &err), RELAY_INVALID_ARGUMENT);
}

static void test_a_directory_of_somebody_else(void)
{
    if (geteuid() == 0) {
        CHECK_SKIP("root may write everywhere");
    }
    CHECK_CODE(relayd_unix_claim("/relayd.sock", true, &err), RELAY_PERMISSION_DENIED);
}

int main(void)
{
    CHECK_RUN(test_addresses);
    CHECK_RUN(test_a_free_path_stays_free);
    CHECK_RUN(test_a_dead_socket_is_removed);
    CHECK_RUN(test_a_served_socket_stays);
    CHECK_RUN(test_other_files_stay);
    CHECK_RUN(test_directories_are_made_when_asked);
    CHECK_RUN(test_paths_that_are_too_long_are_refused);
    CHECK_RUN(test_a_directory_of_somebody_else);
    return check_done();
}
