// One line of a .jsonl file.
#pragma once
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace carousel {

// *text := the string field `field` of the JSON object in `line` (the last one if the name repeats). Other
// fields may hold anything; objects inside them are not searched. InvalidArgument says what is wrong: not
// JSON (with the column), not an object, no such field (with the names that there are), not a string.
absl::Status ReadJsonTextField(absl::string_view line, const std::string& field, std::string* text);
}  // namespace carousel
