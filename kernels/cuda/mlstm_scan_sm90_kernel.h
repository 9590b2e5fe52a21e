// The kernel of the sm_90a scan, one template for its roles and head widths (mlstm_scan_sm90_config.h).
//
// Grid: (slices x pairs, segments), clusters of a pair's slices. A step of 64 tokens is two records, whose
// factors are joined on the way: gamma_2 carries the first half to the end of the second, gamma_1 the start
// of the first to the second, and a token of one half weighs for one of the other rho * kappa.
//
//   scores   1. S = read upd^T: wgmma, 64 x 64 (kH: 72 columns, the last ones give n.read)
//            2. weights = S exp2(alpha + beta), masked, in bf16 -> state groups; kH: 1 / (N + eps)
//            3. when the state groups have left the step before: starts the copies of the stage it had
//   state    1. out^T = x (State read^T), State rounded to bf16 fragments where it is, 64 rows a group
//            2. out^T += row^T weights^T
//            3. State = gamma State + (y row)^T upd; meanwhile out goes to shared memory and on by TMA
//
// Barriers: full[stage] (bytes have come), weights[step % 2] (from the scores), empty[stage] (from the warps
// of every state group of the cluster: a stage's read and upd come to all its blocks at once). The scores run
// ahead of the state by one step; a state group that enters a step has been given the scores' last reads of
// the step before by its weights, so empty speaks for them too.
#pragma once
#include "kernels/cuda/mlstm_scan_sm90_scores.h"

namespace carousel::CAROUSEL_DEVICE_NS::mlstm_sm90 {

#if CAROUSEL_DEVICE_HAS_WGMMA
template <class C>
class Sm90Scan : Sm90Scores<C> {
 public:
  __device__ __forceinline__ Sm90Scan(const Sm90Maps& the_maps, const MlstmFastScanArgs& a)
      : Sm90Scores<C>(the_maps, a) {}

  __device__ __forceinline__ void Run() {
    if (threadIdx.x == 0) {
      for (int s = 0; s < C::kStages; ++s) {
        gpu::mbar_init(Full(s), 1);
        gpu::mbar_init(Empty(s), 4 * C::kStateGroups * C::kSlices);
      }
      for (int i = 0; i < 2; ++i) gpu::mbar_init(WeightsReady(i), 1);
      gpu::fence_mbar_init();
    }
    if constexpr (C::kSlices > 1) {
      gpu::cluster_sync();  // the barriers: initialised above -> copies and arrivals of every block
    } else {
      __syncthreads();  // the barriers: initialised above, used below
    }
    if (warp / 4 == C::kStateGroups) {
      if constexpr (C::kMovesRegisters) gpu::setmaxnreg_dec<C::kScoreRegisters>();
      this->Scores();
    } else {
      if constexpr (C::kMovesRegisters) gpu::setmaxnreg_inc<C::kStateRegisters>();
      States();
    }
    // A block must not exit while others may copy into it or arrive at its barriers.
    if constexpr (C::kSlices > 1) gpu::cluster_sync();
  }

 private:
  using Block = Sm90Block<C>;
  using typename Block::Joint;
  static constexpr int L = C::L;
  using Block::args, Block::entry, Block::head, Block::lane, Block::maps, Block::num_steps, Block::pair,
      Block::slice, Block::smem, Block::thread, Block::warp;
  using Block::ChunkOf, Block::Empty, Block::Full, Block::HasSecond, Block::InverseOf, Block::JointOf,
      Block::KMajor, Block::MnMajor, Block::RecordOf, Block::StageOf, Block::Swizzled, Block::WeightsOf,
      Block::WeightsReady;

  // ---- a state group
  __device__ __forceinline__ void States() {
    const int group = warp / 4;
    float state[C::kColumns / 2];
    LoadState(state, group);
#pragma unroll 1
    for (int step = 0; step < num_steps; ++step) {
      const unsigned char* const stage = StageOf(step);
      const unsigned char* const row_box = stage + C::kRowAt + group * C::kBox;
      const Joint joint = JointOf(step);
      gpu::mbar_wait_cluster(Full(step % C::kStages), static_cast<unsigned>(step / C::kStages) & 1);
      gpu::wgmma_settled(state);
      float out[32];  // out^T: the group's 64 rows x 64 tokens
      ReadState(out, state, stage, joint);
      uint32_t row[4][4];  // A fragments of row^T
      LoadRows(row, row_box);
      gpu::mbar_wait(WeightsReady(step % 2), static_cast<unsigned>(step / 2) & 1);
      gpu::wgmma_registers(out);
      gpu::wgmma_fence();
#pragma unroll
      for (int k = 0; k < 4; ++k) gpu::wgmma_bf16_ra<64>(out, row[k], KMajor(WeightsOf(step), k));
      gpu::wgmma_commit();
#pragma unroll
      for (int i = 0; i < C::kColumns / 2; ++i) state[i] *= joint.gamma;
      gpu::wgmma_wait<0>();
      gpu::wgmma_registers(out);
      WeighRows(row, stage, joint);
      gpu::wgmma_registers(state);
      gpu::wgmma_fence();
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        gpu::wgmma_bf16_ra<C::kColumns, true>(state, row[k], MnMajor(stage + C::kUpdAt, k, C::kUpdBox));
      }
      gpu::wgmma_commit();
      StoreOut(out, step, group);
      gpu::wgmma_wait<0>();
      gpu::wgmma_registers(state);
      // The warp's products are done; other reads of the stage and the weights came before StoreOut's
      // barriers.
      if (lane < C::kSlices) {
        if constexpr (C::kSlices > 1) {
          gpu::mbar_arrive_remote(Empty(step % C::kStages), static_cast<unsigned>(lane));
        } else {
          gpu::mbar_arrive(Empty(step % C::kStages));
        }
      }
    }
    if (thread == 0) gpu::bulk_wait<0>();
    StoreState(state, group);
  }

  // out^T = x (State read^T)
  __device__ __forceinline__ void ReadState(float (&out)[32], const float (&state)[C::kColumns / 2],
                                            const unsigned char* stage, const Joint& joint) const {
    constexpr int kGroup = 2, kGroups = C::kColumns / 16 / kGroup;  // products that wait for each other
    uint32_t a[2][kGroup][4];
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
#pragma unroll
      for (int j = 0; j < kGroup; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int at = (g * kGroup + j) * 8 + 2 * i;
          a[g % 2][j][i] = gpu::pack_bf16(state[at], state[at + 1]);
        }
      }
      gpu::wgmma_fence();
#pragma unroll
      for (int j = 0; j < kGroup; ++j) {
        const int k = g * kGroup + j;
        gpu::wgmma_bf16_ra<64>(out, a[g % 2][j], KMajor(stage + k / 4 * C::kBox, k % 4), k > 0);
      }
      gpu::wgmma_commit();
      if (g > 0) gpu::wgmma_wait<1>();  // the fragments before -> the next ones
    }
    gpu::wgmma_wait<0>();
    gpu::wgmma_registers(out);
#pragma unroll
    for (int tile = 0; tile < 8; ++tile) {
      const MlstmFastRecord& record = RecordOf(stage, tile / 4);
      const float* const factors = C::kReverse ? record.kappa : record.rho;
      float2 x = *reinterpret_cast<const float2*>(factors + tile % 4 * 8 + lane % 4 * 2);
      const float joined = C::kReverse ? (tile < 4 ? joint.kappa_first : joint.kappa_second)
                                       : (tile < 4 ? 1.0f : joint.rho_second);
      x.x *= joined;
      x.y *= joined;
#pragma unroll
      for (int j = 0; j < 4; ++j) out[4 * tile + j] *= j % 2 == 0 ? x.x : x.y;
    }
  }

  __device__ __forceinline__ void LoadRows(uint32_t (&row)[4][4], const unsigned char* box) const {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int token = k * 16 + lane % 8 + lane / 16 * 8, piece = warp % 4 * 2 + lane / 8 % 2;
      gpu::ldmatrix_x4_trans(row[k], box + Swizzled(token, piece));
    }
  }
  // y row, rounded
  __device__ __forceinline__ void WeighRows(uint32_t (&row)[4][4], const unsigned char* stage,
                                            const Joint& joint) const {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const MlstmFastRecord& record = RecordOf(stage, k / 2);
      const float* const factors = C::kReverse ? record.rho : record.kappa;
      const float joined =
          C::kReverse ? (k < 2 ? 1.0f : joint.rho_second) : (k < 2 ? joint.kappa_first : joint.kappa_second);
#pragma unroll
      for (int eight = 0; eight < 2; ++eight) {
        const float2 y = *reinterpret_cast<const float2*>(factors + k % 2 * 16 + eight * 8 + lane % 4 * 2);
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          uint32_t& pair_of_tokens = row[k][2 * eight + j];
          const float2 x = gpu::unpack_bf16(pair_of_tokens);
          pair_of_tokens = gpu::pack_bf16(x.x * (y.x * joined), x.y * (y.y * joined));
        }
      }
    }
  }

  // Over the group's tile in shared memory to the tensor: TMA cuts off what lies after the sequence, and a
  // missing half is not stored.
  __device__ __forceinline__ void StoreOut(const float (&out)[32], int step, int group) const {
    unsigned char* const box = smem + C::kOutAt + group * C::kBox;
    if (thread == 0) gpu::bulk_wait_read<0>();
    GroupBarrier(group);  // the last tile has been read -> this one
#pragma unroll
    for (int tile = 0; tile < 8; tile += 2) {
      float2 x = make_float2(1, 1), y = x;
      if constexpr (C::kNormalizer) {
        const float* const inverse = InverseOf(step) + tile * 8 + lane % 4 * 2;
        x = *reinterpret_cast<const float2*>(inverse);
        y = *reinterpret_cast<const float2*>(inverse + 8);
      }
      const float(&o)[32] = out;
      const int at = 4 * tile;
      const uint32_t r[4] = {
          gpu::pack_bf16(o[at] * x.x, o[at + 1] * x.y), gpu::pack_bf16(o[at + 4] * y.x, o[at + 5] * y.y),
          gpu::pack_bf16(o[at + 2] * x.x, o[at + 3] * x.y), gpu::pack_bf16(o[at + 6] * y.x, o[at + 7] * y.y)};
      gpu::stmatrix_x4_trans(box + Swizzled(tile * 8 + lane % 16, warp % 4 * 2 + lane / 16), r);
    }
    gpu::fence_proxy_async();  // the tile: ordinary writes -> TMA
    GroupBarrier(group);       // and of all threads
    if (thread != 0) return;
    const int column = (head * C::kSlices + slice) * C::kRows + group * 64,
              token = ChunkOf(step) * kMlstmChunk;
    gpu::tma_store_4d(maps.out, column, token, entry, 0, box);
    if (HasSecond(step)) {
      gpu::tma_store_4d(maps.out, column, token + kMlstmChunk, entry, 0, box + kMlstmChunk * C::kLine);
    }
    gpu::bulk_commit();
  }
  __device__ __forceinline__ static void GroupBarrier(int group) { gpu::bar_sync(2 + group, 128); }

  // Offset in C (DHQK, DHV) of the thread's first element; a column is a row of C further on.
  __device__ __forceinline__ int64_t StateAt(int group) const {
    const int row = slice * C::kRows + group * 64 + warp % 4 * 16 + lane / 4, column = lane % 4 * 2;
    return column * args.DHV + row;
  }
  __device__ __forceinline__ void LoadState(float (&state)[C::kColumns / 2], int group) const {
    const bool given = args.initial.C != nullptr;
    const int64_t at = blockIdx.y * args.B * args.NH + pair;
    const float* const from = given ? args.initial.C + at * args.DHQK * args.DHV + StateAt(group) : nullptr;
#pragma unroll
    for (int i = 0; i < C::kColumns / 2; ++i) {
      state[i] = given ? from[(i / 4 * 8 + i % 2) * args.DHV + i % 4 / 2 * 8] : 0.0f;
    }
  }
  __device__ __forceinline__ void StoreState(const float (&state)[C::kColumns / 2], int group) const {
    if (!C::kNormalizer || args.final.C == nullptr || blockIdx.y != gridDim.y - 1) return;
    float* const to = args.final.C + pair * args.DHQK * args.DHV + StateAt(group);
#pragma unroll
    for (int i = 0; i < C::kColumns / 2; ++i) to[(i / 4 * 8 + i % 2) * args.DHV + i % 4 / 2 * 8] = state[i];
  }
};
#endif

template <class C>
__global__ void __launch_bounds__(C::kThreads, 1)
    MlstmSm90Kernel(const __grid_constant__ Sm90Maps maps, const __grid_constant__ MlstmFastScanArgs args) {
#if CAROUSEL_DEVICE_HAS_WGMMA
  Sm90Scan<C> scan(maps, args);
  scan.Run();
#endif
}

}  // namespace carousel::CAROUSEL_DEVICE_NS::mlstm_sm90
