/* What health says, without a server: who may still change it. */
#include "service/rpc/health.h"
#include "testlib/check.h"

static bool serving(struct relayd_rpc_health *health)
{
    pthread_mutex_lock(&health->mutex);
    bool is = health->serving;
    pthread_mutex_unlock(&health->mutex);
    return is;
}

static void test_stop_is_for_good(void)
{
    struct relayd_rpc_health health = {.serving = false};
    relayd_rpc_health_init(&health);
    relayd_rpc_health_set(&health, true);
    CHECK(serving(&health));
    relayd_rpc_health_set(&health, false);
    CHECK(!serving(&health));
    relayd_rpc_health_set(&health, true);
    relayd_rpc_health_stop(&health);
    CHECK(!serving(&health));
    relayd_rpc_health_set(&health, true); /* a stall that ends while the server drains */
    CHECK(!serving(&health));
    relayd_rpc_health_fini(&health);
}

int main(void)
{
    CHECK_RUN(test_stop_is_for_good);
    return check_done();
}
