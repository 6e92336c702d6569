/* Which kernels this machine runs: the one list of them, best first. Pure; any thread. */
#include "cpu/isa.h"

#include <string.h>

static const struct relay_cpu_isa *const built_in[] = {
#ifdef RELAY_CPU_X86
    &relay_cpu_isa_amx,      &relay_cpu_isa_avx512bf16, &relay_cpu_isa_avx512, &relay_cpu_isa_avx2,
#endif
    &relay_cpu_isa_portable,
};
#define NUM_BUILT_IN (sizeof(built_in) / sizeof(built_in[0]))

static bool is_available(const struct relay_cpu_isa *isa)
{
    return isa->available == NULL || isa->available();
}

/* Adds built_in[from] and what may stand behind it: alone, the first that takes every shape; else
 * all that want the same pages. */
static void add_from(struct relay_cpu_isas *isas, size_t from, bool alone)
{
    for (size_t i = from; i < NUM_BUILT_IN; i++) {
        const struct relay_cpu_isa *isa = built_in[i];
        bool wanted = i == from || !alone || isa->supports == NULL;
        if (isas->count != 0 && isa->packs_pages != isas->list[0][0]->packs_pages) {
            return;
        }
        if (wanted && is_available(isa)) {
            isas->list[RELAY_CPU_OWN][isas->count] = isa;
            isas->list[RELAY_CPU_PROMPT][isas->count] = isa;
            isas->count++;
            if (alone && isa->supports == NULL) {
                return;
            }
        }
    }
}

enum relay_code relay_cpu_isas_find(const char *force, struct relay_cpu_isas *out,
                                    struct relay_error *err)
{
    struct relay_cpu_isas isas = {.count = 0};
    if (force == NULL || force[0] == '\0') {
        add_from(&isas, 0, false);
        *out = isas;
        return RELAY_OK;
    }
    for (size_t i = 0; i < NUM_BUILT_IN; i++) {
        if (strcmp(built_in[i]->name, force) != 0) {
            continue;
        }
        if (!is_available(built_in[i])) {
            return RELAY_FAIL(err, RELAY_UNAVAILABLE, "this machine has no %s", force);
        }
        add_from(&isas, i, true);
        *out = isas;
        return RELAY_OK;
    }
    return RELAY_FAIL(err, RELAY_NOT_FOUND, "no kernels \"%.32s\" are built in", force);
}

const struct relay_cpu_isa *relay_cpu_isa_for(const struct relay_cpu_isas *isas,
                                              const struct relay_shape *shape,
                                              enum relay_cpu_items items)
{
    const struct relay_cpu_isa *const *list = isas->list[items];
    uint32_t i = 0;
    while (i + 1 < isas->count && list[i]->supports != NULL && !list[i]->supports(shape)) {
        i++;
    }
    return list[i];
}
