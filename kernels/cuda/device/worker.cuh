/* A warpgroup at work: the stream of tiles it loads ahead of itself.
 *
 * Each warp loads 16 tokens of every tile and keeps its own count of tiles, so a NARROW unit, where
 * a warp uses only the tokens it loaded, needs no barrier between tiles. The stream runs on into
 * the next unit while the current one is still computed. Device code. */
#ifndef RELAY_CUDA_DEVICE_WORKER_CUH
#define RELAY_CUDA_DEVICE_WORKER_CUH

#include "cuda/device/sequence.cuh"

namespace relay
{

template <class C> struct worker : sequence<C> {
    using sequence<C>::p;
    using sequence<C>::memory;
    using sequence<C>::mine;
    using sequence<C>::base;
    using sequence<C>::group;
    using sequence<C>::warp;
    using sequence<C>::lane;
    using sequence<C>::first_row;
    using sequence<C>::at;
    using sequence<C>::slot;
    using sequence<C>::key_tile;
    using sequence<C>::value_tile;
    using sequence<C>::queries;
    using sequence<C>::io_at;
    using sequence<C>::row_of;
    using sequence<C>::place_at;
    using sequence<C>::is_pair;
    using sequence<C>::head_of;
    using sequence<C>::first_token;
    using sequence<C>::tile_shift;
    using sequence<C>::warp_token;
    using sequence<C>::appends;
    using sequence<C>::query_row;

    uint32_t copy_to; /* where this lane's first copy goes in a tile as it is stored */

    /* The stream. Most tiles are simple: 16 whole rows of every warp in one page each, none of them
     * new. A run is such tiles in a row whose pages are known. */
    uint32_t load_at;    /* position in the sequence */
    uint32_t load_tile;  /* in that unit */
    uint32_t load_token; /* the first of this warp's 16 in that tile */
    uint32_t load_step;  /* tokens of a tile */
    uint32_t load_place; /* this lane's first copy in a page of K: head, row and chunk, in bytes */
    uint32_t run;        /* tiles left of the run */
    uint32_t last_page;  /* PAIR: of the last keys */
    uint32_t pages;      /* lane i: page of this warp's tokens in tile pages_tile + i */
    uint32_t pages_next; /* the same for the tiles after those */
    uint32_t pages_tile;
    uint32_t pages_count;
    bool once;           /* K/V that nobody else reads: to leave L2 first */
    uint32_t load_stage; /* where the next tile goes */
    uint32_t use_stage;  /* where the current tile is */
    uint32_t ahead;      /* tiles loaded or loading and not used up */
    bool fresh;          /* queries were loaded after tiles: wait for everything once */

    __device__ __forceinline__ worker(const relay_cuda_params &params, unsigned char *shared)
        : sequence<C>(params, shared),
          copy_to(stored_offset<C>(first_row + lane / C::CHUNKS, lane % C::CHUNKS)), load_at(0),
          load_tile(0), load_token(0), load_step(0), load_place(0), run(0), last_page(0), pages(0),
          pages_next(0), pages_tile(0), pages_count(0), once(false), load_stage(0), use_stage(0),
          ahead(0), fresh(false)
    {
        this->begin();
    }

    /* ---- the stream ---- */

    /* The page of this warp's tokens `tiles` tiles after the one to load. */
    __device__ __forceinline__ uint32_t page_load(const relay_cuda_unit &u, uint32_t tiles) const
    {
        const uint32_t token = load_token + tiles * load_step;
        return token < u.token_end ? __ldg(p.pages + u.page_begin + (token >> p.page_shift)) : 0;
    }

    /* The unit's first pages are in its descriptor; those of later tiles come from memory, a warp's
     * width of them ahead. */
    __device__ __forceinline__ void pages_begin(const relay_cuda_unit &u)
    {
        const uint32_t first = first_token(u) >> p.page_shift;
        const uint32_t i = ((load_token + lane * load_step) >> p.page_shift) - first;
        const uint32_t held = (first + RELAY_CUDA_UNIT_PAGES) << p.page_shift; /* tokens before */
        pages_tile = 0;
        pages_count = min((held - first_token(u)) >> tile_shift(u), 32u);
        pages = i < RELAY_CUDA_UNIT_PAGES ? u.pages[i] : 0;
        pages_next = page_load(u, pages_count + lane);
    }

    /* Pages of the tile to load are in `pages` from here on. */
    __device__ __forceinline__ void pages_go_on(const relay_cuda_unit &u)
    {
        if (load_tile == pages_tile + pages_count) {
            pages = pages_next;
            pages_tile = load_tile;
            pages_count = 32;
            pages_next = page_load(u, 32 + lane);
        }
    }

    /* Whether 16 tokens lie in one page as they do in a stage. */
    __device__ __forceinline__ bool in_place() const
    {
        constexpr uint32_t both = RELAY_CUDA_P_POW2 | RELAY_CUDA_P_EXACT;
        return (p.flags & both) == both;
    }

    /* Before a unit's first tile. */
    __device__ __forceinline__ void load_begin(const relay_cuda_unit &u, uint32_t head)
    {
        load_token = warp_token(u, 0);
        load_step = 1u << tile_shift(u);
        load_place = head * p.page_tokens * p.k_row_bytes + lane * 16;
        once = (p.flags & RELAY_CUDA_P_STREAM) != 0 && (u.flags & RELAY_CUDA_SHARED) == 0;
        pages_tile = RELAY_CUDA_NONE; /* none known, and never any more to come */
        pages_count = 0;
        if ((p.flags & RELAY_CUDA_P_POW2) != 0) {
            pages_begin(u);
        }
    }

    /* Looks for the next tile: past units without tiles, into the next unit, to the next run. True
     * when there is one, in a run if `run` says so. */
    __device__ __forceinline__ bool load_prepare(bool with_queries)
    {
        for (;; load_at++, load_tile = 0) {
            if (load_at > at + 1 || !slot(load_at).valid || is_pair(slot(load_at).unit)) {
                return false; /* PAIR units load for themselves */
            }
            if (load_tile < slot(load_at).unit.tiles) {
                break;
            }
        }
        const unit_slot &from = slot(load_at);
        const relay_cuda_unit &u = from.unit;
        if (load_tile == 0) {
            uint32_t head = head_of(from);
            load_begin(u, head);
            if (C::QUERIES_IN_REGISTERS && with_queries) {
                load_queries(query_place(u, head));
            }
        }
        pages_go_on(u);
        if (in_place() && load_tile >= u.whole_begin && load_tile < u.whole_end) {
            run = min(u.whole_end, pages_tile + pages_count) - load_tile;
        }
        return true;
    }

    /* This lane's first copy of 16 whole rows from `token` on, from the K or V of the layer on. */
    __device__ __forceinline__ uint64_t whole_place(uint32_t page, uint32_t token) const
    {
        uint32_t in_page = token & ((1u << p.page_shift) - 1);
        return page * p.page_stride + (load_place + in_page * C::ROW_BYTES);
    }

    /* Where this lane's i-th copy of 16 rows goes in a tile; i is known when this is compiled.
     * Where a warp copies whole rows, it is the first copy's row some rows further: only the
     * swizzle differs, in bits of its own. */
    __device__ __forceinline__ uint32_t copy_place(uint32_t to, int i) const
    {
        constexpr int rows = 32 / C::CHUNKS; /* at a time */
        if (32 % C::CHUNKS != 0) {
            return to + stored_offset<C>(first_row + (i * 32 + lane) / C::CHUNKS,
                                         (i * 32 + lane) % C::CHUNKS);
        }
        return ((to + copy_to) ^ stored_offset<C>(i * rows % 8, 0) % 128) +
               i * rows * (C::ROW_BYTES < 128 ? C::ROW_BYTES : 128);
    }

    /* Keys or values of this warp's 16 tokens, all in one page and all wanted, of rows without
     * padding: from there to a stage's tile. */
    template <bool leave_l2>
    __device__ __forceinline__ void load_whole(uint32_t to, const unsigned char *from) const
    {
#pragma unroll
        for (int i = 0; i < C::COPIES; i++) {
            cp_async_whole<leave_l2>(copy_place(to, i), from + i * 512);
        }
    }

    static constexpr uint64_t LATER = 1;

    /* Keys or values of token t of the segment, which comes with the call. */
    __device__ __forceinline__ uint64_t appended_place(const relay_cuda_unit &u, uint32_t head,
                                                       uint32_t t, bool is_value) const
    {
        const relay_cuda_io &io = io_at(p, u.append_io);
        const void *rows = is_value && p.v != p.k ? io.v : io.k;
        const size_t i = (size_t)(u.append_row + t - u.append_token) * p.num_kv_heads + head;
        return (uint64_t)rows + i * (is_value ? p.v_row_bytes : p.k_row_bytes);
    }

    /* Where lane i finds the keys of the i-th of this warp's 16 tokens from `token` on, lane 16 + i
     * its values, whatever the page size; 0 where the unit has none, LATER where they come with the
     * call. */
    __device__ __forceinline__ uint64_t row_place(const relay_cuda_unit &u, uint32_t head,
                                                  uint32_t token) const
    {
        const bool is_value = lane >= 16;
        const uint32_t t = token + lane % 16;
        const uint32_t row_bytes = is_value ? p.v_row_bytes : p.k_row_bytes;
        if (t < u.token_begin || t >= u.token_end) {
            return 0;
        }
        if (t - u.append_token < u.append_count && (p.flags & RELAY_CUDA_P_STAGED) == 0) {
            return C::F8 ? 0 : LATER; /* F8: append_convert() puts it into zeros */
        }
        const size_t i = (size_t)head * p.page_tokens + token_in_page(t);
        return (uint64_t)(is_value ? p.v : p.k) + page_of(u, t) * p.page_stride + i * row_bytes;
    }

    /* Keys or values row by row, from what lanes `first` to `first` + 15 found; zeros where that is
     * nothing or rows are padded. */
    __device__ __forceinline__ void load_rows(uint32_t to, uint64_t from, uint32_t first,
                                              uint32_t dim) const
    {
#pragma unroll 1
        for (uint32_t i = lane; i < 16 * C::CHUNKS; i += 32) {
            uint32_t row = i / C::CHUNKS;
            uint32_t chunk = i % C::CHUNKS;
            uint64_t at = __shfl_sync(0xffffffffu, from, first + row);
            if (at != LATER) {
                cp_async(to + stored_offset<C>(first_row + row, chunk),
                         (const void *)(at + chunk * 16),
                         at != 0 && chunk * C::CHUNK_ELEMENTS < dim ? 16 : 0);
            }
        }
    }

    /* Of tokens that all lie in one page, `place` being this lane's first copy there. */
    __device__ __forceinline__ void load_part(const relay_cuda_unit &u, uint64_t place,
                                              uint32_t token, uint32_t stage, uint32_t which) const
    {
        const uint2 later = appended_rows(u, token);
#pragma unroll 1
        for (uint32_t i = lane; i < 16 * C::CHUNKS; i += 32, place += 512) {
            const uint32_t row = i / C::CHUNKS;
            const uint32_t to = stored_offset<C>(first_row + row, i % C::CHUNKS);
            const uint32_t bytes =
                token + row >= u.token_begin && token + row < u.token_end ? 16 : 0;
            if (row - later.x < later.y - later.x) {
                continue;
            }
            if ((which & 1) != 0) {
                cp_async(key_tile(stage) + to, p.k + place, bytes);
            }
            if ((which & 2) != 0) {
                cp_async(value_tile(stage) + to, p.v + place, bytes);
            }
        }
    }

    /* Keys and values (or, by `which`, 1 or 2, one of them) of this warp's 16 tokens from `token`
     * on that the unit has, without those that come with the call. `page`: theirs, if POW2. */
    __device__ __forceinline__ void load_any(const relay_cuda_unit &u, uint32_t head,
                                             uint32_t token, uint32_t page, uint32_t stage,
                                             uint32_t which = 3) const
    {
        if (in_place()) {
            load_part(u, whole_place(page, token), token, stage, which);
            return;
        }
        const uint64_t rows = row_place(u, head, token);
#pragma unroll 1
        for (uint32_t values = 0; values < 2; values++) {
            if ((which >> values & 1) != 0) {
                load_rows(values ? value_tile(stage) : key_tile(stage), rows, values * 16,
                          values ? p.dv : p.dqk);
            }
        }
    }

    /* Where row `lane` of this warp's queries lies (0: nowhere); lanes 0 to 15. */
    __device__ __forceinline__ uint64_t query_place(const relay_cuda_unit &u, uint32_t head) const
    {
        const uint32_t m = query_row(u) + lane;
        if (lane >= 16 || m >= u.packed_count) {
            return 0;
        }
        const uint32_t packed = u.packed_begin + m;
        const uint32_t row = row_of(packed);
        uint2 place = make_uint2(0, row);
        const void *rows = p.q;
        if ((p.flags & RELAY_CUDA_P_STAGED) == 0) {
            place = place_at(p, u, row);
            rows = io_at(p, place.x).q;
        }
        size_t i = (size_t)place.y * p.num_q_heads + head * p.group + packed - row * p.group;
        return (uint64_t)rows + i * p.dqk * 2;
    }

    /* This warp's 16 rows of queries from there; rows that are nowhere become zero. */
    template <int unroll = 1> __device__ __forceinline__ void load_queries(uint64_t from) const
    {
#pragma unroll unroll
        for (uint32_t i = lane; i < 2 * C::D; i += 32) {
            uint32_t row = i / (C::D / 8);
            uint32_t chunk = i % (C::D / 8);
            uint64_t q = __shfl_sync(0xffffffffu, from, row);
            cp_async(queries() + tile_offset<C>(first_row + row, chunk),
                     (const void *)(q + chunk * 16), q != 0 && chunk * 8 < p.dqk ? 16 : 0);
        }
    }

    /* Those of a unit that begins, where they cannot come one unit early. */
    __device__ __forceinline__ void load_queries_late(const relay_cuda_unit &u, uint32_t head) const
    {
        if (!C::QUERIES_IN_REGISTERS) {
            load_queries(query_place(u, head));
            cp_async_commit();
            cp_async_wait<0>();
            __syncwarp();
        }
    }

    /* What comes with the call of this warp's 16 tokens from `token` on, to a stage. */
    __device__ __forceinline__ void load_appended(const relay_cuda_unit &u, uint32_t head,
                                                  uint32_t token, uint32_t stage,
                                                  uint32_t which = 3) const
    {
        const uint2 rows = appended_rows(u, token);
#pragma unroll 1
        for (uint32_t row = rows.x; row < rows.y; row++) {
#pragma unroll 1
            for (uint32_t c = lane; c < 2 * C::CHUNKS; c += 32) {
                const bool is_value = c >= C::CHUNKS;
                const uint32_t chunk = c % C::CHUNKS;
                if ((which >> is_value & 1) == 0) {
                    continue;
                }
                const uint64_t at = appended_place(u, head, token + row, is_value);
                cp_async((is_value ? value_tile(stage) : key_tile(stage)) +
                             stored_offset<C>(first_row + row, chunk),
                         (const void *)(at + chunk * 16),
                         chunk * C::CHUNK_ELEMENTS < (is_value ? p.dv : p.dqk) ? 16 : 0);
            }
        }
    }

    /* Starts the next tile of the stream, of a run (run != 0). */
    __device__ __forceinline__ void load_run()
    {
        const uint32_t page = __shfl_sync(0xffffffffu, pages, (load_tile - pages_tile) % 32);
        const uint64_t place = whole_place(page, load_token);
        if (once) {
            load_whole<true>(key_tile(load_stage), p.k + place);
            load_whole<true>(value_tile(load_stage), p.v + place);
        } else {
            load_whole<false>(key_tile(load_stage), p.k + place);
            load_whole<false>(value_tile(load_stage), p.v + place);
        }
        run--;
        load_started();
    }

    __device__ __forceinline__ void load_started()
    {
        cp_async_commit();
        load_stage = stage_after(load_stage);
        load_token += load_step;
        load_tile++;
        ahead++;
    }

    /* Starts the next tile of the stream, if a unit that is known has one. `first`: of the launch,
     * whose queries come otherwise; then with `early` all but what comes with the call. */
    template <bool first = false> __device__ __forceinline__ bool load_next(bool early = false)
    {
        if (__builtin_expect(run == 0, 0) && !load_prepare(!first)) {
            return false;
        }
        if (__builtin_expect(run != 0, 1)) {
            load_run();
            return true;
        }
        const unit_slot &from = slot(load_at);
        const uint32_t page = __shfl_sync(0xffffffffu, pages, (load_tile - pages_tile) % 32);
        load_any(from.unit, head_of(from), load_token, page, load_stage);
        if (!C::F8 && !early) {
            load_appended(from.unit, head_of(from), load_token, load_stage);
        }
        load_started();
        return true;
    }

    /* Fills free stages, up to `limit` in use, as far as units are known. */
    __device__ __forceinline__ void load_more(uint32_t limit)
    {
#pragma unroll 1
        while (ahead < limit && load_next()) {
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

    static __device__ __forceinline__ uint32_t stage_after(uint32_t stage)
    {
        return stage + 1 == C::STAGES ? 0 : stage + 1;
    }

    static __device__ __forceinline__ uint32_t stage_before(uint32_t stage)
    {
        return stage == 0 ? C::STAGES - 1 : stage - 1;
    }

    __device__ __forceinline__ void stage_used()
    {
        use_stage = stage_after(use_stage);
        ahead--;
    }

    /* ---- the tokens that come with the call ---- */

    /* Which rows of this warp's 16 tokens from `token` on they are: [x, y). */
    __device__ __forceinline__ uint2 appended_rows(const relay_cuda_unit &u, uint32_t token) const
    {
        const uint32_t lo = max(max(u.append_token, u.token_begin), token);
        const uint32_t hi = min(min(u.append_token + u.append_count, u.token_end), token + 16);
        return appends(u, token, 16) && lo < hi ? make_uint2(lo - token, hi - token)
                                                : make_uint2(0, 0);
    }

    /* Which page of its segment a token is in. */
    __device__ __forceinline__ uint32_t page_index(uint32_t token) const
    {
        return (p.flags & RELAY_CUDA_P_POW2) != 0 ? token >> p.page_shift : token / p.page_tokens;
    }

    __device__ __forceinline__ uint32_t page_of(const relay_cuda_unit &u, uint32_t token) const
    {
        return __ldg(p.pages + u.page_begin + page_index(token));
    }

    __device__ __forceinline__ uint32_t token_in_page(uint32_t token) const
    {
        return token - page_index(token) * p.page_tokens;
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
                uint32_t row = row_of(packed);
                uint32_t position = __ldg(&p.rows[row].position);
                interval_of(u, position, interval);
                slope.position = (int)(position - u.position);
                if (p.slopes != nullptr) {
                    slope.slope = __ldg(p.slopes + head * p.group + packed - row * p.group) *
                                  RELAY_CUDA_LOG2E;
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
