// Which hosts answer, asked in the way in which mpirun will go to them.
#pragma once
#include <string>
#include <vector>

#include "launcher/launch/launch_plan.h"

namespace carousel {

// Runs `AGENT HOST true` for all of them at the same time and gives them 15 seconds. agent: as --rsh_agent;
// empty: ssh without questions. This machine always answers; so do all if the agent is not there.
std::vector<std::string> UnreachableHosts(const std::vector<LaunchHost>& hosts, const std::string& agent,
                                          const LaunchSurroundings& here);
// The path of a program by the PATH of `environment`; itself if there is a slash in it; empty: not found.
std::string FindProgram(const std::string& name, const std::vector<std::string>& environment);
// Whether a host of a list is this machine.
bool IsThisMachine(const std::string& name, const std::string& own_name);
}  // namespace carousel
