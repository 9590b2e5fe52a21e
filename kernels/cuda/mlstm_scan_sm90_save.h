// The scan that leaves the states C and n of the forward, before every kMlstmSavedChunks-th chunk and after
// the last one, for a scan that gives dq beside dk and dv (mlstm_scan_sm90_queries.h).
//
// Grid: (pairs, segments). Block: one warpgroup, which holds the whole state. Reads k, v and the records
// once, writes C in bf16 and n in f32. Per step State = gamma State + (kappa k)^T v; the copies run kStages
// ahead.
#pragma once
#include "kernels/cuda/mlstm_scan_sm90_kernel.h"

namespace carousel::CAROUSEL_DEVICE_NS::mlstm_sm90 {

#if CAROUSEL_DEVICE_HAS_WGMMA
template <class C>
class Sm90Save : Sm90Scan<C> {
 public:
  __device__ __forceinline__ Sm90Save(const Sm90Maps& the_maps, const MlstmFastScanArgs& a)
      : Sm90Scan<C>(the_maps, a) {}

  __device__ __forceinline__ void Run() {
    if (threadIdx.x == 0) {
      for (int s = 0; s < C::kStages; ++s) gpu::mbar_init(Full(s), 1);
      gpu::fence_mbar_init();
    }
    static_assert(kMlstmAnchorChunks % kMlstmSavedChunks == 0);
    // The barriers, initialised above: others than thread 0 wait there after the __syncthreads of the first
    // step's Save; a segment begins with a chunk whose state is saved.
    if (threadIdx.x == 0) {
      for (int step = 0; step < C::kStages && step < num_steps; ++step) this->Load(step);
    }
    float state[State::kStateElems], n[2];
    this->LoadState(state, n, 0);
#pragma unroll 1
    for (int step = 0; step < num_steps; ++step) {
      const unsigned char* const stage = StageOf(step);
      const Joint joint = this->JointOf(step);
      this->ForgetPlaces();
      if (this->ChunkOf(step) % kMlstmSavedChunks == 0) Save(state, n, step);
      gpu::mbar_wait(Full(step % C::kStages), static_cast<unsigned>(step / C::kStages) & 1);
      gpu::wgmma_settled(state);
      uint32_t row[C::L / 16][4];  // A fragments of k^T
      this->LoadRows(row, stage + C::kRowAt);
#pragma unroll
      for (int i = 0; i < State::kStateElems; ++i) state[i] *= joint.gamma;
      this->WeighRows(row, n, stage, joint);
      gpu::wgmma_registers(state);
      gpu::wgmma_fence();
#pragma unroll
      for (int k = 0; k < C::L / 16; ++k) {
        gpu::wgmma_bf16_ra<C::kColumns, true>(state, row[k],
                                              Block::MnMajor(stage + C::kUpdAt, k, C::kUpdBox));
      }
      gpu::wgmma_commit();
      gpu::wgmma_wait<0>();
      gpu::wgmma_registers(state);
      __syncthreads();  // the stage: every warp's reads -> its next copies
      if (threadIdx.x == 0 && step + C::kStages < num_steps) this->Load(step + C::kStages);
    }
    if (threadIdx.x == 0) gpu::bulk_wait<0>();
    this->StoreState(state, n, 0);
  }

 private:
  using Block = Sm90Block<C>;
  using State = Sm90State<C>;
  using Block::Full, Block::StageOf, Block::lane, Block::num_steps, Block::smem, Block::warp;
  using typename Block::Joint;

  // The state before the step.
  __device__ __forceinline__ void Save(const float (&state)[State::kStateElems], const float (&n)[2],
                                       int step) const {
    unsigned char* const tile = smem + C::kSavedAt;
    if (threadIdx.x == 0) gpu::bulk_wait_read<0>();
    __syncthreads();  // the last tile has been read by its copy -> this one
#pragma unroll
    for (int k = 0; k < State::kStateElems / 8; ++k) {
      const float* const x = state + 8 * k;
      const uint32_t r[4] = {gpu::pack_bf16(x[0], x[1]), gpu::pack_bf16(x[2], x[3]),
                             gpu::pack_bf16(x[4], x[5]), gpu::pack_bf16(x[6], x[7])};
      gpu::stmatrix_x4(
          tile + k / 4 * C::kRoundedBox + Block::Swizzled(warp * 16 + lane % 16, k % 4 * 2 + lane / 16), r);
    }
    this->StoreN(reinterpret_cast<float*>(tile + C::kBoxes * C::kRoundedBox), n);
    gpu::fence_proxy_async();  // the tile: ordinary writes -> the copy
    __syncthreads();           // and of all threads
    if (threadIdx.x == 0) {
      gpu::bulk_s2g(this->SavedAt(this->ChunkOf(step)), tile, C::kSavedBytes);
      gpu::bulk_commit();
    }
  }
};
#endif

template <class C>
__global__ void __launch_bounds__(C::kThreads, 1)
    MlstmSm90SaveKernel(const __grid_constant__ Sm90Maps maps,
                        const __grid_constant__ MlstmFastScanArgs args) {
#if CAROUSEL_DEVICE_HAS_WGMMA
  Sm90Save<C> scan(maps, args);
  scan.Run();
#endif
}

}  // namespace carousel::CAROUSEL_DEVICE_NS::mlstm_sm90
