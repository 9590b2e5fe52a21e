#include "launcher/launch/launch_probe.h"

#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <optional>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "launcher/launch/launch_output.h"
#include "launcher/launch/launch_process.h"

namespace carousel {
namespace {
constexpr double kProbeSeconds = 15;
constexpr size_t kMaxAnswer = 64 << 10;

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

bool SameHostName(const std::string& a, const std::string& b) {
  const auto is_short_for = [](const std::string& name, const std::string& full) {
    return full.size() > name.size() && full[name.size()] == '.' && absl::StartsWith(full, name) &&
           !absl::ascii_isdigit(static_cast<unsigned char>(full[0]));  // of an address it would be a part
  };
  return a == b || is_short_for(a, b) || is_short_for(b, a);
}

bool IsThisMachine(const std::string& name, const std::string& own_name) {
  return name == "localhost" || name == "127.0.0.1" || name == "::1" || SameHostName(name, own_name);
}

std::vector<HostAnswer> AskHosts(const std::vector<LaunchHost>& hosts, const std::string& agent,
                                 const LaunchSurroundings& here, const std::function<bool()>& stop) {
  struct Probe {
    HostAnswer* answer = nullptr;
    Child child = {};
    std::string output = {}, errors = {};
    std::optional<ProcessEnd> end = {};
  };
  std::vector<std::string> words = SplitWords(agent);
  if (words.empty()) words = {"ssh", "-o", "BatchMode=yes"};
  words[0] = FindProgram(words[0], here.environment);
  std::vector<HostAnswer> answers(hosts.size());
  std::vector<Probe> probes;
  for (size_t i = 0; i < hosts.size(); ++i) {
    const bool here_itself = IsThisMachine(hosts[i].name, here.host);
    if (here_itself) answers[i].own_name = here.host;
    answers[i].answers = true;
    if (words[0].empty() || here_itself) continue;
    SpawnOptions spawn{.argv = words, .environment = here.environment};
    for (const std::string& word : {hosts[i].name, std::string("uname"), std::string("-n")}) {
      spawn.argv.push_back(word);
    }
    absl::StatusOr<Child> child = Spawn(spawn);
    if (child.ok()) probes.push_back({.answer = &answers[i], .child = *std::move(child)});
  }
  const double deadline = Seconds() + kProbeSeconds;
  size_t open = probes.size();
  bool stopped = false;
  while (open > 0 && Seconds() < deadline && !stopped) {
    poll(nullptr, 0, 20);
    stopped = stop != nullptr && stop();
    for (Probe& probe : probes) {
      if (probe.end.has_value()) continue;
      int status = 0;
      const bool ended = waitpid(probe.child.pid, &status, WNOHANG) == probe.child.pid;
      ReadSome(probe.child.output, &probe.output);
      ReadSome(probe.child.errors, &probe.errors);
      probe.errors.clear();
      if (probe.output.size() > kMaxAnswer) probe.output.erase(0, probe.output.size() - kMaxAnswer);
      if (!ended) continue;
      probe.end = EndOf(status);
      --open;
    }
  }
  for (Probe& probe : probes) {
    if (!probe.end.has_value()) {
      kill(-probe.child.pid, SIGKILL);
      waitpid(probe.child.pid, nullptr, 0);
    }
    probe.answer->answers = stopped || (probe.end.has_value() && probe.end->code() == 0);
    // A login may greet before it.
    const std::string last = LastLines(probe.output, 1);
    if (probe.end.has_value() && probe.end->code() == 0 && IsHostName(last)) probe.answer->own_name = last;
  }
  return answers;
}
}  // namespace carousel
