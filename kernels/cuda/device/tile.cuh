/* Shared memory of an attention block: stages of K and V tiles, queries, descriptors.
 *
 * A tile's rows are cut into planes of 64 elements; in a plane a row is 128 bytes whose 16-byte
 * chunk c lies at c ^ (row % 8), which ldmatrix and wgmma read without bank conflicts. A last plane
 * of 32 elements (head dim 96) has 64-byte rows. Tiles of F8_E4M3 are the same with 128 elements to
 * a plane. Device code. */
#ifndef RELAY_CUDA_DEVICE_TILE_CUH
#define RELAY_CUDA_DEVICE_TILE_CUH

#include "cuda/device/ptx.cuh"
#include "cuda/launch.h"

namespace relay
{

/* What a warpgroup was given; a ring of three: the current one, the next, the one after. */
struct alignas(16) unit_slot {
    relay_cuda_unit unit;
    uint32_t head;
    uint32_t valid;
    uint32_t unused[2];
};

#define RELAY_CUDA_RING 3

/* What a packed row sees, in tokens of the segment. */
struct row_interval {
    uint32_t lo;
    uint32_t hi;
};

/* What is added to a packed row's scores: slope (base 2) times the distance to `position`, relative
 * to the segment's token 0. */
struct row_slope {
    float slope;
    int position;
};

/* Small things of one warpgroup; rows by the warp that computes them. */
struct group_memory {
    unit_slot ring[RELAY_CUDA_RING];
    uint32_t exhausted; /* the ticket ran out; the leader warp's */
    /* A warp needs its intervals until its last tile, its state from then on. */
    union {
        float2 state[4][16];           /* (max, sum) of each warp's rows of a NARROW unit */
        row_interval intervals[4][16]; /* of a MASKED unit's rows */
    };
};

struct group_slopes {
    row_slope rows[4][16];
};

/* What is multiplied. F16 holds every F8_E4M3 exactly, and queries in it lose nothing once a row is
 * scaled by a power of two. */
template <typename IO, bool F8> struct multiplied {
    using type = IO;
};

template <typename IO> struct multiplied<IO, true> {
    using type = __half;
};

/* IO: type of queries; F8: K and V are stored as F8_E4M3, else as IO; FINALS: WIDE units may be
 * FINAL. */
template <typename IO_, bool F8_, int D_, int STAGES_, bool WGMMA_, int GROUPS_, bool FINALS_>
struct config {
    using IO = IO_;
    using T = typename multiplied<IO_, F8_>::type;
    static constexpr bool F8 = F8_;
    static constexpr int D = D_; /* both head dims, padded */
    static constexpr int STAGES = STAGES_;
    static constexpr bool WGMMA = WGMMA_;
    static constexpr bool FINALS = FINALS_;
    static constexpr int GROUPS = GROUPS_;     /* warpgroups of a block */
    static constexpr bool PAIRS = GROUPS == 2; /* which may share tiles */
    static constexpr int THREADS = 128 * GROUPS;
    static constexpr int ROWS = 64 * GROUPS;           /* tokens of a stage; rows of queries */
    static constexpr int ROW_BYTES = D * (F8 ? 1 : 2); /* as stored */
    static constexpr int CHUNKS = ROW_BYTES / 16;
    static constexpr int CHUNK_ELEMENTS = F8 ? 16 : 8;
    static constexpr int PLANE_BYTES = ROWS * 128;
    static constexpr int TILE_BYTES = ROWS * ROW_BYTES;
    static constexpr int STAGE_BYTES = 2 * TILE_BYTES; /* K, V */
    /* The same in T: queries, and with F8 a place for one tile of K and V or for results. */
    static constexpr int PLANES = D / 64;
    static constexpr bool HALF_PLANE = D % 64 == 32;
    static constexpr int TENSOR_BYTES = ROWS * D * 2;
    static constexpr int OPENED_OFFSET = STAGES * STAGE_BYTES;
    static constexpr int QUERY_OFFSET = OPENED_OFFSET + (F8 ? 2 * TENSOR_BYTES : 0);
    static constexpr int GROUP_OFFSET = QUERY_OFFSET + TENSOR_BYTES;
    static constexpr int SLOPE_OFFSET = GROUP_OFFSET + GROUPS * (int)sizeof(group_memory);
    /* Softcap and ALiBi are left to the kernels without wgmma: fewer registers, less code. */
    static constexpr bool SPECIAL = !WGMMA;
    static constexpr int SHARED_BYTES =
        SLOPE_OFFSET + (SPECIAL ? GROUPS * (int)sizeof(group_slopes) : 0);
    static constexpr int COPIES = CHUNKS / 2; /* 16-byte copies of a lane for 16 rows of a warp */
    /* Longer rows stay in shared memory; their queries then cannot come one unit early. */
    static constexpr bool QUERIES_IN_REGISTERS = D <= 128;
    static constexpr int BLOCKS = 2 * (SHARED_BYTES + 1024) <= 228 * 1024 ? 2 : 1;
};

/* Byte offset of a row's chunk in a tile of ROWS rows of ROW_BYTES each. */
template <int ROWS, int ROW_BYTES>
__device__ __forceinline__ uint32_t swizzled_offset(uint32_t row, uint32_t chunk)
{
    constexpr uint32_t planes = ROW_BYTES / 128;
    uint32_t plane = chunk >> 3;
    if (ROW_BYTES % 128 == 64 && plane == planes) {
        return planes * ROWS * 128 + row * 64 + (((chunk & 3) ^ ((row >> 1) & 3)) << 4);
    }
    return plane * ROWS * 128 + row * 128 + (((chunk & 7) ^ (row & 7)) << 4);
}

/* In a tile as it is multiplied. */
template <class C> __device__ __forceinline__ uint32_t tile_offset(uint32_t row, uint32_t chunk)
{
    return swizzled_offset<C::ROWS, C::D * 2>(row, chunk);
}

/* In a tile as it is stored. */
template <class C> __device__ __forceinline__ uint32_t stored_offset(uint32_t row, uint32_t chunk)
{
    return swizzled_offset<C::ROWS, C::ROW_BYTES>(row, chunk);
}

/* Where a warp keeps float column 4 * c of row r of its NARROW result: its own 16 rows of K and V
 * in T, of a stage that it has used or (F8) of the place for such. */
template <class C>
__device__ __forceinline__ uint32_t result_offset(uint32_t first_row, uint32_t r, uint32_t c)
{
    uint32_t piece = c >> 3;
    if (C::HALF_PLANE && piece >= 2 * C::PLANES) {
        uint32_t q = c - 16 * C::PLANES;
        return (q >> 2) * C::TENSOR_BYTES + C::PLANES * C::PLANE_BYTES + (first_row + r) * 64 +
               ((q & 3) << 4);
    }
    return (piece & 1) * C::TENSOR_BYTES + (piece >> 1) * C::PLANE_BYTES + (first_row + r) * 128 +
           (((c & 7) ^ (r & 6)) << 4);
}

/* The same for a thread that has rows r + 8 b and r + 8 b + 1 (r even, below 8) and, of each 8
 * columns, those that begin with `first` (below 8, or of each 16 below 16): what differs between
 * its elements is known when this is compiled, which keeps the code for them short. */
template <class C> struct result_place {
    uint32_t whole;
    uint32_t half;

    __device__ __forceinline__ result_place(uint32_t first_row, uint32_t r, uint32_t first)
        : whole(result_offset<C>(first_row, r, first >> 2) + (first & 3) * 4),
          half((first_row + r) * 64 + first * 4)
    {
    }

    /* Of columns 8 c + first .. of row r + 8 b + e. */
    __device__ __forceinline__ uint32_t at(int c, int b, int e) const
    {
        const int piece = c / 4;
        if (C::HALF_PLANE && piece >= 2 * C::PLANES) {
            return half + (c - 8 * C::PLANES) / 2 * C::TENSOR_BYTES + C::PLANES * C::PLANE_BYTES +
                   (8 * b + e) * 64 + c % 2 * 32;
        }
        return (whole ^ (c % 4 * 32)) + piece % 2 * C::TENSOR_BYTES + piece / 2 * C::PLANE_BYTES +
               (8 * b + e) * 128;
    }
};

} // namespace relay

#endif
