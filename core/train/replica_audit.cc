#include "core/train/replica_audit.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/train/agreement.h"

namespace carousel {
namespace {

// A digest of bytes: every step is a bijection of the state for a given word, so that a change of one word
// always changes it. The finalizer of splitmix64 (Steele, Lea & Flood 2014, doi:10.1145/2660193.2660195).
uint64_t Mix(uint64_t state, uint64_t word) {
  uint64_t x = state ^ word;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return (x ^ (x >> 31)) + 0x9e3779b97f4a7c15u;
}
uint64_t MixBytes(uint64_t state, const std::byte* bytes, size_t size) {
  for (size_t at = 0; at < size; at += 8) {
    uint64_t word = 0;
    std::memcpy(&word, bytes + at, std::min<size_t>(8, size - at));
    state = Mix(state, word);
  }
  return state;
}

// The digest of the part of each parameter that this rank keeps the weights of, by the store's index.
std::vector<uint64_t> DigestsOfKeptWeights(const ParamStore& params, Device& device, ParamSync* sync) {
  constexpr int64_t kChunkElems = int64_t{1} << 20;
  std::vector<uint64_t> digests(params.params().size(), 0);
  std::vector<std::byte> host;
  for (int group = 0; group < params.num_groups(); ++group) {
    if (sync != nullptr) {
      sync->Prefetch(group);
      sync->Acquire(group);
    }
    for (size_t i = 0; i < digests.size(); ++i) {
      const Param& p = params.params()[i];
      if (p.group != group) continue;
      const Tensor kept = params.segment(group, p.segment).weight_shard;
      const int64_t kept_begin = params.partition().weight_shard_index() * kept.num_elems();
      const int64_t end = std::min(p.offset + p.local_elems, kept_begin + kept.num_elems());
      for (int64_t begin = std::max(p.offset, kept_begin); begin < end; begin += kChunkElems) {
        const Tensor piece = kept.Rows(begin - kept_begin, std::min(kChunkElems, end - begin));
        host.resize(static_cast<size_t>(piece.num_bytes()));
        device.CopyToHost(host.data(), piece.data, piece.num_bytes());
        digests[i] = MixBytes(digests[i], host.data(), host.size());
      }
    }
    if (sync != nullptr) sync->Release(group);
  }
  return digests;
}

// One axis: which of its sets of ranks this rank is in, and what they must agree on.
struct Replicas {
  const char* name;
  const Axis* axis;
  int64_t set;                // a number that the ranks of one set share
  std::vector<int> compared;  // parameters
};

uint64_t DigestOf(const Replicas& replicas, const std::vector<uint64_t>& digests) {
  uint64_t all = 0;
  for (const int i : replicas.compared) all = Mix(all, digests[static_cast<size_t>(i)]);
  return all;
}

// The places where values differ from the value that most have (the first of those).
std::vector<size_t> Differing(const std::vector<uint64_t>& values) {
  std::map<uint64_t, size_t> count;
  for (const uint64_t value : values) ++count[value];
  uint64_t usual = values[0];
  for (const uint64_t value : values) {
    if (count[value] > count[usual]) usual = value;
  }
  std::vector<size_t> places;
  for (size_t r = 0; r < values.size(); ++r) {
    if (values[r] != usual) places.push_back(r);
  }
  return places;
}

// All ranks of the axis give one digest per compared parameter; world_ranks: theirs, in the axis' order.
absl::Status NameDifferences(const Replicas& replicas, const ParamStore& params,
                             const std::vector<uint64_t>& digests, const std::vector<size_t>& world_ranks) {
  const size_t size = world_ranks.size(), n = replicas.compared.size();
  std::vector<uint64_t> mine(n), all(size * n);
  for (size_t j = 0; j < n; ++j) mine[j] = digests[static_cast<size_t>(replicas.compared[j])];
  replicas.axis->host()->AllGather(Tensor(all.data(), DType::kI64, {static_cast<int64_t>(all.size())}),
                                   Tensor(mine.data(), DType::kI64, {static_cast<int64_t>(n)}));
  std::vector<std::string> lines;
  for (size_t j = 0; j < n; ++j) {
    std::vector<uint64_t> values;
    for (size_t r = 0; r < size; ++r) values.push_back(all[r * n + j]);
    std::vector<size_t> differing;
    for (const size_t r : Differing(values)) differing.push_back(world_ranks[r]);
    if (differing.empty()) continue;
    lines.push_back(absl::StrCat(params.param(replicas.compared[j]).name, " is not the same on the ranks ",
                                 absl::StrJoin(world_ranks, ", "), " of the ", replicas.name, " axis: rank ",
                                 absl::StrJoin(differing, ", "),
                                 differing.size() == 1 ? " differs" : " differ"));
  }
  return lines.empty() ? absl::OkStatus() : absl::DataLossError(absl::StrJoin(lines, "\n"));
}
}  // namespace

absl::Status AuditReplicas(const ParamStore& params, Device& device, ParamSync* sync, const Mesh& mesh) {
  if (mesh.replicas.size == 1 && mesh.tensor.size == 1) return absl::OkStatus();
  const std::vector<uint64_t> digests = DigestsOfKeptWeights(params, device, sync);
  const int64_t shards = mesh.shard.size, replicas = mesh.replicas.size, tensors = mesh.tensor.size;
  Replicas axes[] = {{.name = "replicas",
                      .axis = &mesh.replicas,
                      .set = (mesh.pipe.index * shards + mesh.shard.index) * tensors + mesh.tensor.index,
                      .compared = {}},
                     {.name = "tensor",
                      .axis = &mesh.tensor,
                      .set = (mesh.pipe.index * replicas + mesh.replicas.index) * shards + mesh.shard.index,
                      .compared = {}}};
  for (int i = 0; i < static_cast<int>(digests.size()); ++i) {
    axes[0].compared.push_back(i);
    if (params.param(i).tensor == Replicated()) axes[1].compared.push_back(i);
  }

  // [set, digest] of both axes. Every rank sees all and so knows whether anybody found a difference.
  struct Message {
    std::array<uint64_t, 2> set, digest;
  } mine;
  for (size_t a = 0; a < 2; ++a) {
    mine.set[a] = static_cast<uint64_t>(axes[a].set);
    mine.digest[a] = DigestOf(axes[a], digests);
  }
  std::vector<Message> all(static_cast<size_t>(mesh.world.size));
  constexpr int64_t kWords = sizeof(Message) / sizeof(int64_t);
  mesh.world.host()->AllGather(Tensor(all.data(), DType::kI64, {mesh.world.size * kWords}),
                               Tensor(&mine, DType::kI64, {kWords}));

  absl::Status status;
  bool any = false;
  for (size_t a = 0; a < 2; ++a) {
    if (axes[a].axis->size == 1) continue;
    std::map<uint64_t, uint64_t> digest_of_set;
    bool differ = false;
    std::vector<size_t> my_set;
    for (size_t r = 0; r < all.size(); ++r) {
      const uint64_t set = all[r].set[a];
      differ |= digest_of_set.emplace(set, all[r].digest[a]).first->second != all[r].digest[a];
      if (set == mine.set[a]) my_set.push_back(r);
    }
    any |= differ;
    if (!differ) continue;
    // Also where this rank's set agrees: the sets of one axis make the same calls.
    const absl::Status named = NameDifferences(axes[a], params, digests, my_set);
    if (status.ok()) {
      status = named;
    } else if (!named.ok()) {
      status = absl::DataLossError(absl::StrCat(status.message(), "\n", named.message()));
    }
  }
  return any ? AgreeOnStatus(*mesh.world.host(), status) : absl::OkStatus();
}
}  // namespace carousel
