/* Picking: who may share a launch, and that nobody overtakes on its own request. Requests are only
 * compared here, so addresses of ints stand in for them. */
#include "service/batch/problem.h"
#include "testlib/check.h"

static struct relay_backend *backend;
static struct relay_error err;
static struct relayd_plans *plans;
static struct relayd_problem *problem;
static int names[16];
static struct relayd_align align;

#define REQUEST(i) ((struct relayd_request *)(void *)&names[i])
#define MODEL(i)   ((struct relayd_model *)(void *)&names[i])

struct fake {
    struct relayd_call call;
    struct relayd_call_entry entries[4];
};

/* A call of one row per request; requests end at -1. */
static void fake_init(struct fake *f, uint32_t layer, int a, int b)
{
    memset(f, 0, sizeof(*f));
    f->call.model = MODEL(0);
    f->call.layer = layer;
    f->call.entries = f->entries;
    f->call.io_dtype = RELAY_DTYPE_F32;
    f->call.out_dtype = RELAY_DTYPE_F32;
    const int requests[] = {a, b};
    for (int i = 0; i < 2 && requests[i] >= 0; i++) {
        f->entries[f->call.num_entries++].request = REQUEST(requests[i]);
        f->call.rows++;
    }
}

static void pick(struct fake *fakes, size_t n, uint32_t rows_max, struct relayd_call_list *waiting,
                 struct relayd_call_list *picked)
{
    *waiting = (struct relayd_call_list){0};
    *picked = (struct relayd_call_list){0};
    for (size_t i = 0; i < n; i++) {
        relayd_call_list_push(waiting, &fakes[i].call);
    }
    CHECK_OK(relayd_problem_pick(problem, waiting, &align, 0, rows_max, picked, &err), err);
}

static void test_pick_joins_same_layer(void)
{
    struct fake f[4];
    struct relayd_call_list waiting, picked;
    fake_init(&f[0], 3, 1, 2);
    fake_init(&f[1], 4, 3, -1);
    fake_init(&f[2], 3, 4, -1);
    fake_init(&f[3], 3, 5, 6);
    pick(f, 4, 100, &waiting, &picked);
    CHECK_STILL();
    CHECK_EQ(picked.count, 3);
    CHECK(picked.head == &f[0].call && picked.head->next == &f[2].call);
    CHECK(picked.tail == &f[3].call && picked.tail->next == NULL);
    CHECK_EQ(waiting.count, 1);
    CHECK(waiting.head == &f[1].call);
}

static void test_pick_keeps_order_on_a_request(void)
{
    struct fake f[4];
    struct relayd_call_list waiting, picked;
    fake_init(&f[0], 3, 1, -1);
    fake_init(&f[1], 4, 2, -1); /* other layer: stays, and claims request 2 */
    fake_init(&f[2], 3, 2, 5);  /* must not overtake f[1], and claims request 5 */
    fake_init(&f[3], 3, 5, -1); /* must not overtake f[2] */
    pick(f, 4, 100, &waiting, &picked);
    CHECK_STILL();
    CHECK_EQ(picked.count, 1);
    CHECK(picked.head == &f[0].call);
    CHECK(waiting.head == &f[1].call && waiting.head->next == &f[2].call);
    CHECK(waiting.tail == &f[3].call);
}

static void test_pick_never_takes_a_request_twice(void)
{
    struct fake f[2];
    struct relayd_call_list waiting, picked;
    fake_init(&f[0], 3, 1, 2);
    fake_init(&f[1], 3, 2, 7);
    pick(f, 2, 100, &waiting, &picked);
    CHECK_STILL();
    CHECK_EQ(picked.count, 1);
    CHECK_EQ(waiting.count, 1);
}

static void test_pick_prompt_only_conflicts_with_nobody(void)
{
    struct fake f[2];
    struct relayd_call_list waiting, picked;
    fake_init(&f[0], 3, 1, 1);
    fake_init(&f[1], 3, 1, -1);
    f[0].call.part = f[1].call.part = RELAY_PART_PROMPT_ONLY;
    pick(f, 2, 100, &waiting, &picked);
    CHECK_STILL();
    CHECK_EQ(picked.count, 2);
}

static void test_pick_splits_on_what_a_launch_fixes(void)
{
    for (int what = 0; what < 5; what++) {
        struct fake f[2];
        struct relayd_call_list waiting, picked;
        fake_init(&f[0], 3, 1, -1);
        fake_init(&f[1], 3, 2, -1);
        f[1].call.model = what == 0 ? MODEL(1) : MODEL(0);
        f[1].call.part = what == 1 ? RELAY_PART_CONTEXT_ONLY : RELAY_PART_FULL;
        f[1].call.sharing = what == 2 ? RELAY_SHARING_NEVER : RELAY_SHARING_AUTO;
        f[1].call.io_dtype = what == 3 ? RELAY_DTYPE_BF16 : RELAY_DTYPE_F32;
        f[1].call.out_dtype = what == 4 ? RELAY_DTYPE_BF16 : RELAY_DTYPE_F32;
        pick(f, 2, 100, &waiting, &picked);
        CHECK_STILL();
        CHECK_EQ(picked.count, 1);
        CHECK_EQ(waiting.count, 1);
    }
}

static void test_pick_keeps_rows_max(void)
{
    struct fake f[3];
    struct relayd_call_list waiting, picked;
    fake_init(&f[0], 3, 1, 2);
    fake_init(&f[1], 3, 3, 4);
    fake_init(&f[2], 3, 5, -1);
    pick(f, 3, 3, &waiting, &picked);
    CHECK_STILL();
    CHECK_EQ(picked.count, 2);
    CHECK(picked.tail == &f[2].call);
    CHECK(waiting.head == &f[1].call);
}

static void test_pick_many(void)
{
    static struct fake f[300];
    static int many[600];
    struct relayd_call_list waiting, picked;
    for (int i = 0; i < 300; i++) {
        fake_init(&f[i], 3, 0, 1);
        f[i].entries[0].request = (struct relayd_request *)(void *)&many[2 * i];
        f[i].entries[1].request = (struct relayd_request *)(void *)&many[2 * i + 1];
    }
    pick(f, 300, 10000, &waiting, &picked);
    CHECK_STILL();
    CHECK_EQ(picked.count, 300);
    CHECK_EQ(waiting.count, 0);
}

int main(void)
{
    if (relay_backend_open("ref", NULL, &backend, &err) != RELAY_OK ||
        relayd_plans_create(&plans, &err) != RELAY_OK ||
        relayd_problem_create(backend, plans, &problem, &err) != RELAY_OK) {
        return 1;
    }
    CHECK_RUN(test_pick_joins_same_layer);
    CHECK_RUN(test_pick_keeps_order_on_a_request);
    CHECK_RUN(test_pick_never_takes_a_request_twice);
    CHECK_RUN(test_pick_prompt_only_conflicts_with_nobody);
    CHECK_RUN(test_pick_splits_on_what_a_launch_fixes);
    CHECK_RUN(test_pick_keeps_rows_max);
    CHECK_RUN(test_pick_many);
    relayd_problem_destroy(problem);
    relayd_plans_destroy(plans);
    relay_backend_close(backend);
    return check_done();
}
