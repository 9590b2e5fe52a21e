// nvcc's half of kernels/cuda/device.h: thin wrappers of PTX instructions. The only files with asm: this and
// device_ptx_wgmma.h. Every wrapper is compared with the emulation by kernels/cuda/conformance.cu.
// kernels/simt/device_emulation.h has the same functions, with comments.
#pragma once
#include <cooperative_groups.h>
#include <cuda.h>  // CUtensorMap

#include <type_traits>

#define SHARED_ARRAY(T, name, ...) __shared__ alignas(16) T name __VA_ARGS__
#define CAROUSEL_GPU_DEV __device__ __forceinline__

namespace carousel::gpu {

extern __shared__ __align__(1024) unsigned char dyn_shared_bytes[];
template <class T = char>
CAROUSEL_GPU_DEV T* dyn_shared() {
  return reinterpret_cast<T*>(dyn_shared_bytes);
}
CAROUSEL_GPU_DEV unsigned lane_id() {
  unsigned r;
  asm("mov.u32 %0, %%laneid;" : "=r"(r));
  return r;
}
CAROUSEL_GPU_DEV uint32_t smem_addr(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
CAROUSEL_GPU_DEV uint64_t global_addr(const void* p) { return __cvta_generic_to_global(p); }

// ---- fast math
CAROUSEL_GPU_DEV float exp_fast(float x) { return __expf(x); }
CAROUSEL_GPU_DEV double exp_fast(double x) { return exp(x); }
CAROUSEL_GPU_DEV float exp2_fast(float x) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
CAROUSEL_GPU_DEV double exp2_fast(double x) { return exp2(x); }
CAROUSEL_GPU_DEV float log_fast(float x) { return __logf(x); }
CAROUSEL_GPU_DEV double log_fast(double x) { return log(x); }
CAROUSEL_GPU_DEV float log2_fast(float x) { return __log2f(x); }
CAROUSEL_GPU_DEV double log2_fast(double x) { return log2(x); }
CAROUSEL_GPU_DEV float tanh_fast(float x) {
  float r;
  asm("tanh.approx.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
CAROUSEL_GPU_DEV double tanh_fast(double x) { return tanh(x); }
CAROUSEL_GPU_DEV float rcp_fast(float x) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
CAROUSEL_GPU_DEV double rcp_fast(double x) { return 1.0 / x; }
CAROUSEL_GPU_DEV float rsqrt_fast(float x) {
  float r;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
CAROUSEL_GPU_DEV double rsqrt_fast(double x) { return rsqrt(x); }

// On the host too: conversions of arguments.
CAROUSEL_GPU_HD uint32_t pack_bf16(float lo, float hi) {
#ifdef __CUDA_ARCH__
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
  return r;
#else
  const auto bits = [](float v) -> uint32_t {
    const uint32_t u = float_to_bits(v);
    return (u & 0x7fffffffu) > 0x7f800000u ? 0x7fffu : (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  };
  return bits(lo) | bits(hi) << 16;
#endif
}

// ---- barriers
CAROUSEL_GPU_DEV void bar_sync(int id, int n) {
  asm volatile("barrier.cta.sync %0, %1;" ::"r"(id), "r"(n) : "memory");
}
CAROUSEL_GPU_DEV void bar_arrive(int id, int n) {
  asm volatile("barrier.cta.arrive %0, %1;" ::"r"(id), "r"(n) : "memory");
}
CAROUSEL_GPU_DEV void grid_sync() { cooperative_groups::this_grid().sync(); }

// ---- cp.async
CAROUSEL_GPU_DEV void cp_async16(void* dst, const void* src, bool valid = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(smem_addr(dst)), "l"(global_addr(src)),
               "r"(valid ? 16 : 0)
               : "memory");
}
CAROUSEL_GPU_DEV void cp_async8(void* dst, const void* src, bool valid = true) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(smem_addr(dst)), "l"(global_addr(src)),
               "r"(valid ? 8 : 0)
               : "memory");
}
CAROUSEL_GPU_DEV void cp_async4(void* dst, const void* src, bool valid = true) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(smem_addr(dst)), "l"(global_addr(src)),
               "r"(valid ? 4 : 0)
               : "memory");
}
CAROUSEL_GPU_DEV void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
CAROUSEL_GPU_DEV void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// ---- matrices of a warp
CAROUSEL_GPU_DEV void ldmatrix_x4(uint32_t (&r)[4], const void* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(smem_addr(p))
               : "memory");
}
CAROUSEL_GPU_DEV void ldmatrix_x4_trans(uint32_t (&r)[4], const void* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(smem_addr(p))
               : "memory");
}
CAROUSEL_GPU_DEV void ldmatrix_x2(uint32_t (&r)[2], const void* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(smem_addr(p))
               : "memory");
}
CAROUSEL_GPU_DEV void ldmatrix_x2_trans(uint32_t (&r)[2], const void* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(smem_addr(p))
               : "memory");
}
// stmatrix: compute capability 9.0.
CAROUSEL_GPU_DEV void stmatrix_x4(void* p, const uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(smem_addr(p)), "r"(r[0]),
               "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}
CAROUSEL_GPU_DEV void stmatrix_x4_trans(void* p, const uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(smem_addr(p)),
               "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}
CAROUSEL_GPU_DEV void stmatrix_x2(void* p, const uint32_t (&r)[2]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1,%2};" ::"r"(smem_addr(p)), "r"(r[0]),
               "r"(r[1])
               : "memory");
}
CAROUSEL_GPU_DEV void stmatrix_x2_trans(void* p, const uint32_t (&r)[2]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1,%2};" ::"r"(smem_addr(p)), "r"(r[0]),
               "r"(r[1])
               : "memory");
}
// No "volatile" and no "memory": the results are all that these do.
CAROUSEL_GPU_DEV void mma_bf16_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
CAROUSEL_GPU_DEV void mma_f16_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
CAROUSEL_GPU_DEV void mma_tf32_m16n8k8(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// Compute capability 9.0.
CAROUSEL_GPU_DEV bool elect_one(unsigned mask = ~0u) {
  uint32_t r;
  asm volatile("{\n .reg .pred p;\n elect.sync _|p, %1;\n selp.u32 %0, 1, 0, p;\n}" : "=r"(r) : "r"(mask));
  return r != 0;
}

// ---- order between blocks of a launch
template <class T>
CAROUSEL_GPU_DEV T ld_acquire(const T* p) {
  static_assert(std::is_integral_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  if constexpr (sizeof(T) == 4) {
    uint32_t v;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(global_addr(p)) : "memory");
    return static_cast<T>(v);
  } else {
    uint64_t v;
    asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(v) : "l"(global_addr(p)) : "memory");
    return static_cast<T>(v);
  }
}
template <class T>
CAROUSEL_GPU_DEV void st_release(T* p, std::type_identity_t<T> v) {
  static_assert(std::is_integral_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  if constexpr (sizeof(T) == 4) {
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(global_addr(p)), "r"(static_cast<uint32_t>(v))
                 : "memory");
  } else {
    asm volatile("st.release.gpu.global.u64 [%0], %1;" ::"l"(global_addr(p)), "l"(static_cast<uint64_t>(v))
                 : "memory");
  }
}
template <class T>
CAROUSEL_GPU_DEV T atomic_add_acq_rel(T* p, std::type_identity_t<T> v) {
  static_assert(std::is_integral_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  if constexpr (sizeof(T) == 4) {
    uint32_t r;
    asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], %2;"
                 : "=r"(r)
                 : "l"(global_addr(p)), "r"(static_cast<uint32_t>(v))
                 : "memory");
    return static_cast<T>(r);
  } else {
    uint64_t r;
    asm volatile("atom.add.acq_rel.gpu.global.u64 %0, [%1], %2;"
                 : "=l"(r)
                 : "l"(global_addr(p)), "l"(static_cast<uint64_t>(v))
                 : "memory");
    return static_cast<T>(r);
  }
}

// ---- clusters (compute capability 9.0 from here on)
CAROUSEL_GPU_DEV unsigned cluster_rank() {
  unsigned r;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
  return r;
}
CAROUSEL_GPU_DEV unsigned cluster_size() {
  unsigned r;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(r));
  return r;
}
CAROUSEL_GPU_DEV void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\n barrier.cluster.wait.acquire.aligned;" ::
                   : "memory");
}
template <class T>
CAROUSEL_GPU_DEV T* map_shared(T* p, unsigned rank) {
  uint64_t r;
  asm("mapa.u64 %0, %1, %2;" : "=l"(r) : "l"(p), "r"(rank));
  return reinterpret_cast<T*>(r);
}
CAROUSEL_GPU_DEV uint32_t remote_smem_addr(const void* p, unsigned rank) {
  uint32_t r;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(r) : "r"(smem_addr(p)), "r"(rank));
  return r;
}

// ---- mbarriers
CAROUSEL_GPU_DEV void mbar_init(uint64_t* b, unsigned count) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(smem_addr(b)), "r"(count) : "memory");
}
CAROUSEL_GPU_DEV void fence_mbar_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
CAROUSEL_GPU_DEV void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
CAROUSEL_GPU_DEV void mbar_arrive(uint64_t* b) {
  asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(smem_addr(b)) : "memory");
}
// Not .release.cluster: that waits for all of the thread's writes to reach the second-level cache
// (MEMBAR.ALL.GPU).
CAROUSEL_GPU_DEV void mbar_arrive_remote(uint64_t* b, unsigned rank) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(remote_smem_addr(b, rank)) : "memory");
}
CAROUSEL_GPU_DEV void mbar_arrive_expect_tx(uint64_t* b, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(smem_addr(b)), "r"(bytes)
               : "memory");
}
CAROUSEL_GPU_DEV void mbar_expect_tx(uint64_t* b, unsigned bytes) {
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(smem_addr(b)), "r"(bytes)
               : "memory");
}
CAROUSEL_GPU_DEV bool mbar_test(uint64_t* b, unsigned parity) {
  uint32_t r;
  asm volatile(
      "{\n .reg .pred p;\n mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\n selp.u32 %0, 1, 0, p;\n}"
      : "=r"(r)
      : "r"(smem_addr(b)), "r"(parity)
      : "memory");
  return r != 0;
}
CAROUSEL_GPU_DEV void mbar_wait(uint64_t* b, unsigned parity) {
  asm volatile(
      "{\n .reg .pred p;\n W:\n mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n @p bra D;\n bra W;\n "
      "D:\n}" ::"r"(smem_addr(b)),
      "r"(parity)
      : "memory");
}
CAROUSEL_GPU_DEV void mbar_wait_cluster(uint64_t* b, unsigned parity) {
  asm volatile(
      "{\n .reg .pred p;\n W:\n mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%0], %1;\n @p "
      "bra D;\n bra W;\n "
      "D:\n}" ::"r"(smem_addr(b)),
      "r"(parity)
      : "memory");
}
CAROUSEL_GPU_DEV void st_async(uint32_t* dst, uint32_t v, uint64_t* bar, unsigned rank) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];" ::"r"(
                   remote_smem_addr(dst, rank)),
               "r"(v), "r"(remote_smem_addr(bar, rank))
               : "memory");
}
CAROUSEL_GPU_DEV void st_async(float4* dst, float4 v, uint64_t* bar, unsigned rank) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1,%2,%3,%4}, [%5];" ::"r"(
          remote_smem_addr(dst, rank)),
      "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w), "r"(remote_smem_addr(bar, rank))
      : "memory");
}
CAROUSEL_GPU_DEV void st_async(uint4* dst, uint4 v, uint64_t* bar, unsigned rank) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1,%2,%3,%4}, [%5];" ::"r"(
          remote_smem_addr(dst, rank)),
      "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "r"(remote_smem_addr(bar, rank))
      : "memory");
}

// ---- bulk copies and TMA
CAROUSEL_GPU_DEV void bulk_g2s(void* dst, const void* src, unsigned bytes, uint64_t* bar) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          smem_addr(dst)),
      "l"(global_addr(src)), "r"(bytes), "r"(smem_addr(bar))
      : "memory");
}
CAROUSEL_GPU_DEV void bulk_g2s_multicast(void* dst, const void* src, unsigned bytes, uint64_t* bar,
                                         uint16_t mask) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, "
      "[%3], %4;" ::"r"(smem_addr(dst)),
      "l"(global_addr(src)), "r"(bytes), "r"(smem_addr(bar)), "h"(mask)
      : "memory");
}
struct TensorMap {
  CUtensorMap map;
};
CAROUSEL_GPU_DEV void tma_load_2d(void* dst, const TensorMap& m, int x, int y, uint64_t* bar) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2,%3}], "
      "[%4];" ::"r"(smem_addr(dst)),
      "l"(&m.map), "r"(x), "r"(y), "r"(smem_addr(bar))
      : "memory");
}
CAROUSEL_GPU_DEV void tma_load_2d_multicast(void* dst, const TensorMap& m, int x, int y, uint64_t* bar,
                                            uint16_t mask) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%2,%3}], [%4], %5;" ::"r"(smem_addr(dst)),
      "l"(&m.map), "r"(x), "r"(y), "r"(smem_addr(bar)), "h"(mask)
      : "memory");
}
CAROUSEL_GPU_DEV void tma_load_4d(void* dst, const TensorMap& m, int x, int y, int z, int w, uint64_t* bar) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, "
      "{%2,%3,%4,%5}], [%6];" ::"r"(smem_addr(dst)),
      "l"(&m.map), "r"(x), "r"(y), "r"(z), "r"(w), "r"(smem_addr(bar))
      : "memory");
}
CAROUSEL_GPU_DEV void tma_load_4d_multicast(void* dst, const TensorMap& m, int x, int y, int z, int w,
                                            uint64_t* bar, uint16_t mask) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%2,%3,%4,%5}], [%6], %7;" ::"r"(smem_addr(dst)),
      "l"(&m.map), "r"(x), "r"(y), "r"(z), "r"(w), "r"(smem_addr(bar)), "h"(mask)
      : "memory");
}
CAROUSEL_GPU_DEV void bulk_s2g(void* dst, const void* src, unsigned bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(global_addr(dst)),
               "r"(smem_addr(src)), "r"(bytes)
               : "memory");
}
CAROUSEL_GPU_DEV void tma_store_2d(const TensorMap& m, int x, int y, const void* src) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1,%2}], [%3];" ::"l"(&m.map),
               "r"(x), "r"(y), "r"(smem_addr(src))
               : "memory");
}
CAROUSEL_GPU_DEV void tma_store_4d(const TensorMap& m, int x, int y, int z, int w, const void* src) {
  asm volatile(
      "cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%1,%2,%3,%4}], [%5];" ::"l"(&m.map),
      "r"(x), "r"(y), "r"(z), "r"(w), "r"(smem_addr(src))
      : "memory");
}
CAROUSEL_GPU_DEV void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
template <int N>
CAROUSEL_GPU_DEV void bulk_wait() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(N) : "memory");
}
template <int N>
CAROUSEL_GPU_DEV void bulk_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
}

// ---- registers and dependent launches
template <int N>
CAROUSEL_GPU_DEV void setmaxnreg_inc() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N>
CAROUSEL_GPU_DEV void setmaxnreg_dec() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
CAROUSEL_GPU_DEV void grid_dependency_wait() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
CAROUSEL_GPU_DEV void grid_dependency_launch() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}
}  // namespace carousel::gpu

#include "kernels/cuda/device_ptx_wgmma.h"
