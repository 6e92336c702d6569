/* Checks for tests: one executable per file, its own main, CHECK_RUN per test function.
 *
 *     int main(void) { CHECK_RUN(test_convert_rounds_to_even); return check_done(); }
 *
 * A failed CHECK prints where and what, and ends the test function; the others still run. Exit
 * code: 0 all passed, 1 some failed, 77 everything that could run was skipped. Not thread-safe:
 * check in the main thread. */
#ifndef RELAY_TESTLIB_CHECK_H
#define RELAY_TESTLIB_CHECK_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int check_failed_now;
static int check_skipped_now;
static int check_passed, check_failed, check_skipped;

#define CHECK_FAIL(...)                                                                            \
    do {                                                                                           \
        fprintf(stderr, "%s:%d: ", __FILE__, __LINE__);                                            \
        fprintf(stderr, __VA_ARGS__);                                                              \
        fputc('\n', stderr);                                                                       \
        check_failed_now = 1;                                                                      \
        return;                                                                                    \
    } while (0)

#define CHECK(cond)                                                                                \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            CHECK_FAIL("CHECK(%s) does not hold", #cond);                                          \
        }                                                                                          \
    } while (0)

/* Both sides as long long; printed on failure. */
#define CHECK_EQ(a, b)                                                                             \
    do {                                                                                           \
        long long check_a_ = (long long)(a), check_b_ = (long long)(b);                            \
        if (check_a_ != check_b_) {                                                                \
            CHECK_FAIL("%s is %lld, %s is %lld", #a, check_a_, #b, check_b_);                      \
        }                                                                                          \
    } while (0)

#define CHECK_STR(a, b)                                                                            \
    do {                                                                                           \
        const char *check_s_ = (a), *check_t_ = (b);                                               \
        if (check_s_ == NULL || check_t_ == NULL || strcmp(check_s_, check_t_) != 0) {             \
            CHECK_FAIL("%s is \"%s\", %s is \"%s\"", #a, check_s_ ? check_s_ : "(null)", #b,       \
                       check_t_ ? check_t_ : "(null)");                                            \
        }                                                                                          \
    } while (0)

/* A relay call that must succeed; err is the struct relay_error it was given. */
#define CHECK_OK(call, err)                                                                        \
    do {                                                                                           \
        if ((call) != RELAY_OK) {                                                                  \
            CHECK_FAIL("%s: %s: %s (%s:%d)", #call, relay_code_name((err).code), (err).msg,        \
                       (err).file ? (err).file : "?", (err).line);                                 \
        }                                                                                          \
    } while (0)

/* A relay call that must fail with this code. */
#define CHECK_CODE(call, want)                                                                     \
    do {                                                                                           \
        enum relay_code check_c_ = (call);                                                         \
        if (check_c_ != (want)) {                                                                  \
            CHECK_FAIL("%s: %s instead of %s", #call, relay_code_name(check_c_),                   \
                       relay_code_name(want));                                                     \
        }                                                                                          \
    } while (0)

/* Ends a test function whose hardware or permission is missing; the reason is printed. */
#define CHECK_SKIP(...)                                                                            \
    do {                                                                                           \
        fprintf(stderr, "skipped: ");                                                              \
        fprintf(stderr, __VA_ARGS__);                                                              \
        fputc('\n', stderr);                                                                       \
        check_skipped_now = 1;                                                                     \
        return;                                                                                    \
    } while (0)

/* Inside a helper that may have failed: leave the caller too. */
#define CHECK_STILL()                                                                              \
    do {                                                                                           \
        if (check_failed_now || check_skipped_now) {                                               \
            return;                                                                                \
        }                                                                                          \
    } while (0)

#define CHECK_RUN(fn) check_run(#fn, fn)

static inline void check_run(const char *name, void (*fn)(void))
{
    check_failed_now = 0;
    check_skipped_now = 0;
    fn();
    if (check_failed_now) {
        check_failed++;
    } else if (check_skipped_now) {
        check_skipped++;
    } else {
        check_passed++;
    }
    fprintf(stderr, "%s %s\n", check_failed_now ? "FAIL" : (check_skipped_now ? "skip" : "ok  "),
            name);
}

/* Prints the totals; the return value of main. */
static inline int check_done(void)
{
    fprintf(stderr, "%d passed, %d failed, %d skipped\n", check_passed, check_failed,
            check_skipped);
    if (check_failed != 0 || check_passed + check_skipped == 0) {
        return 1;
    }
    return check_passed == 0 ? 77 : 0;
}

#endif
