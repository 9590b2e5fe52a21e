// "Did you mean": the nearest of a list of names.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace carousel {

// Optimal string alignment distance (insert, delete, replace, swap of neighbours, each 1), ignoring case and
// the difference between '-' and '_'.
int64_t EditDistance(const std::string& a, const std::string& b);

// The candidate that was probably meant: at most a third of the letters differ, or one is the beginning of
// the other, or the word is a part of it between underscores. Ties go to the first. Empty if none is near.
std::string Nearest(const std::string& word, const std::vector<std::string>& candidates);

// "; did you mean \"x\"?" or, if nothing is near, "; valid: a, b, c" (at most 30 names).
std::string DidYouMean(const std::string& word, const std::vector<std::string>& candidates);
}  // namespace carousel
