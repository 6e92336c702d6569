/* The chooser: first kernel of the table that fits shape and device. */
#include "cuda/select.h"
#include "testlib/check.h"

/* Stored K/V, head dim at most, capability (least, most), warpgroups, special, sharing, bytes. */
#define KERNEL(name, kv, dim, least, most, groups, special, sharing, bytes)                        \
    &(const struct relay_cuda_traits)                                                              \
    {                                                                                              \
        name, RELAY_DTYPE_BF16, RELAY_DTYPE_##kv, dim, least, most, groups, special,               \
            RELAY_CUDA_##sharing, bytes                                                            \
    }
static const struct relay_cuda_traits simt = {
    "simt", RELAY_DTYPE_UNSPECIFIED, RELAY_DTYPE_UNSPECIFIED, 576, 0, 0, 0, true, RELAY_CUDA_SINGLE,
    0};
static const struct relay_cuda_traits *const table[] = {
    KERNEL("pair_bf16_128", BF16, 128, 90, 90, 2, false, PAIRED, 231000),
    KERNEL("wgmma_bf16_64", BF16, 64, 90, 90, 1, false, SINGLE, 115000),
    KERNEL("beside_bf16_128", BF16, 128, 90, 90, 1, false, BESIDE, 115000),
    KERNEL("wgmma_bf16_128", BF16, 128, 90, 90, 1, false, SINGLE, 115000),
    KERNEL("mma_bf16_128", BF16, 128, 80, 0, 1, true, SINGLE, 83000),
    KERNEL("mma_bf16_f8_128", F8_E4M3, 128, 80, 0, 1, true, SINGLE, 99000),
    &simt};
#define NUM 7u

static const struct relay_cuda_device h200 = {90, 232448, 132};
static const struct relay_cuda_device a100 = {80, 166912, 108};
static const struct relay_cuda_device small = {89, 50000, 40};
static const struct relay_cuda_device later = {100, 232448, 148};

static struct relay_shape shape_of(uint32_t dqk, uint32_t dv, enum relay_dtype kv,
                                   enum relay_dtype io)
{
    struct relay_shape shape;
    memset(&shape, 0, sizeof(shape));
    shape.kind.num_q_heads = shape.kind.num_kv_heads = 1;
    shape.kind.head_dim_qk = dqk;
    shape.kind.head_dim_v = dv;
    shape.kv_dtype = kv;
    shape.io_dtype = io;
    shape.out_dtype = RELAY_DTYPE_F32;
    return shape;
}

static const char *chosen(const struct relay_shape *shape, const struct relay_cuda_device *device)
{
    uint32_t i = relay_cuda_select(table, NUM, shape, device, RELAY_CUDA_SINGLE, NULL);
    return i < NUM ? table[i]->name : "none";
}

static void test_select_by_device(void)
{
    struct relay_shape shape = shape_of(128, 128, RELAY_DTYPE_BF16, RELAY_DTYPE_BF16);
    CHECK_STR(chosen(&shape, &h200), "wgmma_bf16_128");
    CHECK_STR(chosen(&shape, &a100), "mma_bf16_128");
    CHECK_STR(chosen(&shape, &small), "simt");
    CHECK_STR(chosen(&shape, &later), "mma_bf16_128");
}

static void test_select_by_shape(void)
{
    static const float slopes[] = {0.5f};
    struct relay_shape shape = shape_of(96, 40, RELAY_DTYPE_BF16, RELAY_DTYPE_BF16);
    CHECK_STR(chosen(&shape, &h200), "wgmma_bf16_128");
    shape.kind.softcap = 30.0f;
    CHECK_STR(chosen(&shape, &h200), "mma_bf16_128");
    shape.kind.softcap = 0.0f;
    shape.kind.alibi_slopes = slopes;
    CHECK_STR(chosen(&shape, &h200), "mma_bf16_128");
    shape = shape_of(128, 136, RELAY_DTYPE_BF16, RELAY_DTYPE_BF16);
    CHECK_STR(chosen(&shape, &h200), "simt");
    shape = shape_of(64, 64, RELAY_DTYPE_BF16, RELAY_DTYPE_F32);
    CHECK_STR(chosen(&shape, &h200), "simt");
    shape = shape_of(64, 64, RELAY_DTYPE_F16, RELAY_DTYPE_F16);
    CHECK_STR(chosen(&shape, &h200), "simt");
    shape = shape_of(64, 64, RELAY_DTYPE_BF16, RELAY_DTYPE_BF16);
    shape.out_dtype = RELAY_DTYPE_F8_E4M3;
    CHECK_STR(chosen(&shape, &h200), "simt");
    shape = shape_of(584, 64, RELAY_DTYPE_BF16, RELAY_DTYPE_BF16);
    CHECK_STR(chosen(&shape, &h200), "none");
}

/* F8_E4M3 has kernels of its own, which copy rows by 16 bytes and take queries of their type. */
static void test_select_f8(void)
{
    struct relay_shape shape = shape_of(128, 64, RELAY_DTYPE_F8_E4M3, RELAY_DTYPE_BF16);
    CHECK_STR(chosen(&shape, &h200), "mma_bf16_f8_128");
    shape.kind.softcap = 30.0f;
    CHECK_STR(chosen(&shape, &a100), "mma_bf16_f8_128");
    shape = shape_of(128, 72, RELAY_DTYPE_F8_E4M3, RELAY_DTYPE_BF16);
    CHECK_STR(chosen(&shape, &h200), "simt");
    shape = shape_of(128, 128, RELAY_DTYPE_F8_E4M3, RELAY_DTYPE_F32);
    CHECK_STR(chosen(&shape, &h200), "simt");
    shape = shape_of(128, 128, RELAY_DTYPE_F8_E4M3, RELAY_DTYPE_F8_E4M3);
    CHECK_STR(chosen(&shape, &h200), "simt");
}

static void test_select_by_name(void)
{
    struct relay_shape shape = shape_of(128, 128, RELAY_DTYPE_BF16, RELAY_DTYPE_BF16);
    CHECK_EQ(relay_cuda_select(table, NUM, &shape, &h200, RELAY_CUDA_PAIRED, "mma_bf16_128"), 4);
    CHECK_EQ(relay_cuda_select(table, NUM, &shape, &a100, RELAY_CUDA_PAIRED, "wgmma_bf16_128"),
             NUM);
    CHECK_EQ(relay_cuda_select(table, NUM, &shape, &h200, RELAY_CUDA_SINGLE, "pair_bf16_128"), 0);
    CHECK_EQ(relay_cuda_select(table, NUM, &shape, &h200, RELAY_CUDA_SINGLE, "no such"), NUM);
}

static void test_select_by_sharing(void)
{
    struct relay_shape shape = shape_of(128, 128, RELAY_DTYPE_BF16, RELAY_DTYPE_BF16);
    CHECK_EQ(relay_cuda_select(table, NUM, &shape, &h200, RELAY_CUDA_PAIRED, NULL), 0);
    CHECK_EQ(relay_cuda_select(table, NUM, &shape, &h200, RELAY_CUDA_BESIDE, NULL), 2);
    CHECK_EQ(relay_cuda_select(table, NUM, &shape, &h200, RELAY_CUDA_SINGLE, NULL), 3);
    CHECK_EQ(relay_cuda_select(table, NUM, &shape, &a100, RELAY_CUDA_PAIRED, NULL), 4);
    CHECK_EQ(relay_cuda_select(table, NUM, &shape, &a100, RELAY_CUDA_BESIDE, NULL), 4);
    /* Shorter rows have a better kernel than the one that finishes rows. */
    shape = shape_of(64, 64, RELAY_DTYPE_BF16, RELAY_DTYPE_BF16);
    CHECK_EQ(relay_cuda_select(table, NUM, &shape, &h200, RELAY_CUDA_BESIDE, NULL), 1);
}

int main(void)
{
    CHECK_RUN(test_select_by_device);
    CHECK_RUN(test_select_by_shape);
    CHECK_RUN(test_select_f8);
    CHECK_RUN(test_select_by_name);
    CHECK_RUN(test_select_by_sharing);
    return check_done();
}
