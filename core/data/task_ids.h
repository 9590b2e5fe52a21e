// What the ids of each task mean (core/data/task.h); 0 is kTaskBegin everywhere.
#pragma once
#include <cstdint>

#include "core/data/task.h"

namespace carousel {

// parity, even_pairs: bit b is kFirstBit + b.
inline constexpr int32_t kFirstBit = 1;
// cycle_navigation: three moves, then the places.
inline constexpr int32_t kStay = 1, kForward = 2, kBackward = 3, kFirstPlace = 4;
// modular_arithmetic: signs, with brackets two more, then the numbers.
inline constexpr int32_t kPlus = 1, kMinus = 2, kTimes = 3, kEquals = 4, kOpen = 5, kClose = 6;
inline int32_t FirstNumber(const TaskSpec& task) { return task.brackets ? 7 : 5; }
// majority.
inline constexpr int32_t kFirstSymbol = 1;
// mqar: keys [1, V/2), values [V/2, V).
}  // namespace carousel
