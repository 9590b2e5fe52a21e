// The kernel of the sm_90a scan, one template for its roles and head widths (mlstm_scan_sm90_config.h).
//
// Grid: (slices x pairs, segments, blocks of columns: 1 but for mlstm_blocks.h), clusters of the slices of a
// pair or of a block of its state. A step of 64 tokens is two records, whose factors are joined on the way:
// gamma_2 carries the first half to the end of the second, gamma_1 the start of the first to the second, and
// a token of one half weighs for one of the other rho * kappa. With column groups a step is one record of 32
// tokens.
//
//   scores   1. S = read upd^T: wgmma, L x L (kH: 8 columns more, which give n.read). A wgmma has 64 rows: of
//               32 tokens those of the next box come along, and are not used
//            2. weights = (S + addend) exp2(alpha + beta), masked, in bf16 -> state groups; kH: 1 / (N + eps)
//            3. when the state groups have left the step before: starts the copies of the stage it had
//   state    1. out^T = x (State read^T + n addend), State rounded to bf16 fragments where it is, 64 rows a
//               group
//            2. out^T += row^T weights^T; column groups give each other their parts of half of the tokens
//            3. State = gamma State + (y row)^T upd; meanwhile out goes to shared memory and on by TMA, with
//               its dot products; kDQ and kDK: every 256th token, the anchor
//
// Barriers: full[stage] (bytes have come), weights[step % 2] (from the scores), empty[stage] (from the warps
// of every state group of the cluster: a stage's read and upd come to all its blocks at once),
// dot_rows[group] (bytes for the group's dot products; it starts the next copy itself when its threads have
// read them). kGivesDV: rounded_ready and rounded_free[step % kRounded], the state that a step begins with
// from the state groups to the group for dv (mlstm_scan_sm90_values.h) and back; this group and the one for
// dq (mlstm_scan_sm90_queries.h, which waits by saved_ready for bytes of the states that it reads) arrive at
// empty as well. The scores run ahead of the state by one step; a state group that enters a step has been
// given the scores' last reads of the step before by its weights, so empty speaks for them too.
#pragma once
#include "kernels/cuda/mlstm_scan_sm90_queries.h"

namespace carousel::CAROUSEL_DEVICE_NS::mlstm_sm90 {

#if CAROUSEL_DEVICE_HAS_WGMMA
template <class C>
class Sm90Scan : protected Sm90Queries<C> {
 public:
  __device__ __forceinline__ Sm90Scan(const Sm90Maps& the_maps, const MlstmFastScanArgs& a)
      : Sm90Queries<C>(the_maps, a) {}

  __device__ __forceinline__ void Run() {
    if (threadIdx.x == 0) {
      for (int s = 0; s < C::kStages; ++s) {
        gpu::mbar_init(Full(s), 1);
        gpu::mbar_init(Empty(s), 4 * C::kStateGroups * C::kSlices + C::kGivesDV + C::kGivesDQ);
      }
      for (int i = 0; i < 2; ++i) gpu::mbar_init(WeightsReady(i), 1);
      if constexpr (C::kGivesDV) {
        for (int i = 0; i < C::kRounded; ++i) {
          gpu::mbar_init(RoundedReady(i), 4 * C::kStateGroups);
          gpu::mbar_init(RoundedFree(i), 4);
        }
        if constexpr (C::kGivesDQ) gpu::mbar_init(SavedReady(), 1);
      } else {
        for (int i = 0; C::kDots && i < C::kStateGroups; ++i) gpu::mbar_init(DotRowsReady(i), 1);
      }
      gpu::fence_mbar_init();
    }
    if constexpr (C::kBlocked && C::kDots) this->ClearAddends();
    if constexpr (C::kSlices > 1) {
      // The barriers: initialised above -> copies and arrivals of every block; cleared addends -> all groups
      gpu::cluster_sync();
    } else {
      __syncthreads();  // the barriers: initialised above, used below
    }
    if (warp / 4 == C::kStateGroups) {
      if constexpr (C::kMovesRegisters) gpu::setmaxnreg_dec<C::kScoreRegisters>();
      this->Scores();
    } else if (C::kGivesDV && warp / 4 > C::kStateGroups) {
      if constexpr (C::kGivesDQ) {
        if (warp / 4 == C::kStateGroups + 2) {
          gpu::setmaxnreg_inc<C::kQueryRegisters>();
          this->Queries();
          return;
        }
      }
      if constexpr (C::kGivesDV) {
        if constexpr (C::kMovesRegisters) gpu::setmaxnreg_dec<C::kValueRegisters>();
        this->Values();
      }
    } else {
      if constexpr (C::kMovesRegisters) gpu::setmaxnreg_inc<C::kStateRegisters>();
      States();
    }
    // A block must not exit while others may copy into it or arrive at its barriers.
    if constexpr (C::kSlices > 1) gpu::cluster_sync();
  }

 protected:
  using Block = Sm90Block<C>;
  using State = Sm90State<C>;
  using typename Block::Joint;
  static constexpr int L = C::L, kStateElems = State::kStateElems, kMyElems = State::kMyElems;
  using Block::DotRowsReady, Block::Empty, Block::Full, Block::JointOf, Block::KMajor, Block::MnMajor,
      Block::RecordOf, Block::RoundedFree, Block::RoundedOf, Block::RoundedReady, Block::SavedReady,
      Block::StageOf, Block::Swizzled, Block::WeightsOf, Block::WeightsReady;
  using Block::lane, Block::num_steps, Block::warp;

  // ---- a state group
  __device__ __forceinline__ void States() {
    const int group = warp / 4;
    float state[kStateElems], n[2] = {};
    this->LoadState(state, n, group);
    if constexpr (C::kDots && !C::kGivesDV) {
      if (this->Thread() == 0 && num_steps > 0) this->LoadDotRows(0, group);
    }
#pragma unroll 1
    for (int step = 0; step < num_steps; ++step) {
      const unsigned char* const stage = StageOf(step);
      const unsigned char* const row_box = stage + C::kRowAt + this->RowGroup(group) * C::kBox;
      const Joint joint = JointOf(step);
      this->ForgetPlaces();
      gpu::mbar_wait(Full(step % C::kStages), static_cast<unsigned>(step / C::kStages) & 1);
      gpu::wgmma_settled(state);
      float out[L / 2];  // out^T: the group's 64 rows x the step's tokens
      ReadState(out, state, n, step, joint, group);
      uint32_t row[L / 16][4];  // A fragments of row^T
      LoadRows(row, row_box);
      gpu::mbar_wait(WeightsReady(step % 2), static_cast<unsigned>(step / 2) & 1);
      gpu::wgmma_registers(out);
      gpu::wgmma_fence();
      if constexpr (C::kColumnGroups > 1) {
        static_assert(L == 16 * C::kColumnGroups);  // 16 of the tokens that are summed over for each group
        const bool first = group == 0;
        const uint32_t mine[4] = {first ? row[0][0] : row[1][0], first ? row[0][1] : row[1][1],
                                  first ? row[0][2] : row[1][2], first ? row[0][3] : row[1][3]};
        gpu::wgmma_bf16_ra<L>(out, mine, KMajor(WeightsOf(step), group));
      } else {
#pragma unroll
        for (int k = 0; k < L / 16; ++k) gpu::wgmma_bf16_ra<L>(out, row[k], KMajor(WeightsOf(step), k));
      }
      gpu::wgmma_commit();
#pragma unroll
      for (int i = 0; i < kStateElems; ++i) state[i] *= joint.gamma;
      gpu::wgmma_wait<0>();
      gpu::wgmma_registers(out);
      if constexpr (C::kColumnGroups > 1) {
        this->Give(out, step, group);
      } else if constexpr (C::kDots) {
        // Not beside the update, whose operands leave too few registers; the rows are read once more for it.
        this->Dots(out, step, group);
        this->ForgetPlaces();
        LoadRows(row, row_box);
      }
      WeighRows(row, n, stage, joint);
      gpu::wgmma_registers(state);
      gpu::wgmma_fence();
      const unsigned char* const upd =
          stage + C::kUpdAt + this->ColumnGroup(group) * (C::kGroupColumns / 64) * C::kUpdBox;
#pragma unroll
      for (int k = 0; k < L / 16; ++k) {
        gpu::wgmma_bf16_ra<C::kGroupColumns, true>(state, row[k], MnMajor(upd, k, C::kUpdBox));
      }
      gpu::wgmma_commit();
      Finish(out, step, group);
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
      if constexpr (C::kDots) {
        if (this->IsAnchor(step)) {
          C::kReverse ? this->DotAnchor(state, n, step, group) : this->StoreAnchor(state, n, step, group);
        }
      }
    }
    if (this->Thread() == 0) gpu::bulk_wait<0>();
    this->StoreState(state, n, group);
  }

  __device__ __forceinline__ void Finish(const float (&out)[L / 2], int step, int group) const {
    if constexpr (C::kColumnGroups > 1) {
      float mine[kMyElems];
      this->Take(mine, out, step, group);
      if constexpr (C::kDots) this->Dots(mine, step, group);
      this->StoreOut(mine, step, group);
    } else {
      this->StoreOut(out, step, group);
    }
  }

  // out^T = x (State read^T + n addend), of the group's columns; n counts once.
  __device__ __forceinline__ void ReadState(float (&out)[L / 2], const float (&state)[kStateElems],
                                            const float (&n)[2], int step, const Joint& joint,
                                            int group) const {
    const unsigned char* const stage = StageOf(step);
    constexpr int kGroup = 2, kGroups = C::kGroupColumns / 16 / kGroup;  // products that wait for each other
    const int first_box = this->ColumnGroup(group) * (C::kGroupColumns / 64);
    if constexpr (C::kDots) {
      const bool counts = this->ColumnGroup(group) == 0;
      const float row_n[2] = {counts ? this->WholeN(n[0]) : 0.0f, counts ? this->WholeN(n[1]) : 0.0f};
#pragma unroll
      for (int tile = 0; tile < L / 8; ++tile) {
        float2 column = make_float2(1, 1);
        if constexpr (C::kRole == MlstmRole::kDQ) {
          column = *reinterpret_cast<const float2*>(RecordOf(stage, tile / 4).addend + tile % 4 * 8 +
                                                    lane % 4 * 2);
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) out[4 * tile + j] = row_n[j / 2] * (j % 2 == 0 ? column.x : column.y);
      }
    }
    if constexpr (C::kGivesDV) {
      if (step >= C::kRounded) {
        gpu::mbar_wait(RoundedFree(step), static_cast<unsigned>(step / C::kRounded - 1) & 1);
      }
    }
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
        if constexpr (C::kGivesDV) {
          const int k = g * kGroup + j, line = group * 64 + warp % 4 * 16 + lane % 16;
          gpu::stmatrix_x4(RoundedOf(step) + k / 4 * C::kRoundedBox + Swizzled(line, k % 4 * 2 + lane / 16),
                           a[g % 2][j]);
        }
      }
      gpu::wgmma_fence();
#pragma unroll
      for (int j = 0; j < kGroup; ++j) {
        const int k = g * kGroup + j;
        gpu::wgmma_bf16_ra<L>(out, a[g % 2][j], KMajor(stage + (first_box + k / 4) * C::kBox, k % 4),
                              C::kDots || k > 0);
      }
      gpu::wgmma_commit();
      if (g > 0) gpu::wgmma_wait<1>();  // the fragments before -> the next ones
    }
    if constexpr (C::kGivesDV) {
      gpu::fence_proxy_async();  // the rounded state: ordinary writes -> wgmma
      __syncwarp();              // and of all lanes -> the arrival
      if (lane == 0) gpu::mbar_arrive(RoundedReady(step));
    }
    gpu::wgmma_wait<0>();
    gpu::wgmma_registers(out);
#pragma unroll
    for (int tile = 0; tile < L / 8; ++tile) {
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

  __device__ __forceinline__ void LoadRows(uint32_t (&row)[L / 16][4], const unsigned char* box) const {
#pragma unroll
    for (int k = 0; k < L / 16; ++k) {
      const int token = k * 16 + lane % 8 + lane / 16 * 8, piece = warp % 4 * 2 + lane / 8 % 2;
      gpu::ldmatrix_x4_trans(row[k], box + Swizzled(token, piece));
    }
  }
  // y row, rounded; kDots: and n, from what is not.
  __device__ __forceinline__ void WeighRows(uint32_t (&row)[L / 16][4], float (&n)[2],
                                            const unsigned char* stage, const Joint& joint) const {
    if constexpr (C::kDots) {
      n[0] *= joint.gamma;
      n[1] *= joint.gamma;
    }
#pragma unroll
    for (int k = 0; k < L / 16; ++k) {
      const MlstmFastRecord& record = RecordOf(stage, k / 2);
      const float* const factors = C::kReverse ? record.rho : record.kappa;
      const float joined =
          C::kReverse ? (k < 2 ? 1.0f : joint.rho_second) : (k < 2 ? joint.kappa_first : joint.kappa_second);
#pragma unroll
      for (int eight = 0; eight < 2; ++eight) {
        const int u = k % 2 * 16 + eight * 8 + lane % 4 * 2;
        const float2 y = *reinterpret_cast<const float2*>(factors + u);
        float2 z = make_float2(1, 1);
        if constexpr (C::kRole == MlstmRole::kDK) z = *reinterpret_cast<const float2*>(record.addend + u);
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          uint32_t& pair_of_tokens = row[k][2 * eight + j];
          const float2 x = gpu::unpack_bf16(pair_of_tokens);
          const float first = x.x * (y.x * joined), second = x.y * (y.y * joined);
          pair_of_tokens = gpu::pack_bf16(first, second);
          if constexpr (C::kDots) n[j] += first * z.x + second * z.y;
        }
      }
    }
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
