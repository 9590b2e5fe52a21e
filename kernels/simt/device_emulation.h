// The host compiler's half of kernels/cuda/device.h: every function of the device calls the emulation
// (emulator.h), which runs each CUDA thread as a fiber. Include kernels/cuda/device.h, never this.
//
// Functions that synchronise take the place of their call as a last, defaulted argument: error reports name
// it, and tests remove single synchronisations by it (emulator.h, RemoveSite).
#pragma once
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>

#include "kernels/simt/device_intrinsics.h"

#undef __global__
#undef __device__
#undef __host__
#undef __constant__
#undef __grid_constant__
#undef __launch_bounds__
#undef __shared__
#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ CAROUSEL_use_SHARED_ARRAY_instead_of___shared__
#ifndef __forceinline__
#define __forceinline__ inline
#endif

#define SHARED_ARRAY(T, name, ...)                              \
  static const char name##_shared_key = 0;                      \
  using name##_shared_type = T __VA_ARGS__;                     \
  name##_shared_type& name = *static_cast<name##_shared_type*>( \
      ::carousel::emulator::StaticShared(&name##_shared_key, sizeof(name##_shared_type), #name))

// The caller's place. (clang 14 has no std::source_location.)
#define CAROUSEL_LOC \
  ::carousel::emulator::Loc loc = {__builtin_FILE(), static_cast<unsigned>(__builtin_LINE())}

namespace carousel::emulator {

struct Loc {
  const char* file = "";
  unsigned line = 0;
};
// What a kernel may see of its thread.
struct ThreadView {
  uint3 thread_idx, block_idx;
  dim3 block_dim, grid_dim;
  unsigned lane, cluster_rank, cluster_size;
};
extern constinit thread_local ThreadView* self;

// A tensor in global memory as TMA sees it: bf16, dim[0] contiguous, boxes stored with the 128-byte swizzle.
struct TensorMap {
  const char* base = nullptr;
  int rank = 0;
  uint64_t dim[4] = {1, 1, 1, 1};
  uint64_t stride_bytes[4] = {2, 0, 0, 0};
  uint32_t box[4] = {1, 1, 1, 1};
};
TensorMap MakeTensorMap(const void* base, int rank, const uint64_t* dim, const uint64_t* stride_bytes,
                        const uint32_t* box);

// ---- what the functions of namespace gpu call; each works for the calling CUDA thread
void* StaticShared(const void* key, size_t bytes, const char* name);
void* DynamicShared();
uint32_t SharedAddress(const void* p);
// Sum of `pred` over the block, and a barrier.
unsigned BlockBarrier(unsigned pred, bool reduces, const Loc& loc);
void NamedBarrier(int id, int num_threads, bool wait, const Loc& loc);
void ClusterBarrier(const Loc& loc);
void GridBarrier(const Loc& loc);
void WarpBarrier(unsigned mask, const Loc& loc);
enum class Shuffle { kIdx, kUp, kDown, kXor };
uint64_t WarpShuffle(unsigned mask, uint64_t bits, int arg, int width, Shuffle mode, const Loc& loc);
unsigned WarpBallot(unsigned mask, bool pred, const Loc& loc);
// Lanes of the mask whose value equals the caller's.
unsigned WarpMatch(unsigned mask, uint64_t bits, const Loc& loc);
enum class Reduce { kAdd, kMin, kMax, kAnd, kOr, kXor };
uint32_t WarpReduce(unsigned mask, uint32_t value, bool is_signed, Reduce op, const Loc& loc);
bool WarpElect(unsigned mask, const Loc& loc);
enum class Mma { kBf16, kF16, kTf32 };
void WarpMma(float* d, const uint32_t* a, const uint32_t* b, Mma type, const Loc& loc);
void LoadMatrix(uint32_t* r, const void* row, int num_matrices, bool transposed, const Loc& loc);
void StoreMatrix(const uint32_t* r, void* row, int num_matrices, bool transposed, const Loc& loc);
void CpAsync(void* dst, const void* src, unsigned bytes, unsigned valid_bytes, const Loc& loc);
void CpAsyncCommit();
void CpAsyncWait(int pending_groups, const Loc& loc);
void* MapShared(const void* p, unsigned rank, const Loc& loc);
void MbarInit(uint64_t* bar, unsigned count, const Loc& loc);
void FenceMbarInit(const Loc& loc);
void FenceProxyAsync(const Loc& loc);
// rank < 0: the calling block's barrier.
void MbarArrive(uint64_t* bar, int arrivals, unsigned expect_tx_bytes, int rank, const Loc& loc);
void MbarWait(uint64_t* bar, unsigned parity, const Loc& loc);
bool MbarTest(uint64_t* bar, unsigned parity, const Loc& loc);
void StoreAsync(void* dst, const void* value, unsigned bytes, uint64_t* bar, unsigned rank, const Loc& loc);
// cluster_mask: ranks whose shared memory and mbarrier, at the same offsets, receive the copy; 0: the
// caller's own.
void BulkLoad(void* dst, const void* src, unsigned bytes, uint64_t* bar, unsigned cluster_mask,
              const Loc& loc);
void TmaLoad(void* dst, const TensorMap& map, const int* coord, uint64_t* bar, unsigned cluster_mask,
             const Loc& loc);
void BulkStore(void* dst, const void* src, unsigned bytes, const Loc& loc);
void TmaStore(const TensorMap& map, const int* coord, const void* src, const Loc& loc);
void BulkCommit();
void BulkWait(int pending_groups, bool read_only, const Loc& loc);
struct WgmmaShape {
  int n;
  bool transpose_a, transpose_b;  // the operand is MN-major
};
void Wgmma(float* d, WgmmaShape shape, const uint32_t* a_registers, uint64_t a_desc, uint64_t b_desc,
           bool accumulate, const Loc& loc);
void WgmmaFence(const Loc& loc);
void WgmmaCommit();
void WgmmaWait(int pending_groups, const Loc& loc);
// Fails if a product into d has not been waited for.
void CheckNoProducts(const float* d, const Loc& loc);
void ThreadFence(const Loc& loc);
// An order between blocks: releases what happened before, acquires what was released at the same address.
void Release(const void* p, const Loc& loc);
void Acquire(const void* p, const Loc& loc);
void SpinYield();
[[noreturn]] void Trap(const Loc& loc);

// ---- launches
using Thunk = void (*)(void* pack);
void* param_alloc(size_t bytes);
void param_free(void* p, size_t bytes);
// Enqueues `thunk(pack)`, run once by every thread of the grid, on config.stream.
cudaError_t Submit(const gpu::LaunchCfg& config, Thunk thunk, std::shared_ptr<void> pack);

template <class... P>
struct Pack {
  void (*kernel)(P...);
  std::tuple<std::remove_const_t<P>...> args;
  static void Call(void* p) {
    auto* self_pack = static_cast<Pack*>(p);
    std::apply(self_pack->kernel, self_pack->args);
  }
};

template <class T>
T ShuffleValue(unsigned mask, T v, int arg, int width, Shuffle mode, const Loc& loc) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8),
                "CUDA shuffles 4 and 8 byte numbers");
  uint64_t bits = 0;
  memcpy(&bits, &v, sizeof v);
  bits = WarpShuffle(mask, bits, arg, width, mode, loc);
  memcpy(&v, &bits, sizeof v);
  return v;
}
template <class T>
uint64_t MatchBits(T v) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8),
                "CUDA matches 4 and 8 byte numbers");
  uint64_t bits = 0;
  memcpy(&bits, &v, sizeof v);
  return bits;
}
}  // namespace carousel::emulator

#define threadIdx (::carousel::emulator::self->thread_idx)
#define blockIdx (::carousel::emulator::self->block_idx)
#define blockDim (::carousel::emulator::self->block_dim)
#define gridDim (::carousel::emulator::self->grid_dim)
constexpr int warpSize = 32;

// ---- CUDA's own functions
inline void __syncthreads(CAROUSEL_LOC) { carousel::emulator::BlockBarrier(0, false, loc); }
inline int __syncthreads_count(int p, CAROUSEL_LOC) {
  return static_cast<int>(carousel::emulator::BlockBarrier(p != 0, true, loc));
}
inline int __syncthreads_or(int p, CAROUSEL_LOC) {
  return carousel::emulator::BlockBarrier(p != 0, true, loc) != 0;
}
inline int __syncthreads_and(int p, CAROUSEL_LOC) {
  return carousel::emulator::BlockBarrier(p == 0, true, loc) == 0;
}
inline void __syncwarp(unsigned mask = ~0u, CAROUSEL_LOC) { carousel::emulator::WarpBarrier(mask, loc); }
inline unsigned __ballot_sync(unsigned mask, int p, CAROUSEL_LOC) {
  return carousel::emulator::WarpBallot(mask, p != 0, loc);
}
inline int __any_sync(unsigned mask, int p, CAROUSEL_LOC) {
  return carousel::emulator::WarpBallot(mask, p != 0, loc) != 0;
}
inline int __all_sync(unsigned mask, int p, CAROUSEL_LOC) {
  return carousel::emulator::WarpBallot(mask, p == 0, loc) == 0;
}
template <class T>
unsigned __match_any_sync(unsigned mask, T v, CAROUSEL_LOC) {
  return carousel::emulator::WarpMatch(mask, carousel::emulator::MatchBits(v), loc);
}
template <class T>
unsigned __match_all_sync(unsigned mask, T v, int* all, CAROUSEL_LOC) {
  *all = carousel::emulator::WarpMatch(mask, carousel::emulator::MatchBits(v), loc) == mask;
  return *all ? mask : 0;
}
template <class T>
T __shfl_sync(unsigned mask, T v, int lane, int width = 32, CAROUSEL_LOC) {
  return carousel::emulator::ShuffleValue(mask, v, lane, width, carousel::emulator::Shuffle::kIdx, loc);
}
template <class T>
T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32, CAROUSEL_LOC) {
  return carousel::emulator::ShuffleValue(mask, v, static_cast<int>(delta), width,
                                          carousel::emulator::Shuffle::kUp, loc);
}
template <class T>
T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32, CAROUSEL_LOC) {
  return carousel::emulator::ShuffleValue(mask, v, static_cast<int>(delta), width,
                                          carousel::emulator::Shuffle::kDown, loc);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T v, int lane_mask, int width = 32, CAROUSEL_LOC) {
  return carousel::emulator::ShuffleValue(mask, v, lane_mask, width, carousel::emulator::Shuffle::kXor, loc);
}
#define CAROUSEL_WARP_REDUCE(name, T, op)                                                           \
  inline T name(unsigned mask, T v, CAROUSEL_LOC) {                                                 \
    return static_cast<T>(carousel::emulator::WarpReduce(                                           \
        mask, static_cast<uint32_t>(v), std::is_signed_v<T>, carousel::emulator::Reduce::op, loc)); \
  }
CAROUSEL_WARP_REDUCE(__reduce_add_sync, int, kAdd)
CAROUSEL_WARP_REDUCE(__reduce_add_sync, unsigned, kAdd)
CAROUSEL_WARP_REDUCE(__reduce_min_sync, int, kMin)
CAROUSEL_WARP_REDUCE(__reduce_min_sync, unsigned, kMin)
CAROUSEL_WARP_REDUCE(__reduce_max_sync, int, kMax)
CAROUSEL_WARP_REDUCE(__reduce_max_sync, unsigned, kMax)
CAROUSEL_WARP_REDUCE(__reduce_and_sync, unsigned, kAnd)
CAROUSEL_WARP_REDUCE(__reduce_or_sync, unsigned, kOr)
CAROUSEL_WARP_REDUCE(__reduce_xor_sync, unsigned, kXor)
#undef CAROUSEL_WARP_REDUCE
inline void __threadfence_block(CAROUSEL_LOC) { carousel::emulator::ThreadFence(loc); }
inline void __threadfence(CAROUSEL_LOC) { carousel::emulator::ThreadFence(loc); }
inline void __threadfence_system(CAROUSEL_LOC) { carousel::emulator::ThreadFence(loc); }
[[noreturn]] inline void __trap(CAROUSEL_LOC) { carousel::emulator::Trap(loc); }

// ---- namespace gpu; device_ptx.h has the same functions
namespace carousel::gpu {

using emulator::TensorMap;

template <class T = char>
T* dyn_shared() {
  return static_cast<T*>(emulator::DynamicShared());
}
inline unsigned lane_id() { return emulator::self->lane; }
inline uint32_t smem_addr(const void* p) { return emulator::SharedAddress(p); }

// Fast math: exact here, approximate on a GPU.
inline float exp_fast(float x) { return std::exp(x); }
inline double exp_fast(double x) { return std::exp(x); }
inline float exp2_fast(float x) { return std::exp2(x); }
inline double exp2_fast(double x) { return std::exp2(x); }
inline float log_fast(float x) { return std::log(x); }
inline double log_fast(double x) { return std::log(x); }
inline float log2_fast(float x) { return std::log2(x); }
inline double log2_fast(double x) { return std::log2(x); }
inline float tanh_fast(float x) { return std::tanh(x); }
inline double tanh_fast(double x) { return std::tanh(x); }
inline float rcp_fast(float x) { return 1.0f / x; }
inline double rcp_fast(double x) { return 1.0 / x; }
inline float rsqrt_fast(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt_fast(double x) { return 1.0 / std::sqrt(x); }

inline uint32_t bf16_bits(float v) {
  const uint32_t u = float_to_bits(v);
  return (u & 0x7fffffffu) > 0x7f800000u ? 0x7fffu : (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
}
// Two floats as bf16, `lo` in the low half.
inline uint32_t pack_bf16(float lo, float hi) { return bf16_bits(lo) | bf16_bits(hi) << 16; }

// Barriers of `num_threads` threads (a multiple of 32) of the block; id 1 to 15.
inline void bar_sync(int id, int num_threads, CAROUSEL_LOC) {
  emulator::NamedBarrier(id, num_threads, true, loc);
}
inline void bar_arrive(int id, int num_threads, CAROUSEL_LOC) {
  emulator::NamedBarrier(id, num_threads, false, loc);
}
// Of all blocks of a cooperative launch.
inline void grid_sync(CAROUSEL_LOC) { emulator::GridBarrier(loc); }

// 16 bytes from global to shared memory, zeros where !valid (src is then not read).
inline void cp_async16(void* dst, const void* src, bool valid = true, CAROUSEL_LOC) {
  emulator::CpAsync(dst, src, 16, valid ? 16 : 0, loc);
}
inline void cp_async4(void* dst, const void* src, bool valid = true, CAROUSEL_LOC) {
  emulator::CpAsync(dst, src, 4, valid ? 4 : 0, loc);
}
inline void cp_async8(void* dst, const void* src, bool valid = true, CAROUSEL_LOC) {
  emulator::CpAsync(dst, src, 8, valid ? 8 : 0, loc);
}
inline void cp_async_commit() { emulator::CpAsyncCommit(); }
template <int N>
void cp_async_wait(CAROUSEL_LOC) {
  emulator::CpAsyncWait(N, loc);
}

// Matrices of 8x8 16-bit elements; lane 8 i + j gives the address of row j of matrix i. Lanes past the last
// matrix must give a valid address too.
inline void ldmatrix_x4(uint32_t (&r)[4], const void* p, CAROUSEL_LOC) {
  emulator::LoadMatrix(r, p, 4, false, loc);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* p, CAROUSEL_LOC) {
  emulator::LoadMatrix(r, p, 4, true, loc);
}
inline void ldmatrix_x2(uint32_t (&r)[2], const void* p, CAROUSEL_LOC) {
  emulator::LoadMatrix(r, p, 2, false, loc);
}
inline void ldmatrix_x2_trans(uint32_t (&r)[2], const void* p, CAROUSEL_LOC) {
  emulator::LoadMatrix(r, p, 2, true, loc);
}
inline void stmatrix_x4(void* p, const uint32_t (&r)[4], CAROUSEL_LOC) {
  emulator::StoreMatrix(r, p, 4, false, loc);
}
inline void stmatrix_x4_trans(void* p, const uint32_t (&r)[4], CAROUSEL_LOC) {
  emulator::StoreMatrix(r, p, 4, true, loc);
}
inline void stmatrix_x2(void* p, const uint32_t (&r)[2], CAROUSEL_LOC) {
  emulator::StoreMatrix(r, p, 2, false, loc);
}
inline void stmatrix_x2_trans(void* p, const uint32_t (&r)[2], CAROUSEL_LOC) {
  emulator::StoreMatrix(r, p, 2, true, loc);
}

// d += a b; fragments as in the PTX ISA.
inline void mma_bf16_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, CAROUSEL_LOC) {
  const uint32_t b[2] = {b0, b1};
  emulator::WarpMma(d, a, b, emulator::Mma::kBf16, loc);
}
inline void mma_f16_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, CAROUSEL_LOC) {
  const uint32_t b[2] = {b0, b1};
  emulator::WarpMma(d, a, b, emulator::Mma::kF16, loc);
}
inline void mma_tf32_m16n8k8(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, CAROUSEL_LOC) {
  const uint32_t b[2] = {b0, b1};
  emulator::WarpMma(d, a, b, emulator::Mma::kTf32, loc);
}

// True in one lane of the mask.
inline bool elect_one(unsigned mask = ~0u, CAROUSEL_LOC) { return emulator::WarpElect(mask, loc); }

// ---- order between blocks of a launch
template <class T>
T ld_acquire(const T* p, CAROUSEL_LOC) {
  static_assert(std::is_integral_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  emulator::SpinYield();
  const T v = std::atomic_ref<T>(*const_cast<T*>(p)).load(std::memory_order_acquire);
  emulator::Acquire(p, loc);
  return v;
}
template <class T>
void st_release(T* p, std::type_identity_t<T> v, CAROUSEL_LOC) {
  static_assert(std::is_integral_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  emulator::Release(p, loc);
  std::atomic_ref<T>(*p).store(v, std::memory_order_release);
}
// Returns the old value; the last of several blocks to add sees what the others wrote before.
template <class T>
T atomic_add_acq_rel(T* p, std::type_identity_t<T> v, CAROUSEL_LOC) {
  emulator::Release(p, loc);
  const T old = atomicAdd(p, v);
  emulator::Acquire(p, loc);
  return old;
}

// Enqueues kernel(args...) on config.stream; the arguments are converted to the kernel's parameter types.
template <class... P, class... A>
cudaError_t launch(void (*kernel)(P...), const LaunchCfg& config, A&&... args) {
  static_assert(sizeof...(P) == sizeof...(A), "wrong number of kernel arguments");
  using K = emulator::Pack<P...>;
  std::shared_ptr<void> pack(new (emulator::param_alloc(sizeof(K))) K{kernel, {static_cast<P>(args)...}},
                             [](void* p) {
                               static_cast<K*>(p)->~K();
                               emulator::param_free(p, sizeof(K));
                             });
  return emulator::Submit(config, &K::Call, std::move(pack));
}
}  // namespace carousel::gpu

#include "kernels/simt/device_emulation_hopper.h"
