// Which fields two resolved configs differ in.
#pragma once
#include <string>
#include <vector>

namespace carousel {

// One field: "parallel.tensor", with both values as they are written in a config; "(not set)" for none.
struct FieldDifference {
  std::string path, first, second;
};
// Of two resolved texts (RunSpec::resolved_text), in the order of the schema. A text that cannot be parsed
// has no fields.
std::vector<FieldDifference> CompareResolved(const std::string& first, const std::string& second);
}  // namespace carousel
