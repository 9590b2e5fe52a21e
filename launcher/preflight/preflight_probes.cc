#include "launcher/preflight/preflight_probes.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>

#include "absl/strings/str_format.h"

namespace carousel {
namespace {

double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Device memory for the time of a trial.
class TrialMemory {
 public:
  TrialMemory(Device& device, int64_t bytes) : device_(device), memory_(device.Allocate(bytes)) {}
  ~TrialMemory() { device_.Free(memory_); }
  TrialMemory(const TrialMemory&) = delete;
  TrialMemory& operator=(const TrialMemory&) = delete;
  std::byte* get() const { return static_cast<std::byte*>(memory_); }

 private:
  Device& device_;
  void* memory_;
};

// Numbers in [-1, 1) that are the same everywhere.
std::vector<float> TrialValues(int64_t count, uint64_t seed) {
  std::vector<float> values(static_cast<size_t>(count));
  uint64_t state = seed;
  for (float& value : values) {
    state = state * 6364136223846793005u + 1442695040888963407u;  // Knuth, MMIX
    value = static_cast<float>(static_cast<int32_t>(state >> 32)) * 0x1p-31f;
  }
  return values;
}

// FNV-1a, word by word: to compare results, not to guard against anybody.
uint64_t DigestOf(const std::vector<std::byte>& bytes) {
  uint64_t digest = 0xcbf29ce484222325u;
  for (size_t i = 0; i + sizeof(uint32_t) <= bytes.size(); i += sizeof(uint32_t)) {
    uint32_t word = 0;
    std::memcpy(&word, bytes.data() + i, sizeof(word));
    digest = (digest ^ word) * 0x100000001b3u;
    digest ^= digest >> 29;
  }
  return digest;
}

void CopyValues(Device& device, void* destination, DType dtype, const std::vector<float>& values) {
  DispatchFloat(dtype, [&]<class T>() {
    std::vector<T> converted(values.size());
    for (size_t i = 0; i < values.size(); ++i) converted[i] = static_cast<T>(values[i]);
    device.CopyToDevice(destination, converted.data(), static_cast<int64_t>(converted.size() * sizeof(T)));
  });
}

// Integers that f32 holds, different for each element and for ranks near each other. Sums stay below 2^24 for
// as many ranks as kMaxExactRanks.
constexpr int64_t kElementPeriod = 509, kRankPeriod = 97;
constexpr int64_t kMaxExactRanks = (int64_t{1} << 24) / (kElementPeriod + kRankPeriod);
int64_t SummandOf(int64_t rank, int64_t element) { return element % kElementPeriod + rank % kRankPeriod; }

template <class T>
void CompareSums(const std::vector<T>& sums, int64_t size, ReduceFacts* facts) {
  int64_t of_ranks = 0;
  for (int64_t rank = 0; rank < size; ++rank) of_ranks += rank % kRankPeriod;
  for (size_t i = 0; i < sums.size(); ++i) {
    const T expected = static_cast<T>(size * (static_cast<int64_t>(i) % kElementPeriod) + of_ranks);
    if (sums[i] == expected) continue;
    if (facts->num_wrong++ > 0) continue;
    facts->first_wrong = static_cast<int64_t>(i);
    facts->expected = static_cast<double>(expected);
    facts->got = static_cast<double>(sums[i]);
    // What JSON cannot say.
    if (!std::isfinite(facts->got)) facts->got = std::numeric_limits<double>::max();
  }
}

std::vector<int64_t> MembersOf(const Communicator& communicator) {
  std::vector<int64_t> members;
  for (int rank = 0; rank < communicator.size(); ++rank) members.push_back(communicator.WorldRank(rank));
  return members;
}
}  // namespace

void TryMatmul(Device& device, const MatmulTrial& trial, DeviceFacts* facts) {
  const int64_t n = trial.size, operand_bytes = n * n * SizeOf(trial.dtype);
  const DType wide = WideOf(trial.dtype);
  const int64_t result_bytes = n * n * SizeOf(wide);
  const TrialMemory memory(device, 2 * operand_bytes + result_bytes);
  facts->dtype = NameOf(trial.dtype);
  facts->size = n;
  if (memory.get() == nullptr) {
    facts->error = absl::StrFormat("no %.1f MiB of memory for a trial product; %s",
                                   static_cast<double>(2 * operand_bytes + result_bytes) / (1 << 20),
                                   device.allocation_error());
    return;
  }
  const Tensor a(memory.get(), trial.dtype, {n, n}), b(memory.get() + operand_bytes, trial.dtype, {n, n});
  const Tensor c(memory.get() + 2 * operand_bytes, wide, {n, n});
  CopyValues(device, a.data, trial.dtype, TrialValues(n * n, 1));
  CopyValues(device, b.data, trial.dtype, TrialValues(n * n, 2));

  std::vector<std::byte> first(static_cast<size_t>(result_bytes)), again(first.size());
  double best = std::numeric_limits<double>::infinity();
  for (int64_t repeat = 0; repeat <= trial.repeats; ++repeat) {
    device.Synchronize();
    const double start = Seconds();
    device.ops().Matmul({.c = c, .a = a, .b = b, .transpose_b = true});
    device.Synchronize();
    // The first call makes what libraries keep.
    if (repeat > 0) best = std::min(best, Seconds() - start);
    std::vector<std::byte>& result = repeat == 0 ? first : again;
    device.CopyToHost(result.data(), c.data, result_bytes);
    if (repeat > 0 && again != first) ++facts->different;
  }
  facts->repeats = trial.repeats;
  facts->digest = absl::StrFormat("%016x", DigestOf(first));
  const double flops = 2.0 * static_cast<double>(n) * static_cast<double>(n) * static_cast<double>(n);
  if (trial.repeats > 0) facts->flops = flops / std::max(best, 1e-9);
}

std::vector<ReduceFacts> TrySums(const Axis& axis, Device& device, const std::string& name,
                                 const SumTrial& trial) {
  const int64_t size = axis.size;
  CAROUSEL_CHECK(axis.communicator != nullptr && size > 1);
  if (size > kMaxExactRanks) return {};
  Communicator& host = *axis.host();
  const std::vector<int64_t> members = MembersOf(host);

  ReduceFacts tensors{.axis = name, .kind = "f32", .members = members};
  {
    const int64_t bytes = trial.num_elems * SizeOf(DType::kF32);
    const TrialMemory memory(device, bytes);
    // All go on together: nobody waits for a rank that has no memory.
    if (SumOverRanks(host, memory.get() == nullptr ? 1 : 0) > 0) return {};
    const Tensor x(memory.get(), DType::kF32, {trial.num_elems});
    std::vector<float> values(static_cast<size_t>(trial.num_elems));
    double best = std::numeric_limits<double>::infinity();
    for (int64_t repeat = 0; repeat <= trial.repeats; ++repeat) {
      for (size_t i = 0; i < values.size(); ++i) {
        values[i] = static_cast<float>(SummandOf(host.rank(), static_cast<int64_t>(i)));
      }
      device.CopyToDevice(x.data, values.data(), bytes);
      device.Synchronize();
      host.Barrier();
      const double start = Seconds();
      axis.communicator->AllReduceSum(x);
      device.Synchronize();
      // The first call connects the ranks.
      if (repeat > 0) best = std::min(best, Seconds() - start);
      device.CopyToHost(values.data(), x.data, bytes);
      CompareSums(values, size, &tensors);
    }
    if (trial.repeats > 0) tensors.bytes = bytes, tensors.seconds = std::max(best, 1e-9);
  }

  ReduceFacts control{.axis = name, .kind = "i64", .members = members};
  std::vector<int64_t> numbers(1024);
  for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = SummandOf(host.rank(), static_cast<int64_t>(i));
  host.AllReduceSum(Tensor(numbers.data(), DType::kI64, {static_cast<int64_t>(numbers.size())}));
  CompareSums(numbers, size, &control);
  return {tensors, control};
}

std::vector<ReduceFacts> TrySums(const Mesh& mesh, Device& device, const SumTrial& trial) {
  const std::pair<const char*, const Axis*> kAxes[] = {
      {"pipe", &mesh.pipe},         {"replicate", &mesh.replicate}, {"shard", &mesh.shard},
      {"sequence", &mesh.sequence}, {"tensor", &mesh.tensor},       {"world", &mesh.world}};
  std::vector<ReduceFacts> all;
  bool world_was_tried = false;
  for (const auto& [name, axis] : kAxes) {
    if (axis->size < 2 || axis->communicator == nullptr) continue;
    if (axis == &mesh.world && world_was_tried) continue;
    world_was_tried |= axis->size == mesh.world.size;
    for (ReduceFacts& facts : TrySums(*axis, device, name, trial)) all.push_back(std::move(facts));
  }
  return all;
}

int64_t RoundsOf(int64_t size) { return size < 2 ? 0 : size % 2 == 0 ? size - 1 : size; }

int64_t PartnerOf(int64_t player, int64_t round, int64_t size) {
  // An odd number of players gets one more, whose partner rests. The last stands still, the others go round.
  const int64_t seats = size + size % 2, turning = seats - 1;
  int64_t partner = 0;
  if (player == seats - 1) {
    partner = round % turning;
  } else if (player == round % turning) {
    partner = seats - 1;
  } else {
    partner = ((2 * round - player) % turning + turning) % turning;
  }
  return partner < size ? partner : -1;
}

std::vector<PairFacts> TryPairs(const Axis& world, Device& device, bool first_of_machine, int64_t bytes,
                                const std::function<void(int64_t, int64_t)>& tick) {
  std::vector<PairFacts> pairs;
  if (world.communicator == nullptr) return pairs;
  const int64_t needed = first_of_machine ? bytes : 0;
  const TrialMemory out_memory(device, needed), in_memory(device, needed);
  const bool lacking = needed > 0 && (out_memory.get() == nullptr || in_memory.get() == nullptr);
  // All go on together: nobody waits for a rank that has no memory.
  if (SumOverRanks(*world.host(), lacking ? 1 : 0) > 0) return pairs;
  const std::unique_ptr<Communicator> firsts = world.communicator->Split(first_of_machine ? 0 : -1);
  if (firsts == nullptr || firsts->size() < 2) return pairs;
  const auto pattern = [&](int64_t from) {
    std::vector<uint8_t> values(static_cast<size_t>(bytes));
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = static_cast<uint8_t>((i * 31 + static_cast<size_t>(from) * 7 + i / 251) & 0xff);
    }
    return values;
  };
  const Tensor out(out_memory.get(), DType::kU8, {bytes}), in(in_memory.get(), DType::kU8, {bytes});
  device.CopyToDevice(out.data, pattern(firsts->rank()).data(), bytes);
  const int64_t rounds = RoundsOf(firsts->size());
  for (int64_t round = 0; round < rounds; ++round) {
    const int64_t partner = PartnerOf(firsts->rank(), round, firsts->size());
    if (partner >= 0) {
      const int peer = static_cast<int>(partner);
      PairFacts facts{.peer = firsts->WorldRank(peer), .bytes = bytes};
      double best = std::numeric_limits<double>::infinity();
      // The first exchange connects the two.
      for (int repeat = 0; repeat < 3; ++repeat) {
        device.Synchronize();
        const double start = Seconds();
        firsts->SendRecv(out, peer, in, peer);
        device.Synchronize();
        if (repeat > 0) best = std::min(best, Seconds() - start);
      }
      facts.seconds = std::max(best, 1e-9);
      std::vector<uint8_t> arrived(static_cast<size_t>(bytes));
      device.CopyToHost(arrived.data(), in.data, bytes);
      const std::vector<uint8_t> expected = pattern(partner);
      for (size_t i = 0; i < arrived.size(); ++i) facts.num_wrong += arrived[i] != expected[i];
      pairs.push_back(facts);
    }
    firsts->Barrier();
    if (tick) tick(round + 1, rounds);
  }
  return pairs;
}

ClockOffset TryClock(Communicator& world, bool first_of_machine,
                     const std::function<double()>& unix_seconds) {
  constexpr int kPings = 4;
  const std::vector<std::string> firsts = AllGatherBytes(world, first_of_machine ? "1" : "");
  ClockOffset mine;
  double best_round_trip = std::numeric_limits<double>::infinity();
  double time = 0;
  const Tensor message(&time, DType::kF64, {1});
  for (int rank = 1; rank < world.size(); ++rank) {
    if (firsts[static_cast<size_t>(rank)].empty()) continue;
    for (int ping = 0; ping < kPings; ++ping) {
      if (world.rank() == 0) {
        world.Recv(message, rank);
        time = unix_seconds();
        world.Send(message, rank);
      } else if (world.rank() == rank) {
        const double start = Seconds(), sent = unix_seconds();
        world.Send(message, 0);
        world.Recv(message, 0);
        const double round_trip = Seconds() - start, received = unix_seconds();
        if (round_trip >= best_round_trip) continue;
        best_round_trip = round_trip;
        // Rank 0 looked at its clock about in the middle.
        mine = {
            .asked = true, .seconds = (sent + received) / 2 - time, .uncertainty_seconds = round_trip / 2};
      }
    }
  }
  if (world.rank() == 0 && world.size() > 1) mine.asked = true;
  return mine;
}
}  // namespace carousel
