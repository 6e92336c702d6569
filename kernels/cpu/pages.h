/* How the cpu backend's vector kernels want K/V to lie in a page: ready to be multiplied.
 *
 * With p = 2 for BF16 and 1 for all other types, a KV head's images in a page of T tokens are
 *
 *   K  [dqk/p, T, p]   p neighbouring dims of a token side by side, tokens along a row
 *   V  [T/p, dv, p]    p neighbouring tokens of a dim side by side, dims along a row
 *
 * so K needs no transposing, and pairs of BF16 are what dot-product instructions take. The images
 * have the sizes of plain ones. Where a layer's V follows its K directly, the two images of a head
 * lie side by side, K V K V .., because memory gives a long run faster than two short ones; else
 * they lie where plain ones would. Pages whose length is no multiple of a kernel's block stay
 * plain, and so do layers whose V is in their K.
 *
 * Pure; different tokens of a page may be stored by different threads. */
#ifndef RELAY_CPU_PAGES_H
#define RELAY_CPU_PAGES_H

#include <relay/backend.h>

/* Are pages of this K/V packed, when the backend packs at all? Depends on the stored type, the
 * layer's kind and the page length only. */
bool relay_cpu_pages_packed(const struct relay_shape *shape, uint32_t page_tokens);

/* Where the images of page 0, head 0 lie; pages are kv->page_stride apart. */
struct relay_cpu_place {
    unsigned char *k;
    unsigned char *v;
    size_t k_head; /* bytes from a head to the next */
    size_t v_head;
};
struct relay_cpu_place relay_cpu_pages_place(const struct relay_shape *shape,
                                             const struct relay_kv_layer *kv, uint32_t page_tokens,
                                             bool packed);

/* The counterparts of host_memory.h, for packed pages. */
void relay_cpu_pages_write(const struct relay_pages_span *span, const void *k, const void *v);
void relay_cpu_pages_read(const struct relay_pages_span *span, void *k, void *v);
void relay_cpu_append_rows(const struct relay_problem *problem, const struct relay_append *append,
                           uint32_t first, uint32_t count);

#endif
