/* Slots: a session's calls in flight and the memory of their tensors.
 *
 * A bit per slot says which are free: taking clears a bit, giving sets it, both with one atomic, so
 * that any thread may do either and there is no list to corrupt. A slot keeps its entries, as many
 * as its calls had at most; the tensors' memory comes from what all sessions share. */
#include "service/batch/call.h"

#include "service/base/room.h"

#include <stdlib.h>
#include <string.h>

#define SLOT_ALIGN ((size_t)64)

struct slot {
    struct relayd_call call; /* first, so that a call is its slot */
    struct relayd_call_entry *entries;
    uint32_t entries_room;
    void *tensors; /* NULL until placed */
    size_t tensor_bytes;
};

struct relayd_slots {
    struct relayd_slots_options opt;
    atomic_uint refs;
    _Atomic uint64_t free_mask;
    struct slot slots[];
};

enum relay_code relayd_slots_create(const struct relayd_slots_options *options,
                                    struct relayd_slots **out, struct relay_error *err)
{
    if (options->calls_max < 1 || options->calls_max > 64) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "calls in flight %u is not in 1..64",
                          options->calls_max);
    }
    struct relayd_slots *slots =
        calloc(1, sizeof(*slots) + options->calls_max * sizeof(struct slot));
    if (slots == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for call slots");
    }
    slots->opt = *options;
    relayd_blocks_ref(slots->opt.blocks);
    atomic_init(&slots->refs, 1);
    atomic_init(&slots->free_mask,
                options->calls_max == 64 ? UINT64_MAX : ((uint64_t)1 << options->calls_max) - 1);
    *out = slots;
    return RELAY_OK;
}

void relayd_slots_release(struct relayd_slots *slots)
{
    if (slots == NULL || atomic_fetch_sub_explicit(&slots->refs, 1, memory_order_acq_rel) != 1) {
        return;
    }
    for (uint32_t i = 0; i < slots->opt.calls_max; i++) {
        free(slots->slots[i].entries);
    }
    relayd_blocks_release(slots->opt.blocks);
    free(slots);
}

enum relay_code relayd_slots_take(struct relayd_slots *slots, uint32_t entries,
                                  struct relayd_call **out, struct relay_error *err)
{
    uint64_t mask = atomic_load_explicit(&slots->free_mask, memory_order_relaxed);
    uint64_t bit;
    do {
        if (mask == 0) {
            return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED,
                              "all %u calls of this session are in flight", slots->opt.calls_max);
        }
        bit = mask & (~mask + 1);
    } while (!atomic_compare_exchange_weak_explicit(&slots->free_mask, &mask, mask & ~bit,
                                                    memory_order_acquire, memory_order_relaxed));
    struct slot *slot = &slots->slots[__builtin_ctzll(bit)];
    struct relayd_call_entry *room =
        relayd_room(slot->entries, &slot->entries_room, entries, sizeof(*slot->entries));
    if (room == NULL) {
        atomic_fetch_or_explicit(&slots->free_mask, bit, memory_order_release);
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for a call of %u entries",
                          entries);
    }
    slot->entries = room;
    atomic_fetch_add_explicit(&slots->refs, 1, memory_order_relaxed);
    struct relayd_call *call = &slot->call;
    memset(call, 0, sizeof(*call));
    call->slots = slots;
    call->entries = slot->entries;
    call->deadline_ns = UINT64_MAX;
    *out = call;
    return RELAY_OK;
}

static void give_tensors(struct relayd_slots *slots, struct slot *slot)
{
    relayd_blocks_give(slots->opt.blocks, slot->tensors, slot->tensor_bytes);
    slot->tensors = NULL;
}

void relayd_slots_give(struct relayd_call *call)
{
    if (call == NULL) {
        return;
    }
    struct relayd_slots *slots = call->slots;
    struct slot *slot = (struct slot *)call;
    size_t index = (size_t)(slot - slots->slots);
    give_tensors(slots, slot);
    atomic_fetch_or_explicit(&slots->free_mask, (uint64_t)1 << index, memory_order_release);
    relayd_slots_release(slots);
}

static size_t padded(size_t bytes)
{
    return (bytes + SLOT_ALIGN - 1) / SLOT_ALIGN * SLOT_ALIGN;
}

/* The next part of the tensor memory, or NULL for no bytes. */
static void *part(unsigned char **at, size_t bytes)
{
    void *p = bytes == 0 ? NULL : *at;
    *at += padded(bytes);
    return p;
}

enum relay_code relayd_slots_place(struct relayd_call *call, const struct relayd_slot_bytes *bytes,
                                   struct relay_error *err)
{
    struct relayd_slots *slots = call->slots;
    struct slot *slot = (struct slot *)call;
    const size_t sizes[] = {bytes->q, bytes->k, bytes->v, bytes->out, bytes->lse};
    const size_t most = slots->opt.tensor_bytes;
    size_t used = 0;
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        if (sizes[i] > most || padded(sizes[i]) > most - used) {
            return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                              "the call's tensors exceed the session's %zu bytes", most);
        }
        used += padded(sizes[i]);
    }
    give_tensors(slots, slot);
    slot->tensors = relayd_blocks_take(slots->opt.blocks, used);
    slot->tensor_bytes = used;
    if (slot->tensors == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for a call of %zu bytes", used);
    }
    unsigned char *at = slot->tensors;
    call->io.q = part(&at, bytes->q);
    call->io.k = part(&at, bytes->k);
    call->io.v = part(&at, bytes->v);
    call->io.out = part(&at, bytes->out);
    call->io.lse = part(&at, bytes->lse);
    return RELAY_OK;
}
