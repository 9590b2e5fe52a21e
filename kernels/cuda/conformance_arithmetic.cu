// conformance_arithmetic.cu - functions of one thread: fast math, conversions, roundings, bits, atomics.
// Grid: enough blocks of 128 threads; one element per thread. No shared memory.
#include "kernels/cuda/conformance.h"

namespace carousel::conformance {
namespace {

constexpr int kElems = 4096;

template <class F, class In, class Out>
__global__ void MapKernel(Out* y, const In* x, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) y[i] = F()(x[i]);
}
template <class F, class In, class Out>
cudaError_t RunMap(void* results, const void* operands) {
  return gpu::launch(MapKernel<F, In, Out>, {.grid = kElems / 128, .block = 128, .name = "MapKernel"},
                     static_cast<Out*>(results), static_cast<const In*>(operands), kElems);
}
template <class F, class In = float, class Out = float>
Case Map(const char* name, void (*fill)(Random&, void*), Tolerance tolerance = {}) {
  return {name,
          kElems * static_cast<int64_t>(sizeof(In)),
          kElems * static_cast<int64_t>(sizeof(Out)),
          fill,
          RunMap<F, In, Out>,
          tolerance};
}

// ---- fast math
struct ExpFast {
  __device__ float operator()(float x) const { return gpu::exp_fast(x); }
};
struct Exp2Fast {
  __device__ float operator()(float x) const { return gpu::exp2_fast(x); }
};
struct LogFast {
  __device__ float operator()(float x) const { return gpu::log_fast(x); }
};
struct Log2Fast {
  __device__ float operator()(float x) const { return gpu::log2_fast(x); }
};
struct TanhFast {
  __device__ float operator()(float x) const { return gpu::tanh_fast(x); }
};
struct RcpFast {
  __device__ float operator()(float x) const { return gpu::rcp_fast(x); }
};
struct RsqrtFast {
  __device__ float operator()(float x) const { return gpu::rsqrt_fast(x); }
};

// ---- conversions
struct PackBf16 {
  __device__ uint32_t operator()(float2 x) const { return gpu::pack_bf16(x.x, x.y); }
};
struct ToBf16 {
  __device__ uint32_t operator()(float x) const { return gpu::to_bf16(x).bits; }
};
struct UnpackBf16 {
  __device__ float2 operator()(uint32_t x) const { return gpu::unpack_bf16(x); }
};

// ---- one rounding, never fused
struct Rounded {
  __device__ float operator()(float4 v) const {
    return __fadd_rn(__fmul_rn(v.x, v.y), __fsub_rn(__fdiv_rn(v.z, v.w), __frcp_rn(v.y))) +
           __fmaf_rn(v.x, v.z, v.w) + __fsqrt_rn(fabsf(v.x));
  }
};
struct RoundedDouble {
  __device__ double operator()(float4 v) const {
    const double x = v.x, y = v.y, z = v.z, w = v.w;
    return __dadd_rn(__dmul_rn(x, y), __dsub_rn(__ddiv_rn(z, w), __drcp_rn(y))) + __fma_rn(x, z, w) +
           __dsqrt_rn(fabs(x));
  }
};
struct RoundToInt {
  __device__ int operator()(float x) const {
    return __float2int_rn(x * 1e3f) ^ __double2int_rn(static_cast<double>(x) * 1e5);
  }
};

// ---- bits
struct Bits {
  __device__ uint4 operator()(uint4 v) const {
    const uint64_t a = static_cast<uint64_t>(v.x) << 32 | v.y, b = static_cast<uint64_t>(v.z) << 32 | v.w;
    const uint64_t high = __umul64hi(a, b);
    return make_uint4(
        static_cast<uint32_t>(__popc(v.x) + 64 * __popcll(a)) ^ __brev(v.y) ^ static_cast<uint32_t>(high),
        static_cast<uint32_t>(__clz(static_cast<int>(v.x >> (v.y & 31))) +
                              64 * __clzll(static_cast<long long>(b >> (v.x & 63))) +
                              4096 * __ffs(static_cast<int>(v.y << (v.z & 31))) +
                              (1 << 20) * __ffsll(static_cast<long long>(a << (v.w & 63)))),
        __umulhi(v.x, v.y) ^ static_cast<uint32_t>(__mulhi(static_cast<int>(v.z), static_cast<int>(v.w))) ^
            static_cast<uint32_t>(high >> 32),
        __byte_perm(v.x, v.y, v.z & 0xffff) ^ __funnelshift_l(v.x, v.y, v.w) ^
            __funnelshift_r(v.z, v.y, v.w >> 8));
  }
};
struct MinMax {
  __device__ uint4 operator()(uint4 v) const {
    const int a = static_cast<int>(v.x), b = static_cast<int>(v.y);
    const float p = __uint_as_float(v.x & 0x7effffffu),
                q = __int_as_float(static_cast<int>(v.y & 0xfeffffffu));
    return make_uint4(static_cast<uint32_t>(min(a, b)), static_cast<uint32_t>(max(a, b)),
                      min(v.x, v.z) ^ max(v.y, v.w),
                      __float_as_uint(fminf(p, q)) ^ static_cast<uint32_t>(__float_as_int(fmaxf(p, q))));
  }
};

// Atomics of all threads on one word each: results depend on no order.
__global__ void AtomicsKernel(uint32_t* y, const uint32_t* x) {
  const uint32_t v = x[blockIdx.x * blockDim.x + threadIdx.x];
  atomicAdd(&y[0], v);
  atomicSub(&y[1], v);
  atomicMax(&y[2], v);
  atomicMin(&y[3], v);
  atomicAnd(&y[4], v | 0xff00u);
  atomicOr(&y[5], v & 0x00ff00ffu);
  atomicXor(&y[6], v);
  if (atomicCAS(&y[7], 0xffffffffu, 7u) == 0xffffffffu) atomicExch(&y[8], 8u);
  atomicMax(reinterpret_cast<int*>(&y[9]), static_cast<int>(v));
  atomicAdd(reinterpret_cast<unsigned long long*>(&y[10]), static_cast<unsigned long long>(v) << 20);
}
cudaError_t RunAtomics(void* results, const void* operands) {
  return gpu::launch(AtomicsKernel, {.grid = 4, .block = 64, .name = "AtomicsKernel"},
                     static_cast<uint32_t*>(results), static_cast<const uint32_t*>(operands));
}

// ---- operands
void FillExp(Random& random, void* operands) {
  for (int i = 0; i < kElems; ++i) static_cast<float*>(operands)[i] = Uniform(random, -20, 20);
}
// Where results leave the range of float, and what is no number.
void FillSpecial(Random& random, void* operands) {
  const float special[] = {0.0f,      -0.0f,    INFINITY, -INFINITY, NAN,    1e-40f, -1e-40f,
                           0x1p-126f, 0x1p126f, 0x1p127f, -0x1p127f, 1e30f,  -1e30f, -126.0f,
                           -126.5f,   -127.0f,  -149.0f,  -150.0f,   127.5f, 128.0f, -88.0f,
                           -104.0f,   89.0f,    1.0f,     -1.0f};
  for (int i = 0; i < kElems; ++i)
    static_cast<float*>(operands)[i] = special[random() % (sizeof special / sizeof special[0])];
}
void FillPositive(Random& random, void* operands) {  // many magnitudes
  for (int i = 0; i < kElems; ++i) {
    static_cast<float*>(operands)[i] =
        std::ldexp(Uniform(random, 1, 2), static_cast<int>(random() % 40) - 20);
  }
}
// Numbers of every magnitude, ties between two bf16, infinities, NaN, both zeros.
void FillConversions(Random& random, void* operands) {
  const uint32_t special[] = {0,           0x80000000u, 0x7f800000u, 0xff800000u, 0x7fc00000u,
                              0xffffffffu, 0x7f800001u, 0x00000001u, 0x3f808000u, 0x3f818000u,
                              0x7f7fffffu, 0x3f807fffu, 0x3f808001u, 0x80008000u};
  for (int i = 0; i < 2 * kElems; ++i) {
    uint32_t bits = static_cast<uint32_t>(random());
    if (i % 5 == 0) bits = special[random() % (sizeof special / 4)];
    if (i % 5 == 1) bits = (bits & 0xffff0000u) | 0x8000u;
    static_cast<uint32_t*>(operands)[i] = bits;
  }
}
void FillConversionsHalf(Random& random, void* operands) {
  std::vector<uint32_t> all(2 * kElems);
  FillConversions(random, all.data());
  std::memcpy(operands, all.data(), kElems * 4);
}
}  // namespace

void AppendArithmeticCases(std::vector<Case>& cases) {
  // CUDA programming guide, "Intrinsic functions": __expf 2 + |1.173 x| ulp, __logf 2^-21.41 near 1 and 3 ulp
  // elsewhere. PTX ISA: ex2.approx 2^-22.5, lg2.approx 2^-22, tanh.approx 2^-11, rcp.approx 1 ulp,
  // rsqrt.approx 2^-22.9 relative; the emulation's own functions add 1 ulp (2^-23).
  cases.push_back(Map<ExpFast>("exp_fast", FillExp, {Tolerance::kFloat, 27 * 0x1p-23}));
  cases.push_back(Map<Exp2Fast>("exp2_fast", FillExp, {Tolerance::kFloat, 0x1p-22 + 0x1p-23}));
  cases.push_back(Map<LogFast>("log_fast", FillPositive, {Tolerance::kFloat, 4 * 0x1p-23, 0x1p-21}));
  cases.push_back(Map<Log2Fast>("log2_fast", FillPositive, {Tolerance::kFloat, 4 * 0x1p-23, 0x1p-21}));
  cases.push_back(Map<TanhFast>("tanh_fast", FillExp, {Tolerance::kFloat, 0x1p-10}));
  cases.push_back(Map<RcpFast>("rcp_fast", FillPositive, {Tolerance::kFloat, 2 * 0x1p-23}));
  // Results below 2^-126 may be 0.
  cases.push_back(Map<ExpFast>("exp_fast_special", FillSpecial, {Tolerance::kFloat, 27 * 0x1p-23, 0x1p-126}));
  cases.push_back(
      Map<Exp2Fast>("exp2_fast_special", FillSpecial, {Tolerance::kFloat, 0x1p-22 + 0x1p-23, 0x1p-126}));
  cases.push_back(Map<RcpFast>("rcp_fast_special", FillSpecial, {Tolerance::kFloat, 2 * 0x1p-23, 0x1p-126}));
  cases.push_back(Map<RsqrtFast>("rsqrt_fast", FillPositive, {Tolerance::kFloat, 0x1p-22 + 0x1p-23}));
  cases.push_back(Map<PackBf16, float2, uint32_t>("pack_bf16", FillConversions));
  cases.push_back(Map<ToBf16, float, uint32_t>("to_bf16", FillConversionsHalf));
  cases.push_back(Map<UnpackBf16, uint32_t, float2>("unpack_bf16", FillBits<kElems>));
  cases.push_back(Map<Rounded, float4>("rounded_float", FillUnit<4 * kElems>));
  cases.push_back(Map<RoundedDouble, float4, double>("rounded_double", FillUnit<4 * kElems>));
  cases.push_back(Map<RoundToInt, float, int>("round_to_int", FillConversionsHalf));
  cases.push_back(Map<Bits, uint4, uint4>("bits", FillBits<4 * kElems>));
  cases.push_back(Map<MinMax, uint4, uint4>("min_max", FillBits<4 * kElems>));
  cases.push_back({"atomics", 256 * 4, 12 * 4, FillBits<256>, RunAtomics});
}
}  // namespace carousel::conformance
