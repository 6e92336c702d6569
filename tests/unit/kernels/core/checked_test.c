/* Arithmetic that says when it overflows. */
#include "core/checked.h"

#include "testlib/check.h"

static void test_checked_at_the_edges(void)
{
    size_t x = 5;
    CHECK(relay_checked_add(SIZE_MAX - 1, 1, &x) && x == SIZE_MAX);
    CHECK(!relay_checked_add(SIZE_MAX, 1, &x) && x == SIZE_MAX);
    CHECK(relay_checked_mul(SIZE_MAX / 3, 3, &x) && x == SIZE_MAX / 3 * 3);
    CHECK(!relay_checked_mul(SIZE_MAX / 3 + 1, 3, &x));
    CHECK(relay_checked_mul(SIZE_MAX, 0, &x) && x == 0);
    CHECK(relay_checked_mul(0, SIZE_MAX, &x) && x == 0);
    CHECK(relay_checked_mul_add(3, 4, 5, &x) && x == 17);
    CHECK(!relay_checked_mul_add(SIZE_MAX, 1, 1, &x) && x == 17);
    CHECK_EQ(relay_ceil_div_u32(UINT32_MAX, 2), 0x80000000u);
    CHECK_EQ(relay_ceil_div_u32(0, 16), 0);
    CHECK_EQ(relay_ceil_div_u32(17, 16), 2);
}

int main(void)
{
    CHECK_RUN(test_checked_at_the_edges);
    return check_done();
}
