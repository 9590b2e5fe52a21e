// The group that gives dq beside dk and dv (mlstm_scan_sm90_kernel.h, kGivesDQ). kDQ needs C, which grows
// forward in time: a scan before this one (mlstm_scan_sm90_save.h) has left C and n before every pair of
// steps, rounded as the product rounds them.
//
//   dq[t] = rho[t] (dh[t] C^T + addend[t] n) + sum over s <= t of W[t][s] (dh[t].v[s] + addend[t]) k[s]
//
// Per step, the scores dh v^T (wgmma, 64 x 64) and their weights as fragments in registers, rounded once;
// then dh C^T, the column of the normaliser and the factor rho on the sums, and the weights' product with k.
// In the later step of a pair the tokens of the earlier one, whose stage has come with it or is on its way,
// take part as a second tile of weights: rho[t] kappa[s], as across the two records of a step.
#pragma once
#include "kernels/cuda/mlstm_scan_sm90_values.h"

namespace carousel::CAROUSEL_DEVICE_NS::mlstm_sm90 {

#if CAROUSEL_DEVICE_HAS_WGMMA
template <class C>
class Sm90Queries : protected Sm90Values<C> {
 public:
  __device__ __forceinline__ Sm90Queries(const Sm90Maps& the_maps, const MlstmFastScanArgs& a)
      : Sm90Values<C>(the_maps, a) {}

  __device__ __forceinline__ void Queries() {
    if (Thread() == 0 && num_steps > 0) LoadSaved(0);
#pragma unroll 1
    for (int step = 0; step < num_steps; ++step) {
      const unsigned char* const stage = StageOf(step);
      const bool later = ChunkOf(step) % kMlstmSavedChunks != 0;
      this->ForgetPlaces();
      gpu::mbar_wait(Full(step % C::kStages), static_cast<unsigned>(step / C::kStages) & 1);
      uint32_t weights[L / 16][4];  // A fragments: rows of dh, tokens s
      {
        float s[L / 2];
        ScoresWith(s, stage, stage);
        this->template EachWeight<false, true>(s, step, [&](int tile, int i, const float(&w)[2]) {
          weights[tile / 2][tile % 2 * 2 + i] = gpu::pack_bf16(w[0], w[1]);
        });
      }
      float out[32];
      ReadSaved(out, step, later);
      AddKeys(out, weights, stage);
      if (later) {
        const unsigned char* const earlier = StageOf(step + 1);
        gpu::mbar_wait(Full((step + 1) % C::kStages), static_cast<unsigned>((step + 1) / C::kStages) & 1);
        float s[L / 2];
        ScoresWith(s, stage, earlier);
        WeighEarlier(weights, s, step);
        AddKeys(out, weights, earlier);
      }
      StoreQueryDots(out, step);
      if (Thread() == 0) gpu::bulk_wait_read<0>();
      QueriesBarrier();  // the last tile has been read by its copy -> this one
      this->StoreTile(out, smem + C::kQueriesAt);
      gpu::fence_proxy_async();  // the tile: ordinary writes -> TMA
      QueriesBarrier();  // and of all threads; their reads of the stage and of the saved state -> thread 0
      if (Thread() == 0) {
        gpu::mbar_arrive(Empty(step % C::kStages));
        StoreQueries(step);
        if (!later && step + 1 < num_steps) LoadSaved(step + 1);
      }
    }
    if (Thread() == 0) gpu::bulk_wait<0>();
  }

 protected:
  using Block = Sm90Block<C>;
  using typename Block::Joint;
  static constexpr int L = C::L;
  using Block::args, Block::entry, Block::head, Block::lane, Block::maps, Block::num_steps, Block::pair,
      Block::smem, Block::Thread, Block::warp;
  using Block::ChunkOf, Block::Empty, Block::Full, Block::HasSecond, Block::JointOf, Block::KMajor,
      Block::MnMajor, Block::RecordOf, Block::SavedAt, Block::SavedReady, Block::StageOf, Block::Swizzled;
  __device__ __forceinline__ static void QueriesBarrier() { gpu::bar_sync(6, 128); }
  __device__ __forceinline__ int Half() const { return warp % 4 / 2; }  // record of the thread's two tokens
  __device__ __forceinline__ int Row() const { return warp % 2 * 16 + lane / 4; }  // in it, and Row() + 8

  __device__ __forceinline__ void LoadSaved(int step) const {
    gpu::mbar_arrive_expect_tx(SavedReady(), C::kSavedBytes);
    gpu::bulk_g2s(smem + C::kSavedAt, SavedAt(ChunkOf(step)), C::kSavedBytes, SavedReady());
  }

  // dh of one stage, v of another.
  __device__ __forceinline__ void ScoresWith(float (&s)[L / 2], const unsigned char* stage,
                                             const unsigned char* other) const {
    gpu::wgmma_fence();
#pragma unroll
    for (int k = 0; k < C::kColumns / 16; ++k) {
      gpu::wgmma_bf16<L>(s, KMajor(stage + C::kUpdAt + k / 4 * C::kUpdBox, k % 4),
                         KMajor(other + k / 4 * C::kBox, k % 4), k > 0);
    }
    gpu::wgmma_commit();
    gpu::wgmma_wait<0>();
    gpu::wgmma_registers(s);
  }

  // Weights of a step's tokens for those of the earlier step of the pair.
  __device__ __forceinline__ void WeighEarlier(uint32_t (&weights)[L / 16][4], const float (&s)[L / 2],
                                               int step) const {
    const MlstmFastRecord& mine = RecordOf(StageOf(step), Half());
    const Joint joint = JointOf(step), earlier = JointOf(step + 1);
    const float joined = Half() == 0 ? 1.0f : joint.rho_second;
    const float rho[2] = {mine.rho[Row()] * joined, mine.rho[Row() + 8] * joined};
    const float addend[2] = {mine.addend[Row()], mine.addend[Row() + 8]};
#pragma unroll
    for (int tile = 0; tile < L / 8; ++tile) {
      const float2 kappa = *reinterpret_cast<const float2*>(RecordOf(StageOf(step + 1), tile / 4).kappa +
                                                            tile % 4 * 8 + lane % 4 * 2);
      const float factor = tile < 4 ? earlier.kappa_first : earlier.kappa_second;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float x = rho[i] * factor;
        weights[tile / 2][tile % 2 * 2 + i] =
            gpu::pack_bf16((s[4 * tile + 2 * i] + addend[i]) * (x * kappa.x),
                           (s[4 * tile + 2 * i + 1] + addend[i]) * (x * kappa.y));
      }
    }
  }

  // out = rho (dh C^T + addend n), of 16 tokens per warp: element 4 t + j is token lane / 4 + j / 2 * 8 of
  // them, column 8 t + lane % 4 * 2 + j % 2.
  __device__ __forceinline__ void ReadSaved(float (&out)[32], int step, bool later) const {
    const unsigned char *const stage = StageOf(step), *const saved = smem + C::kSavedAt;
    gpu::mbar_wait(
        SavedReady(),
        static_cast<unsigned>(ChunkOf(0) / kMlstmSavedChunks - ChunkOf(step) / kMlstmSavedChunks) & 1);
    gpu::wgmma_fence();
#pragma unroll
    for (int k = 0; k < C::kColumns / 16; ++k) {
      gpu::wgmma_bf16<64>(out, KMajor(stage + C::kUpdAt + k / 4 * C::kUpdBox, k % 4),
                          KMajor(saved + k / 4 * C::kRoundedBox, k % 4), k > 0);
    }
    gpu::wgmma_commit();
    const MlstmFastRecord& mine = RecordOf(stage, Half());
    const float from_pair = later ? JointOf(step + 1).gamma : 1.0f;  // to the step
    const float joined = (Half() == 0 ? 1.0f : JointOf(step).rho_second) * from_pair;
    const float rho[2] = {mine.rho[Row()] * joined, mine.rho[Row() + 8] * joined};
    const float addend[2] = {mine.addend[Row()], mine.addend[Row() + 8]};
    const float* const n = reinterpret_cast<const float*>(saved + C::kBoxes * C::kRoundedBox) + lane % 4 * 2;
    gpu::wgmma_wait<0>();
    gpu::wgmma_registers(out);
#pragma unroll
    for (int tile = 0; tile < 8; ++tile) {
      const float2 column = *reinterpret_cast<const float2*>(n + tile * 8);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float& x = out[4 * tile + j];
        x = (x + addend[j / 2] * (j % 2 == 0 ? column.x : column.y)) * rho[j / 2];
      }
    }
  }
  // out += weights k, k of a stage.
  __device__ __forceinline__ void AddKeys(float (&out)[32], const uint32_t (&weights)[L / 16][4],
                                          const unsigned char* stage) const {
    gpu::wgmma_registers(out);
    gpu::wgmma_fence();
#pragma unroll
    for (int k = 0; k < L / 16; ++k) {
      gpu::wgmma_bf16_ra<64, true>(out, weights[k], MnMajor(stage + C::kKeyAt, k, C::kBox));
    }
    gpu::wgmma_commit();
    gpu::wgmma_wait<0>();
    gpu::wgmma_registers(out);
  }

  // q.dq to memory.
  __device__ __forceinline__ void StoreQueryDots(const float (&out)[32], int step) const {
    const unsigned char* const q = StageOf(step) + C::kRowAt;
    float sum[2] = {};
#pragma unroll
    for (int tile = 0; tile < 8; tile += 2) {
      uint32_t x[4];
      gpu::ldmatrix_x4(x, q + Swizzled(warp % 4 * 16 + lane % 16, tile + lane / 16));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 y = gpu::unpack_bf16(x[i]);
        sum[i % 2] += out[4 * tile + 2 * i] * y.x + out[4 * tile + 2 * i + 1] * y.y;
      }
    }
    const int t = ChunkOf(step) * kMlstmChunk + warp % 4 * 16 + lane / 4;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      sum[i] += __shfl_xor_sync(~0u, sum[i], 1);
      sum[i] += __shfl_xor_sync(~0u, sum[i], 2);
      if (lane % 4 != 0 || t + 8 * i >= args.num_tokens || (Half() == 1 && !HasSecond(step))) continue;
      args.q_dots[pair * args.NC * kMlstmChunk + t + 8 * i] = sum[i];
    }
  }
  // From the tile to the tensor; TMA cuts off what lies after the sequence, and a missing half is not stored.
  __device__ __forceinline__ void StoreQueries(int step) const {
    const int token = ChunkOf(step) * kMlstmChunk, column = head * C::kRows;
    gpu::tma_store_4d(maps.dq, column, token, entry, 0, smem + C::kQueriesAt);
    if (HasSecond(step)) {
      gpu::tma_store_4d(maps.dq, column, token + kMlstmChunk, entry, 0,
                        smem + C::kQueriesAt + kMlstmChunk * C::kLine);
    }
    gpu::bulk_commit();
  }
};
#endif

}  // namespace carousel::CAROUSEL_DEVICE_NS::mlstm_sm90
