/* See hooks.h. */
#include "cuda/hooks.h"
#include "cuda/cuda_internal.h"

#include <stdlib.h>

struct relay_cuda_graph {
    struct cuda_backend *cuda;
    cudaGraphExec_t exec;
};

enum relay_code relay_cuda_configure(struct relay_backend *backend,
                                     const struct relay_cuda_options *options,
                                     struct relay_error *err)
{
    static const struct relay_cuda_options defaults;
    struct cuda_backend *cuda = cuda_of(backend);
    enum relay_code code = cuda_enter(cuda, err);
    if (code == RELAY_OK) {
        code = cuda_check(cuda, cudaStreamSynchronize(cuda->stream), "the stream", err);
    }
    if (code != RELAY_OK) {
        return code;
    }
    cuda->options = options != NULL ? *options : defaults;
    cuda->last_attends = false;
    for (uint32_t i = 0; i < CUDA_PLANS; i++) {
        cuda->plans[i].serial = 0; /* they were made with other options */
    }
    return RELAY_OK;
}

const char *relay_cuda_kernel_name(const struct relay_backend *backend,
                                   const struct relay_shape *shape)
{
    const struct cuda_backend *cuda = (const struct cuda_backend *)backend;
    uint32_t kernel = cuda_kernel_of(cuda, shape, RELAY_CUDA_SINGLE);
    return kernel < cuda->num_kernels ? cuda->traits[kernel]->name : "none";
}

const char *relay_cuda_kernel_used(const struct relay_backend *backend)
{
    const struct cuda_backend *cuda = (const struct cuda_backend *)backend;
    return cuda->traits[cuda->last_kernel]->name;
}

/* Whether every word of a device buffer is `word`. */
static enum relay_code all_words(struct cuda_backend *cuda, const struct cuda_buffer *buffer,
                                 uint32_t word, bool *all, struct relay_error *err)
{
    size_t words = buffer->bytes / sizeof(uint32_t);
    uint32_t *copy = calloc(words + 1, sizeof(*copy));
    enum relay_code code = RELAY_OK;
    if (copy == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for %zu words", words);
    }
    if (words != 0) {
        code = cuda_check(
            cuda, cudaMemcpy(copy, buffer->data, words * sizeof(*copy), cudaMemcpyDeviceToHost),
            "the workspace", err);
    }
    for (size_t i = 0; code == RELAY_OK && i < words; i++) {
        *all = *all && copy[i] == word;
    }
    free(copy);
    return code;
}

enum relay_code relay_cuda_settled(struct relay_backend *backend, bool *settled,
                                   struct relay_error *err)
{
    struct cuda_backend *cuda = cuda_of(backend);
    bool all = true;
    enum relay_code code = cuda_enter(cuda, err);
    if (code == RELAY_OK) {
        code = cuda_check(cuda, cudaStreamSynchronize(cuda->stream), "the stream", err);
    }
    if (code == RELAY_OK) {
        code = all_words(cuda, &cuda->partial_lse, RELAY_CUDA_PENDING, &all, err);
    }
    if (code == RELAY_OK) {
        code = all_words(cuda, &cuda->partial_out, RELAY_CUDA_PENDING, &all, err);
    }
    if (code == RELAY_OK) {
        code = all_words(cuda, &cuda->ticket, 0, &all, err);
    }
    if (code == RELAY_OK) {
        *settled = all;
    }
    return code;
}

void *relay_cuda_stream(struct relay_backend *backend)
{
    return cuda_of(backend)->stream;
}

enum relay_code relay_cuda_graph_begin(struct relay_backend *backend, struct relay_error *err)
{
    struct cuda_backend *cuda = cuda_of(backend);
    enum relay_code code = cuda_enter(cuda, err);
    if (code == RELAY_OK) {
        code =
            cuda_check(cuda, cudaStreamBeginCapture(cuda->stream, cudaStreamCaptureModeThreadLocal),
                       "a graph", err);
    }
    if (code == RELAY_OK) {
        cuda->recording = true;
        cuda->last_attends = false;
    }
    return code;
}

enum relay_code relay_cuda_graph_end(struct relay_backend *backend, struct relay_cuda_graph **out,
                                     struct relay_error *err)
{
    struct cuda_backend *cuda = cuda_of(backend);
    struct relay_cuda_graph *graph = calloc(1, sizeof(*graph));
    cudaGraph_t captured = NULL;
    enum relay_code code =
        cuda_check(cuda, cudaStreamEndCapture(cuda->stream, &captured), "a graph", err);
    cuda->recording = false;
    cuda->last_attends = false;
    if (code == RELAY_OK && graph == NULL) {
        code = RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for a graph");
    }
    if (code == RELAY_OK) {
        graph->cuda = cuda;
        code = cuda_check(cuda, cudaGraphInstantiate(&graph->exec, captured, 0), "a graph", err);
    }
    if (captured != NULL) {
        (void)cudaGraphDestroy(captured);
    }
    if (code != RELAY_OK) {
        free(graph);
        return code;
    }
    *out = graph;
    return RELAY_OK;
}

enum relay_code relay_cuda_graph_launch(struct relay_cuda_graph *graph, struct relay_error *err)
{
    struct cuda_backend *cuda = graph->cuda;
    cuda->last_attends = false;
    return cuda_check(cuda, cudaGraphLaunch(graph->exec, cuda->stream), "a graph", err);
}

void relay_cuda_graph_destroy(struct relay_cuda_graph *graph)
{
    if (graph != NULL) {
        (void)cudaGraphExecDestroy(graph->exec);
        free(graph);
    }
}
