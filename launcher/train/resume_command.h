// The command that goes on with a run that was stopped, for people to copy.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace carousel {

// arguments: of this process, argv[0] first. Options that are for one start only (--fresh) are left out, and
// what a shell would change is quoted. launcher: Environment::launcher(), empty for a process alone; size: of
// the world. launched: by `carousel launch`, whose own command line this process does not know.
std::string ResumeCommand(const std::vector<std::string>& arguments, const std::string& launcher,
                          int64_t size, bool launched);
// Of this process.
std::vector<std::string> ProcessArguments();
}  // namespace carousel
