/* One row of the kernel table: a compiled kernel, what it takes, and how it is launched.
 *
 * Rows are generated from variants.cmake; simt.cu adds the one for every shape. Immutable. */
#ifndef RELAY_CUDA_KERNEL_H
#define RELAY_CUDA_KERNEL_H

#include "cuda/launch.h"
#include "cuda/select.h"

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

struct relay_cuda_kernel {
    struct relay_cuda_traits traits;
    cudaError_t (*prepare)(void);       /* once per device, before the first launch */
    cudaError_t (*blocks)(int *blocks); /* resident at once on one multiprocessor */
    cudaError_t (*launch)(const struct relay_cuda_params *params, unsigned int blocks, int overlap,
                          cudaStream_t stream);
};

/* NULL at the end; better ones first. In the build tree: kernel_table.c. */
extern const struct relay_cuda_kernel *const relay_cuda_kernels[];

#ifdef __cplusplus
}
#endif
#endif
