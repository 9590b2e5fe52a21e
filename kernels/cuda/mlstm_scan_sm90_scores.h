// The score group of a block of the sm_90a scan (mlstm_scan_sm90_kernel.h): weights, the normaliser, and the
// start of the copies.
#pragma once
#include "kernels/cuda/mlstm_scan_sm90_block.h"

namespace carousel::CAROUSEL_DEVICE_NS::mlstm_sm90 {

#if CAROUSEL_DEVICE_HAS_WGMMA
template <class C>
class Sm90Scores : protected Sm90Block<C> {
 public:
  __device__ __forceinline__ Sm90Scores(const Sm90Maps& the_maps, const MlstmFastScanArgs& a)
      : Block(the_maps, a) {}

  __device__ __forceinline__ void Scores() {
    float n[kMyN][2] = {};  // kNormalizer: columns 2 thread + 256 i and the next one, where there are such
    if (Thread() == 0) {
      for (int step = 0; step < C::kStages && step < num_steps; ++step) Load(step);
    }
    if constexpr (C::kNormalizer) {
      InitN(n);
      gpu::fence_proxy_async();  // the rows of n: ordinary writes -> wgmma
      ScoreBarrier();            // and of all threads
    }
#pragma unroll 1
    for (int step = 0; step < num_steps; ++step) {
      const unsigned char* const stage = StageOf(step);
      const Joint joint = JointOf(step);
      this->ForgetPlaces();
      gpu::mbar_wait(Full(step % C::kStages), static_cast<unsigned>(step / C::kStages) & 1);
      float s[C::kUpdRows / 2];
      gpu::wgmma_fence();
#pragma unroll
      for (int box = 0; box < C::kBoxes; ++box) {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          gpu::wgmma_bf16<C::kUpdRows>(s, KMajor(stage + box * C::kBox, k),
                                       KMajor(stage + C::kUpdAt + box * C::kUpdBox, k), box + k > 0);
        }
      }
      gpu::wgmma_commit();
      if constexpr (C::kNormalizer) UpdateN(n, step, joint);
      gpu::wgmma_wait<0>();
      gpu::wgmma_registers(s);
      Weigh(s, step, joint);
      gpu::fence_proxy_async();  // weights and rows of n: ordinary writes -> wgmma
      ScoreBarrier();            // all threads' weights -> the arrival; rows of n -> the next scores
      if (Thread() == 0) gpu::mbar_arrive(WeightsReady(step % 2));
      if (step == 0) continue;
      // The stage of the step before -> its next copies; its weights -> those of the next step
      gpu::mbar_wait(Empty((step - 1) % C::kStages), static_cast<unsigned>((step - 1) / C::kStages) & 1);
      if (Thread() == 0 && step - 1 + C::kStages < num_steps) Load(step - 1 + C::kStages);
    }
    if constexpr (C::kNormalizer) {
      const bool is_last = blockIdx.y == gridDim.y - 1;
      if (args.final.C != nullptr && is_last && slice == 0) {
        float* const to = args.final.n + pair * args.DHQK + this->FirstColumn();
#pragma unroll
        for (int i = 0; i < kMyN; ++i) {
          if (!OwnsN(i)) continue;
          to[ColumnOfN(i)] = n[i][0];
          to[ColumnOfN(i) + 1] = n[i][1];
        }
      }
    }
  }

 protected:
  using Block = Sm90Block<C>;
  using typename Block::Joint;
  static constexpr int L = C::L;
  using Block::args, Block::entry, Block::head, Block::lane, Block::num_steps, Block::pair, Block::slice,
      Block::Thread, Block::warp;
  using Block::ChunkOf, Block::Empty, Block::Full, Block::HasSecond, Block::InverseOf, Block::JointOf,
      Block::KMajor, Block::Load, Block::RecordOf, Block::StageOf, Block::Swizzled, Block::WeightsOf,
      Block::WeightsReady;

 private:
  __device__ __forceinline__ static void ScoreBarrier() { gpu::bar_sync(1, 128); }

 protected:
  // Of a step's tile of scores, 16 rows of a warp, this thread's and the one 8 below: to_weights(tile, i, w)
  // gets the weights of row i for two columns of the tile's 8. kNormalizerColumn: the scores have the column
  // of the normaliser. Of 32 tokens the last two warps have rows that are none.
  template <bool kReverse, bool kNormalizerColumn, class ToWeights>
  __device__ __forceinline__ void EachWeight(float (&s)[C::kUpdRows / 2], int step,
                                             const ToWeights& to_weights) const {
    const unsigned char* const stage = StageOf(step);
    const int row = warp % 4 * 16 + lane / 4, quad = lane % 4;  // and row + 8
    const int half = warp % 4 / 2;                              // of the rows
    const MlstmFastRecord& mine = RecordOf(stage, half);
    const int r[2] = {row % 32, row % 32 + 8};
    const float* const row_exponent = kReverse ? mine.beta : mine.alpha;
    const float* const row_factor = kReverse ? mine.kappa : mine.rho;
    const float exponent[2] = {row_exponent[r[0]], row_exponent[r[1]]};
    const float factor[2] = {row_factor[r[0]], row_factor[r[1]]};
    const int row_begin[2] = {mine.begin[r[0]], mine.begin[r[1]]};
    const bool second = HasSecond(step);
#pragma unroll
    for (int tile = 0; tile < L / 8; ++tile) {
      const int half_of_u = tile / 4, u = tile % 4 * 8 + quad * 2;
      const MlstmFastRecord& other = RecordOf(stage, half_of_u);
      float w[2][2] = {};
      const bool there = second || (half == 0 && half_of_u == 0);
      if constexpr (kNormalizerColumn) {
        const float2 addend_of_u = *reinterpret_cast<const float2*>(other.addend + u);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          s[4 * tile + 2 * i] += kReverse ? addend_of_u.x : mine.addend[r[i]];
          s[4 * tile + 2 * i + 1] += kReverse ? addend_of_u.y : mine.addend[r[i]];
        }
      }
      if (there && half == half_of_u) {
        const float2 e = *reinterpret_cast<const float2*>((kReverse ? other.alpha : other.beta) + u);
        const int2 begin = *reinterpret_cast<const int2*>(other.begin + u);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            const int v = u + j;
            const bool seen =
                kReverse ? v >= r[i] && (j == 0 ? begin.x : begin.y) <= r[i] : v <= r[i] && row_begin[i] <= v;
            const float weight = gpu::exp2_fast(exponent[i] + (j == 0 ? e.x : e.y));
            w[i][j] = seen ? s[4 * tile + 2 * i + j] * weight : 0.0f;
          }
        }
      } else if (there && (kReverse ? half < half_of_u : half > half_of_u)) {
        const float2 f = *reinterpret_cast<const float2*>((kReverse ? other.rho : other.kappa) + u);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          w[i][0] = s[4 * tile + 2 * i] * (factor[i] * f.x);
          w[i][1] = s[4 * tile + 2 * i + 1] * (factor[i] * f.y);
        }
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) to_weights(tile, i, w[i]);
    }
  }

 private:
  // The weights of the step's scores to shared memory; kH: N.
  __device__ __forceinline__ void Weigh(float (&s)[C::kUpdRows / 2], int step, const Joint& joint) const {
    unsigned char* const weights = WeightsOf(step);
    const int row = warp % 4 * 16 + lane / 4, quad = lane % 4;  // and row + 8
    const int half = warp % 4 / 2;                              // of the rows
    if (half >= C::kRecords) return;
    float sum[2] = {};
    EachWeight<C::kReverse, C::kDots>(s, step, [&](int tile, int i, const float(&w)[2]) {
      *reinterpret_cast<uint32_t*>(weights + Swizzled(row + 8 * i, tile) + quad * 4) =
          gpu::pack_bf16(w[0], w[1]);
      // The normaliser takes the weights before they are rounded: it may be a small difference of large ones.
      sum[i] += w[0] + w[1];
    });
    if constexpr (C::kNormalizer) {
      const MlstmFastRecord& mine = RecordOf(StageOf(step), half);
      const int r[2] = {row % 32, row % 32 + 8};
      const float factor[2] = {mine.rho[r[0]], mine.rho[r[1]]};
      const bool second = HasSecond(step);
      const int token = ChunkOf(step) * kMlstmChunk + row;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float x = half == 0 ? factor[i] : factor[i] * joint.rho_second;
        float a = sum[i] + x * (s[L / 2 + 2 * i] + s[L / 2 + 2 * i + 1]);
        a += __shfl_xor_sync(~0u, a, 1);
        a += __shfl_xor_sync(~0u, a, 2);
        if constexpr (C::kBlocked) {  // a is a part: LaunchMlstmJoin divides
          const int t = token + 8 * i;
          if (quad != 0 || slice != 0 || t >= args.num_tokens || (half > 0 && !second)) continue;
          args.a[(this->ColumnBlock() * args.B * args.NH + pair) * args.NC * kMlstmChunk + t] = a;
          continue;
        }
        const float N = args.normalize ? fmaxf(fabsf(a), mine.floor[r[i]]) : 1.0f;
        if (quad != 0) continue;
        InverseOf(step)[row + 8 * i] = args.normalize ? gpu::rcp_fast(N + args.eps) : 1.0f;
        const int t = token + 8 * i;
        if (slice == 0 && t < args.num_tokens && (half == 0 || second)) {
          args.denominator.data[(entry * args.num_tokens + t) * args.denominator.row_stride + head] = N;
        }
      }
    }
  }

  // ---- n, the normaliser's state: f32, and for the scores as three rows behind upd
  static constexpr int kMyN = (C::kColumns + 255) / 256;
  __device__ __forceinline__ int ColumnOfN(int i) const { return 2 * Thread() + 256 * i; }
  __device__ __forceinline__ bool OwnsN(int i) const { return ColumnOfN(i) < C::kColumns; }
  // The thread's columns in line `line` of upd.
  __device__ __forceinline__ unsigned char* PlaceOfN(int step, int i, int line) const {
    return StageOf(step) + C::kUpdAt + ColumnOfN(i) / 64 * C::kUpdBox + Swizzled(line, lane / 4) +
           lane % 4 * 4;
  }
  __device__ __forceinline__ void InitN(float (&n)[kMyN][2]) const {
#pragma unroll
    for (int i = 0; i < kMyN; ++i) {
      if (!OwnsN(i)) continue;
      if (args.initial.C != nullptr) {
        const int64_t at = blockIdx.y * args.B * args.NH + pair;
        const float* const from = args.initial.n + at * args.DHQK + this->FirstColumn() + ColumnOfN(i);
        n[i][0] = from[0];
        n[i][1] = from[1];
      }
      for (int s = 0; s < C::kStages; ++s) {
#pragma unroll
        for (int line = 3; line < 8; ++line) {
          *reinterpret_cast<uint32_t*>(PlaceOfN(s, i, L + line)) = 0;
        }
      }
    }
    StoreN(n, 0);
  }
  __device__ __forceinline__ void StoreN(const float (&n)[kMyN][2], int step) const {
#pragma unroll
    for (int i = 0; i < kMyN; ++i) {
      if (!OwnsN(i)) continue;
      float rest[2] = {n[i][0], n[i][1]};
#pragma unroll
      for (int line = 0; line < 3; ++line) {
        const uint32_t terms = gpu::pack_bf16(rest[0], rest[1]);
        const float2 x = gpu::unpack_bf16(terms);
        rest[0] -= x.x;
        rest[1] -= x.y;
        *reinterpret_cast<uint32_t*>(PlaceOfN(step, i, L + line)) = terms;
      }
    }
  }
  // n after the step, for the next one's scores.
  __device__ __forceinline__ void UpdateN(float (&n)[kMyN][2], int step, const Joint& joint) const {
    const unsigned char* const stage = StageOf(step);
#pragma unroll
    for (int i = 0; i < kMyN; ++i) {
      if (!OwnsN(i)) continue;
      n[i][0] *= joint.gamma;
      n[i][1] *= joint.gamma;
#pragma unroll
      for (int half = 0; half < C::kRecords; ++half) {
        const float factor = half == 0 ? joint.kappa_first : joint.kappa_second;
#pragma unroll 4
        for (int u = 0; u < kMlstmChunk; ++u) {
          const float kappa = RecordOf(stage, half).kappa[u] * factor;
          const float2 x =
              gpu::unpack_bf16(*reinterpret_cast<const uint32_t*>(PlaceOfN(step, i, half * kMlstmChunk + u)));
          n[i][0] += kappa * x.x;
          n[i][1] += kappa * x.y;
        }
      }
    }
    StoreN(n, step + 1);
  }
};
#endif

}  // namespace carousel::CAROUSEL_DEVICE_NS::mlstm_sm90
