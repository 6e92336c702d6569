/* Waiting for company, with the clock and the calls as plain values. */
#include "service/batch/align.h"
#include "testlib/check.h"

static int names[4];
#define MODEL      ((struct relayd_model *)(void *)&names[0])
#define SESSION(i) ((const void *)&names[i])

struct member {
    struct relayd_call call;
    struct relayd_walk walk;
};

static void member_init(struct member *m, int session, uint32_t layer, uint64_t received_ns)
{
    memset(m, 0, sizeof(*m));
    m->call.model = MODEL;
    m->call.session = SESSION(session);
    m->call.layer = layer;
    m->call.received_ns = received_ns;
    m->call.align_ns = 100;
    m->call.deadline_ns = UINT64_MAX;
    m->call.walk = &m->walk;
}

static void put(struct relayd_call_list *list, struct member *m, uint32_t layer,
                uint64_t received_ns)
{
    m->call.layer = layer;
    m->call.received_ns = received_ns;
    relayd_call_list_push(list, &m->call);
}

static void test_no_wait_without_others(void)
{
    struct relayd_align align = {0};
    struct relayd_call_list waiting = {0};
    struct member a;
    member_init(&a, 1, 0, 1000);
    put(&waiting, &a, 0, 1000);
    CHECK_EQ(relayd_align_until(&align, &a.call, &waiting, 1000), 0);
    a.call.align_ns = 0;
    CHECK_EQ(relayd_align_next(&align, &waiting, 1000), 0);
    struct relayd_call_list none = {0};
    CHECK(relayd_align_next(&align, &none, 1000) == UINT64_MAX);
}

static void test_first_layer_waits_for_the_running_ones(void)
{
    struct relayd_align align = {0};
    struct relayd_call_list running = {0}, waiting = {0};
    struct member a, b;
    member_init(&a, 1, 0, 0);
    member_init(&b, 2, 0, 0);
    put(&running, &b, 5, 900);
    relayd_align_launched(&align, &running, 950);
    put(&waiting, &a, 0, 1000);
    CHECK_EQ(relayd_align_until(&align, &a.call, &waiting, 1000), 1100);
    CHECK_EQ(relayd_align_until(&align, &a.call, &waiting, 1049), 1100);
    CHECK_EQ(relayd_align_until(&align, &a.call, &waiting, 1050), 0); /* b has not run for 100 */
    relayd_align_launched(&align, &running, 1060);
    CHECK_EQ(relayd_align_until(&align, &a.call, &waiting, 1099), 1100);
    CHECK_EQ(relayd_align_until(&align, &a.call, &waiting, 1100), 0); /* its time is over */
    struct member c;
    member_init(&c, 2, 0, 1070);
    put(&waiting, &c, 0, 1070); /* company: both go */
    CHECK_EQ(relayd_align_until(&align, &a.call, &waiting, 1080), 0);
    CHECK_EQ(relayd_align_until(&align, &c.call, &waiting, 1080), 0);
}

static void test_own_launches_are_no_company(void)
{
    struct relayd_align align = {0};
    struct relayd_call_list running = {0}, waiting = {0};
    struct member a, again;
    member_init(&a, 1, 0, 0);
    member_init(&again, 1, 0, 0);
    put(&running, &a, 9, 900);
    relayd_align_launched(&align, &running, 990);
    put(&waiting, &again, 0, 1000);
    CHECK_EQ(relayd_align_until(&align, &again.call, &waiting, 1000), 0);
}

static void test_mates_hold_together(void)
{
    struct relayd_align align = {0};
    struct relayd_call_list both = {0}, waiting = {0};
    struct member a, b;
    member_init(&a, 1, 0, 0);
    member_init(&b, 2, 0, 0);
    put(&both, &a, 0, 1000);
    put(&both, &b, 0, 1000);
    relayd_align_launched(&align, &both, 1000);
    CHECK_EQ(a.walk.mates, 2);
    put(&waiting, &a, 1, 1200);
    CHECK_EQ(relayd_align_until(&align, &a.call, &waiting, 1200), 1300);
    put(&waiting, &b, 1, 1250);
    CHECK_EQ(relayd_align_next(&align, &waiting, 1250), 0);
    relayd_align_launched(&align, &waiting, 1250);
    CHECK_EQ(b.walk.mates, 2);
}

static void test_a_mate_that_stays_away_costs_one_wait(void)
{
    struct relayd_align align = {0};
    struct relayd_call_list both = {0}, waiting = {0};
    struct member a, b;
    member_init(&a, 1, 0, 0);
    member_init(&b, 2, 0, 0);
    put(&both, &a, 0, 1000);
    put(&both, &b, 0, 1000);
    relayd_align_launched(&align, &both, 1000);
    put(&waiting, &a, 1, 1200);
    CHECK_EQ(relayd_align_until(&align, &a.call, &waiting, 1300), 0);
    relayd_align_launched(&align, &waiting, 1300);
    CHECK_EQ(a.walk.mates, 1);
    waiting = (struct relayd_call_list){0};
    put(&waiting, &a, 2, 1400);
    CHECK_EQ(relayd_align_until(&align, &a.call, &waiting, 1400), 0);
}

static void test_pieces_of_one_step_count_once(void)
{
    struct relayd_align align = {0};
    struct relayd_call_list both = {0}, waiting = {0};
    struct member a, b, piece;
    member_init(&a, 1, 0, 0);
    member_init(&b, 2, 0, 0);
    member_init(&piece, 1, 0, 0);
    put(&both, &a, 0, 1000);
    put(&both, &b, 0, 1000);
    relayd_align_launched(&align, &both, 1000);
    piece.call.walk = &a.walk;
    put(&waiting, &a, 1, 1200);
    put(&waiting, &piece, 1, 1200);
    CHECK_EQ(relayd_align_until(&align, &a.call, &waiting, 1200), 1300);
}

/* a, whose mate b from layer 0 stays away, waits at layer 1. */
static void left_alone(struct relayd_align *align, struct member *a, struct member *b,
                       struct relayd_call_list *waiting)
{
    struct relayd_call_list both = {0};
    member_init(a, 1, 0, 0);
    member_init(b, 2, 0, 0);
    put(&both, a, 0, 1000);
    put(&both, b, 0, 1000);
    relayd_align_launched(align, &both, 1000);
    put(waiting, a, 1, 1200);
}

static void test_nobody_waits_past_its_deadline(void)
{
    struct relayd_align align = {0};
    struct relayd_call_list waiting = {0};
    struct member a, b;
    left_alone(&align, &a, &b, &waiting);
    a.call.deadline_ns = 1250;
    CHECK_EQ(relayd_align_until(&align, &a.call, &waiting, 1200), 1250);
    CHECK_EQ(relayd_align_until(&align, &a.call, &waiting, 1250), 0);
}

static void test_cancelled_calls_do_not_wait(void)
{
    struct relayd_align align = {0};
    struct relayd_call_list waiting = {0};
    struct member a, b;
    left_alone(&align, &a, &b, &waiting);
    CHECK_EQ(relayd_align_next(&align, &waiting, 1200), 1300);
    atomic_store(&a.call.cancelled, true);
    CHECK_EQ(relayd_align_next(&align, &waiting, 1200), 0);
}

static void test_waiting_has_a_limit(void)
{
    struct relayd_align align = {0};
    struct relayd_call_list waiting = {0};
    struct member a, b;
    left_alone(&align, &a, &b, &waiting);
    a.call.align_ns = UINT64_C(3600) * 1000000000;
    CHECK_EQ(relayd_align_until(&align, &a.call, &waiting, 1200), 1200 + RELAYD_ALIGN_NS_MAX);
    member_init(&a, 1, 0, 1200); /* at its first layer: b's launch is long ago */
    a.call.align_ns = UINT64_C(3600) * 1000000000;
    a.call.received_ns = 1001 + RELAYD_ALIGN_NS_MAX;
    CHECK_EQ(relayd_align_until(&align, &a.call, &waiting, 1001 + RELAYD_ALIGN_NS_MAX), 0);
}

static void test_off_lets_everybody_go(void)
{
    struct relayd_align align = {0};
    struct relayd_call_list waiting = {0};
    struct member a, b;
    left_alone(&align, &a, &b, &waiting);
    align.off = true;
    CHECK_EQ(relayd_align_until(&align, &a.call, &waiting, 1200), 0);
}

int main(void)
{
    CHECK_RUN(test_no_wait_without_others);
    CHECK_RUN(test_first_layer_waits_for_the_running_ones);
    CHECK_RUN(test_own_launches_are_no_company);
    CHECK_RUN(test_mates_hold_together);
    CHECK_RUN(test_a_mate_that_stays_away_costs_one_wait);
    CHECK_RUN(test_pieces_of_one_step_count_once);
    CHECK_RUN(test_nobody_waits_past_its_deadline);
    CHECK_RUN(test_cancelled_calls_do_not_wait);
    CHECK_RUN(test_waiting_has_a_limit);
    CHECK_RUN(test_off_lets_everybody_go);
    return check_done();
}
