// The hot loops of the sLSTM cell for f32 and bf16 (formulas: kernels/cpu/slstm_reference.h). A task is a
// group of sequences of one head, all its tokens; tasks share nothing but inputs. What is computed for a
// sequence does not depend on the others of its group, bit for bit.
#pragma once
#include <cstdint>

#include "kernels/cpu/simd_level.h"

namespace carousel::cpu {

constexpr int64_t kSlstmUnits = 16;  // units of a panel: the four gates of these units are made together
constexpr int64_t kSlstmPad = 32;    // rows of operands are padded to a multiple of this with zeros
constexpr int64_t kSlstmMaxSequences = 16;  // of a group

struct SlstmDims {
  int64_t B, T, NH, D;
  int64_t Dp;  // D rounded up to kSlstmPad
  int64_t num_panels() const { return (D + kSlstmUnits - 1) / kSlstmUnits; }
  int64_t width() const { return NH * D; }
  // Floats of R of one head, packed for either pass; of one panel of it in the forward pass.
  int64_t packed_floats() const { return 4 * Dp * Dp; }
  int64_t panel_floats() const { return 4 * kSlstmUnits * Dp; }
  // Floats of scratch per sequence: operands of two tokens; gradients and an operand of four gates.
  int64_t forward_floats() const { return 2 * Dp; }
  int64_t backward_floats() const { return 7 * Dp; }
};

struct SlstmStateArrays {  // (B, NH*D) each; all null if there is none
  float *y, *c, *n, *m;
};
// Arrays of the whole op, laid out as in core/ops.h; of the compute type where void.
struct SlstmForwardArrays {
  void* y;
  float *gates, *c, *n, *m;
  SlstmStateArrays last;  // y may be null
  const float* wx;
  const void* recurrent;
  const float* bias;
  const uint8_t* reset;      // may be null
  SlstmStateArrays initial;  // y may be null
  const float* zeros;        // NH*D
};
struct SlstmBackwardArrays {
  void* dwx;
  SlstmStateArrays dinitial;  // y may be null
  const void* dy;
  SlstmStateArrays dlast;  // y may be null; m is not read
  const float *gates, *c, *n;
  const uint8_t* reset;
  SlstmStateArrays initial;
  const float* zeros;  // NH*D
  float* dbias;        // (NH, B, 4, Dp) out: sums of draw over the tokens of a sequence
  float clip;          // 0: none
  bool cut;
};
// Sequences [first, first + count) of one head. packed: that head's R. scratch: count * forward_floats() or
// count * backward_floats().
struct SlstmGroup {
  int64_t head, first, count;
  const float* packed;
  float* scratch;
};

struct SlstmKernels {
  int64_t max_sequences;  // more in one group gain nothing; <= kSlstmMaxSequences
  // R of one panel of a head, as the product of the forward pass reads it.
  void (*pack_panel)(const SlstmDims&, const void* recurrent, int64_t head, int64_t panel, float* to);
  void (*forward)(const SlstmDims&, const SlstmForwardArrays&, const SlstmGroup&);
  // T == 1: one panel of a head for all sequences. panel_memory: panel_floats(); scratch: kSlstmMaxSequences
  // * Dp floats. Same bits as forward, but `last` is left to copy_last, which runs after all panels: it may
  // be `initial`, and every panel of a head reads all of that head's y.
  void (*step)(const SlstmDims&, const SlstmForwardArrays&, int64_t head, int64_t panel, float* panel_memory,
               float* scratch);
  void (*copy_last)(const SlstmDims&, const SlstmForwardArrays&);
  // R of a head, as the product of the backward pass reads it.
  void (*pack_transposed)(const SlstmDims&, const void* recurrent, int64_t head, float* to);
  void (*backward)(const SlstmDims&, const SlstmBackwardArrays&, const SlstmGroup&);
};
}  // namespace carousel::cpu

CAROUSEL_DECLARE_SIMD(SlstmKernels, GetSlstmKernelsF32)
CAROUSEL_DECLARE_SIMD(SlstmKernels, GetSlstmKernelsBf16)
#if defined(__x86_64__)
// With matrix tiles (AMX).
namespace carousel::cpu::simd_tiles {
const SlstmKernels& GetSlstmKernelsBf16();
}
#endif
