/* Conversions, over every code of the small types. The expected values come from ldexp and
 * nextafter arithmetic in double, not from bit tricks. */
#include <relay/types.h>

#include "testlib/check.h"
#include "testlib/rng.h"

#include <math.h>

/* A small float format. */
struct format {
    enum relay_dtype dtype;
    int mantissa, bias;
    uint32_t codes, sign, nan_first; /* positive codes from nan_first on are NaN */
    uint32_t inf;                    /* code of infinity, or 0 when there is none */
};

static const struct format formats[] = {
    {RELAY_DTYPE_F16, 10, 15, 1u << 16, 0x8000, 0x7c01, 0x7c00},
    {RELAY_DTYPE_BF16, 7, 127, 1u << 16, 0x8000, 0x7f81, 0x7f80},
    {RELAY_DTYPE_F8_E4M3, 3, 7, 1u << 8, 0x80, 0x7f, 0},
};

static double value_of(const struct format *f, uint32_t code)
{
    uint32_t mag = code & (f->sign - 1);
    int exponent = (int)(mag >> f->mantissa);
    int mantissa = (int)(mag & ((1u << f->mantissa) - 1));
    double v;
    if (mag >= f->nan_first) {
        return NAN;
    }
    if (f->inf != 0 && mag == f->inf) {
        v = INFINITY;
    } else if (exponent == 0) {
        v = ldexp(mantissa, 1 - f->bias - f->mantissa);
    } else {
        v = ldexp(mantissa + (1 << f->mantissa), exponent - f->bias - f->mantissa);
    }
    return (code & f->sign) != 0 ? -v : v;
}

static uint32_t code_at(const struct format *f, const void *encoded, size_t i)
{
    return f->codes > 256 ? ((const uint16_t *)encoded)[i] : ((const uint8_t *)encoded)[i];
}

static float decoded[1 << 16];
static uint16_t codes[1 << 16];
static uint16_t again[1 << 16];

static void make_codes(const struct format *f)
{
    for (uint32_t c = 0; c < f->codes; c++) {
        if (f->codes > 256) {
            codes[c] = (uint16_t)c;
        } else {
            ((uint8_t *)codes)[c] = (uint8_t)c;
        }
    }
}

static void test_dtype_decodes_every_code(void)
{
    for (size_t i = 0; i < 3; i++) {
        const struct format *f = &formats[i];
        make_codes(f);
        relay_dtype_convert(RELAY_DTYPE_F32, decoded, f->dtype, codes, f->codes);
        for (uint32_t c = 0; c < f->codes; c++) {
            double want = value_of(f, c);
            if (isnan(want)) {
                CHECK(isnan(decoded[c]));
            } else if ((double)decoded[c] != want || !signbit(decoded[c]) != !signbit(want)) {
                CHECK_FAIL("%s 0x%x is %.9g, not %.9g", relay_dtype_name(f->dtype), c,
                           (double)decoded[c], want);
            }
        }
    }
}

static void test_dtype_codes_survive_the_round_trip(void)
{
    for (size_t i = 0; i < 3; i++) {
        const struct format *f = &formats[i];
        make_codes(f);
        relay_dtype_convert(RELAY_DTYPE_F32, decoded, f->dtype, codes, f->codes);
        relay_dtype_convert(f->dtype, again, RELAY_DTYPE_F32, decoded, f->codes);
        for (uint32_t c = 0; c < f->codes; c++) {
            uint32_t back = code_at(f, again, c);
            if (isnan(value_of(f, c))) {
                CHECK(isnan(value_of(f, back)));
            } else {
                CHECK_EQ(back, c);
            }
        }
    }
}

/* The code of one float. */
static uint32_t encode(const struct format *f, float x)
{
    uint16_t code[2] = {0, 0};
    relay_dtype_convert(f->dtype, code, RELAY_DTYPE_F32, &x, 1);
    return code_at(f, code, 0);
}

/* Between each pair of neighbours: below, at and above the middle. */
static void test_dtype_rounds_to_nearest_even(void)
{
    for (size_t i = 0; i < 3; i++) {
        const struct format *f = &formats[i];
        uint32_t last = f->inf != 0 ? f->inf - 1 : f->nan_first - 1;
        for (uint32_t c = 0; c <= last; c++) {
            /* Past the last finite value the next step counts as if the format went on. */
            double a = value_of(f, c);
            double b = c < last ? value_of(f, c + 1) : 2.0 * a - value_of(f, c - 1);
            float mid = (float)((a + b) / 2.0); /* exact: one more bit than the format */
            float below = nextafterf(mid, 0.0f);
            float above = nextafterf(mid, INFINITY);
            uint32_t even = (c & 1u) == 0 ? c : c + 1; /* c + 1 past the last: inf or NaN */
            if (f->dtype == RELAY_DTYPE_BF16 && c == last) {
                continue; /* the middle is beyond float32's normal spacing; tested below */
            }
            if ((double)mid != (a + b) / 2.0) {
                CHECK_FAIL("0x%x: the middle is not a float32", c);
            }
            if (encode(f, below) != c || encode(f, mid) != even || encode(f, above) != c + 1) {
                CHECK_FAIL("%s between 0x%x and the next: 0x%x 0x%x 0x%x",
                           relay_dtype_name(f->dtype), c, encode(f, below), encode(f, mid),
                           encode(f, above));
            }
            if (encode(f, -mid) != (even | f->sign)) {
                CHECK_FAIL("%s: -0x%x rounds to 0x%x", relay_dtype_name(f->dtype), c,
                           encode(f, -mid));
            }
        }
    }
}

static void test_dtype_overflow_and_nan(void)
{
    const struct format *f16 = &formats[0], *bf16 = &formats[1], *f8 = &formats[2];
    float nans[3] = {NAN, -NAN, 0.0f};
    uint32_t quiet = 0x7f800001u; /* a NaN whose upper bits alone would be an infinity */
    memcpy(&nans[2], &quiet, sizeof(quiet));
    for (size_t i = 0; i < 3; i++) {
        for (size_t n = 0; n < 3; n++) {
            CHECK(isnan(value_of(&formats[i], encode(&formats[i], nans[n]))));
        }
    }
    CHECK_EQ(encode(f16, INFINITY), 0x7c00);
    CHECK_EQ(encode(f16, -1e30f), 0xfc00);
    CHECK_EQ(encode(f16, 65519.0f), 0x7bff);
    CHECK_EQ(encode(f16, 65520.0f), 0x7c00);
    CHECK_EQ(encode(bf16, INFINITY), 0x7f80);
    CHECK_EQ(encode(bf16, 0x1.fffffep127f), 0x7f80);
    CHECK_EQ(encode(bf16, 0x1.fep127f), 0x7f7f);
    CHECK_EQ(encode(f8, 464.0f), 0x7e); /* halfway to 480, which is NaN's code: even is 448 */
    CHECK_EQ(encode(f8, 464.1f), 0x7f);
    CHECK_EQ(encode(f8, INFINITY), 0x7f);
    CHECK_EQ(encode(f8, -1e9f), 0xff);
    CHECK_EQ(encode(f8, 0x1p-10f), 0x00);
    CHECK_EQ(encode(f8, 0x1.1p-10f), 0x01);
    CHECK_EQ(encode(f16, 0x1p-149f), 0);
    CHECK_EQ(encode(f16, -0.0f), 0x8000);
}

/* Between two small types every value goes through float32 and is rounded once; any length. */
static void test_dtype_converts_between_small_types(void)
{
    static const enum relay_dtype all[] = {RELAY_DTYPE_F32, RELAY_DTYPE_F16, RELAY_DTYPE_BF16,
                                           RELAY_DTYPE_F8_E4M3};
    enum { N = 1000 };
    static float x[N], via[N];
    static unsigned char src[N * 4], a[N * 4], b[N * 4];
    struct rng rng = {7};
    for (size_t i = 0; i < N; i++) {
        x[i] = rng_normal(&rng) * 50.0f;
    }
    for (size_t s = 0; s < 4; s++) {
        for (size_t d = 0; d < 4; d++) {
            size_t n = 1 + rng_below(&rng, N);
            size_t bytes = n * relay_dtype_size(all[d]);
            relay_dtype_convert(all[s], src, RELAY_DTYPE_F32, x, n);
            relay_dtype_convert(RELAY_DTYPE_F32, via, all[s], src, n);
            relay_dtype_convert(all[d], a, RELAY_DTYPE_F32, via, n);
            memset(b, 0xee, sizeof(b));
            relay_dtype_convert(all[d], b, all[s], src, n);
            CHECK(memcmp(a, b, bytes) == 0);
            for (size_t i = bytes; i < sizeof(b); i++) {
                CHECK_EQ(b[i], 0xee);
            }
            if (relay_dtype_size(all[s]) == relay_dtype_size(all[d])) {
                relay_dtype_convert(all[d], src, all[s], src, n); /* in place */
                CHECK(memcmp(a, src, bytes) == 0);
            }
        }
    }
}

static void test_dtype_names_and_sizes(void)
{
    CHECK_EQ(relay_dtype_size(RELAY_DTYPE_F32), 4);
    CHECK_EQ(relay_dtype_size(RELAY_DTYPE_F8_E4M3), 1);
    CHECK_EQ(relay_dtype_size(RELAY_DTYPE_UNSPECIFIED), 0);
    CHECK_EQ(relay_dtype_size((enum relay_dtype)9), 0);
    CHECK_STR(relay_dtype_name(RELAY_DTYPE_BF16), "BF16");
    CHECK_STR(relay_dtype_name((enum relay_dtype)9), "?");
}

int main(void)
{
    CHECK_RUN(test_dtype_decodes_every_code);
    CHECK_RUN(test_dtype_codes_survive_the_round_trip);
    CHECK_RUN(test_dtype_rounds_to_nearest_even);
    CHECK_RUN(test_dtype_overflow_and_nan);
    CHECK_RUN(test_dtype_converts_between_small_types);
    CHECK_RUN(test_dtype_names_and_sizes);
    return check_done();
}
