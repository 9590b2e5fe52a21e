// Trials before a run: does the device multiply, always alike and how fast; do sums over the ranks come out
// right and how fast; do the machines' clocks agree. They measure, preflight_checks.h judges.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/comm/mesh.h"
#include "core/device.h"
#include "launcher/preflight/preflight_facts.h"

namespace carousel {

struct MatmulTrial {
  DType dtype = DType::kF32;
  int64_t size = 512;   // of the n x n x n product
  int64_t repeats = 4;  // after the first, whose bits they must have
};
// Multiplies on the device, always the same numbers, and fills in what the trial says (DeviceFacts::dtype to
// digest; error if there is no memory for it). `kind` is the caller's.
void TryMatmul(Device& device, const MatmulTrial& trial, DeviceFacts* facts);

struct SumTrial {
  int64_t num_elems = int64_t{1} << 18;  // f32 on the device, per rank
  int64_t repeats = 3;                   // timed
};
// Collective over the axis, which has several ranks: sums integers that f32 holds exactly, whose sums are
// known, compares every element, and times it; tensors live on `device`. Then the same for 64-bit integers in
// host memory, as control messages are. Facts are this rank's, named `name`. Nothing for more ranks than f32
// can count.
std::vector<ReduceFacts> TrySums(const Axis& axis, Device& device, const std::string& name,
                                 const SumTrial& trial);
// Collective over the world of the mesh: every axis with more than one rank, then the world unless an axis
// has the same ranks.
std::vector<ReduceFacts> TrySums(const Mesh& mesh, Device& device, const SumTrial& trial);

// Collective over `world`: the first rank of every machine exchanges `bytes` with the first rank of every
// other one, in rounds in which each has one partner, so that links are tried one by one. Arrived bytes are
// compared. Facts of this rank; none for ranks that are not the first of their machine. tick: called after
// each round with the rounds done and their number.
std::vector<PairFacts> TryPairs(const Axis& world, Device& device, bool first_of_machine, int64_t bytes,
                                const std::function<void(int64_t, int64_t)>& tick);

// In each round of `size` players every one has at most one partner, and over all rounds each meets each
// other once (the circle method). The partner of `player` in `round`, -1: none. Rounds: RoundsOf(size).
int64_t RoundsOf(int64_t size);
int64_t PartnerOf(int64_t player, int64_t round, int64_t size);

// Collective over `world`: the offset of this machine's clock to that of rank 0, from messages there and
// back. unix_seconds: the clock. Asked of the first rank of each machine; the others are not asked.
struct ClockOffset {
  bool asked = false;
  double seconds = 0, uncertainty_seconds = 0;
};
ClockOffset TryClock(Communicator& world, bool first_of_machine, const std::function<double()>& unix_seconds);
}  // namespace carousel
