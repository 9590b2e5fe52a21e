// Text format to RunConfig, with errors made for people.
#pragma once
#include <string>

#include "configs/problems.h"
#include "configs/run.pb.h"

namespace carousel {

// Largest config text that is read; everything above is refused.
constexpr size_t kMaxConfigBytes = size_t{1} << 20;

// Parses `text` into *config. Unknown fields and words that do not fit their field are added to *problems,
// all of them (the first 50), as "name:line:column: message" (1-based) with the line and a caret below.
// *origins gets the place of every field. Returns false if *config does not hold what the text says.
bool ParseRunConfig(const std::string& text, const std::string& name, config::RunConfig* config,
                    Origins* origins, Problems* problems);
}  // namespace carousel
