// The part of device_ptx.h for wgmma (sm_90a).
#pragma once
#include "kernels/cuda/device_ptx.h"

namespace carousel::gpu {

CAROUSEL_GPU_DEV void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
CAROUSEL_GPU_DEV void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N>
CAROUSEL_GPU_DEV void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
template <int N>
CAROUSEL_GPU_DEV void wgmma_registers(float (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
CAROUSEL_GPU_DEV void opaque(int& x) { asm volatile("" : "+r"(x)); }
template <int N>
CAROUSEL_GPU_DEV void wgmma_settled(float (&d)[N]) {
  wgmma_wait<0>();
  wgmma_registers(d);
}
// The text of d's registers, operands 0 to N/2 - 1, and their constraints.
// clang-format off
#define CAROUSEL_D16 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define CAROUSEL_D20 CAROUSEL_D16 ",%16,%17,%18,%19"
#define CAROUSEL_D32 CAROUSEL_D20 ",%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define CAROUSEL_D36 \
  CAROUSEL_D32 "," \
  "%32,%33,%34,%35"
#define CAROUSEL_D64 \
  CAROUSEL_D32 "," \
  "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53," \
  "%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define CAROUSEL_D96 \
  CAROUSEL_D64 "," \
  "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85," \
  "%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define CAROUSEL_D128 \
  CAROUSEL_D64 "," \
  "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85," \
  "%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,%105," \
  "%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122," \
  "%123,%124,%125,%126,%127"
#define CAROUSEL_F4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define CAROUSEL_F16(i) CAROUSEL_F4(i), CAROUSEL_F4(i + 4), CAROUSEL_F4(i + 8), CAROUSEL_F4(i + 12)
#define CAROUSEL_F20 CAROUSEL_F16(0), CAROUSEL_F4(16)
#define CAROUSEL_F32 CAROUSEL_F16(0), CAROUSEL_F16(16)
#define CAROUSEL_F36 CAROUSEL_F32, CAROUSEL_F4(32)
#define CAROUSEL_F64 CAROUSEL_F32, CAROUSEL_F16(32), CAROUSEL_F16(48)
#define CAROUSEL_F96 CAROUSEL_F64, CAROUSEL_F16(64), CAROUSEL_F16(80)
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
  static_assert(N == 32 || N == 40 || N == 64 || N == 72 || N == 128 || N == 192 || N == 256);
  if constexpr (N == 32) {
    CAROUSEL_WGMMA_SS(32, CAROUSEL_D16, CAROUSEL_F16(0), 16, 17, 18, 19, 20);
  } else if constexpr (N == 40) {
    CAROUSEL_WGMMA_SS(40, CAROUSEL_D20, CAROUSEL_F20, 20, 21, 22, 23, 24);
  } else if constexpr (N == 64) {
    CAROUSEL_WGMMA_SS(64, CAROUSEL_D32, CAROUSEL_F32, 32, 33, 34, 35, 36);
  } else if constexpr (N == 72) {
    CAROUSEL_WGMMA_SS(72, CAROUSEL_D36, CAROUSEL_F36, 36, 37, 38, 39, 40);
  } else if constexpr (N == 128) {
    CAROUSEL_WGMMA_SS(128, CAROUSEL_D64, CAROUSEL_F64, 64, 65, 66, 67, 68);
  } else if constexpr (N == 192) {
    CAROUSEL_WGMMA_SS(192, CAROUSEL_D96, CAROUSEL_F96, 96, 97, 98, 99, 100);
  } else {
    CAROUSEL_WGMMA_SS(256, CAROUSEL_D128, CAROUSEL_F128, 128, 129, 130, 131, 132);
  }
}
template <int N, bool kTransposeB = false>
CAROUSEL_GPU_DEV void wgmma_bf16_ra(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b_desc,
                                    bool accumulate = true) {
  static_assert(N == 32 || N == 40 || N == 64 || N == 72 || N == 128 || N == 192 || N == 256);
  if constexpr (N == 32) {
    CAROUSEL_WGMMA_RS(32, CAROUSEL_D16, CAROUSEL_F16(0), 16, 17, 18, 19, 20, 21, 22);
  } else if constexpr (N == 40) {
    CAROUSEL_WGMMA_RS(40, CAROUSEL_D20, CAROUSEL_F20, 20, 21, 22, 23, 24, 25, 26);
  } else if constexpr (N == 64) {
    CAROUSEL_WGMMA_RS(64, CAROUSEL_D32, CAROUSEL_F32, 32, 33, 34, 35, 36, 37, 38);
  } else if constexpr (N == 72) {
    CAROUSEL_WGMMA_RS(72, CAROUSEL_D36, CAROUSEL_F36, 36, 37, 38, 39, 40, 41, 42);
  } else if constexpr (N == 128) {
    CAROUSEL_WGMMA_RS(128, CAROUSEL_D64, CAROUSEL_F64, 64, 65, 66, 67, 68, 69, 70);
  } else if constexpr (N == 192) {
    CAROUSEL_WGMMA_RS(192, CAROUSEL_D96, CAROUSEL_F96, 96, 97, 98, 99, 100, 101, 102);
  } else {
    CAROUSEL_WGMMA_RS(256, CAROUSEL_D128, CAROUSEL_F128, 128, 129, 130, 131, 132, 133, 134);
  }
}
#undef CAROUSEL_D16
#undef CAROUSEL_D20
#undef CAROUSEL_D32
#undef CAROUSEL_D36
#undef CAROUSEL_D64
#undef CAROUSEL_D96
#undef CAROUSEL_D128
#undef CAROUSEL_F4
#undef CAROUSEL_F16
#undef CAROUSEL_F20
#undef CAROUSEL_F32
#undef CAROUSEL_F36
#undef CAROUSEL_F64
#undef CAROUSEL_F96
#undef CAROUSEL_F128
#undef CAROUSEL_WGMMA_SS
#undef CAROUSEL_WGMMA_RS
CAROUSEL_GPU_DEV void wgmma_bf16_m64n64k16(float (&d)[32], uint64_t a_desc, uint64_t b_desc) {
  wgmma_bf16<64>(d, a_desc, b_desc);
}
}  // namespace carousel::gpu
