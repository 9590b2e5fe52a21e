// slstm_backward.cu - the gradient of the sLSTM cell on tensor cores, bf16: dwx, dinitial and dbias.
// Formulas: slstm_cell.h (xLSTM, arXiv:2405.04517, section 2.2); draw and, after it, dr = R^T draw.
//
// Grid: (blocks of a head's cluster, heads, tiles of 8 sequences). Block: 16 units per warp; in a cluster two
// warps share the sum over the 4 gates of the head, and then each does one sequence of every two. One launch
// for all tokens from the last to the first, one barrier per token. The blocks of a cluster besides wait for
// each other's draw.
//
// R^T stays in registers (at widths 384 and 512 the rest of it in shared memory), draw as bf16 in two
// alternating shared tiles, which the blocks of a cluster write into one another's memory (slstm_exchange.h):
// it is what dwx holds. gates, dy and the states before the token come by cp.async, two tokens ahead (one at
// width 512), asked for while products run; c and n after a token are those before the next one and stay in
// registers, as dc, dn, dr and the sums of draw do. Nothing is read twice. Per token, unit and sequence 26
// bytes are read and 8 written. Sums in f32: of R^T draw four in turn over the steps of a warp, then these
// four, then two warps; of dbias from the last token to the first.
#include "kernels/cuda/slstm_cell.h"
#include "kernels/cuda/slstm_exchange.h"
#include "kernels/cuda/slstm_internal.h"
#include "kernels/cuda/slstm_tile.h"

namespace carousel::CAROUSEL_DEVICE_NS {
namespace {

constexpr int kSequences = kSlstmTileSequences;
constexpr int kChains = 4;  // sums that a warp adds to in turn: products of one sum wait for one another

template <class Tile, int kWidth>
struct BackwardMemory {
  // Bytes of one sequence's row. 16 bytes beyond a multiple of 64: no two lanes meet in a bank.
  static constexpr int kPitchDraw = kSlstmGates * kWidth * 2 + 16;
  // the gates, c and n before the token, dy
  static constexpr int kPitchInput = (26 * Tile::kUnits + 63) / 64 * 64 + 16;
  // Tokens of inputs: three, unless so much of R is here.
  static constexpr int kStages = Tile::kFragments < 64 ? 3 : 2;
  using Fragments = SlstmFragments<Tile::kFragments, kStages == 3 ? 34 : 32>;
  // Bytes.
  static constexpr int kDraw = 2 * kSequences * kPitchDraw;
  static constexpr int kInput = kStages * kSequences * kPitchInput;
  static constexpr int kPartial = Tile::kClustered ? Tile::kWarps * 32 * 8 : 0;
  static constexpr int kR = Tile::kWarps * Fragments::kShared * 32 * 16;
  static constexpr int kExchange = Tile::kClustered ? kSlstmExchangeBytes : 0;
  static constexpr int kTotal = kDraw + kInput + kPartial + kR + kExchange;
  static_assert(kTotal <= 227 << 10);
};

template <class Tile, int kWidth, int kBlocks, int kSplits>
struct BackwardBlock {
  using Memory = BackwardMemory<Tile, kWidth>;
  static constexpr int kUnits = Tile::kUnits, kThreads = Tile::kThreads, kOwned = Tile::kOwned;
  static constexpr bool kClustered = Tile::kClustered;
  static constexpr int kStages = Memory::kStages;
  static constexpr int kWarpSteps = kSlstmGates * kWidth / 16 / kSplits;  // of the product
  using Fragments = typename Memory::Fragments;                           // one in each step
  using R = uint32_t[Fragments::kRegisters][4];

  const SlstmBackwardPointers<bfloat16>& p;
  unsigned char *const draw_tiles, *const input_tiles;
  float2* const partial;
  uint4* const shared_r;
  const SlstmExchange<kBlocks, kSequences * kSlstmGates * kWidth * 2> exchange;
  const int lane, warp, group, split, rank;
  const int num_sequences;  // of the tile, that exist
  const int64_t width, first_sequence;
  const int64_t head_column;   // of the head in a row of y
  const int64_t block_column;  // of the block's units

  __device__ BackwardBlock(const SlstmBackwardPointers<bfloat16>& pointers, unsigned char* memory)
      : p(pointers),
        draw_tiles(memory),
        input_tiles(draw_tiles + Memory::kDraw),
        partial(reinterpret_cast<float2*>(input_tiles + Memory::kInput)),
        shared_r(reinterpret_cast<uint4*>(input_tiles + Memory::kInput + Memory::kPartial)),
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

  // The thread's units are unit() and unit() + 1 of the block, its sequences the kOwned from sequence() on of
  // the tile.
  __device__ int unit() const { return group * 16 + lane / 4 * 2; }
  __device__ int sequence() const { return lane % 4 * 2 + split; }
  __device__ bool Exists(int s) const { return sequence() + s < num_sequences; }
  __device__ int64_t Row(int s, int64_t t) const { return (first_sequence + sequence() + s) * p.shape.T + t; }
  __device__ bool Starts(int s, int64_t t) const {
    return p.reset != nullptr && t >= 0 && Exists(s) && p.reset[Row(s, t)] != 0;
  }
  // Of the thread's units of sequence s in a row of states.
  __device__ int64_t StateAt(int s) const {
    return (first_sequence + sequence() + s) * width + block_column + unit();
  }

  // The A fragment of the warp's step k of R^T: rows are columns of R, columns are [gate][unit].
  __device__ void LoadR(int k, uint32_t (&a)[4]) const {
    const int from = (split * kWarpSteps + k) * 16, gate = from / kWidth,
              column = from % kWidth + lane % 4 * 2;
    const bfloat16* const place =
        p.recurrent + (gate * width + head_column + column) * kWidth + rank * kUnits + unit();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t first = *reinterpret_cast<const uint32_t*>(place + half * 8 * kWidth);
      const uint32_t second = *reinterpret_cast<const uint32_t*>(place + (half * 8 + 1) * kWidth);
      a[2 * half] = (first & 0xffffu) | second << 16;
      a[2 * half + 1] = first >> 16 | (second & 0xffff0000u);
    }
  }
  __device__ uint4& SharedR(int k) const {
    return shared_r[(warp * Fragments::kShared + Fragments::SharedBefore(k)) * 32 + lane];
  }
  __device__ void LoadAllR(R& r) const {
#pragma unroll
    for (int k = 0; k < kWarpSteps; ++k) {
      if (Fragments::IsShared(k)) {
        uint32_t a[4];
        LoadR(k, a);
        SharedR(k) = make_uint4(a[0], a[1], a[2], a[3]);
      } else {
        LoadR(k, r[Fragments::Register(k)]);
      }
    }
  }

  // The thread's share of a token's inputs, of the sequences fetch_sequence(), + kFetchStride, ..: 16 bytes
  // of one gate; and 16 bytes of c (threads of gate 0), of n (gate 1), of dy (the first of the others).
  static constexpr int kFetchStride = kThreads / kUnits;
  static_assert(kSequences % kFetchStride == 0);
  __device__ int fetch_sequence() const { return static_cast<int>(threadIdx.x) / kUnits; }
  __device__ int fetch_thread() const { return static_cast<int>(threadIdx.x) % kUnits; }  // of a sequence
  __device__ int fetch_gate() const { return fetch_thread() / (kUnits / 4); }
  __device__ int fetch_unit() const { return fetch_thread() % (kUnits / 4) * 4; }
  __device__ int fetch_dy_unit() const { return (fetch_thread() - kUnits / 2) * 8; }
  // Where the share is of the token that is fetched next, in the first of these sequences.
  struct Sources {
    const float* gates;
    const float* state;  // c or n of the token before
    const bfloat16* dy;
  };
  __device__ Sources LastSources() const {
    const int64_t row = (first_sequence + fetch_sequence()) * p.shape.T + p.shape.T - 1;
    return {p.gates + (row * kSlstmGates + fetch_gate()) * width + block_column + fetch_unit(),
            (fetch_gate() == 0 ? p.c : p.n) + (row - 1) * width + block_column + fetch_unit(),
            p.dy + row * width + block_column + fetch_dy_unit()};
  }
  // Begins to copy the inputs of token t into a stage; zeros where there are none. Takes the sources to the
  // token before.
  __device__ void FetchInputs(int64_t t, int stage, Sources& from) const {
    unsigned char* const rows = input_tiles + (stage * kSequences + fetch_sequence()) * Memory::kPitchInput;
    unsigned char* const gates_place = rows + (fetch_gate() * kUnits + fetch_unit()) * 4;
#pragma unroll
    for (int s = 0; s < kSequences; s += kFetchStride) {
      const bool valid = fetch_sequence() + s < num_sequences && t >= 0;
      gpu::cp_async16(gates_place + s * Memory::kPitchInput,
                      valid ? from.gates + s * (p.shape.T * kSlstmGates * width) : p.gates, valid);
    }
    if (fetch_gate() < 2) {
      const float* source = from.state;
      int64_t step = p.shape.T * width;  // from sequence to sequence
      bool given = t >= 0;
      if (t == 0) {
        given = p.initial.y != nullptr;
        step = width;
        if (given)
          source = (fetch_gate() == 0 ? p.initial.c : p.initial.n) +
                   (first_sequence + fetch_sequence()) * width + block_column + fetch_unit();
      }
#pragma unroll
      for (int s = 0; s < kSequences; s += kFetchStride) {
        const bool valid = given && fetch_sequence() + s < num_sequences;
        gpu::cp_async16(gates_place + kSlstmGates * kUnits * 4 + s * Memory::kPitchInput,
                        valid ? source + s * step : p.c, valid);
      }
    } else if (fetch_dy_unit() < kUnits) {
      unsigned char* const dy_place = rows + 6 * kUnits * 4 + fetch_dy_unit() * 2;
#pragma unroll
      for (int s = 0; s < kSequences; s += kFetchStride) {
        const bool valid = t >= 0 && fetch_sequence() + s < num_sequences;
        gpu::cp_async16(dy_place + s * Memory::kPitchInput, valid ? from.dy + s * (p.shape.T * width) : p.dy,
                        valid);
      }
    }
    gpu::cp_async_commit();
    from.gates -= kSlstmGates * width;
    from.state -= width;
    from.dy -= width;
  }
  __device__ const unsigned char* Input(int stage, int s) const {
    return input_tiles + (stage * kSequences + sequence() + s) * Memory::kPitchInput;
  }

  // draw of the thread's units and sequences, for the product.
  __device__ void PassDraw(int item, const uint32_t (&draw)[kOwned][kSlstmGates]) const {
    unsigned char* const place =
        draw_tiles + (item % 2 * kSequences + sequence()) * Memory::kPitchDraw + unit() * 2;
#pragma unroll
    for (int s = 0; s < kOwned; ++s) {
#pragma unroll
      for (int g = 0; g < kSlstmGates; ++g)
        *reinterpret_cast<uint32_t*>(place + s * Memory::kPitchDraw + g * kWidth * 2) = draw[s][g];
    }
  }
  // at: of the thread's units of its first sequence in dwx.
  __device__ void Store(int64_t at, const uint32_t (&draw)[kOwned][kSlstmGates]) const {
#pragma unroll
    for (int s = 0; s < kOwned; ++s) {
      if (!Exists(s)) continue;
      bfloat16* const place = p.dwx + at + s * (p.shape.T * kSlstmGates * width);
#pragma unroll
      for (int g = 0; g < kSlstmGates; ++g) *reinterpret_cast<uint32_t*>(place + g * width) = draw[s][g];
    }
  }

  // In a cluster the four lanes that differ in bits 2 and 3 exchange their words, each then has one gate of
  // eight adjacent units.
  __device__ int octet_gate() const { return lane / 4 % 4; }
  __device__ int octet() const { return group * 16 + lane / 16 * 8; }  // its first unit
  __device__ uint4 OctetOf(const uint32_t (&draw)[kSlstmGates]) const {
    const bool odd = lane & 4, upper = lane & 8;
    uint32_t pair[2][2];  // gates 2 g + odd of two lanes
#pragma unroll
    for (int g = 0; g < 2; ++g) {
      const uint32_t kept = odd ? draw[2 * g + 1] : draw[2 * g];
      const uint32_t got = __shfl_xor_sync(~0u, odd ? draw[2 * g] : draw[2 * g + 1], 4);
      pair[g][0] = odd ? got : kept;
      pair[g][1] = odd ? kept : got;
    }
    uint32_t kept[2], got[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      kept[i] = upper ? pair[1][i] : pair[0][i];
      got[i] = __shfl_xor_sync(~0u, upper ? pair[0][i] : pair[1][i], 8);
    }
    return upper ? make_uint4(got[0], got[1], kept[0], kept[1])
                 : make_uint4(kept[0], kept[1], got[0], got[1]);
  }
  // The octet to every block, beginning with the next one.
  __device__ void SendDraw(int item, uint4 draw) const {
    unsigned char* const place = draw_tiles + (item % 2 * kSequences + sequence()) * Memory::kPitchDraw +
                                 (octet_gate() * kWidth + rank * kUnits + octet()) * 2;
#pragma unroll 2
    for (int i = 1; i <= kBlocks; ++i)
      exchange.Send(static_cast<unsigned>(item), place, draw, (rank + i) % kBlocks);
  }
  // at: of the octet in dwx.
  __device__ void StoreOctet(int64_t at, uint4 draw) const {
    if (Exists(0)) *reinterpret_cast<uint4*>(p.dwx + at) = draw;
  }

  // dr = R^T draw, of the warp's part of the gates. meanwhile() is called once products are under way.
  template <class Meanwhile>
  __device__ void Multiply(int item, const R& r, float (&sums)[kChains][4],
                           const Meanwhile& meanwhile) const {
    const unsigned char* const rows = draw_tiles + (item % 2 * kSequences + lane % 8) * Memory::kPitchDraw +
                                      split * kWarpSteps * 32 + lane / 8 * 16;
#pragma unroll
    for (int k = 0; k < kWarpSteps; k += 2) {
      uint32_t b[4];
      gpu::ldmatrix_x4(b, rows + k * 32);
#pragma unroll
      for (int next = 0; next < 2; ++next) {
        float(&sum)[4] = sums[(k + next) % kChains];
        if (Fragments::IsShared(k + next)) {
          const uint4 v = SharedR(k + next);
          const uint32_t a[4] = {v.x, v.y, v.z, v.w};
          gpu::mma_bf16_m16n8k16(sum, a, b[2 * next], b[2 * next + 1]);
        } else {
          gpu::mma_bf16_m16n8k16(sum, r[Fragments::Register(k + next)], b[2 * next], b[2 * next + 1]);
        }
      }
      if (k == 2) meanwhile();
    }
  }
  // Adds up what the two warps of a group have of the sequence that the caller owns.
  __device__ void AddSplits(const float (&sums)[4], float (&own)[2]) const {
    const bool second = split > 0;
    partial[warp * 32 + lane] = make_float2(second ? sums[0] : sums[1], second ? sums[2] : sums[3]);
    __syncthreads();  // the sums, before the other warp of the group reads them; the inputs of the next
                      // token. The next sums are written after the wait for draw, to which every reader
                      // contributes
    const float2 v = partial[((1 - split) * Tile::kGroups + group) * 32 + lane];
    own[0] = (second ? sums[1] : sums[0]) + v.x;
    own[1] = (second ? sums[3] : sums[2]) + v.y;
  }

  // Of the thread's elements u * kOwned + s.
  struct Running {
    float dc[2 * kOwned] = {}, dn[2 * kOwned] = {}, dr[2 * kOwned] = {};
    float c[2 * kOwned], n[2 * kOwned];         // after the token
    float dbias[kSlstmGates][2 * kOwned] = {};  // sums of draw
  };

  // Takes the running gradients over a token. starts: of the thread's sequences. packed: draw.
  __device__ void Cells(int stage, const bool (&starts)[kOwned], Running& running,
                        uint32_t (&packed)[kOwned][kSlstmGates]) const {
#pragma unroll
    for (int s = 0; s < kOwned; ++s) {
      const unsigned char* const input = Input(stage, s);
      const auto pair = [&](int part) {
        return *reinterpret_cast<const float2*>(input + (part * kUnits + unit()) * 4);
      };
      const float2 gates[kSlstmGates] = {pair(0), pair(1), pair(2), pair(3)};
      const float2 before_c = pair(4), before_n = pair(5);
      const float2 dy =
          gpu::unpack_bf16(*reinterpret_cast<const uint32_t*>(input + 6 * kUnits * 4 + unit() * 2));
      float draw[2][kSlstmGates];
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        const int at = u * kOwned + s;
        float kept[kSlstmGates];
#pragma unroll
        for (int g = 0; g < kSlstmGates; ++g) kept[g] = u == 0 ? gates[g].x : gates[g].y;
        const float c0 = u == 0 ? before_c.x : before_c.y, n0 = u == 0 ? before_n.x : before_n.y;
        const float recurrent = p.cut ? 0.0f : SlstmClip(running.dr[at], p.limit);
        SlstmCellBackward<float, SlstmFastMath>(
            kept, starts[s] ? 0.0f : c0, starts[s] ? 0.0f : n0, running.c[at], running.n[at],
            (u == 0 ? dy.x : dy.y) + recurrent, running.dc[at], running.dn[at], draw[u]);
        running.c[at] = c0;
        running.n[at] = n0;
        if (starts[s]) running.dc[at] = running.dn[at] = 0.0f;
#pragma unroll
        for (int g = 0; g < kSlstmGates; ++g) running.dbias[g][at] += draw[u][g];
      }
#pragma unroll
      for (int g = 0; g < kSlstmGates; ++g) packed[s][g] = gpu::pack_bf16(draw[0][g], draw[1][g]);
    }
  }

  __device__ void StartGradients(Running& running) const {
#pragma unroll
    for (int s = 0; s < kOwned; ++s) {
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        const int at = u * kOwned + s;
        const int64_t after = Row(s, p.shape.T - 1) * width + block_column + unit() + u;
        running.c[at] = Exists(s) ? p.c[after] : 0.0f;
        running.n[at] = Exists(s) ? p.n[after] : 1.0f;
        if (p.dlast.y == nullptr || !Exists(s)) continue;
        running.dr[at] = p.dlast.y[StateAt(s) + u];
        running.dc[at] = p.dlast.c[StateAt(s) + u];
        running.dn[at] = p.dlast.n[StateAt(s) + u];
      }
    }
  }
  __device__ void StoreGradients(const Running& running) const {
#pragma unroll
    for (int s = 0; s < kOwned; ++s) {
      if (!Exists(s)) continue;
      const int64_t b = first_sequence + sequence() + s;
#pragma unroll
      for (int g = 0; g < kSlstmGates; ++g)
        *reinterpret_cast<float2*>(p.dbias + (b * kSlstmGates + g) * width + block_column + unit()) =
            make_float2(running.dbias[g][s], running.dbias[g][kOwned + s]);
      if (p.dinitial.y == nullptr) continue;
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        const int at = u * kOwned + s;
        const int64_t state_at = StateAt(s) + u;
        const float c0 = p.initial.y == nullptr ? 0.0f : p.initial.c[state_at];
        const float n0 = p.initial.y == nullptr ? 0.0f : p.initial.n[state_at];
        p.dinitial.y[state_at] = p.cut ? 0.0f : running.dr[at];
        p.dinitial.c[state_at] = running.dc[at];
        p.dinitial.n[state_at] = running.dn[at];
        p.dinitial.m[state_at] = n0 == 0.0f ? 0.0f : c0 * running.dc[at] + n0 * running.dn[at];
      }
    }
  }

  __device__ void Run() const {
    R r;
    LoadAllR(r);
    const int64_t last = p.shape.T - 1;
    Sources sources = LastSources();
    for (int i = 0; i < kStages; ++i) FetchInputs(last - i, i, sources);
    Running running;
    StartGradients(running);
    bool starts[kOwned], next_starts[kOwned];
#pragma unroll
    for (int s = 0; s < kOwned; ++s) {
      starts[s] = Starts(s, last);
      next_starts[s] = Starts(s, last - 1);
    }
    gpu::cp_async_wait<kStages - 1>();
    if constexpr (kClustered) {
      exchange.Start();
      gpu::cluster_sync();  // the inputs of the last token, before it reads them; the barriers of every
                            // block, before others send draw there
    } else {
      __syncthreads();  // the inputs of the last token, before it reads them
    }
    int64_t at = Row(0, last) * kSlstmGates * width + block_column +
                 (kClustered ? octet_gate() * width + octet() : unit());
    int64_t reset_at = Row(0, last) - 2;  // of the token after the next
    int stage = 0;
    for (int64_t t = last; t >= 0; --t) {
      const int item = static_cast<int>(last - t);
      uint32_t packed[kOwned][kSlstmGates];
      Cells(stage, starts, running, packed);
      bool after_starts[kOwned];
#pragma unroll
      for (int s = 0; s < kOwned; ++s)
        after_starts[s] = p.reset != nullptr && t >= 2 && Exists(s) && p.reset[reset_at + s * p.shape.T] != 0;
      --reset_at;
      if constexpr (kClustered) {
        const uint4 octet = OctetOf(packed[0]);
        SendDraw(item, octet);
        StoreOctet(at, octet);
        exchange.Receive(static_cast<unsigned>(item));
      } else {
        PassDraw(item, packed);
        gpu::cp_async_wait<kStages - 2>();
        __syncthreads();  // draw and the inputs of the next token, before they are read; what this token
                          // read, before it is written again
      }
      float sums[kChains][4] = {};
      Multiply(item, r, sums, [&] {
        if constexpr (kClustered) exchange.Expect(static_cast<unsigned>(item));
        FetchInputs(t - kStages, stage, sources);  // over this token's, which every warp has read
        stage = stage + 1 < kStages ? stage + 1 : 0;
      });
      if constexpr (!kClustered) Store(at, packed);
      at -= kSlstmGates * width;
      float dr[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) dr[i] = (sums[0][i] + sums[1][i]) + (sums[2][i] + sums[3][i]);
      if constexpr (kClustered) {
        gpu::cp_async_wait<kStages - 1>();
        AddSplits(dr, running.dr);
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) running.dr[i] = dr[i];
      }
#pragma unroll
      for (int s = 0; s < kOwned; ++s) {
#pragma unroll
        for (int u = 0; u < 2; ++u) {
          if (starts[s]) running.dr[u * kOwned + s] = 0.0f;
        }
        starts[s] = next_starts[s];
        next_starts[s] = after_starts[s];
      }
    }
    gpu::cp_async_wait<0>();  // no copy outlives the block
    StoreGradients(running);
  }
};

template <int kWidth, int kBlocks, int kSplits>
__global__ void __launch_bounds__(SlstmTile<kWidth, kBlocks, kSplits>::kThreads, 1)
    SlstmBackwardKernel(SlstmBackwardPointers<bfloat16> p) {
  if constexpr (kBlocks == 1 || CAROUSEL_DEVICE_HAS_HOPPER) {
    using Tile = SlstmTile<kWidth, kBlocks, kSplits>;
    const BackwardBlock<Tile, kWidth, kBlocks, kSplits> block(p, gpu::dyn_shared<unsigned char>());
    block.Run();
  } else {
    __trap();  // compiled for a GPU without clusters
  }
}

template <int kWidth, int kBlocks, int kSplits>
void Enqueue(SlstmTile<kWidth, kBlocks, kSplits>, Context& context,
             const SlstmBackwardPointers<bfloat16>& p) {
  using Tile = SlstmTile<kWidth, kBlocks, kSplits>;
  const auto tiles = static_cast<unsigned>(CeilDiv(p.shape.B, kSequences));
  context.Launch(SlstmBackwardKernel<kWidth, kBlocks, kSplits>,
                 {.grid = dim3(kBlocks, static_cast<unsigned>(p.shape.NH), tiles),
                  .block = dim3(Tile::kThreads),
                  .smem = BackwardMemory<Tile, kWidth>::kTotal,
                  .cluster = dim3(kBlocks),
                  .name = "SlstmBackwardKernel"},
                 p);
}
}  // namespace

int64_t SlstmTensorCoreBackwardSharedBytes(int64_t D, int compute_capability) {
  int64_t bytes = 0;
  WithSlstmTile(D, compute_capability,
                [&]<int kWidth, int kBlocks, int kSplits>(SlstmTile<kWidth, kBlocks, kSplits>) {
                  bytes = BackwardMemory<SlstmTile<kWidth, kBlocks, kSplits>, kWidth>::kTotal;
                });
  return bytes;
}

void SlstmTensorCoreBackward(Context& context, const SlstmBackwardPointers<bfloat16>& p) {
  CAROUSEL_CHECK(WithSlstmTile(p.shape.D, context.info().compute_capability,
                               [&](auto tile) { Enqueue(tile, context, p); }));
}
}  // namespace carousel::CAROUSEL_DEVICE_NS
