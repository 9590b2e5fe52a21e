// TensorBoard event files without TensorBoard: framing and events. The format: records of
//   u64 length (little-endian) | u32 masked CRC of those 8 bytes | data | u32 masked CRC of the data
// where data is a serialised Event (tensorboard.proto) and the CRC is CRC-32C, masked so that a checksum of
// bytes that hold a checksum stays strong: rotated right by 15 bits, plus 0xa282ead8.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "launcher/report/appended_file.h"

namespace carousel {

uint32_t MaskedCrc32c(std::string_view bytes);
// One record around `data`.
std::string FrameRecord(std::string_view data);
// The event that every file begins with.
std::string VersionEvent(double wall_time);
// Scalars of one step.
std::string ScalarEvent(double wall_time, int64_t step,
                        const std::vector<std::pair<std::string, double>>& values);

class TensorboardFile {
 public:
  // A new file in `dir`, which is made if it is not there:
  //   events.out.tfevents.<unix seconds>.<host>.<pid>.<n>
  // `serial` distinguishes files that one process opens; a name that exists gets the next one. The version
  // event is written, and a SessionLog START: TensorBoard forgets what earlier files say about steps from
  // `first_step` on, which this run takes again.
  static absl::StatusOr<std::unique_ptr<TensorboardFile>> Create(const std::string& dir,
                                                                 const std::string& host, int64_t first_step);
  const std::string& path() const { return file_->path(); }

  absl::Status Scalars(int64_t step, const std::vector<std::pair<std::string, double>>& values);
  // Markdown, shown under Text.
  absl::Status Text(int64_t step, const std::string& tag, const std::string& markdown);
  // Under HParams: numbers, truth values and texts by name, and whether the run ended well.
  absl::Status Hparams(const std::vector<std::pair<std::string, std::string>>& values);
  absl::Status HparamsEnd(bool success);

 private:
  explicit TensorboardFile(std::unique_ptr<AppendedFile> file) : file_(std::move(file)) {}
  std::unique_ptr<AppendedFile> file_;
};
}  // namespace carousel
