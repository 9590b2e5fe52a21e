// Messages on control connections: type, length, payload.
#pragma once
#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "core/base/exit_code.h"

namespace carousel {

constexpr uint64_t kControlGroup = ~uint64_t{0};  // of control connections
constexpr uint64_t kWorldGroup = 0;

enum class FrameType : uint8_t {
  kHere = 1,      // to rank 0: where this rank listens
  kBook = 2,      // from rank 0: where all ranks listen
  kFinished = 3,  // to rank 0: this rank has finished; from it: all have
  kEnd = 4,       // the job ends: exit code and why
  kBeat = 5       // a sign of life (heartbeat.h)
};
struct Frame {
  FrameType type;
  std::string payload;
};
constexpr size_t kFrameHeadBytes = 5;
constexpr size_t kMaxHereBytes = 8192, kMaxEndBytes = 1024;
std::string MakeFrame(FrameType type, const std::string& payload);
// What the head of a frame says of its payload. REQUIRES: kFrameHeadBytes bytes.
size_t PayloadBytes(const std::string& head);
// Takes a whole frame from the beginning of `bytes`; nothing if it is not all there. An error for a type that
// does not exist or a payload of more than max_payload bytes.
absl::StatusOr<std::optional<Frame>> TakeFrame(std::string* bytes, size_t max_payload);

struct EndFrame {
  int exit_code = kExitTransport;
  std::string text;
};
std::string MakeEnd(const EndFrame& end);
std::optional<EndFrame> ParseEnd(const Frame& frame);
}  // namespace carousel
