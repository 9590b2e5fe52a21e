// Matrices of a warp (ldmatrix, stmatrix, mma) and of a warpgroup (wgmma), with the PTX ISA's fragment
// layouts.
#include <algorithm>
#include <cstring>

#include "kernels/simt/checker.h"
#include "kernels/simt/emulator_internal.h"

namespace carousel::emulator {
namespace {

typedef float V8 __attribute__((vector_size(32)));

float HalfToFloat(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16, exponent = h >> 10 & 31,
                 mantissa = h & 0x3ff;
  if (exponent == 0) return (sign ? -1.0f : 1.0f) * static_cast<float>(mantissa) * 0x1p-24f;
  return gpu::bits_to_float(sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | mantissa << 13);
}
// Element i of a 32-bit register.
template <Mma T>
float Element(uint32_t v, int i) {
  if constexpr (T == Mma::kTf32) return gpu::bits_to_float(v & 0xffffe000u);
  const uint16_t h = static_cast<uint16_t>(v >> 16 * i);
  return T == Mma::kBf16 ? gpu::bits_to_float(static_cast<uint32_t>(h) << 16) : HalfToFloat(h);
}

// c (16 x 8) += a (16 x k) b (k x 8). Products of bf16, f16 and tf32 values are exact in f32, so that fused
// or not the result is the same.
#define CAROUSEL_TILE_BODY                           \
  for (int i = 0; i < 16; ++i) {                     \
    V8 s = c[i];                                     \
    for (int q = 0; q < k; ++q) s += a[i][q] * b[q]; \
    c[i] = s;                                        \
  }
void TileBase(V8* c, const float (*a)[16], const V8* b, int k) { CAROUSEL_TILE_BODY }
#ifdef __x86_64__
__attribute__((target("avx2,fma"))) void TileAvx2(V8* c, const float (*a)[16], const V8* b, int k) {
  CAROUSEL_TILE_BODY
  __builtin_ia32_vzeroupper();  // g++ -O1 leaves it out, and then every later expf is 10 times slower
}
const auto tile = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? TileAvx2 : TileBase;
#else
const auto tile = TileBase;
#endif
#undef CAROUSEL_TILE_BODY

// Row and column in the 16 x 8 tile of register r of lane l's accumulator.
int AccRow(int l, int r) { return (l >> 2) + (r >> 1) * 8; }
int AccCol(int l, int r) { return (l & 3) * 2 + (r & 1); }

struct MmaArgument {
  float* d;
  const uint32_t *a, *b;
};
template <Mma T>
void LoadA(float (*a)[16], int lane, const uint32_t* registers) {
  constexpr int kElements = T == Mma::kTf32 ? 1 : 2;  // per register
  const int g = lane >> 2, t = (lane & 3) * kElements;
  for (int r = 0; r < 4; ++r) {
    for (int e = 0; e < kElements; ++e) {
      a[g + (r & 1) * 8][t + e + (r >> 1) * 4 * kElements] = Element<T>(registers[r], e);
    }
  }
}
template <Mma T>
void RunMma(void** args, unsigned) {
  constexpr int kElements = T == Mma::kTf32 ? 1 : 2, kHalf = 4 * kElements;
  float a[16][16];
  V8 b[16], c[16];
  for (int l = 0; l < 32; ++l) {
    const MmaArgument& m = *static_cast<MmaArgument*>(args[l]);
    const int g = l >> 2, t = (l & 3) * kElements;
    LoadA<T>(a, l, m.a);
    for (int r = 0; r < 2; ++r) {
      for (int e = 0; e < kElements; ++e) b[t + e + r * kHalf][g] = Element<T>(m.b[r], e);
    }
    for (int r = 0; r < 4; ++r) c[AccRow(l, r)][AccCol(l, r)] = m.d[r];
  }
  tile(c, a, b, 2 * kHalf);
  for (int l = 0; l < 32; ++l) {
    for (int r = 0; r < 4; ++r) static_cast<MmaArgument*>(args[l])->d[r] = c[AccRow(l, r)][AccCol(l, r)];
  }
  ++worker->counts.mma;
}

struct MatrixArgument {
  uint32_t* registers;
  char* row;
  int num_matrices;
  bool transposed;
};
// Moves between lane l's register j and rows of matrix j, which lanes 8 j to 8 j + 7 point to.
template <bool kStore>
void MoveMatrices(void** args, unsigned) {
  const auto at = [&](int l) -> MatrixArgument& { return *static_cast<MatrixArgument*>(args[l]); };
  for (int l = 0; l < 32; ++l) {
    for (int j = 0; j < at(l).num_matrices; ++j) {
      const int g = l >> 2, t = l & 3;
      for (int e = 0; e < 2; ++e) {  // the two elements of the register
        char* memory =
            at(l).transposed ? at(8 * j + 2 * t + e).row + 2 * g : at(8 * j + g).row + 4 * t + 2 * e;
        char* element = reinterpret_cast<char*>(&at(l).registers[j]) + 2 * e;
        std::memcpy(kStore ? memory : element, kStore ? element : memory, 2);
      }
    }
  }
}

// Offset in shared memory, before swizzling, of element (r, k) of a wgmma operand: r along M or N, k along K.
// Canonical layouts of the PTX ISA, "Matrix descriptor": 8 x 16-byte core matrices; with a swizzle, rows of
// 128, 64 or 32 bytes.
struct Operand {
  uint32_t start, lbo, sbo, mode;
  bool mn_major;
  Operand(uint64_t desc, bool mn)
      : start(static_cast<uint32_t>(desc & 0x3fff) << 4),
        lbo(static_cast<uint32_t>(desc >> 16 & 0x3fff) << 4),
        sbo(static_cast<uint32_t>(desc >> 32 & 0x3fff) << 4),
        mode(static_cast<uint32_t>(desc >> 62)),
        mn_major(mn) {}
  uint32_t Offset(uint32_t r, uint32_t k) const {
    const uint32_t width = mode == 0 ? 16 : mode == 1 ? 128 : mode == 2 ? 64 : 32;  // bytes of a row
    uint32_t offset = start;
    if (!mn_major) {
      offset += r / 8 * sbo + r % 8 * width;
      offset += mode == 0 ? k / 8 * lbo + k % 8 * 2 : k * 2;
    } else {
      const uint32_t row = width / 2;  // elements along M or N that are contiguous
      offset += r % row * 2 + k % 8 * width;
      offset += mode == 0 ? r / row * sbo + k / 8 * lbo : r / row * lbo + k / 8 * sbo;
    }
    return Swizzle(offset, mode);
  }
  // Calls f(offset) for every 16-byte piece of `rows` rows.
  template <class F>
  void ForPieces(uint32_t rows, F f) const {
    for (uint32_t i = 0; i < (mn_major ? rows / 8 : rows); ++i) {
      for (uint32_t j = 0; j < (mn_major ? 16u : 2u); ++j) f(mn_major ? Offset(8 * i, j) : Offset(i, 8 * j));
    }
  }
};

void CheckOperand(const Operand& o, uint32_t rows, const WgmmaOp& op) {
  const Block& b = *Current()->block;
  o.ForPieces(rows, [&](uint32_t offset) {
    if (offset + 16 > b.used) {
      Fail("wgmma at %s: an operand at shared offset %u is outside the block's %zu bytes",
           LocName(op.loc).c_str(), offset, b.used);
    }
    check::Access(b.shared + offset, 16, false, true, op.loc);
  });
}
float OperandElement(const char* shared, const Operand& o, int r, int k) {
  uint16_t h;
  std::memcpy(&h, shared + o.Offset(static_cast<uint32_t>(r), static_cast<uint32_t>(k)), 2);
  return gpu::bits_to_float(static_cast<uint32_t>(h) << 16);
}

// The oldest wgmma of a warp, from what shared memory holds now: 16 rows of the warpgroup's 64.
void RunWgmma(void** args, unsigned) {
  const auto op = [&](int l) -> WgmmaOp& { return static_cast<Thread*>(args[l])->wgmmas.front(); };
  const Thread& t = *static_cast<Thread*>(args[0]);
  const WgmmaOp& o = op(0);
  const Operand a_operand(o.a_desc, o.shape.transpose_a), b_operand(o.b_desc, o.shape.transpose_b);
  const char* shared = t.block->shared;
  const int first_row = static_cast<int>(t.warp % 4) * 16;
  if (!o.a_in_registers) CheckOperand(a_operand, 64, o);
  CheckOperand(b_operand, static_cast<uint32_t>(o.shape.n), o);
  float a[16][16];
  V8 b[16], c[16];
  if (o.a_in_registers) {
    for (int l = 0; l < 32; ++l) {
      if (std::memcmp(op(l).a_from, op(l).a, sizeof op(l).a) != 0) {
        Fail("the registers of a were written before the wgmma at %s was waited for", LocName(o.loc).c_str());
      }
      LoadA<Mma::kBf16>(a, l, op(l).a);
    }
  } else {
    for (int i = 0; i < 16; ++i) {
      for (int k = 0; k < 16; ++k) a[i][k] = OperandElement(shared, a_operand, first_row + i, k);
    }
  }
  for (int j = 0; j < o.shape.n / 8; ++j) {
    for (int k = 0; k < 16; ++k) {
      for (int i = 0; i < 8; ++i) b[k][i] = OperandElement(shared, b_operand, 8 * j + i, k);
    }
    for (int l = 0; l < 32; ++l) {
      for (int r = 0; r < 4; ++r) c[AccRow(l, r)][AccCol(l, r)] = o.accumulate ? op(l).d[4 * j + r] : 0.0f;
    }
    tile(c, a, b, 16);
    ++worker->counts.mma;
    for (int l = 0; l < 32; ++l) {
      for (int r = 0; r < 4; ++r) op(l).d[4 * j + r] = c[AccRow(l, r)][AccCol(l, r)];
    }
  }
}
}  // namespace

uint32_t Swizzle(uint32_t address, uint32_t mode) {
  const uint32_t bits = mode == 1 ? 7 : mode == 2 ? 3 : mode == 3 ? 1 : 0;  // 128, 64, 32 bytes
  return address ^ ((address >> 7 & bits) << 4);
}

void WarpMma(float* d, const uint32_t* a, const uint32_t* b, Mma type, const Loc& loc) {
  const check::InEmulation inside;
  MmaArgument argument{d, a, b};
  RunCollective(~0u, "mma.sync", loc, &argument,
                type == Mma::kBf16  ? RunMma<Mma::kBf16>
                : type == Mma::kF16 ? RunMma<Mma::kF16>
                                    : RunMma<Mma::kTf32>);
}

void LoadMatrix(uint32_t* r, const void* row, int num_matrices, bool transposed, const Loc& loc) {
  const check::InEmulation inside;
  MatrixArgument argument{r, CheckShared(row, 16, 16, "ldmatrix", loc), num_matrices, transposed};
  if (static_cast<int>(Current()->lane) < 8 * num_matrices) check::Access(row, 16, false, false, loc);
  RunCollective(~0u, "ldmatrix", loc, &argument, MoveMatrices<false>);
}
void StoreMatrix(const uint32_t* r, void* row, int num_matrices, bool transposed, const Loc& loc) {
  const check::InEmulation inside;
  uint32_t registers[4] = {};
  std::copy(r, r + num_matrices, registers);
  MatrixArgument argument{registers, CheckShared(row, 16, 16, "stmatrix", loc), num_matrices, transposed};
  if (static_cast<int>(Current()->lane) < 8 * num_matrices) check::Access(row, 16, true, false, loc);
  RunCollective(~0u, "stmatrix", loc, &argument, MoveMatrices<true>);
}

// The product is computed when it is waited for.
void Wgmma(float* d, WgmmaShape shape, const uint32_t* a_registers, uint64_t a_desc, uint64_t b_desc,
           bool accumulate, const Loc& loc) {
  const check::InEmulation inside;
  Thread& t = *Current();
  if (!t.wgmma_fenced) {
    Fail("wgmma at %s without wgmma_fence: the registers may still be written", LocName(loc).c_str());
  }
  if (t.block->num_threads < 128 * (t.warp / 4 + 1)) {
    Fail("wgmma at %s needs a whole warpgroup of 128 threads", LocName(loc).c_str());
  }
  WgmmaOp op{d,      shape,      a_registers != nullptr, {}, a_registers, a_desc,
             b_desc, accumulate, t.wgmma_group,          loc};
  if (a_registers) std::copy(a_registers, a_registers + 4, op.a);
  t.wgmmas.push_back(op);
  RunCollective(~0u, "wgmma", loc, &t, [](void** args, unsigned) {
    const WgmmaOp& first = static_cast<Thread*>(args[0])->wgmmas.back();
    for (int l = 1; l < 32; ++l) {
      const WgmmaOp& other = static_cast<Thread*>(args[l])->wgmmas.back();
      if (other.a_desc != first.a_desc || other.b_desc != first.b_desc ||
          other.accumulate != first.accumulate) {
        Fail("wgmma at %s: the lanes' descriptors differ", LocName(first.loc).c_str());
      }
    }
  });
}
void WgmmaFence(const Loc& loc) {
  const check::InEmulation inside;
  if (!Removed("wgmma_fence", loc)) Current()->wgmma_fenced = true;
}
void WgmmaCommit() {
  const check::InEmulation inside;
  ++Current()->wgmma_group;
  Current()->wgmma_fenced = false;
}
void WgmmaWait(int pending_groups, const Loc& loc) {
  const check::InEmulation inside;
  if (Removed("wgmma_wait", loc)) return;
  Thread& t = *Current();
  const unsigned keep = t.wgmma_group - std::min(static_cast<unsigned>(pending_groups), t.wgmma_group);
  while (!t.wgmmas.empty() && t.wgmmas.front().group < keep) {
    RunCollective(~0u, "wgmma.wait_group", t.wgmmas.front().loc, &t, RunWgmma);
    t.wgmmas.erase(t.wgmmas.begin());
  }
}
void CheckNoProducts(const float* d, const Loc& loc) {
  const check::InEmulation inside;
  for (const WgmmaOp& op : Current()->wgmmas) {
    if (op.d != d) continue;
    Fail("the use of registers at %s: the wgmma at %s into them has not been waited for",
         LocName(loc).c_str(), LocName(op.loc).c_str());
  }
}
void CheckNoPendingWgmma(const char* p, unsigned bytes, const Loc& loc) {
  for (unsigned i = 0; i < group->num_threads; ++i) {
    const Thread& t = group->threads[i];
    if (t.warp % 4 || t.lane || t.wgmmas.empty())
      continue;  // the warps of a warpgroup have the same operands
    for (const WgmmaOp& op : t.wgmmas) {
      const auto check_piece = [&](uint32_t offset) {
        const char* piece = t.block->shared + offset;
        if (piece + 16 > p && piece < p + bytes) {
          Fail("the copy at %s overwrites an operand of the wgmma at %s, which has not been waited for",
               LocName(loc).c_str(), LocName(op.loc).c_str());
        }
      };
      if (!op.a_in_registers) Operand(op.a_desc, op.shape.transpose_a).ForPieces(64, check_piece);
      Operand(op.b_desc, op.shape.transpose_b).ForPieces(static_cast<uint32_t>(op.shape.n), check_piece);
    }
  }
}
}  // namespace carousel::emulator
