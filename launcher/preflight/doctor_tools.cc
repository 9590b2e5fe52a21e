#include "launcher/preflight/doctor_tools.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "launcher/preflight/preflight_read.h"

extern char** environ;  // NOLINT: POSIX

namespace carousel {
namespace {

std::string FirstLine(const std::string& text) {
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    const absl::string_view stripped = absl::StripAsciiWhitespace(line);
    if (!stripped.empty() && stripped.find_first_not_of("-") != absl::string_view::npos)
      return std::string(stripped);
  }
  return "";
}

// "mpirun (Open MPI) 4.1.4" and "Open MPI v4.1.4" speak of one version.
std::string VersionNumber(const std::string& text) {
  const size_t begin = text.find_first_of("0123456789");
  if (begin == std::string::npos) return "";
  return text.substr(begin, text.find_first_not_of("0123456789.", begin) - begin);
}
}  // namespace

ToolResult RunTool(const std::vector<std::string>& argv, double seconds) {
  constexpr size_t kMaxOutput = 4096;
  ToolResult result;
  std::array<int, 2> pipe_ends{};
  if (pipe2(pipe_ends.data(), O_CLOEXEC) != 0) {
    result.output = std::strerror(errno);
    return result;
  }
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, pipe_ends[1], STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, pipe_ends[1], STDERR_FILENO);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  // A group of its own, so that all of it can be ended.
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP);
  std::vector<std::string> words = argv;
  std::vector<char*> pointers;
  for (std::string& word : words) pointers.push_back(word.data());
  pointers.push_back(nullptr);
  pid_t child = 0;
  const int error = posix_spawn(&child, words[0].c_str(), &actions, &attributes, pointers.data(), environ);
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&actions);
  close(pipe_ends[1]);
  if (error != 0) {
    close(pipe_ends[0]);
    result.output = std::strerror(error);
    return result;
  }
  result.started = true;
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  while (true) {
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(end - std::chrono::steady_clock::now());
    pollfd ready = {.fd = pipe_ends[0], .events = POLLIN, .revents = 0};
    const int count = left.count() > 0 ? poll(&ready, 1, static_cast<int>(left.count())) : 0;
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) {
      result.timed_out = true;
      kill(-child, SIGKILL);
      break;
    }
    std::array<char, 1024> buffer{};
    const ssize_t bytes = read(pipe_ends[0], buffer.data(), buffer.size());
    if (bytes < 0 && errno == EINTR) continue;
    if (bytes <= 0) break;
    result.output.append(buffer.data(), static_cast<size_t>(bytes));
    if (result.output.size() > kMaxOutput) result.output.resize(kMaxOutput);
  }
  close(pipe_ends[0]);
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  result.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return result;
}

MpirunFacts ReadMpirun(const std::string& path_variable) {
  MpirunFacts facts;
  facts.path = FindProgram("mpirun", path_variable);
  if (facts.path.empty()) return facts;
  constexpr double kSeconds = 20;
  const ToolResult version = RunTool({facts.path, "--version"}, kSeconds);
  if (version.started && version.exit_code == 0) facts.version = FirstLine(version.output);
  return facts;
}

PreflightRow CheckMpirun(const MpirunFacts& facts) {
  PreflightRow row = {.check = "mpirun"};
  if (!facts.program_has_mpi) {
    row.status = PreflightStatus::kNote;
    row.finding =
        "this program was built without MPI: several ranks can meet over TCP only (CAROUSEL_RENDEZVOUS)";
    row.fix = "Install libopenmpi-dev and build again with -DCAROUSEL_MPI=ON.";
    return row;
  }
  if (facts.path.empty()) {
    row.status = PreflightStatus::kNote;
    row.finding = absl::StrCat("not in PATH; one rank works without it. This program uses ",
                               facts.library.empty() ? "MPI" : facts.library);
    row.fix =
        "Debian: install openmpi-bin. On a cluster: `module load` the MPI that the program was built with, "
        "or "
        "start ranks with `srun --mpi=pmix`.";
    return row;
  }
  const std::string found =
      absl::StrCat(facts.version.empty() ? facts.path : facts.version, " in ", facts.path);
  const std::string theirs = VersionNumber(facts.version), ours = VersionNumber(facts.library);
  if (absl::StrContains(facts.version, "Open MPI") != absl::StrContains(facts.library, "Open MPI") ||
      (!theirs.empty() && !ours.empty() && theirs != ours)) {
    row.status = PreflightStatus::kWarning;
    row.finding = absl::StrCat(found, ", but this program uses ", facts.library,
                               ": ranks that it starts may not find each other");
    row.fix = "Start ranks with the mpirun of the MPI that the program was built with (PATH, `module load`).";
    return row;
  }
  if (facts.root && !facts.root_allowed) {
    row.status = PreflightStatus::kNote;
    row.finding = absl::StrCat(found, "; it refuses to work for root until told twice that it may");
    row.fix =
        "`export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1`, or start ranks with `carousel "
        "launch` or "
        "launcher/scripts/mpirun.sh, which do that; or be another user.";
    return row;
  }
  if (facts.tried && (!facts.trial.started || facts.trial.timed_out || facts.trial.exit_code != 0)) {
    row.status = PreflightStatus::kWarning;
    row.finding = absl::StrCat(
        found, ", but `mpirun -np 1 true` ",
        facts.trial.timed_out ? "does not end" : absl::StrCat("ends with code ", facts.trial.exit_code),
        facts.trial.output.empty() ? "" : absl::StrCat(": ", FirstLine(facts.trial.output)));
    row.fix = "Run it by hand: `mpirun -np 1 true` prints all of what is wrong.";
    return row;
  }
  row.finding = absl::StrCat(found, facts.tried ? ", works for this user" : "", "; starts ", facts.cores,
                             facts.cores == 1 ? " rank" : " ranks", " here, one for each core",
                             facts.oversubscribe ? ", and more if asked" : ", more with --oversubscribe");
  return row;
}
}  // namespace carousel
