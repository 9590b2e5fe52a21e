// A config in Protobuf's text format as a flat list, for tables and comparisons.
#pragma once
#include <string>
#include <utility>
#include <vector>

namespace carousel {

// {"model.num_blocks", "4"}, {"data.train.path", "data/x"}, ... in the order of the text; strings without
// their quotes. A name that comes several times has "[0]", "[1]", ... . Reads what configs/ writes, one field
// per line; lines that it does not understand are left out.
std::vector<std::pair<std::string, std::string>> ConfigLeaves(const std::string& text);
}  // namespace carousel
