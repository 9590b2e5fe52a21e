// The parts of `carousel bench` that time single ops.
#pragma once
#include "launcher/commands.h"

namespace carousel {

// Adds `ops` and `cells` to the `bench` subcommand.
void AddBenchOpsCommands(CLI::App& bench, std::function<int()>* run);
}  // namespace carousel
