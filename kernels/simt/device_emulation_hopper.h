// The part of device_emulation.h that needs compute capability 9.0 on a GPU: clusters, mbarriers, bulk copies
// and TMA, wgmma.
#pragma once
#include "kernels/simt/device_emulation.h"

namespace carousel::gpu {

// ---- clusters
inline unsigned cluster_rank() { return emulator::self->cluster_rank; }
inline unsigned cluster_size() { return emulator::self->cluster_size; }
inline void cluster_sync(CAROUSEL_LOC) { emulator::ClusterBarrier(loc); }
// The same variable of block `rank` of the cluster.
template <class T>
T* map_shared(T* p, unsigned rank, CAROUSEL_LOC) {
  return static_cast<T*>(emulator::MapShared(p, rank, loc));
}

// ---- mbarriers
inline void mbar_init(uint64_t* bar, unsigned count, CAROUSEL_LOC) { emulator::MbarInit(bar, count, loc); }
// After mbar_init, before other blocks or asynchronous copies use the barrier.
inline void fence_mbar_init(CAROUSEL_LOC) { emulator::FenceMbarInit(loc); }
// Makes ordinary writes to shared memory visible to wgmma and bulk stores.
inline void fence_proxy_async(CAROUSEL_LOC) { emulator::FenceProxyAsync(loc); }
inline void mbar_arrive(uint64_t* bar, CAROUSEL_LOC) { emulator::MbarArrive(bar, 1, 0, -1, loc); }
// Says that the thread's reads are over, and does not publish its writes to other blocks (cluster_sync does).
inline void mbar_arrive_remote(uint64_t* bar, unsigned rank, CAROUSEL_LOC) {
  emulator::MbarArrive(bar, 1, 0, static_cast<int>(rank), loc);
}
inline void mbar_arrive_expect_tx(uint64_t* bar, unsigned bytes, CAROUSEL_LOC) {
  emulator::MbarArrive(bar, 1, bytes, -1, loc);
}
inline void mbar_expect_tx(uint64_t* bar, unsigned bytes, CAROUSEL_LOC) {
  emulator::MbarArrive(bar, 0, bytes, -1, loc);
}
// Waits until the phase with this parity is complete.
inline void mbar_wait(uint64_t* bar, unsigned parity, CAROUSEL_LOC) { emulator::MbarWait(bar, parity, loc); }
// The same, acquiring from the whole cluster and not from the block alone: empties the first cache.
inline void mbar_wait_cluster(uint64_t* bar, unsigned parity, CAROUSEL_LOC) {
  emulator::MbarWait(bar, parity, loc);
}
inline bool mbar_test(uint64_t* bar, unsigned parity, CAROUSEL_LOC) {
  return emulator::MbarTest(bar, parity, loc);
}
// Writes into the shared memory of block `rank` and completes as many bytes on its mbarrier.
inline void st_async(uint32_t* dst, uint32_t v, uint64_t* bar, unsigned rank, CAROUSEL_LOC) {
  emulator::StoreAsync(dst, &v, 4, bar, rank, loc);
}
inline void st_async(float4* dst, float4 v, uint64_t* bar, unsigned rank, CAROUSEL_LOC) {
  emulator::StoreAsync(dst, &v, 16, bar, rank, loc);
}
inline void st_async(uint4* dst, uint4 v, uint64_t* bar, unsigned rank, CAROUSEL_LOC) {
  emulator::StoreAsync(dst, &v, 16, bar, rank, loc);
}

// ---- bulk copies and TMA
inline void bulk_g2s(void* dst, const void* src, unsigned bytes, uint64_t* bar, CAROUSEL_LOC) {
  emulator::BulkLoad(dst, src, bytes, bar, 0, loc);
}
inline void bulk_g2s_multicast(void* dst, const void* src, unsigned bytes, uint64_t* bar,
                               uint16_t cluster_mask, CAROUSEL_LOC) {
  emulator::BulkLoad(dst, src, bytes, bar, cluster_mask, loc);
}
// `box_cols` is 64 (the 128-byte swizzle), pitches are multiples of 16 bytes.
inline TensorMap make_tensor_map_2d(const void* base, uint64_t cols, uint64_t rows, uint64_t pitch_bytes,
                                    uint32_t box_cols, uint32_t box_rows) {
  const uint64_t dim[2] = {cols, rows};
  const uint32_t box[2] = {box_cols, box_rows};
  return emulator::MakeTensorMap(base, 2, dim, &pitch_bytes, box);
}
// stride_bytes[i] is the stride of dim[i + 1].
inline TensorMap make_tensor_map_4d(const void* base, const uint64_t (&dim)[4],
                                    const uint64_t (&stride_bytes)[3], const uint32_t (&box)[4]) {
  return emulator::MakeTensorMap(base, 4, dim, stride_bytes, box);
}
inline void tma_load_2d(void* dst, const TensorMap& m, int x, int y, uint64_t* bar, CAROUSEL_LOC) {
  const int coord[4] = {x, y, 0, 0};
  emulator::TmaLoad(dst, m, coord, bar, 0, loc);
}
inline void tma_load_2d_multicast(void* dst, const TensorMap& m, int x, int y, uint64_t* bar,
                                  uint16_t cluster_mask, CAROUSEL_LOC) {
  const int coord[4] = {x, y, 0, 0};
  emulator::TmaLoad(dst, m, coord, bar, cluster_mask, loc);
}
inline void tma_load_4d(void* dst, const TensorMap& m, int x, int y, int z, int w, uint64_t* bar,
                        CAROUSEL_LOC) {
  const int coord[4] = {x, y, z, w};
  emulator::TmaLoad(dst, m, coord, bar, 0, loc);
}
inline void tma_load_4d_multicast(void* dst, const TensorMap& m, int x, int y, int z, int w, uint64_t* bar,
                                  uint16_t cluster_mask, CAROUSEL_LOC) {
  const int coord[4] = {x, y, z, w};
  emulator::TmaLoad(dst, m, coord, bar, cluster_mask, loc);
}
inline void bulk_s2g(void* dst, const void* src, unsigned bytes, CAROUSEL_LOC) {
  emulator::BulkStore(dst, src, bytes, loc);
}
inline void tma_store_2d(const TensorMap& m, int x, int y, const void* src, CAROUSEL_LOC) {
  const int coord[4] = {x, y, 0, 0};
  emulator::TmaStore(m, coord, src, loc);
}
inline void tma_store_4d(const TensorMap& m, int x, int y, int z, int w, const void* src, CAROUSEL_LOC) {
  const int coord[4] = {x, y, z, w};
  emulator::TmaStore(m, coord, src, loc);
}
inline void bulk_commit() { emulator::BulkCommit(); }
// Until all but N groups of stores are complete (bulk_wait) or have read their source (bulk_wait_read).
template <int N>
void bulk_wait(CAROUSEL_LOC) {
  emulator::BulkWait(N, false, loc);
}
template <int N>
void bulk_wait_read(CAROUSEL_LOC) {
  emulator::BulkWait(N, true, loc);
}

// ---- wgmma: d (64 x N, f32 registers of a warpgroup) = a (64 x 16) b (16 x N) (+ d if accumulate), bf16
inline void wgmma_fence(CAROUSEL_LOC) { emulator::WgmmaFence(loc); }
inline void wgmma_commit() { emulator::WgmmaCommit(); }
template <int N>
void wgmma_wait(CAROUSEL_LOC) {
  emulator::WgmmaWait(N, loc);
}
// For the compiler, to which x is another number from here on: what is made of it in a loop is not computed
// before the loop and kept, where registers are short.
inline void opaque(int&) {}
// For the compiler, which does not know that products go on after their instruction: uses of d stay on their
// side of this. To stand after the wait for the products into d, and before the fence after d was written.
template <int N>
void wgmma_registers(float (&d)[N], CAROUSEL_LOC) {
  emulator::CheckNoProducts(d, loc);
}
// Also says that there are no products at all under way, which the compiler forgets from one turn of a loop
// to the next, and then adds waits of its own. To stand before the first use of d in a turn.
template <int N>
void wgmma_settled(float (&d)[N], CAROUSEL_LOC) {
  emulator::CheckNoProducts(d, loc);
}
// Both operands in shared memory. N is 64, 72, 128, 192 or 256; kTransposeA, kTransposeB: MN-major instead of
// K-major.
template <int N, bool kTransposeA = false, bool kTransposeB = false>
void wgmma_bf16(float (&d)[N / 2], uint64_t a_desc, uint64_t b_desc, bool accumulate = true, CAROUSEL_LOC) {
  static_assert(N == 32 || N == 40 || N == 64 || N == 72 || N == 128 || N == 192 || N == 256);
  emulator::Wgmma(d, {N, kTransposeA, kTransposeB}, nullptr, a_desc, b_desc, accumulate, loc);
}
// a in registers, in the fragment layout of mma_bf16_m16n8k16, 16 rows per warp.
template <int N, bool kTransposeB = false>
void wgmma_bf16_ra(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b_desc, bool accumulate = true,
                   CAROUSEL_LOC) {
  static_assert(N == 32 || N == 40 || N == 64 || N == 72 || N == 128 || N == 192 || N == 256);
  emulator::Wgmma(d, {N, false, kTransposeB}, a, 0, b_desc, accumulate, loc);
}
inline void wgmma_bf16_m64n64k16(float (&d)[32], uint64_t a_desc, uint64_t b_desc, CAROUSEL_LOC) {
  emulator::Wgmma(d, {64, false, false}, nullptr, a_desc, b_desc, true, loc);
}

// ---- hints without a meaning here
template <int N>
void setmaxnreg_inc() {}
template <int N>
void setmaxnreg_dec() {}
inline void grid_dependency_wait() {}
inline void grid_dependency_launch() {}
}  // namespace carousel::gpu
