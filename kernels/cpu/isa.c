/* Which kernels this machine runs: the one list of them, best first. Pure; any thread. */
#include "cpu/isa.h"

#include <string.h>

static const struct relay_cpu_isa *const built_in[] = {
#ifdef RELAY_CPU_X86
    &relay_cpu_isa_avx512bf16,
#endif
    &relay_cpu_isa_portable,
};
#define NUM_BUILT_IN (sizeof(built_in) / sizeof(built_in[0]))

enum relay_code relay_cpu_isas_choose(const char *force, struct relay_cpu_isas *out,
                                      struct relay_error *err)
{
    bool known = force == NULL || force[0] == '\0';
    bool all = known;
    struct relay_cpu_isas isas = {.count = 0};
    for (size_t i = 0; i < NUM_BUILT_IN; i++) {
        const struct relay_cpu_isa *isa = built_in[i];
        bool wanted = all || strcmp(isa->name, force) == 0;
        bool available = isa->available == NULL || isa->available();
        known = known || wanted;
        if (!all && wanted && !available) {
            return RELAY_FAIL(err, RELAY_UNAVAILABLE, "this machine has no %s", isa->name);
        }
        if (available && (wanted || i + 1 == NUM_BUILT_IN)) {
            isas.list[isas.count++] = isa;
        }
    }
    if (!known) {
        return RELAY_FAIL(err, RELAY_NOT_FOUND, "no kernels \"%.32s\" are built in", force);
    }
    *out = isas;
    return RELAY_OK;
}

const struct relay_cpu_isa *relay_cpu_isa_for(const struct relay_cpu_isas *isas,
                                              const struct relay_shape *shape)
{
    uint32_t i = 0;
    while (i + 1 < isas->count && isas->list[i]->supports != NULL &&
           !isas->list[i]->supports(shape)) {
        i++;
    }
    return isas->list[i];
}
