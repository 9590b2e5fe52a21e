#include "launcher/launch/launch_probe.h"

#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "launcher/launch/launch_process.h"

namespace carousel {
namespace {
constexpr double kProbeSeconds = 15;

double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
}  // namespace

std::string FindProgram(const std::string& name, const std::vector<std::string>& environment) {
  const auto runs = [](const std::string& path) { return access(path.c_str(), X_OK) == 0; };
  if (name.find('/') != std::string::npos) return runs(name) ? name : "";
  const std::vector<std::string> directories = absl::StrSplit(ValueOf(environment, "PATH"), ':');
  for (const std::string& directory : directories) {
    const std::string path = absl::StrCat(directory.empty() ? "." : directory, "/", name);
    if (runs(path)) return path;
  }
  return "";
}

bool IsThisMachine(const std::string& name, const std::string& own_name) {
  return name == own_name || name == "localhost" || name == "127.0.0.1" || name == "::1" ||
         name == own_name.substr(0, own_name.find('.'));
}

std::vector<std::string> UnreachableHosts(const std::vector<LaunchHost>& hosts, const std::string& agent,
                                          const LaunchSurroundings& here) {
  struct Probe {
    std::string host;
    Child child;
    std::optional<ProcessEnd> end;
  };
  std::vector<std::string> words = SplitWords(agent);
  if (words.empty()) words = {"ssh", "-o", "BatchMode=yes"};
  words[0] = FindProgram(words[0], here.environment);
  std::vector<Probe> probes;
  for (const LaunchHost& host : hosts) {
    if (words[0].empty() || IsThisMachine(host.name, here.host)) continue;
    SpawnOptions spawn{.argv = words, .environment = here.environment};
    spawn.argv.push_back(host.name);
    spawn.argv.push_back("true");
    absl::StatusOr<Child> child = Spawn(spawn);
    if (child.ok()) probes.push_back({.host = host.name, .child = *std::move(child), .end = {}});
  }
  const double deadline = Seconds() + kProbeSeconds;
  size_t open = probes.size();
  while (open > 0 && Seconds() < deadline) {
    poll(nullptr, 0, 20);
    for (Probe& probe : probes) {
      int status = 0;
      if (probe.end.has_value() || waitpid(probe.child.pid, &status, WNOHANG) != probe.child.pid) continue;
      probe.end = EndOf(status);
      --open;
    }
  }
  std::vector<std::string> unreachable;
  for (Probe& probe : probes) {
    if (!probe.end.has_value()) {
      kill(-probe.child.pid, SIGKILL);
      waitpid(probe.child.pid, nullptr, 0);
    }
    if (!probe.end.has_value() || probe.end->code() != 0) unreachable.push_back(probe.host);
  }
  return unreachable;
}
}  // namespace carousel
