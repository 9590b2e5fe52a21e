// slstm_forward.cu - the sLSTM cell on tensor cores, bf16. Formulas: core/ops.h (xLSTM, arXiv:2405.04517,
// section 2.2).
//
// Grid: (blocks of a head's cluster, heads, tiles of 8 sequences). Block: 16 units of all four gates per
// warp, the sum over the head split among kSplits warps. One launch for all tokens, one barrier per token
// (two if the sum is split; that of the cluster if there is one).
//
// R stays in registers (half of it in shared memory at width 512), y_t as bf16 in two alternating shared
// tiles, which the blocks of a cluster write into one another's memory. wx comes three tokens ahead by
// cp.async; what a token leaves is stored while the next token's products run. c, n, m are in registers.
// Nothing is read twice. Per token, unit and sequence 16 bytes are read and 30 written. Sums in f32: bias,
// then R y in order of columns, within each warp of a split; then the splits in order; then wx.
#include "kernels/cuda/slstm_cell.h"
#include "kernels/cuda/slstm_internal.h"
#include "kernels/cuda/slstm_tile.h"

namespace carousel::CAROUSEL_DEVICE_NS {
namespace {

constexpr int kSequences = kSlstmTileSequences;
constexpr int kStages = 4;  // tokens of wx in shared memory

template <class Tile, int kWidth>
struct ForwardMemory {
  // Bytes of one sequence's row. 16 bytes beyond a multiple of 64: no two lanes meet in a bank.
  static constexpr int kPitchY = (kWidth + 31) / 32 * 64 + 16;
  static constexpr int kPitchWx = kSlstmGates * Tile::kUnits * 4 + 16;
  // Bytes.
  static constexpr int kY = 2 * kSequences * kPitchY;
  static constexpr int kWx = kStages * kSequences * kPitchWx;
  static constexpr int kBias = kSlstmGates * Tile::kUnits * 4;
  static constexpr int kPartial = (Tile::kWarps - Tile::kGroups) * kSlstmGates * 32 * 16;
  static constexpr int kTotal = kY + kWx + kBias + kPartial + Tile::kSharedFragmentBytes;
  static_assert(kTotal <= 227 << 10);
};

// What a token leaves, of two adjacent units of two adjacent sequences; element u * 2 + s.
struct Kept {
  float gates[kSlstmGates][4];
  uint32_t y[2];  // of both units, bf16
};

// 8 bytes at once, past the first cache: nothing here reads them.
__device__ inline void StorePair(float* place, float first, float second) {
  __stcg(reinterpret_cast<float2*>(place), make_float2(first, second));
}

template <class Tile, int kWidth, int kBlocks, int kSplits>
struct ForwardBlock {
  using Memory = ForwardMemory<Tile, kWidth>;
  static constexpr int kUnits = Tile::kUnits, kThreads = Tile::kThreads;
  static constexpr int kWarpSteps = kWidth / 16 / kSplits;  // of the product
  static constexpr int kRegisterSteps = Tile::kRegisterFragments / kSlstmGates;

  const SlstmForwardPointers<bfloat16>& p;
  unsigned char *const y_tiles, *const wx_tiles;
  float* const bias;
  float4* const partial;
  uint4* const shared_r;
  const int lane, warp, group, split, rank;
  const int num_sequences;  // of the tile, that exist
  const int64_t width, first_sequence;
  const int64_t head_column;   // of the head in a row of y
  const int64_t block_column;  // of the block's units

  __device__ ForwardBlock(const SlstmForwardPointers<bfloat16>& pointers, unsigned char* memory)
      : p(pointers),
        y_tiles(memory),
        wx_tiles(y_tiles + Memory::kY),
        bias(reinterpret_cast<float*>(wx_tiles + Memory::kWx)),
        partial(reinterpret_cast<float4*>(wx_tiles + Memory::kWx + Memory::kBias)),
        shared_r(reinterpret_cast<uint4*>(wx_tiles + Memory::kWx + Memory::kBias + Memory::kPartial)),
        lane(static_cast<int>(threadIdx.x) % 32),
        warp(static_cast<int>(threadIdx.x) / 32),
        group(warp % Tile::kGroups),
        split(warp / Tile::kGroups),
        rank(static_cast<int>(blockIdx.x)),
        num_sequences(
            static_cast<int>(min(int64_t{kSequences}, pointers.shape.B - int64_t{blockIdx.z} * kSequences))),
        width(p.shape.NH * kWidth),
        first_sequence(int64_t{blockIdx.z} * kSequences),
        head_column(int64_t{blockIdx.y} * kWidth),
        block_column(head_column + rank * kUnits) {}

  // The thread's units are unit() and unit() + 1 of the block, its sequences sequence() and + 1 of the tile.
  __device__ int unit() const { return group * 16 + lane / 4 * 2; }
  __device__ int sequence() const { return lane % 4 * 2; }
  __device__ bool Exists(int s) const { return sequence() + s < num_sequences; }
  __device__ int64_t Row(int s, int64_t t) const { return (first_sequence + sequence() + s) * p.shape.T + t; }
  __device__ bool Starts(int s, int64_t t) const {
    return p.reset != nullptr && t < p.shape.T && Exists(s) && p.reset[Row(s, t)] != 0;
  }

  __device__ void Synchronize() const {
    if constexpr (kBlocks > 1) {
      gpu::cluster_sync();
    } else {
      __syncthreads();
    }
  }

  // The A fragment of gate g at the warp's step k.
  __device__ void LoadR(int g, int k, uint32_t (&a)[4]) const {
    const bfloat16* const row = p.recurrent + (g * width + block_column + unit()) * kWidth +
                                (split * kWarpSteps + k) * 16 + lane % 4 * 2;
    a[0] = *reinterpret_cast<const uint32_t*>(row);
    a[1] = *reinterpret_cast<const uint32_t*>(row + kWidth);
    a[2] = *reinterpret_cast<const uint32_t*>(row + 8);
    a[3] = *reinterpret_cast<const uint32_t*>(row + kWidth + 8);
  }
  __device__ uint4& SharedR(int g, int k) const {
    return shared_r[((warp * kSlstmGates + g) * (kWarpSteps - kRegisterSteps) + k) * 32 + lane];
  }

  // The thread's share of a token of wx: 16 bytes of one gate of the sequences fetch_sequence(), +
  // kFetchStride, ..
  static constexpr int kFetchStride = kThreads / kUnits;
  static_assert(kSequences % kFetchStride == 0);
  __device__ int fetch_sequence() const { return static_cast<int>(threadIdx.x) / kUnits; }
  __device__ int fetch_gate() const { return static_cast<int>(threadIdx.x) % kUnits / (kUnits / 4); }
  __device__ int fetch_unit() const { return static_cast<int>(threadIdx.x) % (kUnits / 4) * 4; }
  __device__ const float* FirstWx() const {
    return p.wx + ((first_sequence + fetch_sequence()) * p.shape.T * kSlstmGates + fetch_gate()) * width +
           block_column + fetch_unit();
  }
  // Begins to copy wx of token t, the thread's share of which is at `source`; zeros beyond the batch.
  __device__ void FetchWx(int64_t t, const float* source) const {
    unsigned char* const place =
        wx_tiles + (static_cast<int>(t) % kStages * kSequences + fetch_sequence()) * Memory::kPitchWx +
        (fetch_gate() * kUnits + fetch_unit()) * 4;
#pragma unroll
    for (int s = 0; s < kSequences; s += kFetchStride) {
      const bool valid = fetch_sequence() + s < num_sequences && t < p.shape.T;
      gpu::cp_async16(place + s * Memory::kPitchWx,
                      valid ? source + s * (p.shape.T * kSlstmGates * width) : p.wx, valid);
    }
    gpu::cp_async_commit();
  }
  __device__ float2 Wx(int64_t t, int g, int s) const {
    return *reinterpret_cast<const float2*>(
        wx_tiles + (static_cast<int>(t) % kStages * kSequences + sequence() + s) * Memory::kPitchWx +
        (g * kUnits + unit()) * 4);
  }

  // What the first token's product reads, in tile 0: initial y rounded, zeros without one, at the start of a
  // document and beyond the batch. Padding columns of both tiles are zeros.
  __device__ void StartY() const {
    for (int at = static_cast<int>(threadIdx.x) * 4; at < Memory::kY; at += kThreads * 4)
      *reinterpret_cast<uint32_t*>(y_tiles + at) = 0;
    __syncthreads();  // the zeros, before what is written over them
    if (p.initial.y == nullptr) return;
    for (int at = static_cast<int>(threadIdx.x); at < kSequences * kWidth; at += kThreads) {
      const int s = at / kWidth, in = at % kWidth;
      const int64_t b = first_sequence + s;
      if (b >= p.shape.B || (p.reset != nullptr && p.reset[b * p.shape.T] != 0)) continue;
      *reinterpret_cast<bfloat16*>(y_tiles + s * Memory::kPitchY + in * 2) =
          gpu::to_bf16(p.initial.y[b * width + head_column + in]);
    }
  }
  // y of both units of sequence s, for the next token of every block.
  __device__ void PassY(int tile, int s, uint32_t value) const {
    unsigned char* const place =
        y_tiles + (tile * kSequences + sequence() + s) * Memory::kPitchY + (rank * kUnits + unit()) * 2;
    if constexpr (kBlocks > 1) {
#pragma unroll
      for (int r = 0; r < kBlocks; ++r) *reinterpret_cast<uint32_t*>(gpu::map_shared(place, r)) = value;
    } else {
      *reinterpret_cast<uint32_t*>(place) = value;
    }
  }

  // at: of the thread's units of its first sequence in y; gates_at: in gates.
  __device__ void Store(int64_t at, int64_t gates_at, const Kept& kept, const float (&c)[4],
                        const float (&n)[4], const float (&m)[4]) const {
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      if (!Exists(s)) continue;
      const int64_t from_first = s * (p.shape.T * width);
      float* const gates = p.gates + gates_at + kSlstmGates * from_first;
#pragma unroll
      for (int g = 0; g < kSlstmGates; ++g)
        StorePair(gates + g * width, kept.gates[g][s], kept.gates[g][2 + s]);
      StorePair(p.c + at + from_first, c[s], c[2 + s]);
      StorePair(p.n + at + from_first, n[s], n[2 + s]);
      StorePair(p.m + at + from_first, m[s], m[2 + s]);
      *reinterpret_cast<uint32_t*>(p.y + at + from_first) = kept.y[s];
    }
  }
  __device__ void StoreLast(const Kept& kept, const float (&c)[4], const float (&n)[4],
                            const float (&m)[4]) const {
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      if (!Exists(s)) continue;
      const int64_t at = (first_sequence + sequence() + s) * width + block_column + unit();
      *reinterpret_cast<float2*>(p.last.y + at) = gpu::unpack_bf16(kept.y[s]);
      *reinterpret_cast<float2*>(p.last.c + at) = make_float2(c[s], c[2 + s]);
      *reinterpret_cast<float2*>(p.last.n + at) = make_float2(n[s], n[2 + s]);
      *reinterpret_cast<float2*>(p.last.m + at) = make_float2(m[s], m[2 + s]);
    }
  }

  // sums += R y of the warp's part of the head.
  __device__ void Multiply(int tile, const uint32_t (&r)[kSlstmGates][kRegisterSteps][4],
                           float (&sums)[kSlstmGates][4]) const {
    const unsigned char* const rows =
        y_tiles + (tile * kSequences + lane % 8) * Memory::kPitchY + split * kWarpSteps * 32 + lane / 8 * 16;
#pragma unroll
    for (int k = 0; k < kWarpSteps; k += 2) {
      uint32_t b[4];
      gpu::ldmatrix_x4(b, rows + k * 32);
#pragma unroll
      for (int next = 0; next < 2 && k + next < kWarpSteps; ++next) {
#pragma unroll
        for (int g = 0; g < kSlstmGates; ++g) {
          if (k + next < kRegisterSteps) {
            gpu::mma_bf16_m16n8k16(sums[g], r[g][k + next < kRegisterSteps ? k + next : 0], b[2 * next],
                                   b[2 * next + 1]);
          } else {
            const uint4 v = SharedR(g, k + next - kRegisterSteps);
            const uint32_t a[4] = {v.x, v.y, v.z, v.w};
            gpu::mma_bf16_m16n8k16(sums[g], a, b[2 * next], b[2 * next + 1]);
          }
        }
      }
    }
  }
  // The sums of all splits, to the warps of split 0.
  __device__ void AddSplits(float (&sums)[kSlstmGates][4]) const {
    if (split > 0) {
#pragma unroll
      for (int g = 0; g < kSlstmGates; ++g)
        partial[((warp - Tile::kGroups) * kSlstmGates + g) * 32 + lane] =
            make_float4(sums[g][0], sums[g][1], sums[g][2], sums[g][3]);
    }
    __syncthreads();  // the sums of the other splits, before split 0 reads them; the next ones are written
                      // after the barrier that ends the token
    if (split > 0) return;
#pragma unroll
    for (int other = 0; other < kSplits - 1; ++other) {
#pragma unroll
      for (int g = 0; g < kSlstmGates; ++g) {
        const float4 v = partial[((other * Tile::kGroups + group) * kSlstmGates + g) * 32 + lane];
        sums[g][0] += v.x;
        sums[g][1] += v.y;
        sums[g][2] += v.z;
        sums[g][3] += v.w;
      }
    }
  }

  __device__ void Run() const {
    uint32_t r[kSlstmGates][kRegisterSteps][4];
#pragma unroll
    for (int g = 0; g < kSlstmGates; ++g) {
#pragma unroll
      for (int k = 0; k < kRegisterSteps; ++k) LoadR(g, k, r[g][k]);
      for (int k = kRegisterSteps; k < kWarpSteps; ++k) {
        uint32_t a[4];
        LoadR(g, k, a);
        SharedR(g, k - kRegisterSteps) = make_uint4(a[0], a[1], a[2], a[3]);
      }
    }
    const int64_t gates_step = kSlstmGates * width;  // from token to token
    const float* wx_source = FirstWx();
    for (int64_t t = 0; t < kStages - 1; ++t, wx_source += gates_step) FetchWx(t, wx_source);
    for (int at = static_cast<int>(threadIdx.x); at < kSlstmGates * kUnits; at += kThreads)
      bias[at] = p.bias[at / kUnits * width + block_column + at % kUnits];
    StartY();
    float c[4] = {}, n[4] = {}, m[4] = {};
    bool starts[2], next_starts[2];
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      starts[s] = Starts(s, 0);
      next_starts[s] = Starts(s, 1);
      if (p.initial.y == nullptr || !Exists(s)) continue;
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        const int64_t at = (first_sequence + sequence() + s) * width + block_column + unit() + u;
        c[u * 2 + s] = p.initial.c[at];
        n[u * 2 + s] = p.initial.n[at];
        m[u * 2 + s] = p.initial.m[at];
      }
    }
    gpu::cp_async_wait<kStages - 2>();
    Synchronize();  // tile 0 of y, bias and wx of token 0, before token 0 reads them; both tiles of y of
                    // every block of the cluster, before others write y of token 0 there
    Kept kept;
    int64_t at = Row(0, 0) * width + block_column + unit();
    int64_t gates_at = Row(0, 0) * gates_step + block_column + unit();
    int64_t reset_at = Row(0, 2);  // of the token after the next
    for (int64_t t = 0; t < p.shape.T; ++t) {
      FetchWx(t + kStages - 1, wx_source);
      wx_source += gates_step;
      bool after_starts[2] = {};
      float sums[kSlstmGates][4] = {};
      if (split == 0) {
#pragma unroll
        for (int s = 0; s < 2; ++s)
          after_starts[s] =
              p.reset != nullptr && t + 2 < p.shape.T && Exists(s) && p.reset[reset_at + s * p.shape.T] != 0;
        ++reset_at;
#pragma unroll
        for (int g = 0; g < kSlstmGates; ++g) {
          const float2 x = *reinterpret_cast<const float2*>(bias + g * kUnits + unit());
          sums[g][0] = sums[g][1] = x.x;
          sums[g][2] = sums[g][3] = x.y;
        }
      }
      Multiply(static_cast<int>(t) % 2, r, sums);
      if (split == 0 && t > 0) {
        Store(at, gates_at, kept, c, n, m);  // of the token before
        at += width;
        gates_at += gates_step;
      }
      if constexpr (kSplits > 1) AddSplits(sums);
      if (split == 0) {
#pragma unroll
        for (int s = 0; s < 2; ++s) {
          float2 wx[kSlstmGates];
#pragma unroll
          for (int g = 0; g < kSlstmGates; ++g) wx[g] = Wx(t, g, s);
          float y[2];
#pragma unroll
          for (int u = 0; u < 2; ++u) {
            const int i = u * 2 + s;
            if (starts[s]) c[i] = n[i] = m[i] = 0.0f;
            float raw[kSlstmGates], own[kSlstmGates];
#pragma unroll
            for (int g = 0; g < kSlstmGates; ++g) raw[g] = sums[g][i] + (u == 0 ? wx[g].x : wx[g].y);
            y[u] = SlstmCellForward<float, SlstmFastMath>(raw, c[i], n[i], m[i], own);
#pragma unroll
            for (int g = 0; g < kSlstmGates; ++g) kept.gates[g][i] = own[g];
          }
          kept.y[s] = gpu::pack_bf16(y[0], y[1]);
          PassY(static_cast<int>(t + 1) % 2, s, next_starts[s] ? 0 : kept.y[s]);
          starts[s] = next_starts[s];
          next_starts[s] = after_starts[s];
        }
      }
      gpu::cp_async_wait<kStages - 2>();
      Synchronize();  // y and wx of the next token, before it reads them; the tiles that this token read,
                      // before they are written again
    }
    gpu::cp_async_wait<0>();  // no copy outlives the block
    if (split > 0) return;
    Store(at, gates_at, kept, c, n, m);
    if (p.last.y != nullptr) StoreLast(kept, c, n, m);
  }
};

template <int kWidth, int kBlocks, int kSplits>
__global__ void __launch_bounds__(SlstmTile<kWidth, kBlocks, kSplits>::kThreads, 1)
    SlstmForwardKernel(SlstmForwardPointers<bfloat16> p) {
  if constexpr (kBlocks == 1 || CAROUSEL_DEVICE_HAS_HOPPER) {
    using Tile = SlstmTile<kWidth, kBlocks, kSplits>;
    const ForwardBlock<Tile, kWidth, kBlocks, kSplits> block(p, gpu::dyn_shared<unsigned char>());
    block.Run();
  } else {
    __trap();  // compiled for a GPU without clusters
  }
}

template <int kWidth, int kBlocks, int kSplits>
void Enqueue(SlstmTile<kWidth, kBlocks, kSplits>, Context& context, const SlstmForwardPointers<bfloat16>& p) {
  using Tile = SlstmTile<kWidth, kBlocks, kSplits>;
  const auto tiles = static_cast<unsigned>(CeilDiv(p.shape.B, kSequences));
  context.Launch(SlstmForwardKernel<kWidth, kBlocks, kSplits>,
                 {.grid = dim3(kBlocks, static_cast<unsigned>(p.shape.NH), tiles),
                  .block = dim3(Tile::kThreads),
                  .smem = ForwardMemory<Tile, kWidth>::kTotal,
                  .cluster = dim3(kBlocks),
                  .name = "SlstmForwardKernel"},
                 p);
}
}  // namespace

int64_t SlstmTensorCoreForwardSharedBytes(int64_t D, int compute_capability) {
  int64_t bytes = 0;
  WithSlstmTile(D, compute_capability,
                [&]<int kWidth, int kBlocks, int kSplits>(SlstmTile<kWidth, kBlocks, kSplits>) {
                  bytes = ForwardMemory<SlstmTile<kWidth, kBlocks, kSplits>, kWidth>::kTotal;
                });
  return bytes;
}

void SlstmTensorCoreForward(Context& context, const SlstmForwardPointers<bfloat16>& p) {
  CAROUSEL_CHECK(WithSlstmTile(p.shape.D, context.info().compute_capability,
                               [&](auto tile) { Enqueue(tile, context, p); }));
}
}  // namespace carousel::CAROUSEL_DEVICE_NS
