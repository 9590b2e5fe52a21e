// Takes lines out of a file that may be large, on a disk that may be full.
#pragma once
#include <cstdint>
#include <string>

#include "absl/status/status.h"

namespace carousel {

// The file at `path` holds `old` and is to hold `kept`, which is `old` without some of its lines. Where only
// the end goes, the file is cut there: that needs no space. Otherwise what is kept is written to a new file
// that takes its place (synced, renamed); where the disk is too full for that, and the lines after the first
// that goes are no more bytes than go before them, these are moved up in the file itself. A crash on the way
// leaves some of them there twice, with lines that were to go and the rest of one in between: whoever reads
// the file drops repetitions. ResourceExhausted says how much space is needed, and where. Durable on return.
absl::Status DropLines(const std::string& path, const std::string& old, const std::string& kept);

// The file ends after num_bytes from now on. Needs no space; durable on return.
absl::Status CutFile(const std::string& path, int64_t num_bytes);
}  // namespace carousel
