// The kernel of the tensor-core scan: one template for every role (mlstm_records.h) and head width.
//
// Grid: (slices of the state's rows x pairs, segments). Block: kRowWarps x kColumnGroups warps; a warp holds
// 16 rows x kWarpColumns columns of the state in accumulators. One chunk of L tokens:
//   1. scores read.upd, an L x L tile split over all warps; times exp2(alpha + beta), masked; to shared
//   memory as bf16
//   2. out^T = x (State read^T): the accumulators are converted to bf16 A fragments in place
//   3. out^T += row^T weights^T
//   4. out^T goes over the row tile, which only its own warp has read, and leaves at the start of the next
//   chunk in
//      16-byte stores; dot products and the denominator come from the f32 sums
//   5. State = gamma State + (y row)^T upd
// Two barriers per chunk (three with column groups). Tiles come by cp.async, kStages - 1 chunks ahead, in
// 16-byte pieces that are XOR-swizzled so that ldmatrix reads without bank conflicts.
//
// Shared memory read per chunk: every warp reads all of `read` and of `upd` once as B fragments of 2. and 5.
// (2 L kWarpColumns bytes each), 1. reads (2 kWarps + 8 kScoreGroups .. ) rows of both. With 128 rows and 256
// columns that is 380 KB per chunk of 32 tokens, 3000 cycles of an SM, beside 11.0 MFLOP of products. Global
// memory: read, upd, row and out once per row slice; the slices of one pair are neighbours in the grid and
// share `read` and `upd` in the second-level cache.
#pragma once
#include "kernels/cuda/context.h"
#include "kernels/cuda/mlstm_records.h"

namespace carousel::CAROUSEL_DEVICE_NS::mlstm_scan {

template <MlstmRole kTheRole, int kTheRowWarps, int kTheColumnGroups, int kTheColumns, int kTheStages,
          int kTheBlocksPerSm>
struct ScanConfig {
  static constexpr MlstmRole kRole = kTheRole;
  static constexpr int kRowWarps = kTheRowWarps, kColumnGroups = kTheColumnGroups, kColumns = kTheColumns;
  static constexpr int kStages = kTheStages, kBlocksPerSm = kTheBlocksPerSm, L = kMlstmChunk;
  static constexpr int kWarps = kRowWarps * kColumnGroups, kThreads = 32 * kWarps;
  static constexpr int kRows = 16 * kRowWarps, kWarpColumns = kColumns / kColumnGroups;

  static constexpr bool kReverse = IsReverse(kRole), kIsState = IsState(kRole);
  static constexpr bool kNormalizer = kRole == MlstmRole::kH || kRole == MlstmRole::kDelta;
  static constexpr bool kAddend = kRole == MlstmRole::kDQ || kRole == MlstmRole::kDK;
  static constexpr bool kDots = kRole == MlstmRole::kDelta || kAddend;
  static constexpr bool kOutput = !kIsState && kRole != MlstmRole::kDelta;
  // The state's rows are columns of C (values) or rows of C (queries and keys). In the second case the block
  // also keeps its part of n or dn, the state's column of the normaliser.
  static constexpr bool kRowsAreValues = kNormalizer || kRole == MlstmRole::kDV;
  static constexpr bool kNormalizerColumn = !kRowsAreValues;

  // The L x L tile of scores: 16 rows per warp, the columns in kScoreGroups.
  static constexpr int kScoreGroups = kWarps / (L / 16), kScoreTiles = L / kScoreGroups / 8;
  // The tokens of out, 8 per tile; each column group finishes its part of them.
  static constexpr int kOutTiles = L / 8, kMyTiles = kOutTiles / kColumnGroups;
  static_assert(kScoreTiles == 1 || kScoreTiles == 2);
  static_assert(L == 32 && kColumnGroups <= 2);

  // Bytes of shared memory: of a stage,
  static constexpr int kColumnBytes = 2 * kColumns, kRowBytes = 2 * kRows;
  static constexpr int kReadAt = 0, kUpdAt = kIsState ? 0 : L * kColumnBytes;
  static constexpr int kRowAt = kUpdAt + L * kColumnBytes, kRecordAt = kRowAt + L * kRowBytes;
  static constexpr int kGammaAt = kRecordAt + static_cast<int>(sizeof(MlstmFastRecord));
  static constexpr int kStageBytes = kGammaAt + 128;  // one float, and what keeps stages aligned
  // and behind the stages: the rows that dots multiply, the weights, parts of dots and of the normaliser, n,
  // and what the column groups give each other.
  static constexpr int kWeightPitch = 2 * L + 16;
  static constexpr int kDotRowAt = kStages * kStageBytes;
  static constexpr int kWeightsAt = kDotRowAt + (kDots ? L * kRowBytes : 0);
  static constexpr int kDotsAt = kWeightsAt + (kIsState ? 0 : L * kWeightPitch);
  static constexpr int kSumsAt = kDotsAt + (kDots ? 4 * kRowWarps * L : 0);
  static constexpr int kNAt = kSumsAt + (kNormalizer ? 4 * kScoreGroups * L : 0);
  static constexpr int kTermsAt = kNAt + (kNormalizer ? 4 * kColumns : 0);
  static constexpr int kExchangeAt = kTermsAt + (kNormalizer ? 3 * kColumnBytes : 0);
  static constexpr int kSharedBytes =
      kExchangeAt + (kColumnGroups > 1 && !kIsState ? 16 * kMyTiles * kThreads : 0);
  static_assert(kSharedBytes <= 163 * 1024);
};

// Byte offset of 16-byte piece `piece` of row `row`; row_bytes is a power of two, 128 or more. Even pieces
// further on are offset ^ (pieces << 4), rows further on by a multiple of 8 are offset + rows * row_bytes.
__device__ __forceinline__ int Swizzled(int row, int piece, int row_bytes) {
  return row * row_bytes + ((piece ^ (row & 7)) << 4);
}

// Adds v[i] over the 8 lanes that differ in lane / 4, in a fixed order. A lane is left with the sum of index
// lane / 4 * kCount / 8.
template <int kCount>
__device__ __forceinline__ float SumOverRows(float (&v)[kCount], int lane) {
  static_assert(kCount == 8 || kCount == 4);
#pragma unroll
  for (int step = 0; step < (kCount == 8 ? 3 : 2); ++step) {
    const int half = kCount >> (step + 1), mask = 16 >> step;
    const bool upper = (lane & mask) != 0;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const float give = upper ? v[i] : v[i + half], keep = upper ? v[i + half] : v[i];
      v[i] = keep + __shfl_xor_sync(~0u, give, mask);
    }
  }
  if (kCount == 4) v[0] += __shfl_xor_sync(~0u, v[0], 4);
  return v[0];
}

// Term `index` (0, 1, 2) of x as the sum of three bf16 numbers; 0 for other indices.
__device__ __forceinline__ float Bf16Term(float x, int index) {
  const float high = gpu::to_float(gpu::to_bf16(x));
  const float middle = gpu::to_float(gpu::to_bf16(x - high));
  return index == 0 ? high : index == 1 ? middle : index == 2 ? x - high - middle : 0.0f;
}

// One block's scan. Members are registers of a thread.
template <class C>
class BlockScan {
 public:
  static constexpr int L = C::L;

  __device__ __forceinline__ explicit BlockScan(const MlstmFastScanArgs& a)
      : args(a),
        smem(gpu::dyn_shared<unsigned char>()),
        tid(static_cast<int>(threadIdx.x)),
        lane(tid % 32),
        warp(tid / 32),
        row_warp(warp % C::kRowWarps),
        column_group(warp / C::kRowWarps),
        group(lane / 4),
        quad(lane % 4) {
    const unsigned slices =
        static_cast<unsigned>(C::kRowsAreValues ? a.DHV : a.DHQK) / C::kRows;  // 1, 2 or 4
    slice = static_cast<int>(blockIdx.x & (slices - 1));
    pair = static_cast<int>(blockIdx.x >> (slices >> 1));
    head = pair % static_cast<int>(a.NH);
    const int64_t begin = blockIdx.y * a.chunks_per_segment;
    const int64_t end = begin + a.chunks_per_segment < a.NC ? begin + a.chunks_per_segment : a.NC;
    num_chunks = static_cast<int>(end - begin);
    first_chunk = static_cast<int>(C::kReverse ? end - 1 : begin);
    token0 = pair / static_cast<int>(a.NH) * static_cast<int>(a.num_tokens);
  }

  __device__ __forceinline__ void Run() {
    LoadState();
    // As many groups of copies as the loop makes, so that it can count them.
#pragma unroll
    for (int step = 0; step < C::kStages - 1; ++step) {
      LoadChunk(step);
      if (C::kDots && step < C::kStages - 2) gpu::cp_async_commit();
    }
    if (C::kDots) LoadDotRows(0);
    for (int step = 0; step < num_chunks; ++step) Chunk(step);
    if (!C::kIsState) {
      gpu::cp_async_wait<0>();
      __syncthreads();  // the last chunk's row tile and dots (4.) -> StoreChunk
      if (num_chunks > 0) StoreChunk(num_chunks - 1);
    }
    StoreState();
  }

 private:
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
    return C::kRole == MlstmRole::kDelta ? a.dh : C::kRole == MlstmRole::kDQ ? a.q : a.k;
  }
  __device__ __forceinline__ int64_t UpdColumn() const { return static_cast<int64_t>(head) * C::kColumns; }
  __device__ __forceinline__ int64_t RowColumn() const {
    return head * (C::kRowsAreValues ? args.DHV : args.DHQK) + slice * C::kRows;
  }

  // ---- global to shared memory
  // Columns [column, column + kTileColumns) of the chunk's tokens; tokens after the end become zeros.
  template <int kTileColumns>
  __device__ __forceinline__ void LoadTile(unsigned char* to, const MlstmRows<const bfloat16>& rows,
                                           int64_t column, int t0) {
    constexpr int kPieces = kTileColumns / 8, kStep = C::kThreads / kPieces;
    static_assert(C::kThreads % kPieces == 0 && L % kStep == 0);
    const int piece = tid % kPieces;
    int r = tid / kPieces, rows_left = static_cast<int>(args.num_tokens) - t0;
    const bfloat16* from = At(rows, column, t0 + r) + piece * 8;
#pragma unroll
    for (int i = 0; i < L / kStep; ++i, r += kStep, from += kStep * rows.row_stride) {
      const bool valid = r < rows_left;
      gpu::cp_async16(to + Swizzled(r, piece, 2 * kTileColumns), valid ? from : rows.data, valid);
    }
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
      if (tid < kPieces) {
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

  // ---- one chunk
  __device__ __forceinline__ void Chunk(int step) {
    // Everything but the newest stages has come (and, with dots, but the rows loaded for this step and after
    // it).
    gpu::cp_async_wait<C::kDots ? 2 * C::kStages - 3 : C::kStages - 2>();
    // This stage -> everyone; the last chunk's use of its stage, weights, sums and n -> what is written next;
    // its row tile and dots (4.) -> StoreChunk
    __syncthreads();
    if (!C::kIsState && step > 0) StoreChunk(step - 1);
    LoadChunk(step + C::kStages - 1);
    const unsigned char* const stage = StageOf(step);
    const MlstmFastRecord& record = RecordOf(step);

    uint32_t row[L / 16][4];  // A fragments of row^T: state rows x tokens
    if constexpr (C::kIsState) {
      LoadRowFragments(row, stage);
    } else {
      Scores(stage, record);
      float out[C::kOutTiles][4];  // out^T: state rows x tokens
      ReadState(out, stage, record);
      LoadRowFragments(row, stage);
      __syncthreads();  // weights and parts of the normaliser (1.) -> 3. and 4.
      AddChunk(out, row);
      if constexpr (C::kColumnGroups == 1) {
        Finish(out, step, record);
      } else {
        float mine[C::kMyTiles][4];
        Give(out);
        __syncthreads();  // sums given to the other column group -> Take; row fragments read -> the row tile
                          // of 4.
        Take(mine, out);
        Finish(mine, step, record);
      }
    }
    const float gamma = *reinterpret_cast<const float*>(stage + C::kGammaAt);
    Update(row, gamma, stage, record);
    if constexpr (C::kNormalizer) UpdateN(gamma, stage, record);
  }

  // 1. Weights of one warp's part of the L x L tile, rows = read tokens.
  __device__ __forceinline__ void Scores(const unsigned char* stage, const MlstmFastRecord& record) {
    const int r0 = warp % (L / 16) * 16, score_group = warp / (L / 16),
              u0 = score_group * (L / C::kScoreGroups);
    float s[2][4] = {};  // two tiles, or two halves of the sum of one
    // Nothing of a tile on the wrong side of the diagonal is used.
    const bool used = C::kReverse ? u0 + C::kScoreTiles * 8 > r0 : u0 < r0 + 16;
    const int read_at = C::kReadAt + Swizzled(r0 + lane % 16, lane / 16, C::kColumnBytes);
    if (used) {
      if constexpr (C::kScoreTiles == 2) {
        const int upd_at = C::kUpdAt + Swizzled(u0 + lane % 8 + lane / 16 * 8, lane / 8 % 2, C::kColumnBytes);
#pragma unroll 4
        for (int k = 0; k < C::kColumns / 16; ++k) {
          uint32_t a[4], b[4];
          gpu::ldmatrix_x4(a, stage + (read_at ^ (k << 5)));
          gpu::ldmatrix_x4(b, stage + (upd_at ^ (k << 5)));
          gpu::mma_bf16_m16n8k16(s[0], a, b[0], b[1]);
          gpu::mma_bf16_m16n8k16(s[1], a, b[2], b[3]);
        }
      } else {
        const int upd_at = C::kUpdAt + Swizzled(u0 + lane % 8, lane / 8, C::kColumnBytes);
#pragma unroll 2
        for (int k = 0; k < C::kColumns / 16; k += 2) {
          uint32_t a[4], b[4];
          gpu::ldmatrix_x4(b, stage + (upd_at ^ (k << 5)));
          gpu::ldmatrix_x4(a, stage + (read_at ^ (k << 5)));
          gpu::mma_bf16_m16n8k16(s[0], a, b[0], b[1]);
          gpu::ldmatrix_x4(a, stage + (read_at ^ ((k + 1) << 5)));
          gpu::mma_bf16_m16n8k16(s[1], a, b[2], b[3]);
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) s[0][j] += s[1][j];
      }
    }
    float row_sum[2] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = r0 + group + half * 8;
      const float exponent = ReadExponent(record)[r];
      const int begin = record.begin[r];
#pragma unroll
      for (int tile = 0; tile < C::kScoreTiles; ++tile) {
        const int u = u0 + tile * 8 + quad * 2;
        float w[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const bool seen =
              C::kReverse ? u + e >= r && record.begin[u + e] <= r : u + e <= r && begin <= u + e;
          float score = s[tile][half * 2 + e];
          if (C::kAddend) score += record.addend[C::kReverse ? u + e : r];
          w[e] = seen ? score * gpu::exp2_fast(exponent + UpdateExponent(record)[u + e]) : 0.0f;
        }
        const uint32_t packed = gpu::pack_bf16(w[0], w[1]);
        *reinterpret_cast<uint32_t*>(smem + C::kWeightsAt + r * C::kWeightPitch + u * 2) = packed;
        if (C::kNormalizer) {
          const float2 rounded = gpu::unpack_bf16(packed);
          row_sum[half] += rounded.x + rounded.y;
        }
      }
    }
    if constexpr (C::kNormalizer) ReadN(row_sum, r0, score_group, read_at, stage, record);
  }

  // a[r] = rho[r] n.q[r] + the sum of r's weights: this warp's columns of both, to shared memory.
  __device__ __forceinline__ void ReadN(const float (&row_sum)[2], int r0, int score_group, int read_at,
                                        const unsigned char* stage, const MlstmFastRecord& record) {
    float d[4] = {};  // columns 0, 1, 2: q times the terms of n; the others are zero
    const uint32_t* const terms = reinterpret_cast<const uint32_t*>(smem + C::kTermsAt);
    static_assert(C::kColumns / 16 % C::kScoreGroups == 0);
#pragma unroll
    for (int i = 0; i < C::kColumns / 16 / C::kScoreGroups; ++i) {
      const int k = score_group + i * C::kScoreGroups;
      uint32_t a[4];
      gpu::ldmatrix_x4(a, stage + (read_at ^ (k << 5)));
      const int at = group * (C::kColumns / 2) + k * 8 + quad;
      const uint32_t b0 = group < 3 ? terms[at] : 0, b1 = group < 3 ? terms[at + 4] : 0;
      gpu::mma_bf16_m16n8k16(d, a, b0, b1);
    }
    float* const sums = reinterpret_cast<float*>(smem + C::kSumsAt);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = r0 + group + half * 8;
      float a = row_sum[half] + record.rho[r] * (d[half * 2] + d[half * 2 + 1]);
      a += __shfl_xor_sync(~0u, a, 1);
      a += __shfl_xor_sync(~0u, a, 2);
      if (quad == 0) sums[score_group * L + r] = a;
    }
  }

  // 2. out^T = x (State read^T + n addend), one column group's part.
  __device__ __forceinline__ void ReadState(float (&out)[C::kOutTiles][4], const unsigned char* stage,
                                            const MlstmFastRecord& record) {
    const int read_at = (C::kReadAt + Swizzled(lane % 8 + lane / 16 * 8, lane / 8 % 2, C::kColumnBytes)) ^
                        (column_group * C::kWarpColumns * 2);
    float row_n[2] = {};
    if (C::kAddend && column_group == 0) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        row_n[half] = n[half] + __shfl_xor_sync(~0u, n[half], 1);
        row_n[half] += __shfl_xor_sync(~0u, row_n[half], 2);
      }
    }
#pragma unroll
    for (int tile = 0; tile < C::kOutTiles; ++tile) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float column = C::kRole == MlstmRole::kDQ ? record.addend[tile * 8 + quad * 2 + j % 2] : 1.0f;
        out[tile][j] = C::kAddend ? row_n[j / 2] * column : 0.0f;
      }
    }
#pragma unroll
    for (int k = 0; k < C::kWarpColumns / 16; ++k) {
      const float(&x)[4] = state[2 * k], (&y)[4] = state[2 * k + 1];
      const uint32_t a[4] = {gpu::pack_bf16(x[0], x[1]), gpu::pack_bf16(x[2], x[3]),
                             gpu::pack_bf16(y[0], y[1]), gpu::pack_bf16(y[2], y[3])};
#pragma unroll
      for (int tile = 0; tile < C::kOutTiles; tile += 2) {
        uint32_t b[4];
        gpu::ldmatrix_x4(b, stage + (read_at ^ (k << 5)) + tile * 8 * C::kColumnBytes);
        gpu::mma_bf16_m16n8k16(out[tile], a, b[0], b[1]);
        gpu::mma_bf16_m16n8k16(out[tile + 1], a, b[2], b[3]);
      }
    }
#pragma unroll
    for (int tile = 0; tile < C::kOutTiles; ++tile) {
      const float2 x = *reinterpret_cast<const float2*>(ReadFactor(record) + tile * 8 + quad * 2);
#pragma unroll
      for (int j = 0; j < 4; ++j) out[tile][j] *= j % 2 == 0 ? x.x : x.y;
    }
  }

  __device__ __forceinline__ void LoadRowFragments(uint32_t (&row)[L / 16][4], const unsigned char* stage) {
    const int row_at =
        C::kRowAt + Swizzled(lane % 8 + lane / 16 * 8, row_warp * 2 + lane / 8 % 2, C::kRowBytes);
#pragma unroll
    for (int k = 0; k < L / 16; ++k) gpu::ldmatrix_x4_trans(row[k], stage + row_at + k * 16 * C::kRowBytes);
  }

  // 3. The tokens of this chunk, shared among the column groups.
  __device__ __forceinline__ void AddChunk(float (&out)[C::kOutTiles][4], const uint32_t (&row)[L / 16][4]) {
    const unsigned char* const weights =
        smem + C::kWeightsAt + (lane % 8 + lane / 16 * 8) * C::kWeightPitch + lane / 8 % 2 * 16;
#pragma unroll
    for (int k = 0; k < L / 16; ++k) {
      if (C::kColumnGroups > 1 && k % C::kColumnGroups != column_group) continue;
#pragma unroll
      for (int tile = 0; tile < C::kOutTiles; tile += 2) {
        if (C::kReverse ? tile / 2 > k : tile / 2 < k) continue;  // weights on the wrong side of the diagonal
        uint32_t b[4];
        gpu::ldmatrix_x4(b, weights + tile * 8 * C::kWeightPitch + k * 32);
        gpu::mma_bf16_m16n8k16(out[tile], row[k], b[0], b[1]);
        gpu::mma_bf16_m16n8k16(out[tile + 1], row[k], b[2], b[3]);
      }
    }
  }

  // Two column groups: each finishes one half of the tokens with the other's part of the sum.
  __device__ __forceinline__ float4* Exchange(int of_group, int tile) const {
    return reinterpret_cast<float4*>(smem + C::kExchangeAt) +
           ((of_group * C::kRowWarps + row_warp) * C::kMyTiles + tile) * 32 + lane;
  }
  __device__ __forceinline__ void Give(const float (&out)[C::kOutTiles][4]) {
#pragma unroll
    for (int tile = 0; tile < C::kMyTiles; ++tile) {
      const float(&x)[4] = out[tile], (&y)[4] = out[C::kMyTiles % C::kOutTiles + tile];
      const bool first = column_group == 0;
      *Exchange(1 - column_group, tile) =
          make_float4(first ? y[0] : x[0], first ? y[1] : x[1], first ? y[2] : x[2], first ? y[3] : x[3]);
    }
  }
  __device__ __forceinline__ void Take(float (&mine)[C::kMyTiles][4], const float (&out)[C::kOutTiles][4]) {
#pragma unroll
    for (int tile = 0; tile < C::kMyTiles; ++tile) {
      const float4 other = *Exchange(column_group, tile);
      const float(&x)[4] = out[tile], (&y)[4] = out[C::kMyTiles % C::kOutTiles + tile];
      const bool first = column_group == 0;
      mine[tile][0] = (first ? x[0] : y[0]) + other.x;
      mine[tile][1] = (first ? x[1] : y[1]) + other.y;
      mine[tile][2] = (first ? x[2] : y[2]) + other.z;
      mine[tile][3] = (first ? x[3] : y[3]) + other.w;
    }
  }

  // 4. Normaliser, dot products, and out into the row tile.
  __device__ __forceinline__ void Finish(float (&out)[C::kMyTiles][4], int step,
                                         const MlstmFastRecord& record) {
    if constexpr (C::kNormalizer) Normalize(out, step, record);
    if constexpr (C::kDots) Dots(out, step);
    if (!C::kOutput) return;
    __syncwarp();  // row fragments read by the other lanes -> the row tile (several column groups: a block's
                   // barrier)
    const int at = C::kRowAt + 2 * quad * C::kRowBytes + (((row_warp * 2) ^ (quad * 2)) << 4) + 2 * group;
    unsigned char* const to = StageOf(step) + at + column_group * C::kMyTiles * 8 * C::kRowBytes;
#pragma unroll
    for (int tile = 0; tile < C::kMyTiles; ++tile) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int token = j % 2,
                  eight = j / 2;  // Swizzled(tile * 8 + quad * 2 + token, row_warp * 2 + eight, ..)
        *reinterpret_cast<bfloat16*>(to + (tile * 8 + token) * C::kRowBytes + ((token ^ eight) << 4)) =
            gpu::to_bf16(out[tile][j]);
      }
    }
  }
  // Divides by N + eps; the first warp of the first slice also stores N, or a.
  __device__ __forceinline__ void Normalize(float (&out)[C::kMyTiles][4], int step,
                                            const MlstmFastRecord& record) {
    const float* const sums = reinterpret_cast<const float*>(smem + C::kSumsAt);
    float a = 0;  // of token `lane`
#pragma unroll
    for (int i = 0; i < C::kScoreGroups; ++i) a += sums[i * L + lane];
    const int t = ChunkOf(step) * L + lane;
    const bool stores = warp == 0 && slice == 0 && t < args.num_tokens;
    if (C::kRole == MlstmRole::kDelta) {
      if (stores) args.a[pair * args.NC * L + t] = a;
      return;
    }
    const float N = args.normalize ? fmaxf(fabsf(a), record.floor[lane]) : 1.0f;
    if (stores) *At(args.denominator, head, t) = N;
    const float inverse = args.normalize ? gpu::rcp_fast(N + args.eps) : 1.0f;
#pragma unroll
    for (int tile = 0; tile < C::kMyTiles; ++tile) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float x = __shfl_sync(~0u, inverse, tile * 8 + quad * 2 + e);
        out[tile][e] *= x;
        out[tile][e + 2] *= x;
      }
    }
  }
  // The warp's 16 rows' part of the dot products, to shared memory; then the next chunk's rows are loaded.
  __device__ __forceinline__ void Dots(const float (&out)[C::kMyTiles][4], int step) {
    gpu::cp_async_wait<1>();
    __syncwarp();  // this warp's copies of the rows -> all its lanes
    const int first_token = column_group * C::kMyTiles * 8;
    const unsigned char* const rows =
        smem + C::kDotRowAt + first_token * C::kRowBytes +
        Swizzled(lane % 8 + lane / 16 * 8, row_warp * 2 + lane / 8 % 2, C::kRowBytes);
    float v[2 * C::kMyTiles];
#pragma unroll
    for (int k = 0; k < C::kMyTiles / 2; ++k) {
      uint32_t x[4];
      gpu::ldmatrix_x4_trans(x, rows + k * 16 * C::kRowBytes);
#pragma unroll
      for (int tile = 0; tile < 2; ++tile) {
        const float2 low = gpu::unpack_bf16(x[2 * tile]), high = gpu::unpack_bf16(x[2 * tile + 1]);
        const float(&y)[4] = out[2 * k + tile];
        v[4 * k + 2 * tile] = y[0] * low.x + y[2] * high.x;
        v[4 * k + 2 * tile + 1] = y[1] * low.y + y[3] * high.y;
      }
    }
    const float sum = SumOverRows(v, lane);
    constexpr int kPerIndex = 4 / C::kMyTiles;  // lane groups that hold the same sum
    const int index = group / kPerIndex;
    if (group % kPerIndex == 0) {
      reinterpret_cast<float*>(
          smem + C::kDotsAt)[row_warp * L + first_token + index / 2 * 8 + quad * 2 + index % 2] = sum;
    }
    __syncwarp();  // the rows were read -> the next chunk's
    LoadDotRows(step + 1);
  }

  // 5.
  __device__ __forceinline__ void Update(uint32_t (&row)[L / 16][4], float gamma, const unsigned char* stage,
                                         const MlstmFastRecord& record) {
    const int upd_at =
        (C::kUpdAt + Swizzled(lane % 16, lane / 16, C::kColumnBytes)) ^ (column_group * C::kWarpColumns * 2);
#pragma unroll
    for (int i = 0; i < C::kWarpColumns / 8; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) state[i][j] *= gamma;
    }
    if (C::kNormalizerColumn) {
      n[0] *= gamma;
      n[1] *= gamma;
    }
#pragma unroll
    for (int k = 0; k < L / 16; ++k) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int u = k * 16 + j / 2 * 8 + quad * 2;
        const float2 y = *reinterpret_cast<const float2*>(UpdateFactor(record) + u),
                     x = gpu::unpack_bf16(row[k][j]);
        const float first = x.x * y.x, second = x.y * y.y;
        row[k][j] = gpu::pack_bf16(first, second);
        if (C::kNormalizerColumn) {
          const float2 z =
              C::kReverse ? *reinterpret_cast<const float2*>(record.addend + u) : make_float2(1, 1);
          n[j % 2] += first * z.x + second * z.y;
        }
      }
#pragma unroll
      for (int i = 0; i < C::kWarpColumns / 8; i += 2) {
        uint32_t b[4];
        gpu::ldmatrix_x4_trans(b, stage + (upd_at ^ (i << 4)) + k * 16 * C::kColumnBytes);
        gpu::mma_bf16_m16n8k16(state[i], row[k], b[0], b[1]);
        gpu::mma_bf16_m16n8k16(state[i + 1], row[k], b[2], b[3]);
      }
    }
  }

  // n = gamma n + sum over u of kappa[u] k[u], this warp's columns, with kappa as three bf16 terms.
  __device__ __forceinline__ void UpdateN(float gamma, const unsigned char* stage,
                                          const MlstmFastRecord& record) {
    uint32_t a[2][4] = {};  // rows 0, 1, 2: the terms of kappa
#pragma unroll
    for (int k = 0; k < 2; ++k) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float2 kappa = *reinterpret_cast<const float2*>(record.kappa + k * 16 + half * 8 + quad * 2);
        a[k][half * 2] = gpu::pack_bf16(Bf16Term(kappa.x, group), Bf16Term(kappa.y, group));
      }
    }
    constexpr int kTiles = C::kColumns / 8 / C::kWarps;
    static_assert(C::kColumns % (8 * C::kWarps) == 0);
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      uint32_t b[4];
      float d[4] = {};
      gpu::ldmatrix_x4_trans(b, stage + C::kUpdAt + Swizzled(lane, warp * kTiles + i, C::kColumnBytes));
      gpu::mma_bf16_m16n8k16(d, a[0], b[0], b[1]);
      gpu::mma_bf16_m16n8k16(d, a[1], b[2], b[3]);
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        d[e] += __shfl_xor_sync(~0u, d[e], 4);
        d[e] += __shfl_xor_sync(~0u, d[e], 8);
      }
      if (group == 0) {
        const int column = (warp * kTiles + i) * 8 + quad * 2;
        float* const at = reinterpret_cast<float*>(smem + C::kNAt) + column;
        SetN(column, gamma * at[0] + d[0], gamma * at[1] + d[1]);
      }
    }
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
  // The row tile and the dots of an earlier step to global memory. A thread reads the pieces of the tile that
  // it copies into next.
  __device__ __forceinline__ void StoreChunk(int step) {
    const int t0 = ChunkOf(step) * L, rows_left = static_cast<int>(args.num_tokens) - t0;
    if (C::kOutput) {
      const unsigned char* const tile = StageOf(step) + C::kRowAt;
      constexpr int kPieces = C::kRows / 8, kStep = C::kThreads / kPieces;
      const int piece = tid % kPieces;
      int r = tid / kPieces;
      bfloat16* to = At(args.out, RowColumn(), t0 + r) + piece * 8;
      const bool aligned =
          args.out.row_stride % 8 == 0 && reinterpret_cast<uintptr_t>(args.out.data) % 16 == 0;
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
    if (C::kDots && tid < L && tid < rows_left) {
      const float* const dots = reinterpret_cast<const float*>(smem + C::kDotsAt) + tid;
      float sum = dots[0];
#pragma unroll
      for (int i = 1; i < C::kRowWarps; ++i) sum += dots[i * L];
      args.dots[(slice * args.B * args.NH + pair) * args.NC * L + t0 + tid] = sum;
    }
  }

  // ---- the state
  // Offset of state element (row0 + group, column0 + quad * 2) in C (DHQK, DHV), and of neighbours.
  __device__ __forceinline__ int64_t StateAt() const {
    const int64_t row = slice * C::kRows + row_warp * 16 + group,
                  column = column_group * C::kWarpColumns + quad * 2;
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
        n[half] = given && quad == 0 ? args.initial.n[at * args.DHQK + row + half * 8] : 0.0f;
      }
    }
    if (C::kNormalizer) {
      for (int column = tid * 2; column < C::kColumns; column += 2 * C::kThreads) {
        const float* const n0 = args.initial.n + at * args.DHQK + column;
        SetN(column, given ? n0[0] : 0.0f, given ? n0[1] : 0.0f);  // read after the first chunk's barrier
      }
    }
  }

  __device__ __forceinline__ void StoreState() {
    if (args.final.C == nullptr || C::kRole == MlstmRole::kDelta || C::kRole == MlstmRole::kDV) return;
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
    if (C::kNormalizerColumn && column_group == 0) {
      const int row = slice * C::kRows + row_warp * 16 + group;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float x = n[half] + __shfl_xor_sync(~0u, n[half], 1);
        x += __shfl_xor_sync(~0u, x, 2);
        if (quad == 0) args.final.n[at * args.DHQK + row + half * 8] = x;
      }
    }
    if (C::kNormalizer && slice == 0) {
      __syncthreads();  // n of the last chunk, or the initial one -> the threads that store it
      const float* const last_n = reinterpret_cast<const float*>(smem + C::kNAt);
      for (int column = tid; column < C::kColumns; column += C::kThreads) {
        args.final.n[at * args.DHQK + column] = last_n[column];
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

template <class C>
__global__ void __launch_bounds__(C::kThreads, C::kBlocksPerSm)
    MlstmScanKernel(const __grid_constant__ MlstmFastScanArgs args) {
  BlockScan<C> scan(args);
  scan.Run();
}

}  // namespace carousel::CAROUSEL_DEVICE_NS::mlstm_scan
