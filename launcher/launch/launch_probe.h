// Which hosts answer, asked in the way in which mpirun will go to them.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "launcher/launch/launch_plan.h"

namespace carousel {

struct HostAnswer {
  bool answers = false;
  std::string own_name = {};  // as the host calls itself; empty: it did not say
};
// Runs `AGENT HOST uname -n` for all of them at the same time and gives them 15 seconds, or until `stop` says
// that nobody wants to know any more; then all answer. agent: as --rsh_agent; empty: ssh without questions.
// This machine always answers; so do all if the agent is not there.
std::vector<HostAnswer> AskHosts(const std::vector<LaunchHost>& hosts, const std::string& agent,
                                 const LaunchSurroundings& here, const std::function<bool()>& stop);
// Whether two names are one machine's: the same, or one is the other without its domain.
bool SameHostName(const std::string& a, const std::string& b);
// The path of a program by the PATH of `environment`; itself if there is a slash in it; empty: not found.
std::string FindProgram(const std::string& name, const std::vector<std::string>& environment);
// Whether a host of a list is this machine.
bool IsThisMachine(const std::string& name, const std::string& own_name);
}  // namespace carousel
