/* Error records and code names. */
#include <relay/status.h>

#include "testlib/check.h"

static enum relay_code fails(struct relay_error *err)
{
    return RELAY_FAIL(err, RELAY_NOT_FOUND, "prompt %s of %d", "x", 3);
}

static void test_status_fills_the_record(void)
{
    struct relay_error err;
    CHECK_CODE(fails(&err), RELAY_NOT_FOUND);
    CHECK_EQ(err.code, RELAY_NOT_FOUND);
    CHECK_STR(err.msg, "prompt x of 3");
    CHECK(strstr(err.file, "status_test.c") != NULL && err.line > 0);
    CHECK_CODE(fails(NULL), RELAY_NOT_FOUND);
}

static void test_status_cuts_long_messages(void)
{
    struct relay_error err;
    char text[1000];
    memset(text, 'a', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    CHECK_CODE(RELAY_FAIL(&err, RELAY_INTERNAL, "%s", text), RELAY_INTERNAL);
    CHECK_EQ(strlen(err.msg), RELAY_ERROR_MSG_BYTES - 1);
}

static void test_status_names(void)
{
    CHECK_STR(relay_code_name(RELAY_OK), "OK");
    CHECK_STR(relay_code_name(RELAY_UNAUTHENTICATED), "UNAUTHENTICATED");
    CHECK_EQ(RELAY_UNAUTHENTICATED, 16); /* gRPC's numbers */
    CHECK_EQ(RELAY_RESOURCE_EXHAUSTED, 8);
    CHECK_STR(relay_code_name((enum relay_code)99), "UNKNOWN");
}

int main(void)
{
    CHECK_RUN(test_status_fills_the_record);
    CHECK_RUN(test_status_cuts_long_messages);
    CHECK_RUN(test_status_names);
    return check_done();
}
