#include "core/comm/communicator.h"

#include <algorithm>
#include <cstring>

namespace carousel {

std::vector<std::string> AllGatherBytes(Communicator& communicator, const std::string& mine) {
  const int size = communicator.size();
  int64_t length = static_cast<int64_t>(mine.size());
  std::vector<int64_t> lengths(static_cast<size_t>(size));
  communicator.AllGather(Tensor(lengths.data(), DType::kI64, {size}), Tensor(&length, DType::kI64, {1}));
  const int64_t longest = std::max<int64_t>(1, *std::max_element(lengths.begin(), lengths.end()));
  std::string padded = mine;
  padded.resize(static_cast<size_t>(longest), '\0');
  std::string all(static_cast<size_t>(longest * size), '\0');
  communicator.AllGather(Tensor(all.data(), DType::kU8, {longest * size}),
                         Tensor(padded.data(), DType::kU8, {longest}));
  std::vector<std::string> result;
  for (int r = 0; r < size; ++r) {
    result.push_back(
        all.substr(static_cast<size_t>(longest * r), static_cast<size_t>(lengths[static_cast<size_t>(r)])));
  }
  return result;
}

std::string BroadcastBytes(Communicator& communicator, const std::string& bytes, int root) {
  int64_t length = static_cast<int64_t>(bytes.size());
  communicator.Broadcast(Tensor(&length, DType::kI64, {1}), root);
  std::string result = communicator.rank() == root ? bytes : std::string(static_cast<size_t>(length), '\0');
  if (length > 0) communicator.Broadcast(Tensor(result.data(), DType::kU8, {length}), root);
  return result;
}

void SumOverRanks(Communicator& communicator, std::vector<uint64_t>* values) {
  if (communicator.size() == 1 || values->empty()) return;
  // In halves, because a signed sum must not overflow.
  std::vector<int64_t> halves;
  halves.reserve(2 * values->size());
  for (const uint64_t v : *values) {
    halves.push_back(static_cast<int64_t>(v & 0xffffffffu));
    halves.push_back(static_cast<int64_t>(v >> 32));
  }
  communicator.AllReduceSum(Tensor(halves.data(), DType::kI64, {static_cast<int64_t>(halves.size())}));
  for (size_t i = 0; i < values->size(); ++i) {
    (*values)[i] = static_cast<uint64_t>(halves[2 * i]) + (static_cast<uint64_t>(halves[2 * i + 1]) << 32);
  }
}

uint64_t SumOverRanks(Communicator& communicator, uint64_t mine) {
  std::vector<uint64_t> values = {mine};
  SumOverRanks(communicator, &values);
  return values[0];
}
}  // namespace carousel
