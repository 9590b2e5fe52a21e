#include "parallel/tcp_frames.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace carousel {
namespace {
void AppendNumber(std::string* out, uint32_t value) {
  for (int i = 0; i < 4; ++i) out->push_back(static_cast<char>(value >> (8 * i)));
}
uint32_t NumberAt(const std::string& in, size_t begin) {
  uint32_t value = 0;
  for (size_t i = 0; i < 4; ++i) value |= uint32_t{static_cast<uint8_t>(in[begin + i])} << (8 * i);
  return value;
}
}  // namespace

std::string MakeFrame(FrameType type, const std::string& payload) {
  std::string frame(1, static_cast<char>(type));
  AppendNumber(&frame, static_cast<uint32_t>(payload.size()));
  return frame + payload;
}

size_t PayloadBytes(const std::string& head) { return NumberAt(head, 1); }

absl::StatusOr<std::optional<Frame>> TakeFrame(std::string* bytes, size_t max_payload) {
  if (bytes->size() < kFrameHeadBytes) return std::optional<Frame>();
  const uint8_t type = static_cast<uint8_t>((*bytes)[0]);
  const size_t length = PayloadBytes(*bytes);
  if (type < 1 || type > 5 || length > max_payload) {
    return absl::InvalidArgumentError(absl::StrCat("a message of type ", type, " and ", length, " bytes"));
  }
  if (bytes->size() < kFrameHeadBytes + length) return std::optional<Frame>();
  Frame frame = {.type = static_cast<FrameType>(type), .payload = bytes->substr(kFrameHeadBytes, length)};
  bytes->erase(0, kFrameHeadBytes + length);
  return std::optional<Frame>(std::move(frame));
}

std::string MakeEnd(const EndFrame& end) {
  std::string payload;
  AppendNumber(&payload, static_cast<uint32_t>(end.exit_code));
  return MakeFrame(FrameType::kEnd, payload + end.text.substr(0, kMaxEndBytes - 4));
}

std::optional<EndFrame> ParseEnd(const Frame& frame) {
  if (frame.type != FrameType::kEnd || frame.payload.size() < 4) return std::nullopt;
  return EndFrame{.exit_code = static_cast<int>(NumberAt(frame.payload, 0)), .text = frame.payload.substr(4)};
}
}  // namespace carousel
