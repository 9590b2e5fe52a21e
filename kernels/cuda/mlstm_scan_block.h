// A block of the tensor-core scan: which part of the work is its own, and everything that goes between global
// and shared memory or registers. The arithmetic: mlstm_scan_kernel.h.
#pragma once
#include "kernels/cuda/mlstm_scan_config.h"

namespace carousel::CAROUSEL_DEVICE_NS::mlstm_scan {

// Members are registers of a thread.
template <class C>
class ScanBlock {
 protected:
  static constexpr int L = C::L;

  __device__ __forceinline__ explicit ScanBlock(const MlstmFastScanArgs& a)
      : args(a),
        smem(gpu::dyn_shared<unsigned char>()),
        tid(static_cast<int>(threadIdx.x)),
        lane(tid % 32),
        warp(tid / 32),
        row_warp(warp % C::kRowWarps),
        column_group(warp / C::kRowWarps),
        group(lane / 4),
        quad(lane % 4) {
    const unsigned slices = static_cast<unsigned>(C::kRowsAreValues ? a.DHV : a.DHQK) / C::kRows;
    slice = static_cast<int>(blockIdx.x % slices);
    pair = static_cast<int>(blockIdx.x / slices);
    head = pair % static_cast<int>(a.NH);
    const int64_t begin = blockIdx.y * a.chunks_per_segment;
    const int64_t end = begin + a.chunks_per_segment < a.NC ? begin + a.chunks_per_segment : a.NC;
    num_chunks = static_cast<int>(end - begin);
    first_chunk = static_cast<int>(C::kReverse ? end - 1 : begin);
    token0 = pair / static_cast<int>(a.NH) * static_cast<int>(a.num_tokens);
  }

  // ---- places
  __device__ __forceinline__ int ChunkOf(int step) const {
    return C::kReverse ? first_chunk - step : first_chunk + step;
  }
  __device__ __forceinline__ unsigned char* StageOf(int step) const {
    return smem + step % C::kStages * C::kStageBytes;
  }
  __device__ __forceinline__ const MlstmFastRecord& RecordOf(int step) const {
    return *reinterpret_cast<const MlstmFastRecord*>(StageOf(step) + C::kRecordAt);
  }
  // x of the read tokens, y of the update, exponents of both (mlstm_records.h)
  __device__ __forceinline__ static const float* ReadFactor(const MlstmFastRecord& r) {
    return C::kReverse ? r.kappa : r.rho;
  }
  __device__ __forceinline__ static const float* UpdateFactor(const MlstmFastRecord& r) {
    return C::kReverse ? r.rho : r.kappa;
  }
  __device__ __forceinline__ static const float* ReadExponent(const MlstmFastRecord& r) {
    return C::kReverse ? r.beta : r.alpha;
  }
  __device__ __forceinline__ static const float* UpdateExponent(const MlstmFastRecord& r) {
    return C::kReverse ? r.alpha : r.beta;
  }
  // Token t of this batch entry
  template <class T>
  __device__ __forceinline__ T* At(const MlstmRows<T>& x, int64_t column, int t) const {
    return x.data + (token0 + t) * x.row_stride + column;
  }
  __device__ __forceinline__ static const MlstmRows<const bfloat16>& ReadRows(const MlstmFastScanArgs& a) {
    return C::kNormalizer ? a.q : C::kRole == MlstmRole::kDQ ? a.dh : C::kRole == MlstmRole::kDV ? a.k : a.v;
  }
  __device__ __forceinline__ static const MlstmRows<const bfloat16>& UpdRows(const MlstmFastScanArgs& a) {
    constexpr MlstmRole r = C::kRole;
    return C::kNormalizer                                         ? a.k
           : r == MlstmRole::kDV                                  ? a.q
           : r == MlstmRole::kDQ || r == MlstmRole::kForwardState ? a.v
                                                                  : a.dh;
  }
  __device__ __forceinline__ static const MlstmRows<const bfloat16>& RowRows(const MlstmFastScanArgs& a) {
    constexpr MlstmRole r = C::kRole;
    return C::kNormalizer                                         ? a.v
           : r == MlstmRole::kDV                                  ? a.dh
           : r == MlstmRole::kDQ || r == MlstmRole::kForwardState ? a.k
                                                                  : a.q;
  }
  __device__ __forceinline__ static const MlstmRows<const bfloat16>& DotRows(const MlstmFastScanArgs& a) {
    return C::kRole == MlstmRole::kDQ ? a.q : a.k;
  }
  // Of the head's state, and the first of the block's columns in it.
  __device__ __forceinline__ int64_t HeadColumns() const { return C::kRowsAreValues ? args.DHQK : args.DHV; }
  __device__ __forceinline__ int64_t HeadRows() const { return C::kRowsAreValues ? args.DHV : args.DHQK; }
  __device__ __forceinline__ static int ColumnBlock() {
    return C::kBlocked ? static_cast<int>(blockIdx.z) : 0;
  }
  __device__ __forceinline__ static int FirstColumn() { return ColumnBlock() * C::kColumns; }
  // The block has the column of the normaliser (n or dn), if the role carries one.
  __device__ __forceinline__ static bool HasNormalizer() { return ColumnBlock() == 0; }
  __device__ __forceinline__ int64_t UpdColumn() const {
    if constexpr (C::kBlocked) {
      int of_head = head;
      gpu::opaque(of_head);  // as in StorePartial
      return of_head * HeadColumns() + FirstColumn();
    }
    return static_cast<int64_t>(head) * C::kColumns;
  }
  __device__ __forceinline__ int64_t RowColumn() const { return head * HeadRows() + slice * C::kRows; }

  // ---- global to shared memory
  // Columns [column, column + kTileColumns) of the chunk's tokens; tokens after the end become zeros.
  template <int kTileColumns>
  __device__ __forceinline__ void LoadTile(unsigned char* to, const MlstmRows<const bfloat16>& rows,
                                           int64_t column, int t0) {
    // Neighbouring threads copy as many pieces of a row as the largest power of two divides.
    constexpr int kPieces = kTileColumns / 8, kAtOnce = kPieces & -kPieces, kStep = C::kThreads / kAtOnce;
    static_assert(kAtOnce >= 8 && C::kThreads % kAtOnce == 0 && L % kStep == 0);
    const int piece = tid % kAtOnce;
    int r = tid / kAtOnce, rows_left = static_cast<int>(args.num_tokens) - t0;
    const bfloat16* from = At(rows, column, t0 + r) + piece * 8;
#pragma unroll
    for (int i = 0; i < L / kStep; ++i, r += kStep, from += kStep * rows.row_stride) {
      const bool valid = r < rows_left;
#pragma unroll
      for (int more = 0; more < kPieces; more += kAtOnce) {
        gpu::cp_async16(to + Swizzled(r, piece + more, 2 * kTileColumns), valid ? from + more * 8 : rows.data,
                        valid);
      }
    }
  }
  // Of the 16-byte pieces of a record.
  __device__ __forceinline__ static bool IsAddend(int piece) {
    constexpr int kFirst = offsetof(MlstmFastRecord, addend) / 16, kCount = sizeof(float) * L / 16;
    return C::kBlocked && C::kAddend && piece >= kFirst && piece < kFirst + kCount;
  }
  // In every stage, for good: addends of a block without the normaliser. Read behind the first chunk's
  // barrier.
  __device__ __forceinline__ void ClearAddends() {
    static_assert(C::kStages * L <= C::kThreads);
    if (HasNormalizer() || tid >= C::kStages * L) return;
    unsigned char* const record = smem + tid / L * C::kStageBytes + C::kRecordAt;
    reinterpret_cast<MlstmFastRecord*>(record)->addend[tid % L] = 0;
  }
  __device__ __forceinline__ void LoadChunk(int step) {
    if (step < num_chunks) {
      const int chunk = ChunkOf(step), t0 = chunk * L;
      unsigned char* const stage = StageOf(step);
      if (!C::kIsState) LoadTile<C::kColumns>(stage + C::kReadAt, ReadRows(args), UpdColumn(), t0);
      LoadTile<C::kColumns>(stage + C::kUpdAt, UpdRows(args), UpdColumn(), t0);
      LoadTile<C::kRows>(stage + C::kRowAt, RowRows(args), RowColumn(), t0);
      constexpr int kPieces = sizeof(MlstmFastRecord) / 16;
      static_assert(kPieces <= C::kThreads);
      if (tid < kPieces && (HasNormalizer() || !IsAddend(tid))) {
        const auto* const record =
            reinterpret_cast<const unsigned char*>(args.records + pair * args.NC + chunk);
        gpu::cp_async16(stage + C::kRecordAt + tid * 16, record + tid * 16);
      }
      if (tid == C::kThreads - 1) gpu::cp_async4(stage + C::kGammaAt, args.gamma + pair * args.NC + chunk);
    }
    gpu::cp_async_commit();
  }
  // The warp's own 16 columns of the rows that dots multiply: no other warp waits for them.
  __device__ __forceinline__ void LoadDotRows(int step) {
    if (step < num_chunks) {
      const MlstmRows<const bfloat16>& rows = DotRows(args);
      const int t0 = ChunkOf(step) * L, rows_left = static_cast<int>(args.num_tokens) - t0;
      const int piece = row_warp * 2 + lane % 2;
      const bfloat16* const from = At(rows, RowColumn(), t0) + piece * 8;
#pragma unroll
      for (int i = 0; i < C::kMyTiles / 2; ++i) {
        const int r = column_group * C::kMyTiles * 8 + i * 16 + lane / 2;
        const bool valid = r < rows_left;
        gpu::cp_async16(smem + C::kDotRowAt + Swizzled(r, piece, C::kRowBytes),
                        valid ? from + r * rows.row_stride : rows.data, valid);
      }
    }
    gpu::cp_async_commit();
  }

  __device__ __forceinline__ void SetN(int column, float x, float y) {
    *reinterpret_cast<float2*>(smem + C::kNAt + 4 * column) = make_float2(x, y);
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      *reinterpret_cast<uint32_t*>(smem + C::kTermsAt + (i * C::kColumns + column) * 2) =
          gpu::pack_bf16(Bf16Term(x, i), Bf16Term(y, i));
    }
  }

  __device__ __forceinline__ static void StoreElements(bfloat16* to, const uint4& x) {
    const uint32_t pairs[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      to[2 * i].bits = static_cast<uint16_t>(pairs[i]);
      to[2 * i + 1].bits = static_cast<uint16_t>(pairs[i] >> 16);
    }
  }
  // The row tile and the dots of an earlier step to global memory.
  __device__ __forceinline__ void StoreChunk(int step) {
    const int t0 = ChunkOf(step) * L, rows_left = static_cast<int>(args.num_tokens) - t0;
    if constexpr (!C::kBlocked) StoreTile(step, t0, rows_left);
    if (C::kDots && tid < L && tid < rows_left) {
      const float* const dots = reinterpret_cast<const float*>(smem + C::kDotsAt) + tid;
      float sum = dots[0];
#pragma unroll
      for (int i = 1; i < C::kRowWarps; ++i) sum += dots[i * L];
      int part = slice;
      if constexpr (C::kBlocked) {
        int block = ColumnBlock();
        gpu::opaque(block);  // as in StorePartial
        part += block * (static_cast<int>(args.DHQK) / C::kRows);
      }
      args.dots[(part * args.B * args.NH + pair) * args.NC * L + t0 + tid] = sum;
    }
  }
  // A thread reads the pieces of the tile that it copies into next.
  __device__ __forceinline__ void StoreTile(int step, int t0, int rows_left) {
    const unsigned char* const tile = StageOf(step) + C::kRowAt;
    constexpr int kPieces = C::kRows / 8, kStep = C::kThreads / kPieces;
    const int piece = tid % kPieces;
    int r = tid / kPieces;
    bfloat16* to = At(args.out, RowColumn(), t0 + r) + piece * 8;
    const bool aligned = args.out.row_stride % 8 == 0 && reinterpret_cast<uintptr_t>(args.out.data) % 16 == 0;
#pragma unroll
    for (int i = 0; i < L / kStep; ++i, r += kStep, to += kStep * args.out.row_stride) {
      const uint4 x = *reinterpret_cast<const uint4*>(tile + Swizzled(r, piece, C::kRowBytes));
      if (r >= rows_left) continue;
      if (aligned) {
        *reinterpret_cast<uint4*>(to) = x;
      } else {
        StoreElements(to, x);
      }
    }
  }
  // Cut heads: this block's part of out, unrounded, from where it is. Lanes that differ in `group` write 32
  // bytes of a token.
  __device__ __forceinline__ void StorePartial(const float (&out)[C::kMyTiles][4], int step) const {
    int place = tid, of_head = head, of_slice = slice, block = ColumnBlock();
    // Or what follows from them would take registers through the loop.
    gpu::opaque(place);
    gpu::opaque(of_head);
    gpu::opaque(of_slice);
    gpu::opaque(block);
    const int t0 = ChunkOf(step) * L + (place / 32 / C::kRowWarps * C::kMyTiles * 4 + place % 4) * 2;
    const int rows_left = static_cast<int>(args.num_tokens) - t0;
    const int64_t token = block * args.B * args.num_tokens + token0 + t0;
    const int row = of_slice * C::kRows + place / 32 % C::kRowWarps * 16 + place % 32 / 4;
    float* to = args.partials + (token * args.NH + of_head) * HeadRows() + row;
    const int64_t row_stride = args.NH * HeadRows();
#pragma unroll
    for (int tile = 0; tile < C::kMyTiles; ++tile, to += 8 * row_stride) {
#pragma unroll
      for (int token = 0; token < 2; ++token) {
        if (tile * 8 + token >= rows_left) continue;
        to[token * row_stride] = out[tile][token];
        to[token * row_stride + 8] = out[tile][token + 2];
      }
    }
  }

  // ---- the state
  // Offset of state element (row0 + group, column0 + quad * 2) in C (DHQK, DHV), and of neighbours.
  __device__ __forceinline__ int64_t StateAt() const {
    const int64_t row = slice * C::kRows + row_warp * 16 + group,
                  column = FirstColumn() + column_group * C::kWarpColumns + quad * 2;
    return C::kRowsAreValues ? column * args.DHV + row : row * args.DHV + column;
  }
  __device__ __forceinline__ int64_t RowStep() const { return C::kRowsAreValues ? 1 : args.DHV; }
  __device__ __forceinline__ int64_t ColumnStep() const { return C::kRowsAreValues ? args.DHV : 1; }

  __device__ __forceinline__ void LoadState() {
    const bool given = !C::kIsState && args.initial.C != nullptr;
    const int64_t at = blockIdx.y * args.B * args.NH + pair;
    const float* const from = given ? args.initial.C + at * args.DHQK * args.DHV + StateAt() : nullptr;
    const int64_t row_step = RowStep(), column_step = ColumnStep();
#pragma unroll
    for (int i = 0; i < C::kWarpColumns / 8; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        state[i][j] = given ? from[j / 2 * 8 * row_step + (i * 8 + j % 2) * column_step] : 0.0f;
      }
    }
    if (C::kNormalizerColumn) {
      // the sum of a quad's parts is n of the row
      const int row = slice * C::kRows + row_warp * 16 + group;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        n[half] =
            given && HasNormalizer() && quad == 0 ? args.initial.n[at * args.DHQK + row + half * 8] : 0.0f;
      }
    }
    if (C::kNormalizer) {
      for (int column = tid * 2; column < C::kColumns; column += 2 * C::kThreads) {
        const float* const n0 = args.initial.n + at * args.DHQK + FirstColumn() + column;
        SetN(column, given ? n0[0] : 0.0f, given ? n0[1] : 0.0f);  // read after the first chunk's barrier
      }
    }
  }

  // ---- anchors (mlstm_records.h): of C 16 bytes per thread at a time, whichever elements are its own.
  // Addresses come from the special registers: all others are taken.
  // The chunk whose state there is after this step: the next one, or in a reverse scan this one.
  __device__ __forceinline__ int StateChunk(int step) const {
    return C::kReverse ? ChunkOf(step) : ChunkOf(step) + 1;
  }
  __device__ __forceinline__ bool IsAnchor(int step) const {
    const int chunk = StateChunk(step);
    return chunk % kMlstmAnchorChunks == 0 && (C::kReverse ? chunk > 0 : chunk < static_cast<int>(args.NC));
  }
  // This block among all anchors' blocks.
  __device__ __forceinline__ int64_t AnchorBlock(int step) const {
    const int64_t before = StateChunk(step) / kMlstmAnchorChunks - 1;
    if constexpr (C::kBlocked) {  // all slices and blocks of a pair side by side
      int of_slice = slice, block = ColumnBlock();
      gpu::opaque(of_slice);  // as in StorePartial
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
  __device__ __forceinline__ float* AnchorN(int step) const {
    return args.anchors.n + AnchorBlock(step) * C::kRows + row_warp * 16 + group;
  }
  __device__ __forceinline__ void StoreAnchor(int step) const {
    uint4* const to = AnchorState(step);
#pragma unroll
    for (int k = 0; k < C::kWarpColumns / 16; ++k) {
      const float(&x)[4] = state[2 * k], (&y)[4] = state[2 * k + 1];
      to[k * C::kThreads] = make_uint4(gpu::pack_bf16(x[0], x[1]), gpu::pack_bf16(x[2], x[3]),
                                       gpu::pack_bf16(y[0], y[1]), gpu::pack_bf16(y[2], y[3]));
    }
    if (column_group > 0) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float x = n[half] + __shfl_xor_sync(~0u, n[half], 1);
      x += __shfl_xor_sync(~0u, x, 2);
      if (quad == 0) AnchorN(step)[half * 8] = x;
    }
  }
  // The thread's part of <C, dC> + <n, dn>.
  __device__ __forceinline__ void DotAnchor(int step) const {
    const uint4* const from = AnchorState(step);
    float sum = 0;
    if (column_group == 0) {
      const float* const from_n = AnchorN(step);
      sum = n[0] * from_n[0] + n[1] * from_n[8];
    }
#pragma unroll
    for (int k = 0; k < C::kWarpColumns / 16; ++k) {
      const uint4 packed = from[k * C::kThreads];
      const uint32_t pairs[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 x = gpu::unpack_bf16(pairs[i]);
        sum += state[2 * k + i / 2][i % 2 * 2] * x.x + state[2 * k + i / 2][i % 2 * 2 + 1] * x.y;
      }
    }
    args.anchors.dots[AnchorBlock(step) * C::kThreads + threadIdx.x] = sum;
  }

  // kNormalizer: after a barrier behind the last writes of n.
  __device__ __forceinline__ void StoreState() {
    if (args.final.C == nullptr || C::kRole == MlstmRole::kDV) return;
    const bool is_last = blockIdx.y == (C::kReverse ? 0 : gridDim.y - 1);
    if (!C::kIsState && !is_last) return;
    const int64_t at = (C::kIsState ? blockIdx.y * args.B * args.NH : 0) + pair;
    float* const to = args.final.C + at * args.DHQK * args.DHV + StateAt();
    const int64_t row_step = RowStep(), column_step = ColumnStep();
#pragma unroll
    for (int i = 0; i < C::kWarpColumns / 8; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) to[j / 2 * 8 * row_step + (i * 8 + j % 2) * column_step] = state[i][j];
    }
    if (C::kNormalizerColumn && column_group == 0 && HasNormalizer()) {
      const int row = slice * C::kRows + row_warp * 16 + group;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float x = n[half] + __shfl_xor_sync(~0u, n[half], 1);
        x += __shfl_xor_sync(~0u, x, 2);
        if (quad == 0) args.final.n[at * args.DHQK + row + half * 8] = x;
      }
    }
    if (C::kNormalizer && slice == 0) {
      const float* const last_n = reinterpret_cast<const float*>(smem + C::kNAt);
      for (int column = tid; column < C::kColumns; column += C::kThreads) {
        args.final.n[at * args.DHQK + FirstColumn() + column] = last_n[column];
      }
    }
  }

  const MlstmFastScanArgs& args;
  unsigned char* const smem;
  const int tid, lane, warp, row_warp, column_group;
  const int group, quad;  // of a fragment: row and pair of columns
  int slice, pair, head, num_chunks, first_chunk;
  int token0;  // the first of the batch entry; the launcher has made sure that int holds it

  float state[C::kWarpColumns / 8][4];
  float n[2];  // kNormalizerColumn: this lane's part of n of rows `group` and `group + 8`
};

}  // namespace carousel::CAROUSEL_DEVICE_NS::mlstm_scan
