/* A warpgroup at work: its sequence of units and the stream of tiles it loads ahead of itself.
 *
 * Each warp loads 16 tokens of every tile and keeps its own count of tiles, so a NARROW unit, where
 * a warp uses only the tokens it loaded, needs no barrier between tiles. The stream runs on into
 * the next unit while the current one is still computed. Units come in a fixed order: the block's
 * PAIR units, two more for each warpgroup, then by a ticket that resets itself. Device code. */
#ifndef RELAY_CUDA_DEVICE_WORKER_CUH
#define RELAY_CUDA_DEVICE_WORKER_CUH

#include "cuda/device/tile.cuh"

namespace relay {

#define RELAY_CUDA_NONE 0xffffffffu

template <class C> struct worker {
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
    uint32_t next_unit; /* leader: the unit after the next, RELAY_CUDA_NONE until known */
    uint32_t next_word; /* leader: this lane's word of its descriptor */
    bool asked;         /* leader: a ticket was taken for it */
    bool exhausted;     /* leader: the ticket ran out */

    /* The stream. */
    uint32_t load_at;    /* position in the sequence */
    uint32_t load_tile;  /* in that unit */
    uint32_t load_stage; /* where the next tile goes */
    uint32_t use_stage;  /* where the current tile is */
    uint32_t ahead;      /* tiles loaded or loading and not used up */
    uint32_t far_page;   /* lane i: page of this warp's tokens in tile 32 n + i of that unit */
    uint32_t far_next;
    bool fresh; /* queries were loaded after tiles: wait for everything once */

    __device__ worker(const relay_cuda_params &params, unsigned char *shared)
        : p(params), memory(shared),
          mine(((group_memory *)(shared + C::GROUP_OFFSET))[threadIdx.x / 128]),
          base(shared_address(shared)), group(threadIdx.x / 128), warp(threadIdx.x / 32 % 4),
          lane(threadIdx.x % 32), first_row(group * 64 + warp * 16), at(0),
          next_unit(RELAY_CUDA_NONE), next_word(0), asked(false), exhausted(false), load_at(0),
          load_tile(0), load_stage(0), use_stage(0), ahead(0), far_page(0), far_next(0),
          fresh(false)
    {
        uint32_t pairs = p.pair_end - p.unit_begin;
        num_pairs = blockIdx.x < pairs ? (pairs - blockIdx.x - 1) / gridDim.x + 1 : 0;
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
        return base + stage * C::STAGE_BYTES + C::TENSOR_BYTES;
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

    /* The io and the row in it of a packed row. */
    static __device__ __forceinline__ uint2 place_at(const relay_cuda_params &p,
                                                     const relay_cuda_unit &u, uint32_t packed)
    {
        if ((u.flags & RELAY_CUDA_ONE_ROW) != 0) {
            return make_uint2(u.io, u.row);
        }
        return __ldg((const uint2 *)(p.rows + packed / p.group));
    }

    /* ---- the sequence ---- */

    /* Unit number of a position that needs no ticket, or NONE. */
    __device__ __forceinline__ uint32_t fixed_unit(uint32_t position) const
    {
        uint32_t groups = gridDim.x * C::GROUPS;
        uint32_t i = position < num_pairs
                         ? p.unit_begin + blockIdx.x + position * gridDim.x
                         : p.pair_end + group * gridDim.x + blockIdx.x +
                               (position - num_pairs) * groups;
        return position < num_pairs + 2 && i < p.unit_end ? i : RELAY_CUDA_NONE;
    }

    __device__ __forceinline__ uint32_t descriptor_word(uint32_t unit) const
    {
        return unit == RELAY_CUDA_NONE
                   ? 0
                   : __ldg((const uint32_t *)(p.units + unit / p.num_kv_heads) + lane);
    }

    __device__ __forceinline__ void descriptor_keep(uint32_t position, uint32_t unit, uint32_t word)
    {
        unit_slot &to = mine.ring[position % RELAY_CUDA_RING];
        ((uint32_t *)&to.unit)[lane] = word;
        if (lane == 0) {
            to.head = unit % p.num_kv_heads;
            to.valid = unit != RELAY_CUDA_NONE;
        }
    }

    /* Leader warp, when a unit starts: find out about the one after the next. */
    __device__ __forceinline__ void look_ahead()
    {
        uint32_t position = at + 2;
        next_unit = RELAY_CUDA_NONE;
        asked = false;
        if (position < num_pairs + 2) {
            next_unit = fixed_unit(position);
            next_word = descriptor_word(next_unit);
        } else if ((p.flags & RELAY_CUDA_P_DYNAMIC) != 0 && !exhausted) {
            asked = true;
            next_word = 0;
            if (lane == 0) {
                next_word = atomicAdd(p.ticket, 1u);
            }
        }
    }

    /* Leader warp, when the ticket should have come. */
    __device__ __forceinline__ void look_ahead_resolve()
    {
        if (!asked) {
            return;
        }
        asked = false;
        uint32_t ticket = __shfl_sync(0xffffffffu, next_word, 0);
        uint32_t groups = gridDim.x * C::GROUPS;
        uint32_t tickets = p.unit_end - p.pair_end - 2 * groups;
        next_unit = ticket < tickets ? p.pair_end + 2 * groups + ticket : RELAY_CUDA_NONE;
        next_word = descriptor_word(next_unit);
        if (next_unit == RELAY_CUDA_NONE) {
            exhausted = true;
            /* Every group takes tickets until one is too high; the last of those resets. */
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

    /* ---- the stream ---- */

    static __device__ __forceinline__ uint32_t kind_of(const relay_cuda_unit &u)
    {
        return u.flags & RELAY_CUDA_KIND_MASK;
    }

    /* Tokens are loaded from the step that holds token_begin on. */
    static __device__ __forceinline__ uint32_t first_token(const relay_cuda_unit &u)
    {
        return u.token_begin / RELAY_CUDA_STEP_TOKENS * RELAY_CUDA_STEP_TOKENS;
    }

    static __device__ __forceinline__ uint32_t tile_tokens(const relay_cuda_unit &u)
    {
        return kind_of(u) == RELAY_CUDA_PAIR ? 2 * RELAY_CUDA_STEP_TOKENS : RELAY_CUDA_STEP_TOKENS;
    }

    static __device__ __forceinline__ uint32_t num_tiles(const relay_cuda_unit &u)
    {
        return kind_of(u) == RELAY_CUDA_MERGE
                   ? 0
                   : (u.token_end - first_token(u) + tile_tokens(u) - 1) / tile_tokens(u);
    }

    /* The first of this warp's 16 tokens in a tile. */
    __device__ __forceinline__ uint32_t warp_token(const relay_cuda_unit &u, uint32_t tile) const
    {
        uint32_t in_tile = (kind_of(u) == RELAY_CUDA_PAIR ? group * 4 + warp : warp) * 16;
        return first_token(u) + tile * tile_tokens(u) + in_tile;
    }

    __device__ __forceinline__ bool appends(const relay_cuda_unit &u, uint32_t token,
                                            uint32_t count) const
    {
        return u.append_count != 0 && (p.flags & RELAY_CUDA_P_STAGED) == 0 &&
               token < u.append_token + u.append_count && token + count > u.append_token;
    }

    /* Moves past units without tiles. True when there is a tile to load. */
    __device__ __forceinline__ bool can_load()
    {
        while (load_at <= at + 1 && slot(load_at).valid) {
            if (load_tile < num_tiles(slot(load_at).unit)) {
                return true;
            }
            load_at++;
            load_tile = 0;
        }
        return false;
    }

    __device__ __forceinline__ uint32_t page_load(const relay_cuda_unit &u, uint32_t tile) const
    {
        uint32_t token = warp_token(u, tile);
        return token < u.token_end ? __ldg(p.pages + u.page_begin + (token >> p.page_shift)) : 0;
    }

    /* POW2: the page of this warp's tokens. */
    __device__ __forceinline__ uint32_t page_of(const relay_cuda_unit &u, uint32_t token)
    {
        uint32_t first = first_token(u) >> p.page_shift;
        uint32_t i = (token >> p.page_shift) - first;
        if (((u.token_end - 1) >> p.page_shift) - first >= RELAY_CUDA_UNIT_PAGES) {
            if (load_tile % 32 == 0) {
                far_page = load_tile == 0 ? page_load(u, lane) : far_next;
            }
            if (load_tile % 32 == 16) {
                far_next = page_load(u, load_tile + 16 + lane);
            }
        }
        return i < RELAY_CUDA_UNIT_PAGES ? u.pages[i]
                                         : __shfl_sync(0xffffffffu, far_page, load_tile % 32);
    }

    /* This warp's 16 tokens of a tile, all in one page. Rows outside [lo, hi) become zero. */
    __device__ __forceinline__ void load_page(const unsigned char *k, const unsigned char *v,
                                              uint32_t lo, uint32_t hi, uint64_t policy) const
    {
        const uint32_t keys = key_tile(load_stage);
        const uint32_t values = value_tile(load_stage);
#pragma unroll
        for (int i = 0; i < C::COPIES; i++) {
            uint32_t row = (i * 32 + lane) / C::CHUNKS;
            uint32_t chunk = (i * 32 + lane) % C::CHUNKS;
            uint32_t to = tile_offset<C>(first_row + row, chunk);
            bool in = row >= lo && row < hi;
            cp_async(keys + to, k + row * p.k_row_bytes + chunk * 16,
                     in && chunk * 8 < p.dqk ? 16 : 0, policy);
            cp_async(values + to, v + row * p.v_row_bytes + chunk * 16,
                     in && chunk * 8 < p.dv ? 16 : 0, policy);
        }
    }

    /* The same, token by token: any page size, and tokens that come with the call. Lane i finds
     * token i's keys, lane 16 + i its values. */
    __device__ __forceinline__ void load_rows(const relay_cuda_unit &u, uint32_t head,
                                              uint32_t token) const
    {
        const bool is_value = lane >= 16;
        const uint32_t t = token + lane % 16;
        const uint32_t row_bytes = is_value ? p.v_row_bytes : p.k_row_bytes;
        uint64_t from = 0;
        if (t >= u.token_begin && t < u.token_end) {
            if (t - u.append_token < u.append_count && (p.flags & RELAY_CUDA_P_STAGED) == 0) {
                const relay_cuda_io &io = io_at(p, u.append_io);
                const void *rows = is_value && p.v != p.k ? io.v : io.k;
                size_t i = (size_t)(u.append_row + t - u.append_token) * p.num_kv_heads + head;
                from = (uint64_t)rows + i * row_bytes;
            } else {
                uint32_t page = __ldg(p.pages + u.page_begin + t / p.page_tokens);
                size_t i = (size_t)head * p.page_tokens + t % p.page_tokens;
                from = (uint64_t)(is_value ? p.v : p.k) + page * p.page_stride + i * row_bytes;
            }
        }
        const uint32_t keys = key_tile(load_stage);
#pragma unroll 1
        for (uint32_t i = lane; i < 16 * C::CHUNKS; i += 32) {
            uint32_t row = i / C::CHUNKS;
            uint32_t chunk = i % C::CHUNKS;
            uint32_t to = keys + tile_offset<C>(first_row + row, chunk);
            uint64_t k = __shfl_sync(0xffffffffu, from, row);
            uint64_t v = __shfl_sync(0xffffffffu, from, 16 + row);
            cp_async(to, (const void *)(k + chunk * 16), k != 0 && chunk * 8 < p.dqk ? 16 : 0);
            cp_async(to + C::TENSOR_BYTES, (const void *)(v + chunk * 16),
                     v != 0 && chunk * 8 < p.dv ? 16 : 0);
        }
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
            return group * 64 + warp * 16;
        }
    }

    /* This warp's 16 rows of queries. Lane i finds row i. */
    __device__ __forceinline__ void load_queries(const relay_cuda_unit &u, uint32_t head) const
    {
        const uint32_t m = query_row(u) + lane;
        uint64_t from = 0;
        if (lane < 16 && m < u.packed_count) {
            uint32_t packed = u.packed_begin + m;
            uint2 place = make_uint2(0, packed / p.group);
            const void *rows = p.q;
            if ((p.flags & RELAY_CUDA_P_STAGED) == 0) {
                place = place_at(p, u, packed);
                rows = io_at(p, place.x).q;
            }
            size_t i = (size_t)place.y * p.num_q_heads + head * p.group + packed % p.group;
            from = (uint64_t)rows + i * p.dqk * 2;
        }
#pragma unroll 1
        for (uint32_t i = lane; i < 16 * C::CHUNKS; i += 32) {
            uint32_t row = i / C::CHUNKS;
            uint32_t chunk = i % C::CHUNKS;
            uint64_t q = __shfl_sync(0xffffffffu, from, row);
            cp_async(queries() + tile_offset<C>(first_row + row, chunk),
                     (const void *)(q + chunk * 16), q != 0 && chunk * 8 < p.dqk ? 16 : 0);
        }
    }

    /* Starts the next tile of the stream; can_load() was true. */
    __device__ __forceinline__ void load_tile_next(bool with_queries)
    {
        const unit_slot &from = slot(load_at);
        const relay_cuda_unit &u = from.unit;
        const uint32_t token = warp_token(u, load_tile);
        const uint32_t lo = u.token_begin > token ? min(u.token_begin - token, 16u) : 0;
        const uint32_t hi = u.token_end > token ? min(u.token_end - token, 16u) : 0;
        if (C::QUERIES_IN_REGISTERS && with_queries && load_tile == 0) {
            load_queries(u, from.head);
        }
        const bool whole = (p.flags & RELAY_CUDA_P_POW2) != 0; /* in one page */
        const uint32_t page = whole ? page_of(u, token) : 0;
        if (whole && !appends(u, token, 16)) {
            uint32_t place = (from.head << p.page_shift) + (token & ((1u << p.page_shift) - 1));
            uint64_t at_page = page * p.page_stride;
            bool once =
                (p.flags & RELAY_CUDA_P_STREAM) != 0 && (u.flags & RELAY_CUDA_SHARED) == 0;
            load_page(p.k + at_page + (uint64_t)place * p.k_row_bytes,
                      p.v + at_page + (uint64_t)place * p.v_row_bytes, lo, hi,
                      once ? policy_evict_first() : policy_evict_normal());
        } else {
            load_rows(u, from.head, token);
        }
        cp_async_commit();
        load_stage = load_stage + 1 == C::STAGES ? 0 : load_stage + 1;
        load_tile++;
        ahead++;
    }

    /* Fills every free stage as far as units are known. */
    __device__ __forceinline__ void load_more(uint32_t limit)
    {
        while (ahead < limit && can_load()) {
            load_tile_next(true);
        }
    }

    /* Until all tiles but the last `extra` are there, for this lane's copies. */
    __device__ __forceinline__ void load_wait(uint32_t extra)
    {
        constexpr uint32_t many = C::STAGES > 3 ? C::STAGES - 2 : 1;
        constexpr uint32_t several = C::STAGES > 4 ? C::STAGES - 3 : 1;
        if (fresh || extra == 0) {
            cp_async_wait<0>();
            fresh = false;
        } else if (extra >= many) {
            cp_async_wait<many>();
        } else if (extra >= several) {
            cp_async_wait<several>();
        } else {
            cp_async_wait<1>();
        }
    }

    __device__ __forceinline__ void stage_used()
    {
        use_stage = use_stage + 1 == C::STAGES ? 0 : use_stage + 1;
        ahead--;
    }

    /* ---- the tokens that come with the call ---- */

    /* Stores those of them among this warp's 16 from `token` on, from the tile to their pages. */
    __device__ __forceinline__ void store_appended(const relay_cuda_unit &u, uint32_t head,
                                                   uint32_t token, uint32_t stage) const
    {
        const unsigned char *keys = memory + stage * C::STAGE_BYTES;
#pragma unroll 1
        for (uint32_t row = 0; row < 16; row++) {
            uint32_t t = token + row;
            if (t - u.append_token >= u.append_count || t < u.token_begin || t >= u.token_end) {
                continue;
            }
            uint32_t page = __ldg(p.pages + u.page_begin + t / p.page_tokens);
            size_t place = (size_t)head * p.page_tokens + t % p.page_tokens;
#pragma unroll 1
            for (uint32_t c = lane; c < 2 * C::CHUNKS; c += 32) {
                bool is_value = c >= C::CHUNKS;
                uint32_t chunk = is_value ? c - C::CHUNKS : c;
                if (chunk * 8 >= (is_value ? p.dv : p.dqk) || (is_value && p.v == p.k)) {
                    continue;
                }
                uint4 bits = *(const uint4 *)(keys + (is_value ? C::TENSOR_BYTES : 0) +
                                              tile_offset<C>(first_row + row, chunk));
                unsigned char *to = (unsigned char *)(is_value ? p.v : p.k) +
                                    page * p.page_stride +
                                    place * (is_value ? p.v_row_bytes : p.k_row_bytes) + chunk * 16;
                *(uint4 *)to = bits;
            }
        }
    }

    /* For this warp's tokens of a tile, if any of them come with the call. */
    __device__ __forceinline__ void tile_append(const relay_cuda_unit &u, uint32_t head,
                                                uint32_t tile, uint32_t stage) const
    {
        uint32_t token = warp_token(u, tile);
        if (appends(u, token, 16)) {
            store_appended(u, head, token, stage);
        }
    }

    /* ---- rows ---- */

    __device__ __forceinline__ row_slope *slopes() const
    {
        return ((group_slopes *)(memory + C::SLOPE_OFFSET))[group].rows[warp];
    }

    /* Leaves what this warp's rows see where scores_finish() looks. */
    __device__ __forceinline__ void rows_begin(const relay_cuda_unit &u, uint32_t head) const
    {
        const bool masked = (u.flags & RELAY_CUDA_MASKED) != 0;
        const bool sloped = C::SPECIAL && (p.slopes != nullptr || p.softcap > 0.0f);
        if (!masked && !sloped) {
            return;
        }
        const uint32_t m = query_row(u) + lane;
        if (lane < 16) {
            row_interval interval = {0, 0};
            row_slope slope = {0.0f, 0};
            if (m < u.packed_count) {
                uint32_t packed = u.packed_begin + m;
                uint32_t position = __ldg(&p.rows[packed / p.group].position);
                interval_of(u, position, interval);
                slope.position = (int)(position - u.position);
                if (p.slopes != nullptr) {
                    slope.slope =
                        __ldg(p.slopes + head * p.group + packed % p.group) * 1.44269504088896341f;
                }
            }
            mine.intervals[warp][lane] = interval;
            if (sloped) {
                slopes()[lane] = slope;
            }
        }
        __syncwarp();
    }

    /* relay_plan_interval(), cut to the unit's tokens. */
    __device__ __forceinline__ void interval_of(const relay_cuda_unit &u, uint32_t position,
                                                row_interval &interval) const
    {
        uint64_t end = (uint64_t)position + 1;
        uint64_t first = p.window != 0 && end > p.window ? end - p.window : 0;
        if (p.chunk != 0) {
            uint64_t start = (uint64_t)(position / p.chunk) * p.chunk;
            first = start > first ? start : first;
        }
        uint64_t begin = (uint64_t)u.position + u.token_begin;
        uint64_t stop = (uint64_t)u.position + u.token_end;
        first = first > begin ? first : begin;
        end = end < stop ? end : stop;
        interval.lo = first < end ? (uint32_t)(first - u.position) : 0;
        interval.hi = first < end ? (uint32_t)(end - u.position) : 0;
    }
};

} // namespace relay

#endif
