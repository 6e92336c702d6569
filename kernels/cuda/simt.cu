/* The kernel for every shape, as a row of the kernel table. */
#include "cuda/device/simt.cuh"
#include "cuda/kernel.h"

static cudaError_t simt_prepare(void)
{
    return cudaSuccess;
}

static cudaError_t simt_launch(const struct relay_cuda_params *params, unsigned int blocks,
                               int overlap, cudaStream_t stream)
{
    (void)overlap;
    relay::simt<<<blocks, RELAY_CUDA_SIMT_THREADS, 0, stream>>>(*params);
    return cudaGetLastError();
}

static cudaError_t simt_blocks(int *blocks)
{
    return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, (const void *)relay::simt,
                                                         RELAY_CUDA_SIMT_THREADS, 0);
}

extern "C" const struct relay_cuda_kernel relay_cuda_kernel_simt;
const struct relay_cuda_kernel relay_cuda_kernel_simt = {
    {"simt", RELAY_DTYPE_UNSPECIFIED, RELAY_DTYPE_UNSPECIFIED, RELAY_HEAD_DIM_MAX, 0, 0, 0, true,
     RELAY_CUDA_SINGLE, 0},
    simt_prepare,
    simt_blocks,
    simt_launch,
};
