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
}  // namespace carousel
