/* The capped bump allocator: see unpack.h. */
#include <proto/wire/unpack.h>
#include <stdalign.h>
#include <stdlib.h>

_Static_assert(alignof(max_align_t) <= RELAY_WIRE_ARENA_ALIGN, "arena memory fits any type");
#define BLOCK_BYTES ((size_t)4096)
/* What protobuf-c notes about a member before it reads it, in arrays that double. */
#define SCANNED_BYTES ((size_t)2 * 40)

struct relay_wire_block {
    struct relay_wire_block *next;
    size_t used;
    size_t size;
    alignas(RELAY_WIRE_ARENA_ALIGN) unsigned char data[];
};

static void *arena_alloc(void *allocator_data, size_t size)
{
    return relay_wire_arena_alloc(allocator_data, size);
}

/* Everything goes at once, in fini. */
static void arena_free(void *allocator_data, void *pointer)
{
    (void)allocator_data;
    (void)pointer;
}

void relay_wire_arena_init(struct relay_wire_arena *arena)
{
    *arena = (struct relay_wire_arena){
        .allocator = {.alloc = arena_alloc, .free = arena_free, .allocator_data = arena},
    };
}

void relay_wire_arena_fini(struct relay_wire_arena *arena)
{
    while (arena->blocks != NULL) {
        struct relay_wire_block *block = arena->blocks;
        arena->blocks = block->next;
        free(block);
    }
    arena->bytes_used = 0;
    arena->bytes_max = 0;
}

void relay_wire_arena_grant(struct relay_wire_arena *arena, size_t bytes)
{
    arena->bytes_max = bytes > SIZE_MAX - arena->bytes_max ? SIZE_MAX : arena->bytes_max + bytes;
}

void relay_wire_arena_grant_messages(struct relay_wire_arena *arena, size_t n,
                                     const ProtobufCMessageDescriptor *descriptor)
{
    size_t each =
        descriptor->sizeof_message + sizeof(void *) + SCANNED_BYTES + 2 * RELAY_WIRE_ARENA_ALIGN;
    relay_wire_arena_grant(arena, n > SIZE_MAX / each ? SIZE_MAX : n * each);
}

void *relay_wire_arena_alloc(struct relay_wire_arena *arena, size_t bytes)
{
    size_t rounded =
        (bytes + RELAY_WIRE_ARENA_ALIGN - 1) / RELAY_WIRE_ARENA_ALIGN * RELAY_WIRE_ARENA_ALIGN;
    struct relay_wire_block *block = arena->blocks;
    void *memory;

    if (rounded < bytes || rounded > arena->bytes_max - arena->bytes_used) {
        arena->exhausted = true;
        return NULL;
    }
    if (block == NULL || rounded > block->size - block->used) {
        size_t size = rounded > BLOCK_BYTES ? rounded : BLOCK_BYTES;
        block = size <= SIZE_MAX - sizeof(*block) ? malloc(sizeof(*block) + size) : NULL;
        if (block == NULL) {
            return NULL;
        }
        block->next = arena->blocks;
        block->used = 0;
        block->size = size;
        arena->blocks = block;
    }
    memory = block->data + block->used;
    block->used += rounded;
    arena->bytes_used += rounded;
    return memory;
}
