#include "launcher/train/resume_command.h"

#include <fstream>
#include <iterator>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"

namespace carousel {
namespace {
bool IsPlain(const std::string& word) {
  constexpr char kPlain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./:=,+@%";
  return !word.empty() && word.find_first_not_of(kPlain) == std::string::npos;
}

std::string Quoted(const std::string& word) {
  return IsPlain(word) ? word : absl::StrCat("'", absl::StrReplaceAll(word, {{"'", "'\\''"}}), "'");
}
}  // namespace

std::vector<std::string> ProcessArguments() {
  std::ifstream file("/proc/self/cmdline", std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(file)), {});
  if (!text.empty() && text.back() == '\0') text.pop_back();
  return absl::StrSplit(text, '\0');
}

std::string ResumeCommand(const std::vector<std::string>& arguments, const std::string& launcher,
                          int64_t size, bool launched) {
  if (launched) return "the same `carousel launch` command";
  std::string command, after;
  if (absl::StartsWith(launcher, "srun")) {
    command = absl::StrCat("srun --mpi=pmix -n ", size, " ");
  } else if (absl::StartsWith(launcher, "mpi")) {
    command = absl::StrCat("mpirun -np ", size, " ");
  } else if (size > 1) {
    after = " (on every rank)";
  }
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (arguments[i] == "--fresh" || arguments[i] == "--from_good") continue;
    absl::StrAppend(&command, i > 0 ? " " : "", Quoted(arguments[i]));
  }
  return command + after;
}
}  // namespace carousel
