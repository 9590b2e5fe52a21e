#include "core/train/evaluator.h"

#include <algorithm>
#include <cstddef>

#include "core/base/int_math.h"
#include "core/comm/stage_link.h"

namespace carousel {
namespace {

// Answers by the length of their problem: [2 length] how many, [2 length + 1] how many are right. Length 0:
// targets of no problem.
class Counts {
 public:
  // correct: for every token, or only for those that have a target.
  void Add(const Batch& batch, const std::vector<uint8_t>& correct) {
    const bool all = correct.size() == batch.targets.size();
    size_t next = 0;
    for (size_t i = 0; i < batch.targets.size(); ++i) {
      if (batch.targets[i] < 0) continue;
      const size_t length = batch.lengths.empty() ? 0 : batch.lengths[i];
      if (values_.size() < 2 * length + 2) values_.resize(2 * length + 2, 0);
      ++values_[2 * length];
      values_[2 * length + 1] += correct[all ? i : next] != 0;
      ++next;
    }
  }
  // Adds up all ranks' counts: integers, so the same for every number of ranks.
  void Reduce(const Axis& world) {
    if (world.size == 1) return;
    Communicator& communicator = *world.host();
    int64_t size = static_cast<int64_t>(values_.size());
    std::vector<int64_t> sizes(static_cast<size_t>(communicator.size()));
    communicator.AllGather(Tensor(sizes.data(), DType::kI64, {communicator.size()}),
                           Tensor(&size, DType::kI64, {1}));
    values_.resize(static_cast<size_t>(*std::max_element(sizes.begin(), sizes.end())), 0);
    SumOverRanks(communicator, &values_);
  }
  void Fill(EvaluationResult* result) const {
    for (size_t length = 0; 2 * length < values_.size(); ++length) {
      const LengthCount count = {.length = static_cast<int64_t>(length),
                                 .count = static_cast<int64_t>(values_[2 * length]),
                                 .correct = static_cast<int64_t>(values_[2 * length + 1])};
      result->num_correct += count.correct;
      if (length > 0 && count.count > 0) result->by_length.push_back(count);
    }
  }

 private:
  std::vector<uint64_t> values_;
};

bool AnyRank(const Axis& world, bool mine) {
  if (world.size == 1) return mine;
  int64_t count = mine;
  world.host()->AllReduceSum(Tensor(&count, DType::kI64, {1}));
  return count > 0;
}
}  // namespace

void Evaluator::Bind(Arena& arena, int64_t max_tokens, const ModelAxes& axes) {
  batch_.Bind(arena, max_tokens, axes);
  sums_.Bind(arena);
  correct_ = arena.Persistent("batch", DType::kU8, {max_tokens});
}

EvaluationResult Evaluator::Evaluate(LanguageModel& model, Device& device, ParamSync* sync, const Mesh& mesh,
                                     BatchSource& source, int64_t num_batches,
                                     const std::function<bool()>& should_stop) const {
  sums_.Clear(device.ops());
  int64_t num_targets = 0;
  Batch batch, part;
  Counts counts;
  std::vector<uint8_t> host_correct;
  const StageLink link(mesh.pipe);
  const int64_t begin = mesh.data_index() * num_batches / mesh.data_size();
  const int64_t end = (mesh.data_index() + 1) * num_batches / mesh.data_size();
  const int64_t most = CeilDiv(num_batches, mesh.data_size());  // of any rank
  for (int64_t i = begin; i < begin + most; ++i) {
    if (should_stop != nullptr && AnyRank(mesh.world, should_stop())) {
      device.Synchronize();
      EvaluationResult nothing;
      nothing.stopped = true;
      return nothing;
    }
    if (i == end) {
      // Ranks that share the weights with this one have another batch.
      if (mesh.shard.size > 1 && sync != nullptr) model.ForwardNothing(*sync);
      break;
    }
    source.Get(/*step=*/0, i, &batch);
    if (mesh.speaks_for_data()) num_targets += batch.num_targets();
    const LanguageModel::Input input = batch_.Load(device, batch);
    if (!link.is_first()) link.WithPrevious({}, model.StreamIn(input, /*slot=*/0));
    const Tensor correct = correct_.Rows(0, input.targets.dim[0]);
    model.ForwardLoss(device.ops(), sync, input, sums_.loss(), correct);
    if (!link.is_last()) {
      link.WithNext(model.StreamOut(input), {});
      continue;
    }
    // All ranks of a tensor axis know the same.
    if (mesh.tensor.index > 0) continue;
    host_correct.resize(static_cast<size_t>(correct.dim[0]));
    device.CopyToHost(host_correct.data(), correct.data, correct.num_bytes());
    counts.Add(SequencePart(batch, mesh.sequence, &part), host_correct);
  }
  const StepSums::Totals totals = sums_.Reduce(device, mesh.world, num_targets);
  counts.Reduce(mesh.world);
  if (totals.num_targets == 0) return {};
  EvaluationResult result;
  result.loss = totals.loss / static_cast<double>(totals.num_targets);
  result.num_targets = totals.num_targets;
  counts.Fill(&result);
  return result;
}
}  // namespace carousel
