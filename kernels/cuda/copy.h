/* The kernels around attention: queries into place, new tokens into pages, tokens in and out of
 * pages. Each enqueues one launch; the caller's stream orders them. */
#ifndef RELAY_CUDA_COPY_H
#define RELAY_CUDA_COPY_H

#include "cuda/launch.h"

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Stores the tokens that come with the call (converted; F8_E4M3 divided by the head's scale) and,
 * if `queries` is not NULL, gathers all plan rows' queries there: [num_rows,Hq,dqk]. Reads rows,
 * ios and shapes from params. */
cudaError_t relay_cuda_stage(const struct relay_cuda_params *params,
                             const struct relay_cuda_append *appends, uint32_t num_appends,
                             void *queries, cudaStream_t stream);

/* Rows between a contiguous buffer [count,heads,row_bytes] and pages. */
struct relay_cuda_move {
    unsigned char *pages; /* of K or V: page p at pages + p * page_stride */
    size_t page_stride;
    const uint32_t *page_ids; /* of the span's page list, from the page of token_begin on */
    unsigned char *rows;
    uint32_t page_tokens;
    uint32_t token_begin; /* in its page */
    uint32_t count;
    uint32_t heads;
    uint32_t row_bytes;
    int to_pages;
};
cudaError_t relay_cuda_move_rows(const struct relay_cuda_move *move, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
#endif
