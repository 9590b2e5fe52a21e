#include "checkpoints/load_plan.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "checkpoints/manifest.h"

namespace carousel {
namespace pb = checkpoint;

LoadPlan::LoadPlan(const pb::Manifest& manifest, const std::vector<pb::RankSlices>& ranks,
                   const std::vector<int>& members) {
  std::map<std::pair<std::string, int>, int> first_saved;  // by name and kind: its first box in saved_
  std::map<std::pair<std::string, int>, const pb::TensorEntry*> entries;
  for (const pb::TensorEntry& tensor : manifest.tensors()) {
    const std::pair<std::string, int> key = {tensor.name(), tensor.kind()};
    first_saved[key] = static_cast<int>(saved_.size());
    entries[key] = &tensor;
    for (const pb::Box& box : tensor.boxes()) {
      saved_.push_back(
          {ShapeOf(tensor), BoxOf(box), box.file(), box.byte_offset(), SizeOf(FromProto(tensor.dtype()))});
    }
  }
  for (size_t m = 0; m < members.size(); ++m) {
    const pb::RankSlices& rank = ranks[static_cast<size_t>(members[m])];
    for (int i = 0; i < rank.slices_size(); ++i) {
      const pb::SliceDescription& s = rank.slices(i);
      const Box wanted = {{s.offset().begin(), s.offset().end()}, {s.size().begin(), s.size().end()}};
      if (wanted.num_elems() == 0) continue;
      const std::pair<std::string, int> key = {s.name(), s.kind()};
      AddSlice(*entries.at(key), first_saved.at(key), static_cast<int>(m), i, wanted);
    }
  }
  CollectBlocks(manifest, static_cast<int>(members.size()));
  ChooseReaders(members.size());
}

void LoadPlan::AddSlice(const pb::TensorEntry& tensor, int first_saved, int member, int slice,
                        const Box& wanted) {
  for (int k = 0; k < tensor.boxes_size(); ++k) {
    const int saved = first_saved + k;
    Box common;
    if (!Intersect(wanted, saved_[static_cast<size_t>(saved)].box, &common)) continue;
    parts_.push_back({member, slice, saved, std::move(common)});
  }
}

void LoadPlan::ForEachBoxIn(int64_t begin, int64_t end, const LoadPart& part,
                            const std::function<void(const Box&)>& fn) const {
  const SavedBox& saved = saved_[static_cast<size_t>(part.saved)];
  // Elements of the saved box in these bytes; neither blocks nor boxes begin within an element.
  const int64_t first = std::max<int64_t>(0, (begin - saved.byte_offset) / saved.elem_bytes);
  const int64_t last = std::min(saved.box.num_elems(), (end - saved.byte_offset) / saved.elem_bytes);
  if (last <= first) return;
  for (Box range : BoxesOfRange(saved.box.size, first, last - first)) {
    for (size_t d = 0; d < range.offset.size(); ++d) range.offset[d] += saved.box.offset[d];
    Box common;
    if (Intersect(range, part.box, &common)) fn(common);
  }
}

void LoadPlan::ForEachRunIn(const LoadBlock& block, const LoadPart& part, const RunFn& fn) const {
  const SavedBox& saved = saved_[static_cast<size_t>(part.saved)];
  const int64_t begin = block.number * kBlockBytes;
  ForEachBoxIn(begin, begin + block.num_bytes, part, [&](const Box& box) {
    ForEachRun(saved.shape, saved.box, box, [&](int64_t elem, int64_t box_elem, int64_t count) {
      fn(saved.byte_offset + box_elem * saved.elem_bytes - begin, elem, count);
    });
  });
}

void LoadPlan::CollectBlocks(const pb::Manifest& manifest, int num_members) {
  std::map<std::pair<int64_t, int64_t>, LoadBlock> blocks;
  std::set<std::pair<int, std::vector<int64_t>>> distinct;  // what several want is one
  for (size_t p = 0; p < parts_.size(); ++p) {
    const LoadPart& part = parts_[p];
    const SavedBox& saved = saved_[static_cast<size_t>(part.saved)];
    if (distinct.emplace(part.saved, part.box.offset).second) {
      num_bytes_wanted_ += part.box.num_elems() * saved.elem_bytes;
    }
    // From the first element of the part to its last one, as they lie in the file.
    Box last_elem = part.box, in_box = part.box;
    for (size_t d = 0; d < in_box.offset.size(); ++d) {
      in_box.offset[d] -= saved.box.offset[d];
      last_elem.offset[d] = in_box.offset[d] + part.box.size[d] - 1;
    }
    const int64_t begin = saved.byte_offset + FirstElem(saved.box.size, in_box) * saved.elem_bytes;
    const int64_t end = saved.byte_offset + (FirstElem(saved.box.size, last_elem) + 1) * saved.elem_bytes;
    for (int64_t b = begin / kBlockBytes; b * kBlockBytes < end; ++b) {
      int64_t bytes = 0;
      ForEachBoxIn(b * kBlockBytes, (b + 1) * kBlockBytes, part,
                   [&](const Box& box) { bytes += box.num_elems() * saved.elem_bytes; });
      if (bytes == 0) continue;  // all of it lies between elements of the part
      LoadBlock& block = blocks[{saved.file, b}];
      block.file = saved.file;
      block.number = b;
      block.num_bytes =
          std::min(kBlockBytes, manifest.files(static_cast<int>(saved.file)).size() - b * kBlockBytes);
      block.bytes_wanted.resize(static_cast<size_t>(num_members));
      block.bytes_wanted[static_cast<size_t>(part.member)] += bytes;
      block.parts.push_back(static_cast<int>(p));  // rising, and with them the members
    }
  }
  for (auto& [key, block] : blocks) {
    num_bytes_ += block.num_bytes;
    blocks_.push_back(std::move(block));
  }
}

// Who wants much of a block reads it, so that little is passed on; among those the one with the least to do.
void LoadPlan::ChooseReaders(size_t n) {
  queues_.resize(n);
  for (size_t b = 0; b < blocks_.size(); ++b) {
    LoadBlock& block = blocks_[b];
    const int64_t most = *std::max_element(block.bytes_wanted.begin(), block.bytes_wanted.end());
    size_t reader = n;
    for (size_t m = 0; m < n; ++m) {
      if (block.bytes_wanted[m] < (most + 1) / 2) continue;
      if (reader == n || queues_[m].size() < queues_[reader].size()) reader = m;
    }
    block.reader = static_cast<int>(reader);
    queues_[reader].push_back(static_cast<int>(b));
  }
  for (const std::vector<int>& queue : queues_) {
    num_rounds_ = std::max(num_rounds_, static_cast<int64_t>(queue.size()));
  }
}

const LoadBlock* LoadPlan::BlockOf(int member, int64_t round) const {
  const std::vector<int>& queue = queues_[static_cast<size_t>(member)];
  if (round >= static_cast<int64_t>(queue.size())) return nullptr;
  return &blocks_[static_cast<size_t>(queue[static_cast<size_t>(round)])];
}

std::vector<const LoadBlock*> LoadPlan::Queue(int member) const {
  std::vector<const LoadBlock*> blocks;
  for (const int b : queues_[static_cast<size_t>(member)]) blocks.push_back(&blocks_[static_cast<size_t>(b)]);
  return blocks;
}

bool LoadPlan::Exchanges(int64_t round) const {
  for (int m = 0; m < num_members(); ++m) {
    const LoadBlock* const block = BlockOf(m, round);
    if (block != nullptr && (parts_[static_cast<size_t>(block->parts.front())].member != m ||
                             parts_[static_cast<size_t>(block->parts.back())].member != m)) {
      return true;
    }
  }
  return false;
}
}  // namespace carousel
