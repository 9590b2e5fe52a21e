// Suggestions for a name that is not there.
#pragma once
#include <string>
#include <vector>

namespace carousel {

// "; the closest are a, b, c" by Levenshtein distance, at most three; empty if there is nothing to suggest.
std::string ClosestNames(const std::string& name, const std::vector<std::string>& names);
}  // namespace carousel
