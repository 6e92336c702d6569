/* A warpgroup's place in its block, and the sequence of units it works on.
 *
 * Units come in a fixed order: the block's PAIR units, two more for each warpgroup, then by a
 * ticket that resets itself. Must not know how tiles are loaded. Device code. */
#ifndef RELAY_CUDA_DEVICE_SEQUENCE_CUH
#define RELAY_CUDA_DEVICE_SEQUENCE_CUH

#include "cuda/device/tile.cuh"

namespace relay
{

#define RELAY_CUDA_NONE 0xffffffffu

static_assert(sizeof(relay_cuda_unit) == 4 * RELAY_CUDA_UNIT_WORDS, "a lane takes a word of it");

template <class C> struct sequence {
    const relay_cuda_params &p;
    unsigned char *memory; /* the block's shared memory */
    group_memory &mine;
    uint32_t base; /* of the stages, as a shared address */
    uint32_t group;
    uint32_t warp; /* in the group */
    uint32_t lane;
    uint32_t first_row; /* of this warp's 16 in a stage and in the queries */

    /* The unit computed now, and the sequence. */
    uint32_t at;
    uint32_t num_pairs;
    uint32_t next_unit; /* leader: the number after the next; ASKED: its ticket is on its way */
    uint32_t next_word; /* leader: this lane's word of its descriptor */

    __device__ __forceinline__ sequence(const relay_cuda_params &params, unsigned char *shared)
        : p(params), memory(shared),
          mine(((group_memory *)(shared + C::GROUP_OFFSET))[threadIdx.x / 128]),
          base(shared_address(shared)), group(threadIdx.x / 128), warp(threadIdx.x / 32 % 4),
          lane(threadIdx.x % 32), first_row(group * 64 + warp * 16), at(0),
          next_unit(RELAY_CUDA_NONE), next_word(0)
    {
    }

    __device__ __forceinline__ void begin()
    {
        uint32_t pairs = p.pair_end - p.number_begin;
        if (warp == 0) {
            mine.exhausted = C::FINALS && is_beside() && p.late_begin == p.number_end;
        }
        num_pairs = blockIdx.x < pairs ? (pairs - blockIdx.x - 1) / gridDim.x + 1 : 0;
    }

    /* FINALS, of one warpgroup a block: whether this one begins with a WIDE unit. */
    __device__ __forceinline__ bool is_beside() const
    {
        return blockIdx.x < p.beside;
    }

    __device__ __forceinline__ const unit_slot &slot(uint32_t position) const
    {
        return mine.ring[position % RELAY_CUDA_RING];
    }

    __device__ __forceinline__ uint32_t key_tile(uint32_t stage) const
    {
        return base + stage * C::STAGE_BYTES;
    }

    __device__ __forceinline__ uint32_t value_tile(uint32_t stage) const
    {
        return base + stage * C::STAGE_BYTES + C::TILE_BYTES;
    }

    /* Of F8: where a tile's keys and values are in T. */
    __device__ __forceinline__ uint32_t opened_keys() const
    {
        return base + C::OPENED_OFFSET;
    }

    __device__ __forceinline__ uint32_t opened_values() const
    {
        return base + C::OPENED_OFFSET + C::TENSOR_BYTES;
    }

    __device__ __forceinline__ uint32_t queries() const
    {
        return base + C::QUERY_OFFSET;
    }

    __device__ __forceinline__ void group_barrier() const
    {
        barrier(1 + group, 128);
    }

    static __device__ __forceinline__ const relay_cuda_io &io_at(const relay_cuda_params &p,
                                                                 uint32_t i)
    {
        return p.io_table != nullptr ? p.io_table[i] : p.ios[i];
    }

    /* The plan row of a packed row. */
    __device__ __forceinline__ uint32_t row_of(uint32_t packed) const
    {
        return p.group == 1 ? packed : __umulhi(packed, p.group_reciprocal);
    }

    /* The io of a plan row of a unit, and the row in it. */
    static __device__ __forceinline__ uint2 place_at(const relay_cuda_params &p,
                                                     const relay_cuda_unit &u, uint32_t row)
    {
        if ((u.flags & RELAY_CUDA_ONE_ROW) != 0) {
            return make_uint2(u.io, u.row);
        }
        return __ldg((const uint2 *)(p.rows + row));
    }

    /* ---- the sequence ---- */

    /* PAIR units of this block, which come first. */
    __device__ __forceinline__ uint32_t pairs_first() const
    {
        return C::PAIRS ? num_pairs : 0;
    }

    /* Number of a position that needs no ticket, or NONE. */
    __device__ __forceinline__ uint32_t fixed_unit(uint32_t position) const
    {
        const uint32_t pairs =
            (p.flags & RELAY_CUDA_P_APART) != 0 ? p.pair_end - p.number_begin : 0;
        const uint32_t blocks = gridDim.x - pairs; /* for other units, the last of the grid */
        uint32_t i;
        if (position < pairs_first()) {
            i = p.number_begin + blockIdx.x + position * gridDim.x;
        } else if (position >= pairs_first() + 2 || blockIdx.x < pairs) {
            i = RELAY_CUDA_NONE;
        } else {
            i = p.pair_end + ((position - pairs_first()) * C::GROUPS + group) * blocks +
                blockIdx.x - pairs;
            if (C::FINALS && position != 0) {
                i = is_beside() ? p.late_begin + blockIdx.x : i - p.beside;
            }
        }
        return i < p.number_end ? i : RELAY_CUDA_NONE;
    }

    /* A number's unit and (first) head. */
    __device__ __forceinline__ uint2 unit_of(uint32_t number) const
    {
        const bool narrow = number >= p.wide_end && number < p.narrow_end;
        const uint32_t shift = narrow ? p.narrow_shift : 0;
        const uint32_t heads = p.num_kv_heads >> shift;
        const uint32_t reciprocal = narrow ? p.narrow_reciprocal : p.heads_reciprocal;
        const uint32_t i = number < p.wide_end ? number
                           : narrow            ? number - p.wide_end
                                               : number - p.narrow_end;
        const uint32_t unit = heads == 1 ? i : __umulhi(i, reciprocal);
        const uint32_t first = number < p.wide_end ? 0 : narrow ? p.units_wide : p.units_narrow;
        return make_uint2(first + unit, (i - unit * heads) << shift);
    }

    __device__ __forceinline__ uint32_t descriptor_word(uint32_t number) const
    {
        return number == RELAY_CUDA_NONE
                   ? 0
                   : __ldg((const uint32_t *)(p.units + unit_of(number).x) + lane);
    }

    __device__ __forceinline__ void descriptor_keep(uint32_t position, uint32_t number,
                                                    uint32_t word)
    {
        unit_slot &to = mine.ring[position % RELAY_CUDA_RING];
        ((uint32_t *)&to.unit)[lane] = word;
        if (lane == 0) {
            to.head = unit_of(number).y;
            to.valid = number != RELAY_CUDA_NONE;
        }
    }

    static constexpr uint32_t ASKED = RELAY_CUDA_NONE - 1;

    __device__ __forceinline__ bool asked() const
    {
        return next_unit == ASKED;
    }

    /* Leader warp, when a unit starts: find out about the one after the next. */
    __device__ __forceinline__ void look_ahead()
    {
        uint32_t position = at + 2;
        next_unit = RELAY_CUDA_NONE;
        if (position < pairs_first() + 2) {
            next_unit = fixed_unit(position);
            next_word = descriptor_word(next_unit);
        } else if ((p.flags & RELAY_CUDA_P_DYNAMIC) != 0 && mine.exhausted == 0) {
            next_unit = ASKED;
            next_word = 0;
            if (lane == 0) {
                next_word = atomicAdd(p.ticket, 1u);
            }
        }
    }

    /* Whether more may be asked for only after this unit: a ticket could be for what it waits for.
     */
    __device__ __forceinline__ bool asks_late(const relay_cuda_unit &u) const
    {
        return C::FINALS && kind_of(u) == RELAY_CUDA_WIDE;
    }

    /* Leader warp, when the ticket should have come. */
    __device__ __forceinline__ void look_ahead_resolve()
    {
        if (!asked()) {
            return;
        }
        uint32_t ticket = __shfl_sync(0xffffffffu, next_word, 0);
        uint32_t groups = gridDim.x * C::GROUPS;
        uint32_t fixed = 2 * groups - (C::FINALS ? p.beside : 0);
        uint32_t tickets = (C::FINALS ? p.late_begin : p.number_end) - p.pair_end - fixed;
        next_unit = ticket < tickets ? p.pair_end + fixed + ticket : RELAY_CUDA_NONE;
        next_word = descriptor_word(next_unit);
        if (next_unit == RELAY_CUDA_NONE) {
            mine.exhausted = 1;
            /* Every group takes tickets until one is too high, but those that have WIDE units
             * alone; the last of those resets. */
            groups -= C::FINALS && p.late_begin == p.number_end ? p.beside : 0;
            if (ticket == tickets + groups - 1 && lane == 0) {
                store_relaxed(p.ticket, 0);
            }
        }
    }

    /* Leader warp, when a unit ends and before its last barrier. */
    __device__ __forceinline__ void look_ahead_finish()
    {
        look_ahead_resolve();
        descriptor_keep(at + 2, next_unit, next_word);
    }

    /* ---- units ---- */

    static __device__ __forceinline__ uint32_t kind_of(const relay_cuda_unit &u)
    {
        return u.flags & RELAY_CUDA_KIND_MASK;
    }

    static __device__ __forceinline__ bool is_pair(const relay_cuda_unit &u)
    {
        return C::PAIRS && kind_of(u) == RELAY_CUDA_PAIR;
    }

    /* Warps that share a head's tokens in a NARROW unit. */
    __device__ __forceinline__ uint32_t head_warps() const
    {
        return 4u >> p.narrow_shift;
    }

    /* This warp's KV head. */
    __device__ __forceinline__ uint32_t head_of(const unit_slot &s) const
    {
        return kind_of(s.unit) == RELAY_CUDA_NARROW ? s.head + (warp >> (2 - p.narrow_shift))
                                                    : s.head;
    }

    /* Tokens are loaded from the step that holds token_begin on. */
    static __device__ __forceinline__ uint32_t first_token(const relay_cuda_unit &u)
    {
        return u.token_begin / RELAY_CUDA_STEP_TOKENS * RELAY_CUDA_STEP_TOKENS;
    }

    /* Tokens of a tile are 1 << this. */
    static __device__ __forceinline__ uint32_t tile_shift(const relay_cuda_unit &u)
    {
        return u.flags >> RELAY_CUDA_TILE_SHIFT;
    }

    /* The first of this warp's 16 tokens in a tile. */
    __device__ __forceinline__ uint32_t warp_token(const relay_cuda_unit &u, uint32_t tile) const
    {
        uint32_t part = warp;
        if (C::PAIRS && kind_of(u) == RELAY_CUDA_PAIR) {
            part = group * 4 + warp;
        } else if (kind_of(u) == RELAY_CUDA_NARROW) {
            part = warp & (head_warps() - 1);
        }
        return first_token(u) + (tile << tile_shift(u)) + part * 16;
    }

    /* Whether any of `count` tokens comes with the call and is stored by this launch. */
    __device__ __forceinline__ bool appends(const relay_cuda_unit &u, uint32_t token,
                                            uint32_t count) const
    {
        return u.append_count != 0 && (p.flags & RELAY_CUDA_P_STAGED) == 0 &&
               token < u.append_token + u.append_count && token + count > u.append_token;
    }

    /* The packed row that row 0 of this warp's queries is. */
    __device__ __forceinline__ uint32_t query_row(const relay_cuda_unit &u) const
    {
        switch (kind_of(u)) {
        case RELAY_CUDA_NARROW:
            return 0;
        case RELAY_CUDA_WIDE:
            return warp * 16;
        default:
            return C::PAIRS ? group * 64 + warp * 16 : warp * 16;
        }
    }
};

} // namespace relay

#endif
