/* CUDA's errors as ours, and poisoning. Any thread. */
#include "cuda/cuda_internal.h"

/* Errors that leave the context as it was. Everything else may be a fault on the device, after
 * which nothing it holds can be trusted. */
static bool is_survived(cudaError_t error)
{
    switch (error) {
    case cudaErrorInvalidValue:
    case cudaErrorMemoryAllocation:
    case cudaErrorInvalidConfiguration:
    case cudaErrorInvalidDeviceFunction:
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidResourceHandle:
    case cudaErrorNotReady:
    case cudaErrorLaunchOutOfResources:
    case cudaErrorNotSupported:
    case cudaErrorStreamCaptureUnsupported:
    case cudaErrorStreamCaptureInvalidated:
    case cudaErrorStreamCaptureIsolation:
    case cudaErrorStreamCaptureImplicit:
        return true;
    default:
        return false;
    }
}

enum relay_code cuda_check(struct cuda_backend *cuda, cudaError_t error, const char *what,
                           struct relay_error *err)
{
    if (error == cudaSuccess) {
        return RELAY_OK;
    }
    (void)cudaGetLastError(); /* survived errors would otherwise meet the next caller */
    if (error == cudaErrorMemoryAllocation) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "%s: no memory", what);
    }
    if (is_survived(error)) {
        return RELAY_FAIL(err, RELAY_INTERNAL, "%s: %s", what, cudaGetErrorString(error));
    }
    atomic_store_explicit(&cuda->poisoned, true, memory_order_relaxed);
    return RELAY_FAIL(err, RELAY_UNAVAILABLE, "%s: %s", what, cudaGetErrorString(error));
}

enum relay_code cuda_check_driver(struct cuda_backend *cuda, CUresult result, const char *what,
                                  struct relay_error *err)
{
    (void)cuda;
    switch (result) {
    case CUDA_SUCCESS:
        return RELAY_OK;
    case CUDA_ERROR_OUT_OF_MEMORY:
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "%s: no memory", what);
    default:
        return RELAY_FAIL(err, RELAY_INTERNAL, "%s: driver error %d", what, (int)result);
    }
}

enum relay_code cuda_enter(struct cuda_backend *cuda, struct relay_error *err)
{
    if (atomic_load_explicit(&cuda->poisoned, memory_order_relaxed)) {
        return RELAY_FAIL(err, RELAY_UNAVAILABLE, "the device failed; open the backend again");
    }
    return cuda_check(cuda, cudaSetDevice(cuda->device), "the device", err);
}
