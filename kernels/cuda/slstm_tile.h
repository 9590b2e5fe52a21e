// slstm_tile.h - how the tensor-core kernels of the sLSTM cell divide a head among blocks and warps.
//
// A product of a step is computed as its transpose, rows x sequences: M = units (of one gate each), N = 8
// sequences, K = what is summed over. The matrix stays on chip for the whole call as A fragments of
// mma.m16n8k16, mostly in registers.
//
// Row r of an m16 tile is unit 2 r for r < 8, 2 (r - 8) + 1 for the others: a thread's accumulators are then
// two adjacent units, 2 (lane / 4) and + 1, of two adjacent sequences, 2 (lane % 4) and + 1, for all gates.
// So the elementwise part of the sums of one warp needs no exchange.
#pragma once
#include "kernels/cuda/device.h"

namespace carousel::CAROUSEL_DEVICE_NS {

constexpr int kSlstmTileSequences = 8;

// kWidth: of a head, a multiple of 16. kBlocks: blocks of a cluster that share a head, each with kUnits
// units. kSplits: warps that share the sum over K of one group of 16 units, 2 with clusters; each then does
// the elementwise part of one of the two sequences.
template <int kWidth, int kBlocks, int kSplits>
struct SlstmTile {
  static constexpr int kUnits = kWidth / kBlocks;
  static constexpr int kGroups = kUnits / 16;
  static constexpr int kWarps = kGroups * kSplits;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr bool kClustered = kBlocks > 1;
  static_assert(kSplits == (kClustered ? 2 : 1));
  static constexpr int kOwned = 2 / kSplits;  // sequences of a thread
  // A fragments of a warp: forward 4 gates x kFragments / 4 steps of K, backward kFragments steps.
  static constexpr int kFragments = kWidth / 4 / kSplits;
  static_assert(kUnits % 16 == 0 && kWidth % (16 * kSplits) == 0 && kFragments % 4 == 0);
};

// Where a warp's fragments are, numbered in the order of their use: kRegisters of them in registers, the
// others in shared memory. These are spread evenly over the rest, to be read while the products of the rest
// run.
template <int kFragments, int kMostRegisters>
struct SlstmFragments {
  static constexpr int kRegisters = kFragments < kMostRegisters ? kFragments : kMostRegisters;
  static constexpr int kShared = kFragments - kRegisters;
  __host__ __device__ static constexpr int SharedBefore(int i) { return i * kShared / kFragments; }
  __host__ __device__ static constexpr bool IsShared(int i) { return SharedBefore(i + 1) > SharedBefore(i); }
  // The place among those in registers; 0 for those that are not.
  __host__ __device__ static constexpr int Register(int i) { return IsShared(i) ? 0 : i - SharedBefore(i); }
};

// Calls run(instance) with the tile of heads of width D; false if there is none. Widths up to 128: one block
// holds R in the registers of its warps. Above: clusters, compute capability 9.0.
template <class Run>
bool WithSlstmTile(int64_t D, int compute_capability, Run&& run) {
  switch (D) {
    case 16:
      return run(SlstmTile<16, 1, 1>()), true;
    case 32:
      return run(SlstmTile<32, 1, 1>()), true;
    case 48:
      return run(SlstmTile<48, 1, 1>()), true;
    case 64:
      return run(SlstmTile<64, 1, 1>()), true;
    case 80:
      return run(SlstmTile<80, 1, 1>()), true;
    case 96:
      return run(SlstmTile<96, 1, 1>()), true;
    case 112:
      return run(SlstmTile<112, 1, 1>()), true;
    case 128:
      return run(SlstmTile<128, 1, 1>()), true;
  }
  if (compute_capability < 90) return false;
  switch (D) {
    case 192:
      return run(SlstmTile<192, 4, 2>()), true;
    case 256:
      return run(SlstmTile<256, 8, 2>()), true;
    case 384:
      return run(SlstmTile<384, 8, 2>()), true;
    case 512:
      return run(SlstmTile<512, 8, 2>()), true;
  }
  return false;
}
}  // namespace carousel::CAROUSEL_DEVICE_NS
