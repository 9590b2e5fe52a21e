#include "core/data/label_file.h"

#include <cstring>

#include "absl/strings/str_cat.h"
#include "core/base/check.h"
#include "core/base/int_math.h"
#include "core/base/status_macros.h"
#include "core/data/crc32c.h"

namespace carousel {
namespace {
constexpr int64_t kLabelBytes = 2;
constexpr char kRemake[] = "; copy it again or make it with `carousel data task`";
}  // namespace

absl::StatusOr<LabelFile> LabelFile::Open(const std::string& prefix, int64_t num_tokens, int64_t row_tokens) {
  CAROUSEL_CHECK(num_tokens >= 0 && row_tokens >= 0);
  LabelFile labels;
  CAROUSEL_ASSIGN_OR_RETURN(labels.file_, MappedFile::Open(PathOf(prefix)));
  labels.num_tokens_ = num_tokens;
  const int64_t size_bytes = labels.file_.size_bytes();
  if (size_bytes % kLabelBytes != 0 || size_bytes / kLabelBytes != num_tokens) {
    return absl::DataLossError(absl::StrCat(labels.file_.path(), " holds ", size_bytes,
                                            " bytes; expected 2 for each of the ", num_tokens,
                                            " tokens beside it", kRemake));
  }
  uint16_t label = 0;
  const int64_t num_rows = row_tokens > 0 ? CeilDiv(num_tokens, row_tokens) : 0;
  for (int64_t row = 0; row < num_rows; ++row) {
    const int64_t begin = row * row_tokens;
    labels.Read(begin, std::span<uint16_t>(&label, 1));
    if (label == 0) continue;
    return absl::DataLossError(absl::StrCat(labels.file_.path(), ": token ", begin,
                                            ", the first of a row of ", row_tokens, ", has label ", label,
                                            "; expected 0", kRemake));
  }
  return labels;
}

void LabelFile::Read(int64_t begin, std::span<uint16_t> out) const {
  const int64_t count = static_cast<int64_t>(out.size());
  CAROUSEL_CHECK(begin >= 0 && begin <= num_tokens_ && count <= num_tokens_ - begin);
  if (count > 0) std::memcpy(out.data(), file_.data() + begin * kLabelBytes, out.size_bytes());
}

uint32_t LabelFile::Checksum() const { return ExtendCrc32c(0, file_.data(), file_.size_bytes()); }
}  // namespace carousel
