#pragma once
#include <CLI/App.hpp>
#include <functional>

namespace carousel {

// Adds `carousel bench checkpoint` below `bench` (commands.h).
void AddBenchCheckpointCommand(CLI::App& bench, std::function<int()>* run);
}  // namespace carousel
