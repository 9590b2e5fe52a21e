// The kernel of the tensor-core scan, one template for every role and head width (mlstm_scan_config.h): the
// arithmetic of one chunk.
#pragma once
#include "kernels/cuda/mlstm_scan_block.h"

namespace carousel::CAROUSEL_DEVICE_NS::mlstm_scan {

template <class C>
class BlockScan : ScanBlock<C> {
 public:
  __device__ __forceinline__ explicit BlockScan(const MlstmFastScanArgs& a) : Block(a) {}

  __device__ __forceinline__ void Run() {
    LoadState();
    if constexpr (C::kBlocked && C::kAddend) Block::ClearAddends();
      // As many groups of copies as the loop makes, so that it can count them.
#pragma unroll
    for (int step = 0; step < C::kStages - 1; ++step) {
      LoadChunk(step);
      if (C::kDots && step < C::kStages - 2) gpu::cp_async_commit();
    }
    if (C::kDots) LoadDotRows(0);
    for (int step = 0; step < num_chunks; ++step) Chunk(step);
    if (!C::kIsState) {
      // The last chunk's row tile and dots (4.) -> StoreChunk; its n, or the initial one -> StoreState
      __syncthreads();
      if (num_chunks > 0) StoreChunk(num_chunks - 1);
    }
    StoreState();
  }

 private:
  using Block = ScanBlock<C>;
  static constexpr int L = C::L;
  using Block::args, Block::column_group, Block::group, Block::head, Block::lane, Block::n, Block::num_chunks,
      Block::pair, Block::quad, Block::row_warp, Block::slice, Block::smem, Block::state, Block::tid,
      Block::token0, Block::warp;
  using Block::At, Block::ChunkOf, Block::DotAnchor, Block::IsAnchor, Block::LoadChunk, Block::LoadDotRows,
      Block::LoadState, Block::ReadExponent, Block::ReadFactor, Block::RecordOf, Block::SetN, Block::StageOf,
      Block::StoreAnchor, Block::StoreChunk, Block::StoreState, Block::UpdateExponent, Block::UpdateFactor;

  // ---- one chunk
  __device__ __forceinline__ void Chunk(int step) {
    // All copies but the newest have come: those of later stages and, with dots, of the rows for this step.
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
      // Weights and parts of the normaliser (1.) -> 3. and 4.; row fragments read by both column groups ->
      // out in the row tile (4.)
      __syncthreads();
      AddChunk(out, row);
      if constexpr (C::kColumnGroups == 1) {
        Finish(out, step, record);
      } else {
        float mine[C::kMyTiles][4];
        Give(out);
        __syncthreads();  // what Give wrote -> Take by the other column group
        Take(mine, out);
        Finish(mine, step, record);
      }
    }
    const float gamma = *reinterpret_cast<const float*>(stage + C::kGammaAt);
    Update(row, gamma, stage, record);
    if constexpr (C::kNormalizer) UpdateN(gamma, stage, record);
    if (C::kRole == MlstmRole::kDQ && IsAnchor(step)) StoreAnchor(step);
    if (C::kRole == MlstmRole::kDK && IsAnchor(step)) DotAnchor(step);
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
          gpu::ldmatrix_x4(a, stage + Ahead(read_at, 2 * k));
          gpu::ldmatrix_x4(b, stage + Ahead(upd_at, 2 * k));
          gpu::mma_bf16_m16n8k16(s[0], a, b[0], b[1]);
          gpu::mma_bf16_m16n8k16(s[1], a, b[2], b[3]);
        }
      } else {
        const int upd_at = C::kUpdAt + Swizzled(u0 + lane % 8, lane / 8, C::kColumnBytes);
#pragma unroll 2
        for (int k = 0; k < C::kColumns / 16; k += 2) {
          uint32_t a[4], b[4];
          gpu::ldmatrix_x4(b, stage + Ahead(upd_at, 2 * k));
          gpu::ldmatrix_x4(a, stage + Ahead(read_at, 2 * k));
          gpu::mma_bf16_m16n8k16(s[0], a, b[0], b[1]);
          gpu::ldmatrix_x4(a, stage + Ahead(read_at, 2 * k + 2));
          gpu::mma_bf16_m16n8k16(s[1], a, b[2], b[3]);
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) s[0][j] += s[1][j];
      }
    }
    float row_sum[2] = {};
#pragma unroll
    for (int tile = 0; tile < C::kScoreTiles; ++tile) {
      const int u = u0 + tile * 8 + quad * 2;
      const float2 update_exponent = *reinterpret_cast<const float2*>(UpdateExponent(record) + u);
      const int2 update_begin = *reinterpret_cast<const int2*>(record.begin + u);
      const float2 update_addend = *reinterpret_cast<const float2*>(record.addend + u);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int r = r0 + group + half * 8;
        const float exponent = ReadExponent(record)[r];
        const int begin = record.begin[r];
        const float addend = record.addend[r];
        float w[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const bool seen = C::kReverse ? u + e >= r && (e == 0 ? update_begin.x : update_begin.y) <= r
                                        : u + e <= r && begin <= u + e;
          float score = s[tile][half * 2 + e];
          if (C::kAddend) score += !C::kReverse ? addend : e == 0 ? update_addend.x : update_addend.y;
          const float weight = gpu::exp2_fast(exponent + (e == 0 ? update_exponent.x : update_exponent.y));
          w[e] = seen ? score * weight : 0.0f;
        }
        *reinterpret_cast<uint32_t*>(smem + C::kWeightsAt + r * C::kWeightPitch + u * 2) =
            gpu::pack_bf16(w[0], w[1]);
        // The normaliser takes the weights before they are rounded: it may be a small difference of large
        // ones.
        row_sum[half] += w[0] + w[1];
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
      gpu::ldmatrix_x4(a, stage + Ahead(read_at, 2 * k));
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
    const int read_at = C::kReadAt + Swizzled(lane % 8 + lane / 16 * 8, lane / 8 % 2, C::kColumnBytes) +
                        column_group * C::kWarpColumns * 2;
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
        gpu::ldmatrix_x4(b, stage + Ahead(read_at, 2 * k) + tile * 8 * C::kColumnBytes);
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
    if constexpr (C::kBlocked) {
      if constexpr (C::kNormalizer) StoreSums(step);
      if constexpr (C::kDots) Dots(out, step);
      return Block::StorePartial(out, step);
    }
    if constexpr (C::kNormalizer) Normalize(out, step, record);
    if constexpr (C::kDots) Dots(out, step);
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
  // a of token `lane`, of the block's columns.
  __device__ __forceinline__ float SumOfWeights() const {
    const float* const sums = reinterpret_cast<const float*>(smem + C::kSumsAt);
    float a = 0;
#pragma unroll
    for (int i = 0; i < C::kScoreGroups; ++i) a += sums[i * L + lane];
    return a;
  }
  // Cut heads: the first warp of the first slice stores the part of a.
  __device__ __forceinline__ void StoreSums(int step) const {
    const int t = ChunkOf(step) * L + lane;
    if (warp > 0 || slice > 0 || t >= args.num_tokens) return;
    args.a[((Block::ColumnBlock() * args.B * args.NH + pair) * args.NC) * L + t] = SumOfWeights();
  }
  // Divides by N + eps; the first warp of the first slice also stores N.
  __device__ __forceinline__ void Normalize(float (&out)[C::kMyTiles][4], int step,
                                            const MlstmFastRecord& record) {
    const float a = SumOfWeights();
    const int t = ChunkOf(step) * L + lane;
    const bool stores = warp == 0 && slice == 0 && t < args.num_tokens;
    const float N = args.normalize ? fmaxf(fabsf(a), record.floor[lane]) : 1.0f;
    if (stores) *At(args.denominator, head, t) = N;
    const float inverse = args.normalize ? gpu::rcp_fast(N + args.eps) : 1.0f;
    const int first_token = column_group * C::kMyTiles * 8;
#pragma unroll
    for (int tile = 0; tile < C::kMyTiles; ++tile) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float x = __shfl_sync(~0u, inverse, first_token + tile * 8 + quad * 2 + e);
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
        C::kUpdAt + Swizzled(lane % 16, lane / 16, C::kColumnBytes) + column_group * C::kWarpColumns * 2;
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
        gpu::ldmatrix_x4_trans(b, stage + Ahead(upd_at, i) + k * 16 * C::kColumnBytes);
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
};

template <class C>
__global__ void __launch_bounds__(C::kThreads, C::kBlocksPerSm)
    MlstmScanKernel(const __grid_constant__ MlstmFastScanArgs args) {
  BlockScan<C> scan(args);
  scan.Run();
}

}  // namespace carousel::CAROUSEL_DEVICE_NS::mlstm_scan
