// LabelFile: PREFIX.labels, which tokens of a token file are answers. One little-endian u16 per token of
// PREFIX.bin, nothing else:
//   0      no loss where this token is the target
//   n > 0  this token is an answer of a problem of length n, as the task counts length (core/data/task.h)
#pragma once
#include <cstdint>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/data/mapped_file.h"

namespace carousel {

inline constexpr int64_t kMaxLabel = 65535;

// Immutable after Open: every method may be called from several threads.
class LabelFile {
 public:
  static std::string PathOf(const std::string& prefix) { return prefix + ".labels"; }

  // Maps PREFIX.labels and checks that it holds `num_tokens` labels. row_tokens > 0: also that no row (see
  // TaskMeta) begins with an answer, for that token is the target of the row before. NotFound,
  // PermissionDenied or DataLoss.
  static absl::StatusOr<LabelFile> Open(const std::string& prefix, int64_t num_tokens, int64_t row_tokens);

  // Copies labels [begin, begin + out.size()). REQUIRES: inside [0, num_tokens].
  void Read(int64_t begin, std::span<uint16_t> out) const;
  // CRC-32C of the whole file.
  uint32_t Checksum() const;

 private:
  MappedFile file_;
  int64_t num_tokens_ = 0;
};
}  // namespace carousel
