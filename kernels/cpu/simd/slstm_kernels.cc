// The copies of the sLSTM loops for one instruction set; with AMX (namespace simd_tiles) bf16 runs on matrix
// tiles.
#include "kernels/cpu/simd/slstm_kernels.h"

#include "kernels/cpu/simd/slstm_cell.h"
#include "kernels/cpu/simd/slstm_products.h"
#if defined(__AMX_BF16__)
#include "kernels/cpu/simd/slstm_tiles.h"
#endif

namespace carousel::cpu::CAROUSEL_SIMD_NS {
namespace {

CAROUSEL_INLINE void Clear(float* x, int64_t count) {
  for (int64_t e = 0; e < count; ++e) x[e] = 0.0f;
}
// An operand row from y of the initial state; zero without one, and in the padding.
template <class T, class Operand>
void InitialOperand(const SlstmDims& d, const SlstmForwardArrays& a, int64_t head, int64_t b, Operand* row) {
  for (int64_t e = 0; e < d.Dp; ++e) row[e] = 0;
  if (a.initial.y == nullptr || (a.reset != nullptr && a.reset[b * d.T] != 0)) return;
  const float* const y = a.initial.y + b * d.width() + head * d.D;
  ForEachVec(d.D, [&](int64_t e, auto part) {
    Store(row + e, RoundedTo(static_cast<const T*>(nullptr), Load(y + e, part)), part);
  });
}
template <class T>
void CopyLast(const SlstmDims& d, const SlstmForwardArrays& a, int64_t head, int64_t b) {
  const int64_t from = (b * d.T + d.T - 1) * d.width() + head * d.D, to = b * d.width() + head * d.D;
  ForEachVec(d.D, [&](int64_t e, auto part) {
    Store(a.last.y + to + e, Load(static_cast<const T*>(a.y) + from + e, part), part);
    Store(a.last.c + to + e, Load(a.c + from + e, part), part);
    Store(a.last.n + to + e, Load(a.n + from + e, part), part);
    Store(a.last.m + to + e, Load(a.m + from + e, part), part);
  });
}

template <class T, class Products>
void PackPanel(const SlstmDims& d, const void* R, int64_t head, int64_t panel, float* to) {
  Products::PackPanel(d, static_cast<const T*>(R), head, panel, to);
}
template <class T, class Products>
void PackTransposed(const SlstmDims& d, const void* R, int64_t head, float* to) {
  Products::PackTransposed(d, static_cast<const T*>(R), head, to);
}

template <class T, class Products>
void Forward(const SlstmDims& d, const SlstmForwardArrays& a, const SlstmGroup& group) {
  using Operand = typename Products::Operand;
  const Products products(group.count);
  alignas(64) float raw[kSlstmMaxSequences * 4 * kSlstmUnits];
  Operand* y = reinterpret_cast<Operand*>(group.scratch);  // what token t reads: count rows of Dp
  Operand* next_y = y + group.count * d.Dp;
  for (int64_t r = 0; r < group.count; ++r)
    InitialOperand<T>(d, a, group.head, group.first + r, y + r * d.Dp);
  for (int64_t e = 0; e < group.count * d.Dp; ++e) next_y[e] = 0;
  for (int64_t t = 0; t < d.T; ++t) {
    for (int64_t r = 0; r < group.count && a.reset != nullptr; ++r) {
      if (a.reset[(group.first + r) * d.T + t] == 0) continue;
      for (int64_t e = 0; e < d.D; ++e) y[r * d.Dp + e] = 0;
    }
    for (int64_t panel = 0; panel < d.num_panels(); ++panel) {
      products.Gates(d, raw, y, group.packed + panel * d.panel_floats());
      SlstmCellForward<T>(d, a, group.head, group.first, group.count, t, panel, raw, next_y);
    }
    Operand* const read = y;
    y = next_y;
    next_y = read;
  }
  if (a.last.y == nullptr) return;
  for (int64_t r = 0; r < group.count; ++r) CopyLast<T>(d, a, group.head, group.first + r);
}

template <class T, class Products>
void Step(const SlstmDims& d, const SlstmForwardArrays& a, int64_t head, int64_t panel, float* panel_memory,
          float* scratch) {
  using Operand = typename Products::Operand;
  alignas(64) float raw[kSlstmMaxSequences * 4 * kSlstmUnits];
  Operand* const y = reinterpret_cast<Operand*>(scratch);
  PackPanel<T, Products>(d, a.recurrent, head, panel, panel_memory);
  for (int64_t first = 0; first < d.B; first += Products::kMaxSequences) {
    const int64_t count = d.B - first < Products::kMaxSequences ? d.B - first : Products::kMaxSequences;
    for (int64_t r = 0; r < count; ++r) InitialOperand<T>(d, a, head, first + r, y + r * d.Dp);
    Products(count).Gates(d, raw, y, panel_memory);
    SlstmCellForward<T>(d, a, head, first, count, 0, panel, raw, static_cast<Operand*>(nullptr));
  }
}

template <class T, class Products>
void Backward(const SlstmDims& d, const SlstmBackwardArrays& a, const SlstmGroup& group) {
  using Operand = typename Products::Operand;
  const Products products(group.count);
  const int64_t rows = group.count * d.Dp;
  float *const dr = group.scratch, *const dc = dr + rows, *const dn = dc + rows;
  Operand* const draw = reinterpret_cast<Operand*>(dn + rows);
  float* const dbias = a.dbias + (group.head * d.B + group.first) * 4 * d.Dp;
  Clear(dr, 3 * rows);
  Clear(dn + rows, 4 * rows);  // the padding of draw
  Clear(dbias, 4 * rows);
  const auto running = [&](int64_t r) {
    return SlstmRunning{dc + r * d.Dp, dn + r * d.Dp, dr + r * d.Dp, dbias + r * 4 * d.Dp};
  };
  for (int64_t r = 0; r < group.count && a.dlast.y != nullptr; ++r) {
    const int64_t at = (group.first + r) * d.width() + group.head * d.D;
    for (int64_t e = 0; e < d.D; ++e) {
      running(r).dr[e] = a.dlast.y[at + e];
      running(r).dc[e] = a.dlast.c[at + e];
      running(r).dn[e] = a.dlast.n[at + e];
    }
  }
  for (int64_t t = d.T - 1; t >= 0; --t) {
    for (int64_t r = 0; r < group.count; ++r) {
      const bool last = r + 1 == group.count;
      if (!last || t > 0)
        SlstmPrefetchBackward<T>(d, a, group.head, group.first + (last ? 0 : r + 1), last ? t - 1 : t);
      SlstmCellBackward<T>(d, a, group.head, group.first + r, t, running(r), draw + r * 4 * d.Dp);
    }
    if (!a.cut && (t > 0 || a.dinitial.y != nullptr)) products.Recurrent(d, dr, draw, group.packed);
    for (int64_t r = 0; r < group.count && a.reset != nullptr; ++r) {
      if (a.reset[(group.first + r) * d.T + t] == 0) continue;
      Clear(running(r).dr, d.D);
      Clear(running(r).dc, d.D);
      Clear(running(r).dn, d.D);
    }
  }
  for (int64_t r = 0; r < group.count && a.dinitial.y != nullptr; ++r) {
    const int64_t at = (group.first + r) * d.width() + group.head * d.D;
    const float* const c0 = a.initial.y == nullptr ? a.zeros : a.initial.c + at;
    const float* const n0 = a.initial.y == nullptr ? a.zeros : a.initial.n + at;
    for (int64_t e = 0; e < d.D; ++e) {
      const SlstmRunning last = running(r);
      a.dinitial.y[at + e] = a.cut ? 0.0f : last.dr[e];
      a.dinitial.c[at + e] = last.dc[e];
      a.dinitial.n[at + e] = last.dn[e];
      a.dinitial.m[at + e] = n0[e] == 0.0f ? 0.0f : c0[e] * last.dc[e] + n0[e] * last.dn[e];
    }
  }
}

// The step's `last`: after the panels, because `last` may be `initial`, which every panel of a head reads.
template <class T>
void CopyAllLast(const SlstmDims& d, const SlstmForwardArrays& a) {
  for (int64_t b = 0; b < d.B; ++b) {
    for (int64_t head = 0; head < d.NH; ++head) CopyLast<T>(d, a, head, b);
  }
}

template <class T, class Products>
constexpr SlstmKernels kKernels = {
    .max_sequences = Products::kMaxSequences,
    .pack_panel = PackPanel<T, Products>,
    .forward = Forward<T, Products>,
    .step = Step<T, Products>,
    .copy_last = CopyAllLast<T>,
    .pack_transposed = PackTransposed<T, Products>,
    .backward = Backward<T, Products>,
};
static_assert(SlstmVectorProducts::kMaxSequences <= kSlstmMaxSequences);
}  // namespace

#if defined(__AMX_BF16__)
const SlstmKernels& GetSlstmKernelsBf16() { return kKernels<uint16_t, SlstmTileProducts>; }
#else
const SlstmKernels& GetSlstmKernelsF32() { return kKernels<float, SlstmVectorProducts>; }
const SlstmKernels& GetSlstmKernelsBf16() { return kKernels<uint16_t, SlstmVectorProducts>; }
#endif
}  // namespace carousel::cpu::CAROUSEL_SIMD_NS
