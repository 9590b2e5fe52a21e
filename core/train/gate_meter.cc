#include "core/train/gate_meter.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace carousel {

void GateMeter::Bind(Arena& arena, const LanguageModel& model) {
  model_ = &model;
  sums_ = arena.Persistent("reductions", DType::kI64, {model.gate_stat_rows().num_rows(), kValueSumElems});
}

void GateMeter::Clear(Ops& ops) const { ops.Fill({.y = sums_, .value = 0}); }

GateStats GateMeter::Collect(Device& device, const Mesh& mesh) const {
  const ModelSpec& spec = model_->spec();
  const ModelPart& part = model_->part();
  const GateStatRows mine = model_->gate_stat_rows();
  const GateStatRows whole = {.num_blocks = spec.num_blocks, .has_head = true};
  const auto num_rows = static_cast<size_t>(whole.num_rows());
  std::vector<ValueSums> here(static_cast<size_t>(mine.num_rows())), all(num_rows);
  device.CopyToHost(here.data(), sums_.data, sums_.num_bytes());
  for (int64_t row = 0; row < mine.num_rows(); ++row) {
    const bool head = row >= mine.of_head();
    all[static_cast<size_t>(head ? whole.of_head() + row - mine.of_head()
                                 : whole.of_block(part.first_block) + row)] = here[static_cast<size_t>(row)];
  }
  // Ranks without a row, and those that count it with others, add zeros or their part of it. The limbs are
  // carried: there is room for the sums of many ranks.
  if (mesh.world.size > 1) {
    struct Extremes {
      uint64_t largest, smallest_flipped;
    };
    std::vector<Extremes> extremes(num_rows), of_ranks(num_rows * static_cast<size_t>(mesh.world.size));
    for (size_t row = 0; row < num_rows; ++row) {
      extremes[row] = {.largest = all[row].largest, .smallest_flipped = all[row].smallest_flipped};
    }
    mesh.world.host()->AllGather(
        Tensor(of_ranks.data(), DType::kI64, {static_cast<int64_t>(2 * of_ranks.size())}),
        Tensor(extremes.data(), DType::kI64, {static_cast<int64_t>(2 * num_rows)}));
    mesh.world.host()->AllReduceSum(
        Tensor(all.data(), DType::kI64, {static_cast<int64_t>(num_rows) * kValueSumElems}));
    for (size_t row = 0; row < num_rows; ++row) {
      all[row].largest = all[row].smallest_flipped = 0;
      for (size_t at = row; at < of_ranks.size(); at += num_rows) {
        all[row].largest = std::max(all[row].largest, of_ranks[at].largest);
        all[row].smallest_flipped = std::max(all[row].smallest_flipped, of_ranks[at].smallest_flipped);
      }
    }
  }

  GateStats stats;
  const auto at = [&](int64_t row) { return StatsOf(all[static_cast<size_t>(row)]); };
  for (int64_t l = 0; l < spec.num_blocks; ++l) {
    stats.layers.push_back({.block = l,
                            .slstm = spec.is_slstm(l),
                            .input_gate = at(whole.of_block(l)),
                            .forget_gate = at(whole.of_block(l) + 1)});
  }
  stats.logits = at(whole.of_head());
  stats.log_sum_exp = at(whole.of_head() + 1);
  return stats;
}
}  // namespace carousel
