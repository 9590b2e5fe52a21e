#include "checkpoints/slice_loader.h"

#include <algorithm>
#include <cstring>

#include "checkpoints/block_queue.h"
#include "core/base/check.h"

namespace carousel {
namespace {

// Calls fn(data, count) for the memory of `count` elements of a slice from flat index `elem` on.
// REQUIRES: they are in the slice's box.
template <class Fn>
void ForEachPiece(const StateSlice& slice, int64_t elem, int64_t count, Fn&& fn) {
  int64_t row = 0, column = 0, rest = elem, row_count = 1;
  for (size_t d = slice.shape.size(); d-- > 0;) {
    const int64_t index = rest % slice.shape[d] - slice.offset[d];
    rest /= slice.shape[d];
    if (d + 1 == slice.shape.size()) {
      column = index;
    } else {
      row += index * row_count;
      row_count *= slice.size[d];
    }
  }
  while (count > 0) {  // elements that go on in the next row fill whole rows
    const int64_t n = std::min(count, slice.row_elems() - column);
    fn(static_cast<char*>(slice.data) + (row * slice.stride() + column) * SizeOf(slice.dtype), n);
    count -= n;
    column = 0;
    ++row;
  }
}

// What a message begins with: whether its sender could read its block.
constexpr char kRead = 0, kFailed = 1;
}  // namespace

SliceLoader::SliceLoader(FileSystem& files, const std::string& dir, const checkpoint::Manifest& manifest,
                         const LoadPlan& plan, const std::vector<int>& members, int me,
                         Communicator* communicator)
    : files_(files),
      dir_(dir),
      manifest_(manifest),
      plan_(plan),
      members_(members),
      me_(me),
      communicator_(communicator) {
  CAROUSEL_CHECK(communicator != nullptr || members.size() == 1);
}

void SliceLoader::Pack(const LoadBlock& block, int member, const char* data, std::vector<char>* out) const {
  for (const int p : block.parts) {
    const LoadPart& part = plan_.part(p);
    if (part.member != member) continue;
    const int64_t elem_bytes = plan_.elem_bytes(part);
    plan_.ForEachRunIn(block, part, [&](int64_t offset, int64_t, int64_t count) {
      out->insert(out->end(), data + offset, data + offset + count * elem_bytes);
    });
  }
}

void SliceLoader::Place(const LoadBlock& block, const char* data, bool packed,
                        const std::vector<StateSlice>& slices) const {
  for (const int p : block.parts) {
    const LoadPart& part = plan_.part(p);
    if (part.member != me_) continue;
    const StateSlice& slice = slices[static_cast<size_t>(part.slice)];
    const int64_t elem_bytes = SizeOf(slice.dtype);
    plan_.ForEachRunIn(block, part, [&](int64_t offset, int64_t elem, int64_t count) {
      const char* from = packed ? data : data + offset;
      if (packed) data += count * elem_bytes;
      ForEachPiece(slice, elem, count, [&](char* to, int64_t n) {
        std::memcpy(to, from, static_cast<size_t>(n * elem_bytes));
        from += n * elem_bytes;
      });
    });
  }
}

bool SliceLoader::Exchange(int64_t round, const char* data, bool failed,
                           const std::vector<StateSlice>& slices) {
  const int n = plan_.num_members();
  const LoadBlock* const mine = plan_.BlockOf(me_, round);
  bool any_failed = failed;
  for (int shift = 1; shift < n; ++shift) {
    const int to = (me_ + shift) % n, from = (me_ + n - shift) % n;
    const LoadBlock* const theirs = plan_.BlockOf(from, round);
    const size_t out_bytes =
        mine == nullptr ? 1 : 1 + static_cast<size_t>(mine->bytes_wanted[static_cast<size_t>(to)]);
    const size_t in_bytes =
        theirs == nullptr ? 1 : 1 + static_cast<size_t>(theirs->bytes_wanted[static_cast<size_t>(me_)]);
    out_.assign(1, failed ? kFailed : kRead);
    if (mine != nullptr && data != nullptr) Pack(*mine, to, data, &out_);
    out_.resize(out_bytes);
    in_.resize(in_bytes);
    communicator_->SendRecv(Tensor(out_.data(), DType::kU8, {static_cast<int64_t>(out_bytes)}),
                            members_[static_cast<size_t>(to)],
                            Tensor(in_.data(), DType::kU8, {static_cast<int64_t>(in_bytes)}),
                            members_[static_cast<size_t>(from)]);
    if (in_[0] == kFailed) {
      any_failed = true;
    } else if (theirs != nullptr) {
      Place(*theirs, in_.data() + 1, /*packed=*/true, slices);
    }
  }
  return !any_failed;
}

absl::Status SliceLoader::Fill(const std::vector<StateSlice>& slices, int reader_threads,
                               const std::function<void(int64_t, int64_t)>& progress) {
  std::vector<BlockQueue::Id> ids;
  for (const LoadBlock* block : plan_.Queue(me_)) ids.push_back({block->file, block->number});
  BlockQueue queue(files_, dir_, manifest_, std::move(ids), reader_threads);
  absl::Status status;
  int64_t done = 0;
  for (int64_t round = 0; round < plan_.num_rounds(); ++round) {
    const LoadBlock* const block = plan_.BlockOf(me_, round);
    const char* data = nullptr;
    if (block != nullptr && status.ok()) {
      const absl::StatusOr<const char*> read = queue.Next();
      status = read.status();
      if (read.ok()) {
        data = *read;
        Place(*block, data, /*packed=*/false, slices);
      }
    }
    if (plan_.Exchanges(round) && !Exchange(round, data, !status.ok(), slices)) break;
    if (progress) {
      for (int m = 0; m < plan_.num_members(); ++m) {
        if (const LoadBlock* const read = plan_.BlockOf(m, round)) done += read->num_bytes;
      }
      progress(done, plan_.num_bytes());
    }
  }
  return status;
}
}  // namespace carousel
