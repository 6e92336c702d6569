/* See select.h. */
#include "cuda/select.h"

#include <string.h>

static bool is_float(enum relay_dtype dtype)
{
    return dtype == RELAY_DTYPE_F32 || dtype == RELAY_DTYPE_F16 || dtype == RELAY_DTYPE_BF16;
}

static bool fits_device(const struct relay_cuda_traits *t, const struct relay_cuda_device *device)
{
    return device->capability >= t->capability_least &&
           (t->capability_most == 0 || device->capability <= t->capability_most) &&
           device->shared_bytes >= t->shared_bytes;
}

static bool fits_shape(const struct relay_cuda_traits *t, const struct relay_shape *shape)
{
    const struct relay_layer_kind *kind = &shape->kind;
    bool special = kind->softcap > 0.0f || kind->alibi_slopes != NULL;
    if (kind->head_dim_qk > t->head_dim_most || kind->head_dim_v > t->head_dim_most ||
        (special && !t->special)) {
        return false;
    }
    if (t->io_dtype == RELAY_DTYPE_UNSPECIFIED) {
        return true;
    }
    /* Rows are copied by 16 bytes. */
    if (kind->head_dim_qk * relay_dtype_size(t->kv_dtype) % 16 != 0 ||
        kind->head_dim_v * relay_dtype_size(t->kv_dtype) % 16 != 0) {
        return false;
    }
    /* Queries of another type than K would have to be rounded, which costs more than it may. */
    return shape->kv_dtype == t->kv_dtype && shape->io_dtype == t->io_dtype &&
           is_float(shape->out_dtype);
}

uint32_t relay_cuda_select(const struct relay_cuda_traits *const *traits, uint32_t num,
                           const struct relay_shape *shape, const struct relay_cuda_device *device,
                           enum relay_cuda_sharing sharing, const char *name)
{
    for (uint32_t i = 0; i < num; i++) {
        enum relay_cuda_sharing of = traits[i]->sharing;
        if (fits_device(traits[i], device) && fits_shape(traits[i], shape) &&
            (name == NULL ? of == sharing || of == RELAY_CUDA_SINGLE
                          : strcmp(name, traits[i]->name) == 0)) {
            return i;
        }
    }
    return num;
}
