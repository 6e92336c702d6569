/* exp2 and tanh of four lanes against long double, over a walk through the bit patterns of their
 * range; special values; lanes that do not feel each other. */
#include "cpu/lanes.h"

#include "testlib/check.h"

#define BITS_STEP 251u /* every so manyth float; prime, so that all mantissa endings come up */

static float float_of(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof(f));
    return f;
}

static uint32_t bits_of(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof(bits));
    return bits;
}

/* Largest relative error of fn against oracle for the floats whose patterns are in [from, to]. */
static long double worst_error(v4f (*fn)(v4f), long double (*oracle)(long double), uint32_t from,
                               uint32_t to)
{
    long double worst = 0;
    for (uint64_t bits = from; bits <= to; bits += LANES * BITS_STEP) {
        v4f x;
        for (uint32_t i = 0; i < LANES; i++) {
            x[i] = float_of((uint32_t)bits + i * BITS_STEP);
        }
        v4f y = fn(x);
        for (uint32_t i = 0; i < LANES; i++) {
            long double want = oracle((long double)x[i]);
            long double error = fabsl(((long double)y[i] - want) / want);
            worst = error > worst || isnan(error) ? error : worst;
        }
    }
    return worst;
}

static v4f exp2_fn(v4f x)
{
    return lanes_exp2(x);
}

static v4f tanh_fn(v4f x)
{
    return lanes_tanh(x);
}

static void test_lanes_exp2_is_close(void)
{
    /* Denormals to -125.99, then the positive side that tanh uses. */
    long double negative = worst_error(exp2_fn, exp2l, bits_of(-0.0f), bits_of(-125.99f));
    long double positive = worst_error(exp2_fn, exp2l, bits_of(0.0f), bits_of(125.0f));
    fprintf(stderr, "exp2: worst relative error %.3Lg below 0, %.3Lg above\n", negative, positive);
    CHECK(negative < 1.5e-7L);
    CHECK(positive < 1.5e-7L);
}

static void test_lanes_tanh_is_close(void)
{
    long double positive = worst_error(tanh_fn, tanhl, bits_of(0x1p-100f), bits_of(80.0f));
    long double negative = worst_error(tanh_fn, tanhl, bits_of(-0x1p-100f), bits_of(-80.0f));
    fprintf(stderr, "tanh: worst relative error %.3Lg above 0, %.3Lg below\n", positive, negative);
    CHECK(positive < 4e-7L);
    CHECK(negative < 4e-7L);
}

static void test_lanes_exp2_special_values(void)
{
    v4f y = lanes_exp2((v4f){0.0f, -0.0f, -INFINITY, NAN});
    CHECK(y[0] == 1.0f && y[1] == 1.0f);
    CHECK_EQ(bits_of(y[2]), 0);
    CHECK(isnan(y[3]));
    y = lanes_exp2((v4f){-126.0f, -127.0f, -1e30f, -0x1p31f});
    CHECK(y[0] == 0x1p-126f);
    CHECK_EQ(bits_of(y[1]) | bits_of(y[2]) | bits_of(y[3]), 0);
    for (int n = -126; n <= 126; n++) { /* whole powers are exact */
        CHECK(lanes_exp2(lanes_splat((float)n))[0] == ldexpf(1.0f, n));
    }
}

static void test_lanes_tanh_special_values(void)
{
    v4f y = lanes_tanh((v4f){0.0f, -0.0f, INFINITY, NAN});
    CHECK_EQ(bits_of(y[0]), 0);
    CHECK_EQ(bits_of(y[1]), 0x80000000u);
    CHECK(y[2] == 1.0f);
    CHECK(isnan(y[3]));
    CHECK(lanes_tanh(lanes_splat(-INFINITY))[0] == -1.0f);
}

static void test_lanes_are_independent(void)
{
    v4f x = {-3.25f, -0.1f, -77.0f, -12.5f};
    v4f a = lanes_exp2(x);
    for (uint32_t i = 0; i < LANES; i++) {
        v4f others = {NAN, -INFINITY, 1e30f, -1.0f};
        others[i] = x[i];
        CHECK_EQ(bits_of(lanes_exp2(others)[i]), bits_of(a[i]));
        CHECK_EQ(bits_of(lanes_max(others, lanes_splat(-200.0f))[i]), bits_of(x[i]));
    }
}

static void test_lanes_sum4_adds_in_one_order(void)
{
    /* (0 + 2) + (1 + 3) rounds differently from any other order here. */
    v4f a = {0x1p24f, 1.0f, 1.0f, 0.0f};
    v4f none = lanes_splat(0.0f);
    float want = (a[0] + a[2]) + (a[1] + a[3]);
    CHECK(want != (a[0] + (a[1] + a[2])) + a[3]);
    CHECK(lanes_sum4(a, none, none, none)[0] == want);
    CHECK(lanes_sum4(none, a, none, none)[1] == want);
    CHECK(lanes_sum4(none, none, a, none)[2] == want);
    CHECK(lanes_sum4(none, none, none, a)[3] == want);
}

static void test_lanes_max_skips_nan(void)
{
    v4f m = lanes_max((v4f){1.0f, -INFINITY, 2.0f, 0.0f}, (v4f){NAN, NAN, 3.0f, -1.0f});
    CHECK(m[0] == 1.0f && m[1] == -INFINITY && m[2] == 3.0f && m[3] == 0.0f);
}

int main(void)
{
    CHECK_RUN(test_lanes_exp2_is_close);
    CHECK_RUN(test_lanes_tanh_is_close);
    CHECK_RUN(test_lanes_exp2_special_values);
    CHECK_RUN(test_lanes_tanh_special_values);
    CHECK_RUN(test_lanes_are_independent);
    CHECK_RUN(test_lanes_sum4_adds_in_one_order);
    CHECK_RUN(test_lanes_max_skips_nan);
    return check_done();
}
