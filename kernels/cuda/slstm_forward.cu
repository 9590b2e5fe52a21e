// slstm_forward.cu - the sLSTM cell on tensor cores, bf16. Formulas: core/ops.h (xLSTM, arXiv:2405.04517,
// section 2.2).
//
// Grid: (blocks of a head's cluster, heads, tiles of 8 sequences). Block: 16 units of all four gates per
// warp; in a cluster two warps share the sum over the head, and then each does one sequence of every two.
// One launch for all tokens, one barrier per token. The blocks of a cluster besides wait for each other's y.
//
// R stays in registers (at widths 384 and 512 the rest of it in shared memory), y_t as bf16 in two
// alternating shared tiles, which the blocks of a cluster write into one another's memory
// (slstm_exchange.h). wx comes three tokens ahead by cp.async, asked for while products run. What a token
// leaves is stored while the next token's products run, or, in a cluster, while y is on its way. c, n, m are
// in registers. Nothing is read twice. Per token, unit and sequence 16 bytes are read and 30 written. Sums in
// f32: bias, then R y in order of columns, within each of two warps; then these two; then wx.
#include "kernels/cuda/slstm_cell.h"
#include "kernels/cuda/slstm_exchange.h"
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
  static constexpr int kPartial = Tile::kClustered ? Tile::kWarps * 2 * 32 * 16 : 0;
  using Fragments = SlstmFragments<Tile::kFragments, 40>;
  static constexpr int kR = Tile::kWarps * Fragments::kShared * 32 * 16;
  static constexpr int kExchange = Tile::kClustered ? kSlstmExchangeBytes : 0;
  static constexpr int kTotal = kY + kWx + kBias + kPartial + kR + kExchange;
  static_assert(kTotal <= 227 << 10);
};

// 8 bytes at once, past the first cache: nothing here reads them.
__device__ inline void StorePair(float* place, float first, float second) {
  __stcg(reinterpret_cast<float2*>(place), make_float2(first, second));
}

template <class Tile, int kWidth, int kBlocks, int kSplits>
struct ForwardBlock {
  using Memory = ForwardMemory<Tile, kWidth>;
  static constexpr int kUnits = Tile::kUnits, kThreads = Tile::kThreads, kOwned = Tile::kOwned;
  static constexpr bool kClustered = Tile::kClustered;
  static constexpr int kWarpSteps = kWidth / 16 / kSplits;  // of the product
  using Fragments = typename Memory::Fragments;             // kSlstmGates in each step
  using R = uint32_t[Fragments::kRegisters][4];

  const SlstmForwardPointers<bfloat16>& p;
  unsigned char *const y_tiles, *const wx_tiles;
  float* const bias;
  float4* const partial;
  uint4* const shared_r;
  const SlstmExchange<kBlocks, kSequences * kWidth * 2> exchange;
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
        exchange(memory + Memory::kTotal - Memory::kExchange),
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

  // What a token leaves, of the thread's units and sequences; element u * kOwned + s.
  struct Kept {
    float gates[kSlstmGates][2 * kOwned];
    uint32_t y[kOwned];  // of both units, bf16
  };

  // The thread's units are unit() and unit() + 1 of the block, its sequences the kOwned from sequence() on of
  // the tile.
  __device__ int unit() const { return group * 16 + lane / 4 * 2; }
  __device__ int sequence() const { return lane % 4 * 2 + split; }
  __device__ bool Exists(int s) const { return sequence() + s < num_sequences; }
  __device__ int64_t Row(int s, int64_t t) const { return (first_sequence + sequence() + s) * p.shape.T + t; }
  __device__ bool Starts(int s, int64_t t) const {
    return p.reset != nullptr && t < p.shape.T && Exists(s) && p.reset[Row(s, t)] != 0;
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
  __device__ uint4& SharedR(int i) const {
    return shared_r[(warp * Fragments::kShared + Fragments::SharedBefore(i)) * 32 + lane];
  }
  __device__ void LoadAllR(R& r) const {
#pragma unroll
    for (int i = 0; i < Tile::kFragments; ++i) {
      const int g = i % kSlstmGates, k = i / kSlstmGates;
      if (Fragments::IsShared(i)) {
        uint32_t a[4];
        LoadR(g, k, a);
        SharedR(i) = make_uint4(a[0], a[1], a[2], a[3]);
      } else {
        LoadR(g, k, r[Fragments::Register(i)]);
      }
    }
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

  // What the first token's product reads, in tile 1: initial y rounded, zeros without one, at the start of a
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
      *reinterpret_cast<bfloat16*>(y_tiles + (kSequences + s) * Memory::kPitchY + in * 2) =
          gpu::to_bf16(p.initial.y[b * width + head_column + in]);
    }
  }
  // y of both units of sequence s, for the next token.
  __device__ void PassY(int64_t t, int s, uint32_t value) const {
    *reinterpret_cast<uint32_t*>(y_tiles + (t % 2 * kSequences + sequence() + s) * Memory::kPitchY +
                                 unit() * 2) = value;
  }
  // The same to every block: the words of the four lanes that differ in bits 2 and 3 are eight adjacent
  // units, and each of these lanes sends them to a quarter of the blocks, beginning with the next one.
  __device__ void SendY(int64_t t, uint32_t value) const {
    static_assert(kBlocks % 4 == 0);
    uint4 units;
    units.x = __shfl_sync(~0u, value, lane & ~12);
    units.y = __shfl_sync(~0u, value, (lane & ~12) + 4);
    units.z = __shfl_sync(~0u, value, (lane & ~12) + 8);
    units.w = __shfl_sync(~0u, value, (lane & ~12) + 12);
    __syncwarp();  // what the four lanes have read for this, before one of them sends it to a block of which
                   // another warp may then write there
    unsigned char* const place = y_tiles + (t % 2 * kSequences + sequence()) * Memory::kPitchY +
                                 (rank * kUnits + group * 16 + lane / 16 * 8) * 2;
#pragma unroll
    for (int i = 0; i < kBlocks; i += 4)
      exchange.Send(static_cast<unsigned>(t), place, units, (rank + 1 + i + lane / 4 % 4) % kBlocks);
  }

  // at: of the thread's units of its first sequence in y; gates_at: in gates.
  __device__ void Store(int64_t at, int64_t gates_at, const Kept& kept, const float (&c)[2 * kOwned],
                        const float (&n)[2 * kOwned], const float (&m)[2 * kOwned]) const {
#pragma unroll
    for (int s = 0; s < kOwned; ++s) {
      if (!Exists(s)) continue;
      const int64_t from_first = s * (p.shape.T * width);
      float* const gates = p.gates + gates_at + kSlstmGates * from_first;
#pragma unroll
      for (int g = 0; g < kSlstmGates; ++g)
        StorePair(gates + g * width, kept.gates[g][s], kept.gates[g][kOwned + s]);
      StorePair(p.c + at + from_first, c[s], c[kOwned + s]);
      StorePair(p.n + at + from_first, n[s], n[kOwned + s]);
      StorePair(p.m + at + from_first, m[s], m[kOwned + s]);
      *reinterpret_cast<uint32_t*>(p.y + at + from_first) = kept.y[s];
    }
  }
  __device__ void StoreLast(const Kept& kept, const float (&c)[2 * kOwned], const float (&n)[2 * kOwned],
                            const float (&m)[2 * kOwned]) const {
#pragma unroll
    for (int s = 0; s < kOwned; ++s) {
      if (!Exists(s)) continue;
      const int64_t at = (first_sequence + sequence() + s) * width + block_column + unit();
      *reinterpret_cast<float2*>(p.last.y + at) = gpu::unpack_bf16(kept.y[s]);
      *reinterpret_cast<float2*>(p.last.c + at) = make_float2(c[s], c[kOwned + s]);
      *reinterpret_cast<float2*>(p.last.n + at) = make_float2(n[s], n[kOwned + s]);
      *reinterpret_cast<float2*>(p.last.m + at) = make_float2(m[s], m[kOwned + s]);
    }
  }

  // sums += R y of token t - 1, the warp's part of the head. meanwhile() is called once products are under
  // way.
  template <class Meanwhile>
  __device__ void Multiply(int64_t t, const R& r, float (&sums)[kSlstmGates][4],
                           const Meanwhile& meanwhile) const {
    const unsigned char* const rows = y_tiles + ((t + 1) % 2 * kSequences + lane % 8) * Memory::kPitchY +
                                      split * kWarpSteps * 32 + lane / 8 * 16;
#pragma unroll
    for (int k = 0; k < kWarpSteps; k += 2) {
      uint32_t b[4];
      gpu::ldmatrix_x4(b, rows + k * 32);
#pragma unroll
      for (int next = 0; next < 2 && k + next < kWarpSteps; ++next) {
#pragma unroll
        for (int g = 0; g < kSlstmGates; ++g) {
          const int i = (k + next) * kSlstmGates + g;
          if (Fragments::IsShared(i)) {
            const uint4 v = SharedR(i);
            const uint32_t a[4] = {v.x, v.y, v.z, v.w};
            gpu::mma_bf16_m16n8k16(sums[g], a, b[2 * next], b[2 * next + 1]);
          } else {
            gpu::mma_bf16_m16n8k16(sums[g], r[Fragments::Register(i)], b[2 * next], b[2 * next + 1]);
          }
        }
      }
      if (k == 0) meanwhile();
    }
  }
  // Adds up what the two warps of a group have of the sequences that the caller owns.
  __device__ void AddSplits(const float (&sums)[kSlstmGates][4], float (&own)[kSlstmGates][2]) const {
    const bool second = split > 0;
    float4* const mine = partial + warp * 64 + lane;
#pragma unroll
    for (int g = 0; g < kSlstmGates; g += 2)
      mine[g * 16] =
          make_float4(second ? sums[g][0] : sums[g][1], second ? sums[g][2] : sums[g][3],
                      second ? sums[g + 1][0] : sums[g + 1][1], second ? sums[g + 1][2] : sums[g + 1][3]);
    __syncthreads();  // the sums, before the other warp of the group reads them; wx of this token. The next
                      // sums are written after the wait for y, to which every reader contributes
    const float4* const theirs = partial + ((1 - split) * Tile::kGroups + group) * 64 + lane;
#pragma unroll
    for (int g = 0; g < kSlstmGates; g += 2) {
      const float4 v = theirs[g * 16];
      own[g][0] = (second ? sums[g][1] : sums[g][0]) + v.x;
      own[g][1] = (second ? sums[g][3] : sums[g][2]) + v.y;
      own[g + 1][0] = (second ? sums[g + 1][1] : sums[g + 1][0]) + v.z;
      own[g + 1][1] = (second ? sums[g + 1][3] : sums[g + 1][2]) + v.w;
    }
  }

  // The elementwise part of token t. sums: of the pre-activations, without wx.
  __device__ void Cells(int64_t t, const float (&sums)[kSlstmGates][2 * kOwned], const bool (&starts)[kOwned],
                        float (&c)[2 * kOwned], float (&n)[2 * kOwned], float (&m)[2 * kOwned],
                        Kept& kept) const {
#pragma unroll
    for (int s = 0; s < kOwned; ++s) {
      float2 wx[kSlstmGates];
#pragma unroll
      for (int g = 0; g < kSlstmGates; ++g) wx[g] = Wx(t, g, s);
      float y[2];
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        const int i = u * kOwned + s;
        if (starts[s]) c[i] = n[i] = m[i] = 0.0f;
        float raw[kSlstmGates], own[kSlstmGates];
#pragma unroll
        for (int g = 0; g < kSlstmGates; ++g) raw[g] = sums[g][i] + (u == 0 ? wx[g].x : wx[g].y);
        y[u] = SlstmCellForward<float, SlstmFastMath>(raw, c[i], n[i], m[i], own);
#pragma unroll
        for (int g = 0; g < kSlstmGates; ++g) kept.gates[g][i] = own[g];
      }
      kept.y[s] = gpu::pack_bf16(y[0], y[1]);
    }
  }

  __device__ void Run() const {
    R r;
    LoadAllR(r);
    const int64_t gates_step = kSlstmGates * width;  // from token to token
    const float* wx_source = FirstWx();
    for (int64_t t = 0; t < kStages - 1; ++t, wx_source += gates_step) FetchWx(t, wx_source);
    for (int at = static_cast<int>(threadIdx.x); at < kSlstmGates * kUnits; at += kThreads)
      bias[at] = p.bias[at / kUnits * width + block_column + at % kUnits];
    StartY();
    float c[2 * kOwned] = {}, n[2 * kOwned] = {}, m[2 * kOwned] = {};
    bool starts[kOwned], next_starts[kOwned];
#pragma unroll
    for (int s = 0; s < kOwned; ++s) {
      starts[s] = Starts(s, 0);
      next_starts[s] = Starts(s, 1);
      if (p.initial.y == nullptr || !Exists(s)) continue;
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        const int64_t at = (first_sequence + sequence() + s) * width + block_column + unit() + u;
        c[u * kOwned + s] = p.initial.c[at];
        n[u * kOwned + s] = p.initial.n[at];
        m[u * kOwned + s] = p.initial.m[at];
      }
    }
    if constexpr (kClustered) {
      exchange.Start();
      gpu::cluster_sync();  // tile 1 of y and bias, before token 0 reads them; the barriers and both tiles of
                            // every block, before others send y of token 0 there
    } else {
      gpu::cp_async_wait<kStages - 2>();
      __syncthreads();  // tile 1 of y, bias and wx of token 0, before token 0 reads them
    }
    Kept kept = {};
    int64_t at = Row(0, 0) * width + block_column + unit();
    int64_t gates_at = Row(0, 0) * gates_step + block_column + unit();
    int64_t reset_at = Row(0, 2);  // of the token after the next
    for (int64_t t = 0; t < p.shape.T; ++t) {
      bool after_starts[kOwned] = {};
      float sums[kSlstmGates][4] = {};
      if (split == 0) {
#pragma unroll
        for (int g = 0; g < kSlstmGates; ++g) {
          const float2 x = *reinterpret_cast<const float2*>(bias + g * kUnits + unit());
          sums[g][0] = sums[g][1] = x.x;
          sums[g][2] = sums[g][3] = x.y;
        }
      }
      if constexpr (kClustered) {
        if (t > 0) exchange.Receive(static_cast<unsigned>(t - 1));
      }
      Multiply(t, r, sums, [&] {
        if constexpr (kClustered) {
          if (t > 0) exchange.Expect(static_cast<unsigned>(t - 1));
        }
        FetchWx(t + kStages - 1, wx_source);  // over token t - 1, which every warp has left
        wx_source += gates_step;
#pragma unroll
        for (int s = 0; s < kOwned; ++s)
          after_starts[s] =
              p.reset != nullptr && t + 2 < p.shape.T && Exists(s) && p.reset[reset_at + s * p.shape.T] != 0;
        ++reset_at;
      });
      if constexpr (kClustered) {
        float own[kSlstmGates][2];
        gpu::cp_async_wait<kStages - 1>();
        AddSplits(sums, own);
        Cells(t, own, starts, c, n, m, kept);
        if (t + 1 < p.shape.T) SendY(t, next_starts[0] ? 0 : kept.y[0]);
        Store(at, gates_at, kept, c, n, m);
      } else {
        if (t > 0) Store(at - width, gates_at - gates_step, kept, c, n, m);  // of the token before
        Cells(t, sums, starts, c, n, m, kept);
#pragma unroll
        for (int s = 0; s < kOwned; ++s) PassY(t, s, next_starts[s] ? 0 : kept.y[s]);
        gpu::cp_async_wait<kStages - 2>();
        __syncthreads();  // y and wx of the next token, before it reads them; the tiles that this token read,
                          // before they are written again
      }
      at += width;
      gates_at += gates_step;
#pragma unroll
      for (int s = 0; s < kOwned; ++s) {
        starts[s] = next_starts[s];
        next_starts[s] = after_starts[s];
      }
    }
    gpu::cp_async_wait<0>();  // no copy outlives the block
    if constexpr (!kClustered) Store(at - width, gates_at - gates_step, kept, c, n, m);
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
