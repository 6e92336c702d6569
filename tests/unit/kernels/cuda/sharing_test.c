/* Who computes shared tokens: by plans as the benches have them, on an H200's 264 warpgroups. */
#include "cuda/sharing.h"
#include "decode_input.h"
#include "testlib/check.h"

#define ENTRIES_MAX 256u
#define WARPGROUPS  264u
#define PROCESSORS  132u

static struct relay_plan *plan;
static struct relay_segment segments[2];
static struct relay_entry entries[ENTRIES_MAX];
static struct relay_plan_input in;
static struct relay_shape shape;

static void decode(uint32_t group, uint32_t num, uint32_t prompt, uint32_t context)
{
    in = decode_input(&shape, segments, entries, group, 1, num, prompt, context);
}

static bool is_beside(uint32_t heads, struct relay_cuda_beside *out)
{
    struct relay_error err;
    return relay_plan_build(plan, &in, &err) == RELAY_OK &&
           relay_cuda_is_beside(plan, heads, shape.kind.num_q_heads, WARPGROUPS, out);
}

/* Much to stream, and prompts for half of the warpgroups, once or cut in two. */
static void test_sharing_beside(void)
{
    struct relay_cuda_beside b;
    decode(4, 256, 8192, 1024);
    CHECK(is_beside(8, &b));
    CHECK_EQ(b.quantum, 128);
    CHECK_EQ(b.narrow_heads, 2);
    CHECK(b.early_tiles >= 10 && b.early_tiles <= 14); /* of 16 */
    decode(4, 128, 8192, 1024);
    CHECK(is_beside(8, &b));
    CHECK_EQ(b.quantum, 64);
    decode(4, 256, 2048, 128);
    CHECK(is_beside(8, &b));
    CHECK_EQ(b.narrow_heads, 4);
    CHECK_EQ(b.early_tiles, 14); /* most is streamed before they are done */
    decode(1, 256, 2048, 128);
    CHECK(is_beside(32, &b));
    CHECK_EQ(b.early_tiles, 1); /* of 4 */
}

static void test_sharing_not_beside(void)
{
    struct relay_cuda_beside b;
    decode(4, 256, 8192, 128); /* much more to compute than to stream */
    CHECK(!is_beside(8, &b));
    decode(4, 256, 512, 1024); /* too short to be worth it */
    CHECK(!is_beside(8, &b));
    decode(4, 64, 8192, 1024); /* all is at work at once anyway */
    CHECK(!is_beside(8, &b));
    decode(8, 256, 8192, 1024); /* would be cut in four */
    CHECK(!is_beside(1, &b));
    decode(4, 256, 32768, 1024);
    CHECK(!is_beside(8, &b));
    decode(4, 1, 2048, 128);
    CHECK(!is_beside(8, &b));
    decode(32, 256, 2048, 128); /* own rows for tiles of many */
    CHECK(!is_beside(8, &b));
}

/* Only where each row has one shared segment, seen from its beginning, and then its own. */
static void test_sharing_beside_is_for_plain_plans(void)
{
    struct relay_cuda_beside b;
    decode(4, 256, 8192, 1024);
    shape.kind.window = 4000;
    CHECK(!is_beside(8, &b));
    decode(4, 256, 8192, 1024);
    segments[1] = (struct relay_segment){segments[0].pages, 640, 8192, 0};
    in.num_segments = 2;
    for (uint32_t i = 0; i < 128; i++) {
        entries[i].segment = 1;
        entries[i].context_position += 640;
        entries[i].position += 640;
    }
    CHECK(!is_beside(8, &b));
    decode(4, 256, 8192, 1024);
    entries[3].context_tokens = 0;
    entries[3].append = false;
    CHECK(!is_beside(8, &b));
    decode(4, 256, 8192, 1024); /* two prompts are no more than one */
    segments[1] = segments[0];
    in.num_segments = 2;
    for (uint32_t i = 0; i < 128; i++) {
        entries[i].segment = 1;
    }
    CHECK(is_beside(8, &b));
    in.sharing = RELAY_SHARING_NEVER;
    CHECK(!is_beside(8, &b));
    /* Several tokens a request: its rows are not one tile's, as 16 requests' of one token are. */
    decode(4, 240, 8192, 2048);
    CHECK(is_beside(8, &b));
    decode(4, 80, 8192, 2048);
    for (uint32_t i = 0; i < 80; i++) {
        entries[i].row_begin = 3 * i;
        entries[i].q_len = 3;
        entries[i].position -= 2;
    }
    CHECK(!is_beside(8, &b));
}

/* Of many lengths: more splits, so that what streams does not wait for the longest. */
static void test_sharing_beside_ragged(void)
{
    struct relay_cuda_beside b;
    decode(4, 64, 8192, 1024);
    for (uint32_t i = 0; i < 64; i++) {
        entries[i].context_tokens = 512 + 16 * i;
        entries[i].position = 8192 + entries[i].context_tokens - 1;
    }
    CHECK(is_beside(8, &b));
    CHECK_EQ(b.quantum, 32);
    CHECK_EQ(b.narrow_heads, 1);
    CHECK_EQ(b.early_tiles, 3); /* of 4 */
}

/* The last few rows of many count as many. */
static void test_sharing_rest(void)
{
    struct relay_cuda_beside b;
    struct relay_error err;
    decode(4, 225, 2048, 160);
    CHECK_OK(relay_plan_build(plan, &in, &err), err);
    CHECK(plan->num_items > 8 && !relay_cuda_is_rest(plan, 4, 0));
    CHECK_EQ(plan->items[7].row_count, 1);
    CHECK(relay_cuda_is_rest(plan, 4, 7) && !relay_cuda_is_rest(plan, 4, 8));
    CHECK(is_beside(8, &b));
    shape.kind.window = 1000; /* items see from different tokens on */
    CHECK_OK(relay_plan_build(plan, &in, &err), err);
    CHECK_EQ(plan->items[7].row_count, 1);
    CHECK(relay_cuda_is_rest(plan, 4, 7));
    shape.kind.window = 0;
    in.sharing = RELAY_SHARING_NEVER; /* an item of one row each, one after the other */
    CHECK_OK(relay_plan_build(plan, &in, &err), err);
    for (uint32_t i = 0; i < plan->num_items; i++) {
        CHECK(!relay_cuda_is_rest(plan, 4, i));
    }
}

static bool is_paired(uint32_t group, uint32_t heads, uint32_t num, uint32_t prompt)
{
    struct relay_error err;
    decode(group, num, prompt, 128);
    return relay_plan_build(plan, &in, &err) == RELAY_OK &&
           relay_cuda_is_paired(plan, heads, group, PROCESSORS);
}

static void test_sharing_paired(void)
{
    struct relay_error err;
    CHECK(is_paired(4, 8, 256, 8192));
    CHECK(is_paired(4, 8, 128, 8192));
    CHECK(is_paired(4, 8, 65, 8192));
    CHECK(is_paired(8, 1, 256, 32768));
    CHECK(!is_paired(4, 8, 256, 2048)); /* short */
    CHECK(!is_paired(4, 8, 16, 32768)); /* no tile of more than 64 rows */
    CHECK(!is_paired(4, 1, 32, 8192));  /* little to do */
    decode(4, 128, 8192, 128);
    in.sharing = RELAY_SHARING_NEVER;
    CHECK_OK(relay_plan_build(plan, &in, &err), err);
    CHECK(!relay_cuda_is_paired(plan, 8, 4, PROCESSORS));
}

int main(void)
{
    struct relay_error err;
    if (relay_plan_create(&plan, &err) != RELAY_OK) {
        return 1;
    }
    CHECK_RUN(test_sharing_beside);
    CHECK_RUN(test_sharing_not_beside);
    CHECK_RUN(test_sharing_beside_is_for_plain_plans);
    CHECK_RUN(test_sharing_beside_ragged);
    CHECK_RUN(test_sharing_rest);
    CHECK_RUN(test_sharing_paired);
    relay_plan_destroy(plan);
    return check_done();
}
