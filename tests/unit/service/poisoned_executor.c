/* Linked around relayd's main: the executor says that its backend is broken, from the third look
 * on, so that what main does then can be seen without breaking a device. */
#include "service/batch/executor.h"

void __real_relayd_executor_stats(struct relayd_executor *executor,
                                  struct relayd_executor_stats *out);
void __wrap_relayd_executor_stats(struct relayd_executor *executor,
                                  struct relayd_executor_stats *out);

void __wrap_relayd_executor_stats(struct relayd_executor *executor,
                                  struct relayd_executor_stats *out)
{
    static atomic_int looks;
    __real_relayd_executor_stats(executor, out);
    out->poisoned = atomic_fetch_add(&looks, 1) >= 2;
}
