// What a state group of the sm_90a scan (mlstm_scan_sm90_kernel.h) begins with and leaves: the state, its
// column of the normaliser, anchors, dot products and out.
#pragma once
#include "kernels/cuda/mlstm_row_sums.h"
#include "kernels/cuda/mlstm_scan_sm90_scores.h"

namespace carousel::CAROUSEL_DEVICE_NS::mlstm_sm90 {

#if CAROUSEL_DEVICE_HAS_WGMMA
template <class C>
class Sm90State : protected Sm90Scores<C> {
 public:
  __device__ __forceinline__ Sm90State(const Sm90Maps& the_maps, const MlstmFastScanArgs& a)
      : Sm90Scores<C>(the_maps, a) {}

 protected:
  using Block = Sm90Block<C>;
  static constexpr int L = C::L;
  using Block::args, Block::entry, Block::head, Block::lane, Block::maps, Block::pair, Block::slice,
      Block::smem, Block::Thread, Block::warp;
  using Block::ChunkOf, Block::DotRowsReady, Block::HasSecond, Block::InverseOf, Block::Swizzled;
  // Registers of the group's 64 rows: of its columns of the state and of its tokens of out^T. Element 4 t + j
  // is row lane / 4 + j / 2 * 8 of the warp's 16, column or token 8 t + lane % 4 * 2 + j % 2.
  static constexpr int kStateElems = C::kGroupColumns / 2, kMyElems = C::kMyTokens / 2;

  // Of all state groups' 64-row parts and of their column parts.
  __device__ __forceinline__ int RowGroup(int group) const { return C::kColumnGroups > 1 ? 0 : group; }
  __device__ __forceinline__ int ColumnGroup(int group) const { return C::kColumnGroups > 1 ? group : 0; }
  __device__ __forceinline__ int FirstRow(int group) const { return slice * C::kRows + RowGroup(group) * 64; }
  // Of the step's tokens, the first that the group finishes.
  __device__ __forceinline__ int FirstToken(int group) const { return ColumnGroup(group) * C::kMyTokens; }
  __device__ __forceinline__ static void GroupBarrier(int group) { gpu::bar_sync(2 + group, 128); }
  __device__ __forceinline__ int RowOfWarp() const { return warp % 4 * 16 + lane / 4; }

  // ---- the state
  // Offset in C (DHQK, DHV) of the thread's first element, and from row to row and column to column.
  __device__ __forceinline__ int64_t StateAt(int group) const {
    const int row = FirstRow(group) + RowOfWarp(),
              column = this->FirstColumn() + ColumnGroup(group) * C::kGroupColumns + lane % 4 * 2;
    return C::kDots ? row * args.DHV + column : column * args.DHV + row;
  }
  __device__ __forceinline__ int64_t RowStep() const { return C::kDots ? args.DHV : 1; }
  __device__ __forceinline__ int64_t ColumnStep() const { return C::kDots ? 1 : args.DHV; }

  // n: kDots, the thread's part of n or dn of its two rows; the sum over the four lanes of a row is the
  // whole.
  __device__ __forceinline__ void LoadState(float (&state)[kStateElems], float (&n)[2], int group) const {
    const bool given = args.initial.C != nullptr;
    const int64_t at = blockIdx.y * args.B * args.NH + pair;
    const float* const from = given ? args.initial.C + at * args.DHQK * args.DHV + StateAt(group) : nullptr;
    const int64_t row_step = RowStep(), column_step = ColumnStep();
#pragma unroll
    for (int i = 0; i < kStateElems; ++i) {
      state[i] = given ? from[(i / 4 * 8 + i % 2) * column_step + i % 4 / 2 * 8 * row_step] : 0.0f;
    }
    if constexpr (C::kDots) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int row = FirstRow(group) + RowOfWarp() + 8 * i;
        n[i] = given && this->HasNormalizer() && lane % 4 == 0 ? args.initial.n[at * args.DHQK + row] : 0.0f;
      }
    }
  }
  __device__ __forceinline__ void StoreState(const float (&state)[kStateElems], const float (&n)[2],
                                             int group) const {
    const bool is_last = blockIdx.y == (C::kReverse ? 0 : gridDim.y - 1);
    if (C::kRole == MlstmRole::kDV || args.final.C == nullptr || !is_last) return;
    float* const to = args.final.C + pair * args.DHQK * args.DHV + StateAt(group);
    const int64_t row_step = RowStep(), column_step = ColumnStep();
#pragma unroll
    for (int i = 0; i < kStateElems; ++i) {
      to[(i / 4 * 8 + i % 2) * column_step + i % 4 / 2 * 8 * row_step] = state[i];
    }
    if constexpr (C::kDots) {
      if (ColumnGroup(group) == 0 && this->HasNormalizer())
        StoreN(args.final.n + pair * args.DHQK + FirstRow(group), n);
    }
  }
  __device__ __forceinline__ static float WholeN(float part) {
    part += __shfl_xor_sync(~0u, part, 1);
    return part + __shfl_xor_sync(~0u, part, 2);
  }
  // To the group's 64 rows at `to`.
  __device__ __forceinline__ void StoreN(float* to, const float (&n)[2]) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float x = WholeN(n[i]);
      if (lane % 4 == 0) to[RowOfWarp() + 8 * i] = x;
    }
  }

  // ---- anchors (mlstm_records.h): of C 16 bytes per thread at a time, whichever elements are its own
  // The chunk whose state there is after the step: the next step's, or in a reverse scan this one's.
  __device__ __forceinline__ int StateChunk(int step) const {
    return C::kReverse ? ChunkOf(step) : ChunkOf(step) + C::kRecords;
  }
  __device__ __forceinline__ bool IsAnchor(int step) const {
    const int chunk = StateChunk(step);
    return chunk % kMlstmAnchorChunks == 0 && (C::kReverse ? chunk > 0 : chunk < static_cast<int>(args.NC));
  }
  // This block among all anchors' blocks.
  __device__ __forceinline__ int64_t AnchorBlock(int step) const {
    const int64_t before = StateChunk(step) / kMlstmAnchorChunks - 1;
    if constexpr (C::kBlocked) {  // all slices and blocks of a pair side by side
      int of_slice = slice, block = this->ColumnBlock();
      gpu::opaque(of_slice);  // or what follows from them would take registers all the time
      gpu::opaque(block);
      const unsigned slices = static_cast<unsigned>(args.DHQK) / C::kRows, first = blockIdx.x - of_slice;
      return (before * gridDim.x + first) * gridDim.z + block * slices + of_slice;
    }
    return before * static_cast<int64_t>(gridDim.x) + blockIdx.x;
  }
  __device__ __forceinline__ uint4* AnchorState(int step) const {
    return reinterpret_cast<uint4*>(args.anchors.C) + AnchorBlock(step) * (C::kRows * C::kColumns / 8) +
           threadIdx.x;
  }
  __device__ __forceinline__ float* AnchorN(int step, int group) const {
    return args.anchors.n + AnchorBlock(step) * C::kRows + RowGroup(group) * 64;
  }
  // kDQ: leaves C and n.
  __device__ __forceinline__ void StoreAnchor(const float (&state)[kStateElems], const float (&n)[2],
                                              int step, int group) const {
    uint4* const to = AnchorState(step);
#pragma unroll
    for (int k = 0; k < kStateElems / 8; ++k) {
      const float* const x = state + 8 * k;
      to[k * C::kStateThreads] = make_uint4(gpu::pack_bf16(x[0], x[1]), gpu::pack_bf16(x[2], x[3]),
                                            gpu::pack_bf16(x[4], x[5]), gpu::pack_bf16(x[6], x[7]));
    }
    if (ColumnGroup(group) == 0) StoreN(AnchorN(step, group), n);
  }
  // kDK: the thread's part of <C, dC> + <n, dn>.
  __device__ __forceinline__ void DotAnchor(const float (&state)[kStateElems], const float (&n)[2], int step,
                                            int group) const {
    if constexpr (C::kGivesDQ) return DotSaved(state, n, step);
    const uint4* const from = AnchorState(step);
    float sum = 0;
    if (ColumnGroup(group) == 0) {
      const float* const from_n = AnchorN(step, group) + RowOfWarp();
      sum = n[0] * from_n[0] + n[1] * from_n[8];
    }
#pragma unroll
    for (int k = 0; k < kStateElems / 8; ++k) {
      const uint4 packed = from[k * C::kStateThreads];
      const uint32_t pairs[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 x = gpu::unpack_bf16(pairs[i]);
        sum += state[8 * k + 2 * i] * x.x + state[8 * k + 2 * i + 1] * x.y;
      }
    }
    args.anchors.dots[AnchorBlock(step) * C::kStateThreads + threadIdx.x] = sum;
  }

  // The same with a saved state.
  __device__ __forceinline__ void DotSaved(const float (&state)[kStateElems], const float (&n)[2],
                                           int step) const {
    const unsigned char* const from = Block::SavedAt(StateChunk(step));
    const int row = RowOfWarp();
    const float* const from_n = reinterpret_cast<const float*>(from + C::kBoxes * C::kRoundedBox) + row;
    float sum = n[0] * from_n[0] + n[1] * from_n[8];
#pragma unroll
    for (int i = 0; i < kStateElems; i += 2) {
      const int tile = i / 4;
      const float2 x = gpu::unpack_bf16(*reinterpret_cast<const uint32_t*>(
          from + tile / 8 * C::kRoundedBox + Swizzled(row + i % 4 / 2 * 8, tile % 8) + lane % 4 * 4));
      sum += state[i] * x.x + state[i + 1] * x.y;
    }
    args.anchors.dots[AnchorBlock(step) * C::kStateThreads + threadIdx.x] = sum;
  }

  // ---- column groups: each finishes its tokens with the other's part of the sum
  __device__ __forceinline__ float4* Given(int step, int to_group, int tile) const {
    return reinterpret_cast<float4*>(smem + C::kExchangeAt + step % 2 * C::kGiven +
                                     to_group * (C::kGiven / 2)) +
           tile * 128 + Thread();
  }
  __device__ __forceinline__ void Give(const float (&out)[L / 2], int step, int group) const {
#pragma unroll
    for (int tile = 0; tile < C::kMyTokens / 8; ++tile) {
      float x[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) x[j] = group == 0 ? out[kMyElems + 4 * tile + j] : out[4 * tile + j];
      *Given(step, 1 - group, tile) = make_float4(x[0], x[1], x[2], x[3]);
    }
  }
  // The parts of both groups, in order, for both the same.
  __device__ __forceinline__ void Take(float (&mine)[kMyElems], const float (&out)[L / 2], int step,
                                       int group) const {
    gpu::bar_sync(4, C::kStateThreads);  // what both gave; it is written over two steps later
#pragma unroll
    for (int tile = 0; tile < C::kMyTokens / 8; ++tile) {
      const float4 x = *Given(step, group, tile);
      const float other[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        mine[4 * tile + j] = (group == 0 ? out[4 * tile + j] : out[kMyElems + 4 * tile + j]) + other[j];
      }
    }
  }

  // ---- dot products
  __device__ __forceinline__ unsigned char* DotRows(int step, int group) const {
    if constexpr (C::kGivesDV) return Block::StageOf(step) + C::kKeyAt + group * C::kBox;
    return smem + C::kDotRowAt + group * C::kGroupTile;
  }
  // Of four warps, kMyTokens each.
  __device__ __forceinline__ float* DotSums(int group) const {
    return reinterpret_cast<float*>(smem + C::kDotsAt) + group * 4 * C::kMyTokens;
  }
  // Starts the copy of the rows that the step's dots multiply. One thread.
  __device__ __forceinline__ void LoadDotRows(int step, int group) const {
    uint64_t* const ready = DotRowsReady(group);
    gpu::mbar_arrive_expect_tx(ready, C::kGroupTile);
    gpu::tma_load_4d(DotRows(step, group), maps.dot_rows,
                     head * static_cast<int>(this->HeadRows()) + FirstRow(group),
                     ChunkOf(step) * kMlstmChunk + FirstToken(group), entry, 0, ready);
  }
  // The warp's 16 rows' part of the dot products, to shared memory.
  __device__ __forceinline__ void Dots(const float (&out)[kMyElems], int step, int group) const {
    if constexpr (!C::kGivesDV) gpu::mbar_wait(DotRowsReady(group), static_cast<unsigned>(step) & 1);
    constexpr int kAtOnce = 16, kCount = kAtOnce / 4;  // tokens; of a lane
#pragma unroll
    for (int first = 0; first < C::kMyTokens; first += kAtOnce) {
      float v[kCount];
#pragma unroll
      for (int k = 0; k < kAtOnce / 16; ++k) {
        uint32_t x[4];
        const int token = first + k * 16 + lane % 8 + lane / 16 * 8, piece = warp % 4 * 2 + lane / 8 % 2;
        gpu::ldmatrix_x4_trans(x, DotRows(step, group) + Swizzled(token, piece));
#pragma unroll
        for (int tile = 0; tile < 2; ++tile) {
          const float2 low = gpu::unpack_bf16(x[2 * tile]), high = gpu::unpack_bf16(x[2 * tile + 1]);
          const float* const y = out + first / 2 + 8 * k + 4 * tile;
          v[4 * k + 2 * tile] = y[0] * low.x + y[2] * high.x;
          v[4 * k + 2 * tile + 1] = y[1] * low.y + y[3] * high.y;
        }
      }
      const float sum = SumOverRows(v, lane);
      // kCount indices among the 8 groups of lanes; those that hold the same sum write it once.
      constexpr int kSame = 8 / kCount;
      const int index = lane / 4 / kSame;
      if (lane / 4 % kSame != 0) continue;
      DotSums(group)[warp % 4 * C::kMyTokens + first + index / 2 * 8 + lane % 4 * 2 + index % 2] = sum;
    }
  }
  // The group's dots to memory, behind a barrier of the group.
  __device__ __forceinline__ void StoreDots(int step, int group) const {
    const int token = FirstToken(group) + Thread(), t = ChunkOf(step) * kMlstmChunk + token;
    if (Thread() >= C::kMyTokens || t >= args.num_tokens || (token >= kMlstmChunk && !HasSecond(step)))
      return;
    const float* const sums = DotSums(group) + Thread();
    const float sum = sums[0] + sums[C::kMyTokens] + sums[2 * C::kMyTokens] + sums[3 * C::kMyTokens];
    int part = FirstRow(group) / 64;
    if constexpr (C::kBlocked) {
      int block = this->ColumnBlock();
      gpu::opaque(block);
      part += block * (static_cast<int>(args.DHQK) / 64);
    }
    gpu::opaque(part);  // or its place in dots would take registers all the time
    args.dots[(part * args.B * args.NH + pair) * args.NC * kMlstmChunk + t] = sum;
  }

  // ---- out
  // Cut heads: this block's part, unrounded, from where it is. Lanes that differ in lane / 4 write 32 bytes
  // of a token.
  __device__ __forceinline__ void StorePartial(const float (&out)[kMyElems], int step, int group) const {
    if constexpr (C::kDots) {
      GroupBarrier(group);  // the warps' sums of dots -> StoreDots
      StoreDots(step, group);
    }
    const int first = FirstToken(group) + lane % 4 * 2, t0 = ChunkOf(step) * kMlstmChunk + first;
    int tokens_left = static_cast<int>(args.num_tokens) - t0;
    if (C::kRecords == 2 && !HasSecond(step)) tokens_left = min(tokens_left, kMlstmChunk - first);
    int of_head = head, of_slice = slice, block = this->ColumnBlock();
    gpu::opaque(of_head);  // or what follows from them would take registers all the time
    gpu::opaque(of_slice);
    gpu::opaque(block);
    const int64_t token = (static_cast<int64_t>(block) * args.B + entry) * args.num_tokens + t0;
    const int row = of_slice * C::kRows + RowGroup(group) * 64 + RowOfWarp();
    float* to = args.partials + (token * args.NH + of_head) * this->HeadRows() + row;
    const int64_t token_stride = args.NH * this->HeadRows();
#pragma unroll
    for (int tile = 0; tile < C::kMyTokens / 8; ++tile, to += 8 * token_stride) {
      const float* const o = out + 4 * tile;
      if (tile * 8 < tokens_left) {
        to[0] = o[0];
        to[8] = o[2];
      }
      if (tile * 8 + 1 < tokens_left) {
        to[token_stride] = o[1];
        to[token_stride + 8] = o[3];
      }
    }
    if constexpr (C::kDots) {
      GroupBarrier(group);  // dots and their rows were read -> the next ones
      if (Thread() == 0 && step + 1 < Block::num_steps) LoadDotRows(step + 1, group);
    } else {
      __syncwarp();  // the lanes' reads of the stage -> the warp's arrival
    }
  }
  // Over the group's tile in shared memory to the tensor: TMA cuts off what lies after the sequence, and a
  // missing half is not stored.
  __device__ __forceinline__ void StoreOut(const float (&out)[kMyElems], int step, int group) const {
    if constexpr (C::kBlocked) return StorePartial(out, step, group);
    unsigned char* const box = smem + C::kOutAt + group * C::kGroupTile;
    if (Thread() == 0) gpu::bulk_wait_read<0>();
    // The last tile has been read -> this one; the warps' sums of dots -> StoreDots
    GroupBarrier(group);
    if constexpr (C::kDots) StoreDots(step, group);
#pragma unroll
    for (int tile = 0; tile < C::kMyTokens / 8; tile += 2) {
      float2 x = make_float2(1, 1), y = x;
      if constexpr (C::kNormalizer) {
        const float* const inverse = InverseOf(step) + FirstToken(group) + tile * 8 + lane % 4 * 2;
        x = *reinterpret_cast<const float2*>(inverse);
        y = *reinterpret_cast<const float2*>(inverse + 8);
      }
      const float(&o)[kMyElems] = out;
      const int at = 4 * tile;
      const uint32_t r[4] = {
          gpu::pack_bf16(o[at] * x.x, o[at + 1] * x.y), gpu::pack_bf16(o[at + 4] * y.x, o[at + 5] * y.y),
          gpu::pack_bf16(o[at + 2] * x.x, o[at + 3] * x.y), gpu::pack_bf16(o[at + 6] * y.x, o[at + 7] * y.y)};
      gpu::stmatrix_x4_trans(box + Swizzled(tile * 8 + lane % 16, warp % 4 * 2 + lane / 16), r);
    }
    gpu::fence_proxy_async();  // the tile: ordinary writes -> TMA
    // And of all threads; dots and their rows were read -> the next ones
    GroupBarrier(group);
    if (Thread() != 0) return;
    if constexpr (C::kDots && !C::kGivesDV) {
      if (step + 1 < Block::num_steps) LoadDotRows(step + 1, group);
    }
    const int column = head * static_cast<int>(this->HeadRows()) + FirstRow(group),
              token = ChunkOf(step) * kMlstmChunk + FirstToken(group);
    gpu::tma_store_4d(maps.out, column, token, entry, 0, box);
    if (HasSecond(step)) {
      gpu::tma_store_4d(maps.out, column, token + kMlstmChunk, entry, 0, box + kMlstmChunk * C::kLine);
    }
    gpu::bulk_commit();
  }
};
#endif

}  // namespace carousel::CAROUSEL_DEVICE_NS::mlstm_sm90
