/* The AMX kernel's walk over tiles on any machine with AVX-512 BF16: its tile instructions are
 * replaced by loops, its results compared with those of the AVX-512 BF16 kernel, whose sums are in
 * another order. */
#include "amx_emulated.h"

#include "core/host_memory.h"
#include "cpu/pages.h"

#include <math.h>
#include <string.h>

#include "testlib/check.h"
#include "testlib/rng.h"

#define PAGE  64u
#define BLOCK 64u

/* ---- one item through both kernels ---- */

struct item_case {
    uint32_t group, rows, tokens, first; /* rows see first .. tokens - 1 */
    uint32_t dqk, dv;
    uint32_t window; /* 0 = none: then all rows see the same */
    bool plain;      /* pages of 48 tokens, which are not packed */
};

static void *room(size_t bytes)
{
    void *p = aligned_alloc(64, (bytes + 4095) / 64 * 64);
    memset(p, 0xff, (bytes + 4095) / 64 * 64); /* NaN */
    return p;
}

static bool close_enough(const float *a, const float *b, size_t n, float limit)
{
    for (size_t i = 0; i < n; i++) {
        if (!(fabsf(a[i] - b[i]) <= limit)) {
            fprintf(stderr, "[%zu] %g is not %g\n", i, (double)a[i], (double)b[i]);
            return false;
        }
    }
    return true;
}

/* n normal numbers. */
static unsigned char *numbers(struct rng *rng, enum relay_dtype dtype, size_t n)
{
    const size_t elem = relay_dtype_size(dtype);
    unsigned char *rows = room(n * elem);
    for (size_t i = 0; i < n; i++) {
        float x = (float)rng_normal(rng);
        relay_dtype_convert(dtype, rows + i * elem, RELAY_DTYPE_F32, &x, 1);
    }
    return rows;
}

static void check_item(const struct item_case *c, enum relay_dtype kv_dtype)
{
    uint32_t page = c->plain ? 48 : PAGE;
    uint32_t pages = (c->tokens + page - 1) / page;
    struct relay_layer_kind kind = {.num_q_heads = c->group,
                                    .num_kv_heads = 1,
                                    .head_dim_qk = c->dqk,
                                    .head_dim_v = c->dv,
                                    .window = c->window,
                                    .scale = 0.1f};
    struct relay_shape shape = {kind, kv_dtype, RELAY_DTYPE_BF16, RELAY_DTYPE_BF16};
    size_t elem = relay_dtype_size(kv_dtype);
    struct rng rng = {c->tokens + c->dqk};
    uint32_t ids[64];
    uint32_t packed = c->rows * c->group;
    size_t k_page = page * c->dqk * elem, stride = k_page + page * c->dv * elem;
    unsigned char *kv = room(pages * stride);
    unsigned char *rows_k = numbers(&rng, kv_dtype, (size_t)c->tokens * c->dqk);
    unsigned char *rows_v = numbers(&rng, kv_dtype, (size_t)c->tokens * c->dv);
    unsigned char *q = numbers(&rng, RELAY_DTYPE_BF16, (size_t)packed * c->dqk);
    for (uint32_t i = 0; i < pages; i++) {
        ids[i] = pages - 1 - i;
    }
    struct relay_kv_layer layer = {.k = kv, .v = kv + k_page, .page_stride = stride};
    struct relay_pages_span span = {
        .shape = &shape, .kv = layer, .page_tokens = page, .pages = ids, .token_count = c->tokens};
    if (c->plain) {
        CHECK_CODE(relay_host_pages_write(NULL, &span, rows_k, rows_v, NULL), RELAY_OK);
    } else {
        relay_cpu_pages_write(&span, rows_k, rows_v);
    }
    struct relay_plan_segment segment = {.page_begin = 0, .tokens = c->tokens};
    struct relay_plan_row rows[64];
    for (uint32_t r = 0; r < c->rows; r++) {
        rows[r] = (struct relay_plan_row){.row = r, .position = c->tokens - 1 + r};
    }
    struct relay_plan plan = {.page_tokens = page,
                              .block_tokens = BLOCK,
                              .num_segments = 1,
                              .num_pages = pages,
                              .num_rows = c->rows,
                              .segments = &segment,
                              .pages = ids,
                              .rows = rows};
    struct relay_item item = {.row_count = c->rows,
                              .token_begin = c->first,
                              .token_end = c->tokens,
                              .masked = c->window != 0};
    struct relay_io io = {.q = q};
    struct relay_problem problem = {
        .shape = &shape, .plan = &plan, .kv = layer, .ios = &io, .num_ios = 1};
    size_t heads = packed, out_floats = heads * c->dv;
    float *out[2] = {room(out_floats * 4), room(out_floats * 4)};
    float *sums[2] = {room(2 * heads * 4), room(2 * heads * 4)};
    const struct relay_cpu_isa *other = &relay_cpu_isa_avx512bf16;
    void *scratch = room(amx_emulated.scratch_bytes(&shape, packed, BLOCK) +
                         other->scratch_bytes(&shape, packed, BLOCK));
    for (int i = 0; i < 2; i++) {
        struct relay_cpu_attend work = {.problem = &problem,
                                        .item = &item,
                                        .packed = !c->plain,
                                        .to = {.out = out[i],
                                               .m = sums[i],
                                               .l = sums[i] + heads,
                                               .out_stride = (size_t)c->group * c->dv,
                                               .head_stride = c->group},
                                        .scratch = scratch};
        (i == 0 ? &amx_emulated : other)->attend(&work);
    }
    /* Weights are rounded to bf16 after scores that differ in their last bits. */
    for (size_t i = 0; i < 2 * out_floats; i++) {
        out[i / out_floats][i % out_floats] /= sums[i / out_floats][heads + i % out_floats / c->dv];
    }
    bool good = close_enough(out[0], out[1], out_floats, 0x1p-7f) &&
                close_enough(sums[0], sums[1], heads, 1e-4f);
    for (int i = 0; i < 2; i++) {
        free(out[i]);
        free(sums[i]);
    }
    free(scratch);
    free(q);
    free(rows_k);
    free(rows_v);
    free(kv);
    CHECK(good);
}

static void test_amx_agrees_with_avx512bf16(void)
{
    static const struct item_case cases[] = {
        {.group = 1, .rows = 1, .tokens = 64, .dqk = 32, .dv = 32},
        {.group = 4, .rows = 1, .tokens = 130, .dqk = 128, .dv = 128},
        {.group = 1, .rows = 16, .tokens = 64, .dqk = 64, .dv = 96},
        {.group = 1, .rows = 17, .tokens = 70, .dqk = 96, .dv = 64},
        {.group = 8, .rows = 4, .tokens = 200, .dqk = 128, .dv = 128},
        {.group = 3, .rows = 17, .tokens = 257, .first = 67, .dqk = 64, .dv = 64},
        {.group = 2, .rows = 24, .tokens = 190, .first = 40, .dqk = 256, .dv = 256, .window = 140},
        {.group = 5, .rows = 7, .tokens = 150, .dqk = 64, .dv = 128, .plain = true},
    };
    if (!relay_cpu_isa_avx512bf16.available()) {
        CHECK_SKIP("this machine has no %s", relay_cpu_isa_avx512bf16.name);
    }
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        CHECK(amx_emulated.supports(
            &(struct relay_shape){{.head_dim_qk = cases[i].dqk, .head_dim_v = cases[i].dv},
                                  RELAY_DTYPE_BF16,
                                  RELAY_DTYPE_BF16,
                                  RELAY_DTYPE_BF16}));
        check_item(&cases[i], RELAY_DTYPE_BF16);
        CHECK_STILL();
        check_item(&cases[i], RELAY_DTYPE_F8_E4M3);
        CHECK_STILL();
    }
}

static void test_amx_refuses_what_fills_no_tile(void)
{
    struct relay_shape shape = {{.head_dim_qk = 72, .head_dim_v = 64},
                                RELAY_DTYPE_BF16,
                                RELAY_DTYPE_BF16,
                                RELAY_DTYPE_BF16};
    CHECK(!amx_emulated.supports(&shape));
    shape.kind.head_dim_qk = 64;
    CHECK(amx_emulated.supports(&shape));
    shape.kind.head_dim_v = 80;
    CHECK(!amx_emulated.supports(&shape));
    shape.kind.head_dim_v = 64;
    shape.out_dtype = RELAY_DTYPE_F32;
    CHECK(!amx_emulated.supports(&shape));
}

int main(void)
{
    CHECK_RUN(test_amx_agrees_with_avx512bf16);
    CHECK_RUN(test_amx_refuses_what_fills_no_tile);
    return check_done();
}
