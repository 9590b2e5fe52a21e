// nvcc's half of kernels/cuda/device.h: thin wrappers of PTX instructions. The only file with asm. Every
// wrapper is compared with the emulation by kernels/cuda/conformance.cu. kernels/simt/device_emulation.h has
// the same functions, with comments.
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
CAROUSEL_GPU_DEV void mbar_arrive_remote(uint64_t* b, unsigned rank) {
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(remote_smem_addr(b, rank))
               : "memory");
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

// ---- wgmma (sm_90a)
CAROUSEL_GPU_DEV void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
CAROUSEL_GPU_DEV void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N>
CAROUSEL_GPU_DEV void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
// The text of d's registers, operands 0 to N/2 - 1, and their constraints.
// clang-format off
#define CAROUSEL_D32 \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23," \
  "%24,%25,%26,%27,%28,%29,%30,%31"
#define CAROUSEL_D36 \
  CAROUSEL_D32 "," \
  "%32,%33,%34,%35"
#define CAROUSEL_D64 \
  CAROUSEL_D32 "," \
  "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53," \
  "%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define CAROUSEL_D128 \
  CAROUSEL_D64 "," \
  "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85," \
  "%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,%105," \
  "%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122," \
  "%123,%124,%125,%126,%127"
#define CAROUSEL_F4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define CAROUSEL_F16(i) CAROUSEL_F4(i), CAROUSEL_F4(i + 4), CAROUSEL_F4(i + 8), CAROUSEL_F4(i + 12)
#define CAROUSEL_F32 CAROUSEL_F16(0), CAROUSEL_F16(16)
#define CAROUSEL_F36 CAROUSEL_F32, CAROUSEL_F4(32)
#define CAROUSEL_F64 CAROUSEL_F32, CAROUSEL_F16(32), CAROUSEL_F16(48)
#define CAROUSEL_F128 CAROUSEL_F64, CAROUSEL_F16(64), CAROUSEL_F16(80), CAROUSEL_F16(96), CAROUSEL_F16(112)
// o0 ... are the numbers of the operands after d.
#define CAROUSEL_WGMMA_SS(n, D, F, o0, o1, o2, o3, o4)                                                        \
  asm volatile("{\n .reg .pred p;\n setp.ne.b32 p, %" #o2 ", 0;\n"                                           \
               "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" D "}, %" #o0 ", %" #o1            \
               ", p, 1, 1, %" #o3 ", %" #o4 ";\n}"                                                            \
               : F : "l"(a_desc), "l"(b_desc), "r"(accumulate ? 1 : 0), "n"(kTransposeA ? 1 : 0), "n"(kTransposeB ? 1 : 0))
#define CAROUSEL_WGMMA_RS(n, D, F, o0, o1, o2, o3, o4, o5, o6)                                                \
  asm volatile("{\n .reg .pred p;\n setp.ne.b32 p, %" #o5 ", 0;\n"                                           \
               "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" D "}, {%" #o0 ",%" #o1 ",%" #o2   \
               ",%" #o3 "}, %" #o4 ", p, 1, 1, %" #o6 ";\n}"                                                  \
               : F : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b_desc), "r"(accumulate ? 1 : 0),        \
                 "n"(kTransposeB ? 1 : 0))
// clang-format on
template <int N, bool kTransposeA = false, bool kTransposeB = false>
CAROUSEL_GPU_DEV void wgmma_bf16(float (&d)[N / 2], uint64_t a_desc, uint64_t b_desc,
                                 bool accumulate = true) {
  static_assert(N == 64 || N == 72 || N == 128 || N == 256);
  if constexpr (N == 64) {
    CAROUSEL_WGMMA_SS(64, CAROUSEL_D32, CAROUSEL_F32, 32, 33, 34, 35, 36);
  } else if constexpr (N == 72) {
    CAROUSEL_WGMMA_SS(72, CAROUSEL_D36, CAROUSEL_F36, 36, 37, 38, 39, 40);
  } else if constexpr (N == 128) {
    CAROUSEL_WGMMA_SS(128, CAROUSEL_D64, CAROUSEL_F64, 64, 65, 66, 67, 68);
  } else {
    CAROUSEL_WGMMA_SS(256, CAROUSEL_D128, CAROUSEL_F128, 128, 129, 130, 131, 132);
  }
}
template <int N, bool kTransposeB = false>
CAROUSEL_GPU_DEV void wgmma_bf16_ra(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b_desc,
                                    bool accumulate = true) {
  static_assert(N == 64 || N == 72 || N == 128 || N == 256);
  if constexpr (N == 64) {
    CAROUSEL_WGMMA_RS(64, CAROUSEL_D32, CAROUSEL_F32, 32, 33, 34, 35, 36, 37, 38);
  } else if constexpr (N == 72) {
    CAROUSEL_WGMMA_RS(72, CAROUSEL_D36, CAROUSEL_F36, 36, 37, 38, 39, 40, 41, 42);
  } else if constexpr (N == 128) {
    CAROUSEL_WGMMA_RS(128, CAROUSEL_D64, CAROUSEL_F64, 64, 65, 66, 67, 68, 69, 70);
  } else {
    CAROUSEL_WGMMA_RS(256, CAROUSEL_D128, CAROUSEL_F128, 128, 129, 130, 131, 132, 133, 134);
  }
}
#undef CAROUSEL_D32
#undef CAROUSEL_D36
#undef CAROUSEL_D64
#undef CAROUSEL_D128
#undef CAROUSEL_F4
#undef CAROUSEL_F16
#undef CAROUSEL_F32
#undef CAROUSEL_F36
#undef CAROUSEL_F64
#undef CAROUSEL_F128
#undef CAROUSEL_WGMMA_SS
#undef CAROUSEL_WGMMA_RS
CAROUSEL_GPU_DEV void wgmma_bf16_m64n64k16(float (&d)[32], uint64_t a_desc, uint64_t b_desc) {
  wgmma_bf16<64>(d, a_desc, b_desc);
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
