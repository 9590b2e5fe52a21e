// The group that gives dv beside dk (mlstm_scan_sm90_kernel.h, kGivesDV). kDV and kDK walk over the same
// state, dC, in the same direction: the kDK scan, which reads v, dh and q, and k for its dot products, has
// all that dv needs:
//
//   dv[r] = kappa[r] k[r] dC + sum over u of W[r][u] (k[r].q[u]) dh[u]
//
// Per step: the scores k q^T (wgmma, 64 x 64) and of them the weights as fragments in registers, rounded
// once; then k dC with the state that the state groups have rounded for their own product and left in shared
// memory, the factor kappa on the sums, and the weights' product with dh onto them.
#pragma once
#include "kernels/cuda/mlstm_scan_sm90_state.h"

namespace carousel::CAROUSEL_DEVICE_NS::mlstm_sm90 {

#if CAROUSEL_DEVICE_HAS_WGMMA
template <class C>
class Sm90Values : protected Sm90State<C> {
 public:
  __device__ __forceinline__ Sm90Values(const Sm90Maps& the_maps, const MlstmFastScanArgs& a)
      : Sm90State<C>(the_maps, a) {}

  __device__ __forceinline__ void Values() {
#pragma unroll 1
    for (int step = 0; step < num_steps; ++step) {
      const unsigned char* const stage = StageOf(step);
      this->ForgetPlaces();
      gpu::mbar_wait(Full(step % C::kStages), static_cast<unsigned>(step / C::kStages) & 1);
      float s[L / 2];
      gpu::wgmma_fence();
#pragma unroll
      for (int k = 0; k < kKeyProducts; ++k) {
        gpu::wgmma_bf16<L>(s, KMajor(stage + C::kKeyAt + k / 4 * C::kBox, k % 4),
                           KMajor(stage + C::kRowAt + k / 4 * C::kBox, k % 4), k > 0);
      }
      gpu::wgmma_commit();
      gpu::wgmma_wait<0>();
      gpu::wgmma_registers(s);
      uint32_t weights[L / 16][4];  // A fragments: rows of k, tokens u
      this->template EachWeight<true, false>(s, step, [&](int tile, int i, const float(&w)[2]) {
        weights[tile / 2][tile % 2 * 2 + i] = gpu::pack_bf16(w[0], w[1]);
      });
      gpu::mbar_wait(RoundedReady(step), static_cast<unsigned>(step / C::kRounded) & 1);
#pragma unroll
      for (int part = 0; part < C::kColumns / kPart; ++part) {
        float out[kPart / 2];
        Sum(out, weights, step, part);
        if (part == 0 || C::kValueBoxes < C::kBoxes) {
          if (Thread() == 0) gpu::bulk_wait_read<0>();
          ValuesBarrier();  // the last tile has been read by its copies -> this one
        }
        StoreTile(out, Tile(part));
        const bool last = part == C::kColumns / kPart - 1;
        if (!last && C::kValueBoxes == C::kBoxes) continue;
        gpu::fence_proxy_async();  // the tile: ordinary writes -> TMA
        ValuesBarrier();           // and of all threads; their reads of the stage -> the arrival
        if (Thread() == 0) {
          if (last) gpu::mbar_arrive(Empty(step % C::kStages));
          StoreTiles(step, part);
        }
      }
    }
    if (Thread() == 0) gpu::bulk_wait<0>();
  }

 protected:
  using Block = Sm90Block<C>;
  using typename Block::Joint;
  static constexpr int L = C::L;
  // Products of 16 columns of k; columns of dv at a time, a box: for more there are too few registers.
  static constexpr int kKeyProducts = C::kRows / 16, kPart = 64;
  using Block::ChunkOf, Block::Empty, Block::Full, Block::HasSecond, Block::JointOf, Block::KMajor,
      Block::MnMajor, Block::RecordOf, Block::RoundedFree, Block::RoundedOf, Block::RoundedReady,
      Block::StageOf, Block::Swizzled;
  using Block::entry, Block::head, Block::lane, Block::maps, Block::num_steps, Block::smem, Block::Thread,
      Block::warp;
  __device__ __forceinline__ static void ValuesBarrier() { gpu::bar_sync(5, 128); }
  __device__ __forceinline__ unsigned char* Tile(int box) const {
    return smem + C::kValuesAt + box % C::kValueBoxes * C::kBox;
  }

  // The part's columns of dv, of 16 tokens per warp: element 4 t + j is token lane / 4 + j / 2 * 8 of them,
  // column 8 t + lane % 4 * 2 + j % 2.
  __device__ __forceinline__ void Sum(float (&out)[kPart / 2], const uint32_t (&weights)[L / 16][4], int step,
                                      int part) const {
    const unsigned char* const stage = StageOf(step);
    const unsigned char* const rounded = RoundedOf(step) + part * C::kRoundedBox;
    const unsigned char* const upd = stage + C::kUpdAt + part * C::kUpdBox;
    gpu::wgmma_fence();
#pragma unroll
    for (int k = 0; k < kKeyProducts; ++k) {
      gpu::wgmma_bf16<kPart, false, true>(out, KMajor(stage + C::kKeyAt + k / 4 * C::kBox, k % 4),
                                          MnMajor(rounded, k, C::kRoundedBox), k > 0);
    }
    gpu::wgmma_commit();
    const Joint joint = JointOf(step);
    const int half = warp % 4 / 2, row = warp % 2 * 16 + lane / 4;
    const float joined = half == 0 ? joint.kappa_first : joint.kappa_second;
    const float* const kappa = RecordOf(stage, half).kappa + row;
    const float factor[2] = {kappa[0] * joined, kappa[8] * joined};
    gpu::wgmma_wait<0>();
    gpu::wgmma_registers(out);
    // The warp's products are done.
    if (part == C::kColumns / kPart - 1 && lane == 0) gpu::mbar_arrive(RoundedFree(step));
#pragma unroll
    for (int i = 0; i < kPart / 2; ++i) out[i] *= factor[i / 2 % 2];
    gpu::wgmma_registers(out);
    gpu::wgmma_fence();
#pragma unroll
    for (int k = 0; k < L / 16; ++k) {
      gpu::wgmma_bf16_ra<kPart, true>(out, weights[k], MnMajor(upd, k, C::kUpdBox));
    }
    gpu::wgmma_commit();
    gpu::wgmma_wait<0>();
    gpu::wgmma_registers(out);
  }

  // From the tile to the tensor; TMA cuts off what lies after the sequence, and a missing half is not stored.
  __device__ __forceinline__ void StoreTiles(int step, int part) const {
    const int token = ChunkOf(step) * kMlstmChunk;
    const int first = C::kValueBoxes == C::kBoxes ? 0 : part;
#pragma unroll 1
    for (int box = first; box < first + C::kValueBoxes; ++box) {
      const unsigned char* const from = Tile(box);
      const int column = head * C::kColumns + box * 64;
      gpu::tma_store_4d(maps.dv, column, token, entry, 0, from);
      if (HasSecond(step)) {
        gpu::tma_store_4d(maps.dv, column, token + kMlstmChunk, entry, 0, from + kMlstmChunk * C::kLine);
      }
    }
    gpu::bulk_commit();
  }
  // What Sum gives, rows of tokens, to a box.
  __device__ __forceinline__ void StoreTile(const float (&out)[kPart / 2], unsigned char* box) const {
#pragma unroll
    for (int tile = 0; tile < kPart / 8; tile += 2) {
      const float* const o = out + 4 * tile;
      const uint32_t r[4] = {gpu::pack_bf16(o[0], o[1]), gpu::pack_bf16(o[2], o[3]),
                             gpu::pack_bf16(o[4], o[5]), gpu::pack_bf16(o[6], o[7])};
      const int line = warp % 4 * 16 + lane % 16;
      gpu::stmatrix_x4(box + Swizzled(line, tile + lane / 16), r);
    }
  }
};
#endif

}  // namespace carousel::CAROUSEL_DEVICE_NS::mlstm_sm90
