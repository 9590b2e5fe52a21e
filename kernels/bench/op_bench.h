// Times every op of a training step on any device, at the shapes of one model, beside the least time that the
// device's own copy and product rates allow.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "core/device.h"

namespace carousel {

struct OpBenchShape {
  DType compute = DType::kBF16;
  int64_t B = 8, T = 256;  // sequences and their tokens
  int64_t D = 256;         // model width
  int64_t NH = 4;          // heads: width of a head D / NH in norms and the sLSTM
  int64_t DHQK = 32, DHV = 64;
  int64_t F = 704;               // feed-forward width
  int64_t V = 256;               // vocabulary
  int64_t num_blocks = 6;        // of which:
  int64_t num_slstm_blocks = 0;  // with an sLSTM mixer
  bool paper = false;      // the paper family's blocks: their ops count in a step, the large family's do not
  int64_t L = 64;          // chunk length of the mLSTM cell
  int64_t logit_rows = 0;  // rows of logits at a time; 0: all
  int64_t num_parameters = 0;  // of the optimizer's step; 0: those of a large-family model of this shape
  int64_t slstm_B = 0, slstm_T = 0, slstm_NH = 0;  // the sLSTM cell's; 0: as B, T, NH
};

struct OpTiming {
  std::string name;
  int64_t calls;   // per training step; 0: not part of it
  double ms;       // one call: the median of the repeats
  double flops;    // one call; 0: the time of a call is that of its bytes
  double bytes;    // one call: every operand once
  int64_t steps;   // of a recurrence, which follow each other; 0: none
  bool is_matmul;  // a product by the vendor's library
};

// What the device reaches at best, measured in the same run.
struct DeviceRates {
  double copy_gb_per_s;   // read and written bytes of a large copy
  double matmul_tflop_s;  // a large square product in the compute dtype
};
DeviceRates MeasureRates(Device& device, DType compute, int64_t repeats);

// The ops of a training step, and those of the paper family's blocks. Cells: the mLSTM and the sLSTM alone.
std::vector<OpTiming> TimeStepOps(Device& device, const OpBenchShape& shape, int64_t repeats);
std::vector<OpTiming> TimeCells(Device& device, const OpBenchShape& shape, int64_t repeats);

// A Markdown table: ms, GB/s, TFLOP/s, floor = the larger of bytes / copy rate and flops / product rate, and
// floor / time.
std::string OpTable(const std::vector<OpTiming>& timings, const DeviceRates& rates);
}  // namespace carousel
