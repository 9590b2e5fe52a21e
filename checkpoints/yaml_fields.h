// Reading and writing the small YAML files that stand beside the weights of other programs: one mapping of
// names to numbers, flags, strings, lists and mappings. Parsed by libyaml, event by event; nothing in the
// text is trusted.
#pragma once
#include <nlohmann/json.hpp>
#include <string>

#include "absl/status/statusor.h"

namespace carousel {

constexpr size_t kMaxYamlBytes = size_t{256} << 10;
constexpr int kMaxYamlDepth = 16;       // of nested lists and mappings
constexpr int kMaxYamlValues = 10'000;  // scalars, lists and mappings together

// The mapping as a JSON object. Plain scalars are what YAML 1.1 readers of Python make of them:
//   null: empty, ~, null    flags: true, false, yes, no, on, off    numbers: decimal, also 1e-6
// in the three usual spellings (true, True, TRUE); everything else, and what stands in quotes, is a string.
// So are numbers in other notations (010, 0x10, 1_000, .inf), which no field then accepts: none is misread.
// InvalidArgument with file, line and column: not YAML, not UTF-8, not one mapping; a key that is no string
// or is there twice; anchors, aliases, tags, several documents; more than the limits above.
absl::StatusOr<nlohmann::json> ParseYamlObject(const std::string& text, const std::string& file);

// A flat object as lines "name: value", numbers as both YAML 1.1 and 1.2 read them back bit for bit.
// REQUIRES: values are numbers, flags, null, or strings of [A-Za-z0-9_-] that begin with a letter and are not
// one of the words above.
std::string YamlText(const nlohmann::ordered_json& object);
}  // namespace carousel
