// The gates of the mLSTM cell as records for the scans (mlstm_records.h). Exponents are formed in f64 and
// rounded once.
//
// E, W: (float, float) for the tensor-core scan, (double, float) and (double, double) for the generic one.
#pragma once
#include "kernels/cuda/context.h"
#include "kernels/cuda/mlstm_records.h"

namespace carousel::CAROUSEL_DEVICE_NS {

// The gates of one call.
template <class W>
struct MlstmGateInputs {
  int64_t B = 0, num_tokens = 0, NH = 0, NC = 0;
  int64_t DHQK = 0;
  bool sigmoid_input_gate = false;
  MlstmRows<const W> i_pre, f_pre;  // (N, NH)
  const uint8_t* reset = nullptr;   // (N), optional
  const W* initial_m = nullptr;     // (B * NH), optional: start_m
  W start_m = 0;                    // of a forward pass; 0 for the sigmoid gate
};
// The stabiliser of no state at all: less than any other by so much that e^difference is 0, and finite, so
// that differences of two of them are numbers.
template <class W>
constexpr W kMlstmNoStabiliser = W(-1e30);

// The records of a forward pass. m: (N, NH) out, optional. last_m: (B * NH) out, optional, may be initial_m.
template <class E, class W>
struct MlstmForwardGatesArgs {
  MlstmGateInputs<W> in;
  MlstmRecord<E, W>* records = nullptr;  // (B * NH, NC)
  W* gamma = nullptr;                    // (B * NH, NC)
  MlstmRows<W> m;
  W* last_m = nullptr;
  double* chunk_sums = nullptr;  // (B * NH, NC, 2) scratch
  W* m_start = nullptr;          // (B * NH, NC + 1) scratch
};
template <class E, class W>
void LaunchMlstmForwardGates(Context& context, const MlstmForwardGatesArgs<E, W>& args);

// What a segment of a sequence does to a stabiliser: m = max(m + G, last_m). G: the sum of its log forget
// gates, -infinity if a document begins in it. After LaunchMlstmForwardGates from kMlstmNoStabiliser.
template <class W>
struct MlstmSegmentGatesArgs {
  MlstmGateInputs<W> in;
  W* G = nullptr;                // (B * NH) out
  W* last_m = nullptr;           // (B * NH) in and out: -infinity where it stands for no state
  double* chunk_sums = nullptr;  // (B * NH, NC, 2) scratch
};
template <class W>
void LaunchMlstmSegmentGates(Context& context, const MlstmSegmentGatesArgs<W>& args);

// The same records (not yet divided) in a backward pass, where m is the forward's.
template <class E, class W>
struct MlstmRecordsArgs {
  MlstmGateInputs<W> in;
  MlstmRecord<E, W>* records = nullptr;
  W* gamma = nullptr;
  MlstmRows<const W> m;
};
template <class E, class W>
void LaunchMlstmRecords(Context& context, const MlstmRecordsArgs<E, W>& args);

// From forward records to backward records, in place: divides the weights of alpha and rho by N_t + eps and
// replaces floor by addend.
template <class E, class W>
struct MlstmDivisionArgs {
  int64_t B = 0, num_tokens = 0, NH = 0, NC = 0;
  MlstmRecord<E, W>* records = nullptr;
  MlstmRows<const W> denominator;  // (N, NH); null data: no division, 1 / (N_t + eps) = 1
  W eps = 0;
  // The signed normaliser; null where its gradient is not wanted (addend = 0).
  const W* a = nullptr;  // (B * NH, NC * kMlstmChunk)
  // (slices, B * NH, NC * kMlstmChunk): dh.h, or dh.u if not `divided`, u the numerator of h
  const W* dots = nullptr;
  bool divided = false;
  int slices = 0;
};
template <class E, class W>
void LaunchMlstmDivision(Context& context, const MlstmDivisionArgs<E, W>& args);

}  // namespace carousel::CAROUSEL_DEVICE_NS
